"""What evidence of others is judged by: roots, collateral and images that the configuration names.

Source: kms.md section 8 (`[core.attestation]`, `[core.image]`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from attest.errors import NotGenuine
from attest.snp import Report
from attest.verified import Trust
from attest.verify import Claim
from core.errors import Invalid
from kms import images
from kms.settings import NONE, AttestationSettings, Settings

logger = logging.getLogger(__name__)


class Trusting:
    """Makes a Trust for each verification: the time and the collateral are always today's."""

    def __init__(self, settings: Settings) -> None:
        self._given = settings.core.attestation
        self._image = images.finder(settings.core.image)
        self._check_image = settings.core.image.verify
        self._root = _root(self._given.root_ca.tdx)

    def now(self) -> Trust:
        """The rules as of this moment."""
        return Trust(
            now=int(time.time()),
            collateral=_collateral(self._given),
            tdx_root=self._root,
            image=self._image,
            check_image=self._check_image,
        )


def _root(path: Path) -> bytes | None:
    if path == NONE:
        return None
    try:
        root = x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise Invalid.field("core.attestation.root_ca.tdx", str(error)) from None
    name = root.subject.rfc4514_string()
    logger.warning("keys are given to whatever leads to the configured root %s", name)
    return root.public_bytes(Encoding.DER)


def _collateral(given: AttestationSettings) -> Callable[[Claim | Report], str]:
    def ask(claim: Claim | Report) -> str:
        if given.tdx_collateral == NONE:
            raise NotGenuine("no collateral is configured (core.attestation.tdx_collateral)")
        try:
            return given.tdx_collateral.read_text()
        except (OSError, UnicodeDecodeError):
            raise NotGenuine("the configured collateral cannot be read") from None

    return ask
