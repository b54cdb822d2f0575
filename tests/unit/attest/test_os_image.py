from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from attest import lite, os_image, quote, snp_launch, vm_config
from attest.errors import Malformed, Mismatch
from attest.evidence import TdxEvidence
from attest.os_image import KnownImage
from tests.common import evidence
from tests.common.evidence import MEASURED, SNP_MEASURED, TdxVm

OWN = KnownImage("1.0.0", False, lite.encode(MEASURED), snp_launch.encode(SNP_MEASURED))
LAUNCHED = snp_launch.digest(SNP_MEASURED, 2, "EPYC-v4", 1)


def check(image: KnownImage | None = None, **changes: Any) -> None:
    """Checks the quote of an unchanged VM against a changed vm_config."""
    platform = TdxVm().attestation().platform
    assert isinstance(platform, TdxEvidence)
    config = vm_config.parse(evidence.vm_config(**changes))
    os_image.check_tdx(quote.parse(platform.quote).report, platform.event_log, config, image)


def check_snp(image: KnownImage | None = None, **changes: Any) -> None:
    os_image.check_snp(LAUNCHED, vm_config.parse(evidence.snp_config(**changes)), image)


def test_a_vm_of_the_image_that_its_hash_names_passes() -> None:
    check()
    check_snp()


def test_the_verifiers_own_image_stands_in_for_a_measurement_that_was_not_sent() -> None:
    check(OWN, tdx_measurement=None)
    launched = {"vcpus": 2, "vcpu_type": "EPYC-v4", "guest_features": 1}
    check_snp(OWN, sev_snp_measurement=json.dumps(launched))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"os_image_hash": None}, "no os_image_hash"),
        ({"os_image_hash": "00" * 32}, "not the one that os_image_hash names"),
        ({"tdx_measurement": None}, "does not have the image"),
        ({"memory_size": 4 * 1024**3}, "RTMR0 of the quote"),
        ({"qemu_version": "8.2.0"}, "MRTD of the quote"),
    ],
)
def test_a_vm_that_its_host_describes_wrongly_is_refused(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(Mismatch, match=why):
        check(**changes)


def proven(files: dict[str, bytes], name: str = lite.FILE) -> dict[str, Any]:
    sums = evidence.checksums(files)
    described = evidence.proof(files, name)
    return {
        "os_image_hash": hashlib.sha256(sums).hexdigest(),
        "tdx_measurement": described,
    }


def test_another_image_is_refused() -> None:
    from dataclasses import replace

    for imr, other in (
        (1, replace(MEASURED, kernel=bytes(48))),
        (2, replace(MEASURED, initrd=bytes(48))),
    ):
        with pytest.raises(Mismatch, match=f"RTMR{imr} of the quote"):
            check(**proven({lite.FILE: lite.encode(other)}))


def test_a_measurement_that_the_checksum_file_does_not_list_is_refused() -> None:
    files = {"other": lite.encode(MEASURED)}

    with pytest.raises(Mismatch, match=r"lists another measurement\.tdx\.cbor"):
        check(**proven(files, "other"))


def test_another_launch_measurement_is_refused() -> None:
    config = vm_config.parse(evidence.snp_config())

    with pytest.raises(Mismatch, match="measurement of the report"):
        os_image.check_snp(bytes(48), config, None)
    with pytest.raises(Mismatch, match="no sev_snp_measurement"):
        check_snp(sev_snp_measurement=None)


def test_a_checksum_file_lists_each_file_once() -> None:
    line = b"ab" * 32 + b"  one\n"

    assert os_image.listed(line, "one") == "ab" * 32
    assert os_image.listed(b"ab" * 32 + b" *./one\n", "one") == "ab" * 32
    assert os_image.listed(line, "two") == ""
    with pytest.raises(Malformed, match="twice"):
        os_image.listed(line + line, "one")
    with pytest.raises(Malformed, match="a line that is not"):
        os_image.listed(b"one", "one")
