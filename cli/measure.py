"""`casemate measure`: what a TEE measures of a VM that runs an image, computed from the image's files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from image.registry import Image

MIB = 1024**2


@click.command()
@click.argument("image", type=click.Path(path_type=Path, file_okay=False, exists=True))
@click.option("--cpu", type=click.IntRange(1, 512), default=1, show_default=True, help="Number.")
@click.option("--memory", type=click.IntRange(64), default=2048, show_default=True, help="MiB.")
@click.option(
    "--event-log",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="A VM's event log (JSON), for the ACPI digests in RTMR0.",
)
def measure(image: Path, cpu: int, memory: int, event_log: Path | None) -> None:
    """Print the measurements of a VM with the image in the folder IMAGE, as JSON.

    RTMR0 holds digests of ACPI tables that only QEMU makes: it is null without an event log to take them from.
    MRTD has two values: QEMU 9.0 and later add the firmware in a single pass, older ones in two.
    """
    from image.registry import load

    found = load(image.absolute().parent, image.absolute().name)
    said = {
        "os_image_hash": found.digest,
        "tdx": _tdx(found, memory * MIB, event_log),
        "sev_snp": _snp(found, cpu),
    }
    click.echo(json.dumps(said, indent=2))


def _tdx(image: Image, memory_size: int, event_log: Path | None) -> dict[str, object] | None:
    from attest import eventlog, lite

    if image.bios is None:
        return None
    measured = lite.measure(
        image.kernel.read_bytes(),
        image.initrd.read_bytes(),
        image.cmdline,
        image.bios.read_bytes(),
        memory_size,
    )
    events = eventlog.from_json(event_log.read_text(errors="replace")) if event_log else ()
    acpi = lite.acpi_digests(events) if event_log else [bytes(48)] * 3
    rtmrs = lite.registers(measured, memory_size, acpi, single_pass=True).rtmrs
    return {
        "mrtd_single_pass": measured.mrtd_single_pass.hex(),
        "mrtd_two_pass": measured.mrtd_two_pass.hex(),
        "rtmr0": rtmrs[0].hex() if event_log else None,
        "rtmr1": rtmrs[1].hex(),
        "rtmr2": rtmrs[2].hex(),
    }


def _snp(image: Image, cpu: int) -> dict[str, object] | None:
    from attest import snp_launch
    from vmm.machine import SNP_CPU, SNP_FEATURES

    if image.bios_sev is None:
        return None
    measured = snp_launch.measure(
        image.kernel.read_bytes(),
        image.initrd.read_bytes(),
        image.cmdline,
        image.bios_sev.read_bytes(),
    )
    return {"measurement": snp_launch.digest(measured, cpu, SNP_CPU, SNP_FEATURES).hex()}
