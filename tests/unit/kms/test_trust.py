"""Roots, collateral and images that the configuration names."""

from __future__ import annotations

from pathlib import Path

import pytest

from attest import collateral
from attest_sim.tdx import SimulatedPlatform
from core.errors import Invalid
from kms.settings import AttestationSettings, CoreSettings, ImageSettings, RootCas, Settings
from kms.trust import Trusting
from tests.common import rows


def trusting(given: AttestationSettings, **image: object) -> Trusting:
    core = CoreSettings(attestation=given, image=ImageSettings(**image))  # type: ignore[arg-type] # by name
    return Trusting(Settings(core=core))


def test_the_vendors_roots_are_trusted_unless_others_are_named(
    tmp_path: Path, platform: SimulatedPlatform
) -> None:
    (tmp_path / "root.pem").write_text(platform.root_ca_pem)

    vendor = trusting(AttestationSettings()).now()
    named = trusting(AttestationSettings(RootCas(tmp_path / "root.pem"), True)).now()

    assert vendor.tdx_root is vendor.snp_root is named.snp_root is None
    assert named.tdx_root == platform.root_ca_der
    assert vendor.check_image


def test_a_root_that_is_none_is_refused(tmp_path: Path, platform: SimulatedPlatform) -> None:
    (tmp_path / "broken.pem").write_text("broken")
    (tmp_path / "root.pem").write_text(platform.root_ca_pem)
    for cas, reason in (
        (RootCas(tmp_path / "broken.pem"), "root_ca.tdx"),
        (RootCas(tmp_path / "none.pem"), "root_ca.tdx"),
        (RootCas(snp=tmp_path / "root.pem"), "root_ca.snp: holds no root of that platform"),
    ):
        with pytest.raises(Invalid, match=reason):
            trusting(AttestationSettings(cas, True))


def test_collateral_comes_from_a_file_or_a_service_or_nowhere(tmp_path: Path) -> None:
    file = trusting(AttestationSettings(tdx_collateral=tmp_path / "c.json")).now().collateral
    service = trusting(AttestationSettings(pccs_url="https://pccs.example")).now().collateral

    assert file.__qualname__.startswith(collateral.file.__qualname__)  # type: ignore[attr-defined] # functions
    assert service.__qualname__.startswith(collateral.service.__qualname__)  # type: ignore[attr-defined] # as above
    assert trusting(AttestationSettings()).now().collateral is collateral.nowhere


def test_images_are_looked_for_in_the_local_folder(tmp_path: Path) -> None:
    image = rows.image(tmp_path)
    find = trusting(AttestationSettings(), local_dir=tmp_path).now().image

    found = find(bytes.fromhex(image.digest))

    assert found is not None and found.version == image.version
    assert find(bytes(32)) is None
    assert trusting(AttestationSettings()).now().image(bytes.fromhex(image.digest)) is None

    assert not trusting(AttestationSettings(), verify=False).now().check_image
