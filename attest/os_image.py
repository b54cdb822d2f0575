"""Whether a VM runs the image that its os_image_hash names, by computing its measurements again.

Source: attestation.md sections 3 and 5.  The hash is that of sha256sum.txt, which lists the measurement file.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from attest import lite, snp_launch
from attest.errors import Malformed, Mismatch
from attest.eventlog import Event
from attest.quote import TdReport
from attest.vm_config import Proof, SnpVm, VmConfig

_LINE = re.compile(rb"([0-9a-f]{64}) [ *](?:\./)?([A-Za-z0-9._-]+)")


@dataclass(frozen=True)
class KnownImage:
    """An image that the verifier has itself: what it is called, and its measurement files if it has any."""

    version: str
    is_dev: bool
    tdx: bytes | None = field(default=None, repr=False)
    snp: bytes | None = field(default=None, repr=False)


def check_tdx(
    report: TdReport, events: Sequence[Event], config: VmConfig, image: KnownImage | None
) -> None:
    """Refuses (Mismatch) a TD whose MRTD or RTMR0 to 2 are not those of its image; Malformed if unreadable."""
    raw = _measurement(config, config.tdx, image.tdx if image else None, lite.FILE)
    acpi = lite.acpi_digests(events)
    measured = _registers(raw, config.memory_size, acpi, config.single_pass)
    if measured.mrtd != report.mrtd:
        raise Mismatch("MRTD of the quote is not that of the os image's firmware")
    for imr, value in enumerate(measured.rtmrs):
        if value != report.rtmrs[imr]:
            raise Mismatch(
                f"RTMR{imr} of the quote is not that of the os image with this memory size"
            )


# The VMs of one image and one memory size share them; computing them is half of the check.
@functools.lru_cache(maxsize=16)
def _registers(
    raw: bytes, memory_size: int, acpi: tuple[bytes, ...], single_pass: bool
) -> lite.Registers:
    return lite.registers(lite.decode(raw), memory_size, acpi, single_pass=single_pass)


def check_snp(measurement: bytes, config: VmConfig, image: KnownImage | None) -> None:
    """Refuses (Mismatch) a SEV-SNP VM whose launch measurement is not that of its image."""
    vm = config.snp
    if vm is None:
        raise Mismatch("the os image cannot be checked: vm_config has no sev_snp_measurement")
    raw = _measurement(config, vm.proof, image.snp if image else None, snp_launch.FILE)
    if _launched(raw, vm) != measurement:
        raise Mismatch("the measurement of the report is not that of the os image")


def _launched(raw: bytes, vm: SnpVm) -> bytes:
    return snp_launch.digest(snp_launch.decode(raw), vm.vcpus, vm.vcpu_type, vm.guest_features)


def _measurement(config: VmConfig, proof: Proof | None, known: bytes | None, name: str) -> bytes:
    """The image's measurement file: from the evidence, if bound to os_image_hash, else the verifier's own."""
    if not config.os_image_hash:
        raise Mismatch("the os image cannot be checked: vm_config has no os_image_hash")
    if proof is None:
        if known is None:
            raise Mismatch(
                "the os image cannot be checked: vm_config carries no measurement of it, "
                "and this verifier does not have the image"
            )
        return known
    if hashlib.sha256(proof.checksum_file).digest() != config.os_image_hash:
        raise Mismatch("the checksum file in vm_config is not the one that os_image_hash names")
    if listed(proof.checksum_file, name) != hashlib.sha256(proof.measurement).hexdigest():
        raise Mismatch(f"the checksum file in vm_config lists another {name}")
    return proof.measurement


def listed(checksum_file: bytes, name: str) -> str:
    """The digest (hex) that a sha256sum.txt has for a file, empty when it has none; Malformed when broken."""
    found = ""
    for line in checksum_file.splitlines():
        match = _LINE.fullmatch(line)
        if not match:
            raise Malformed("the checksum file in vm_config has a line that is not `DIGEST  NAME`")
        if match[2] == name.encode():
            if found:
                raise Malformed(f"the checksum file in vm_config lists {name} twice")
            found = match[1].decode()
    return found
