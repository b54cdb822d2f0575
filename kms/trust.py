"""What evidence of others is judged by: roots, collateral and images that the configuration names.

Source: kms.md section 8 (`[core.attestation]`, `[core.image]`).
"""

from __future__ import annotations

import logging
import time
from pathlib import Path

from attest import collateral
from attest.collateral import Source
from attest.root import Roots, read_roots
from attest.verified import Trust
from core.errors import Invalid
from kms import images
from kms.settings import NONE, AttestationSettings, RootCas, Settings

logger = logging.getLogger(__name__)


class Trusting:
    """Makes a Trust for each verification: the time and the collateral are always today's."""

    def __init__(self, settings: Settings) -> None:
        given = settings.core.attestation
        self._roots = _roots(given.root_ca)
        self._collateral = _collateral(given)
        self._image = images.finder(settings.core.image)
        self._check_image = settings.core.image.verify

    def now(self) -> Trust:
        """The rules as of this moment."""
        return Trust(
            now=int(time.time()),
            collateral=self._collateral,
            tdx_root=self._roots.tdx,
            snp_root=self._roots.snp,
            image=self._image,
            check_image=self._check_image,
        )


def _roots(given: RootCas) -> Roots:
    return Roots(tdx=_root("tdx", given.tdx).tdx, snp=_root("snp", given.snp).snp)


def _root(platform: str, path: Path) -> Roots:
    if path == NONE:
        return Roots()
    name = f"core.attestation.root_ca.{platform}"
    try:
        found = read_roots(path.read_bytes())
    except (OSError, Invalid) as error:
        raise Invalid.field(name, str(error)) from None
    if getattr(found, platform) is None:
        raise Invalid.field(name, "holds no root of that platform")
    logger.warning("keys are given to whatever leads to %s instead of the vendor's root", path)
    return found


def _collateral(given: AttestationSettings) -> Source:
    if given.tdx_collateral != NONE:
        return collateral.file(given.tdx_collateral)
    if given.pccs_url or given.kds_url:
        return collateral.service(given.pccs_url, given.kds_url)
    return collateral.nowhere
