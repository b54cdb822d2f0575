from __future__ import annotations

import json

import pytest

from attest import eventlog, lite, snp_launch
from attest_sim.launch import SNP_MEASUREMENT, Launch, of_snp_vm, of_vm
from attest_sim.tdx import SIMULATED_MRTD, boot_events
from tests.common.evidence import MEASURED, SNP_MEASURED, snp_config, vm_config


def test_a_vm_is_launched_from_its_images_measurement() -> None:
    launched = of_vm(vm_config())

    assert launched.mrtd == MEASURED.mrtd_single_pass
    registers = lite.registers(
        MEASURED, 2 * 1024**3, lite.acpi_digests(launched.events), single_pass=True
    )
    assert tuple(eventlog.replay(launched.events, imr) for imr in range(3)) == registers.rtmrs


def test_the_log_keeps_the_order_and_the_names_of_real_firmware() -> None:
    launched, fixed = of_vm(vm_config()), boot_events()

    assert [(e.imr, e.event_type, e.event) for e in launched.events] == [
        (e.imr, e.event_type, e.event) for e in fixed
    ]
    assert lite.acpi_digests(launched.events) == lite.acpi_digests(fixed)


def test_an_older_qemu_gives_another_mrtd() -> None:
    assert of_vm(vm_config(qemu_version="7.2.0")).mrtd == MEASURED.mrtd_two_pass


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        vm_config(tdx_measurement=None),
        json.dumps({"tdx_measurement": {"checksum_file": "", "measurement": ""}}),
        vm_config(memory_size=1),
    ],
)
def test_a_text_that_describes_no_image_has_the_fixed_launch(text: str) -> None:
    assert of_vm(text) == Launch(SIMULATED_MRTD, boot_events())


def test_a_sev_snp_vm_is_launched_from_its_images_measurement_or_from_none() -> None:
    assert of_snp_vm(snp_config()) == snp_launch.digest(SNP_MEASURED, 2, "EPYC-v4", 1)
    for text in ("", "{", snp_config(sev_snp_measurement=None), vm_config()):
        assert of_snp_vm(text) == SNP_MEASUREMENT
