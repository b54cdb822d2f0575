"""What a simulated VM has measured before its own code runs: from its image where that was measured.

Source: attestation.md section 2, registers.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace

from attest import lite, snp_launch, vm_config
from attest.errors import VerificationError
from attest.eventlog import Event
from attest_sim.tdx import SIMULATED_MRTD, boot_events

SNP_MEASUREMENT = hashlib.sha384(b"simulated SEV-SNP launch").digest()


@dataclass(frozen=True)
class Launch:
    """MRTD (48 bytes) and the entries of RTMR0 to 2; by default the fixed ones of a VM without an image."""

    mrtd: bytes = SIMULATED_MRTD
    events: tuple[Event, ...] = field(default_factory=boot_events)


def of_vm(text: str) -> Launch:
    """The launch of the VM that a vm_config text describes: of its `tdx_measurement`, by the lite rules.

    A text that describes no image has the fixed launch, which no verifier takes for an image's.
    """
    fixed = Launch()
    try:
        config = vm_config.parse(text)
        if config.tdx is None:
            return fixed
        measurement = lite.decode(config.tdx.measurement)
        logs = lite.logs(measurement, config.memory_size, lite.acpi_digests(fixed.events))
    except VerificationError:
        return fixed
    left = [iter(digests) for digests in logs]
    events = tuple(replace(event, digest=next(left[event.imr])) for event in fixed.events)
    return Launch(measurement.mrtd(single_pass=config.single_pass), events)


def of_snp_vm(text: str) -> bytes:
    """The launch measurement (48 bytes) of the VM that a vm_config text describes, else a fixed one likewise."""
    try:
        vm = vm_config.parse(text).snp
        if vm is None or vm.proof is None:
            return SNP_MEASUREMENT
        measured = snp_launch.decode(vm.proof.measurement)
        return snp_launch.digest(measured, vm.vcpus, vm.vcpu_type, vm.guest_features)
    except VerificationError:
        return SNP_MEASUREMENT
