"""Platforms on stand-ins for the kernel's file trees."""

from __future__ import annotations

import dataclasses
import json
import struct
from pathlib import Path

import pytest

from attest import eventlog, os_image, quote, vm_config
from attest.eventlog import Event
from attest.verified import verify_evidence
from core.errors import Invalid, Unsupported
from guest import settings, tee
from guest.events import EventLog
from guest.evidence import Evidence
from guest.settings import Settings
from guest.tee import NoTee, SevSnp, Simulated, SimulatedSnp, Tdx
from tests.common import evidence
from tests.unit.guest.kernel import Configfs

SEED = json.dumps({"platform": "dstack-tdx", "seed": "11" * 32})


@pytest.fixture
def guest(tmp_path: Path) -> Settings:
    """A real guest's settings on a tree without any TEE."""
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text("processor : 0\nflags\t: fpu vme\n")
    (tmp_path / "state").mkdir()
    return dataclasses.replace(
        settings.GUEST,
        root=tmp_path,
        tee_seed=tmp_path / ".tee-simulator.json",
        state=tmp_path / "state",
    )


def set_flags(guest: Settings, flags: str) -> None:
    (guest.root / "proc/cpuinfo").write_text(f"processor : 0\nflags\t: fpu {flags} vme\n")


def test_a_vm_without_a_tee_says_so_when_asked_for_a_quote(guest: Settings) -> None:
    platform = tee.detect(guest)

    assert isinstance(platform, NoTee)
    with pytest.raises(Invalid, match="no TEE"):
        platform.quote(bytes(64))


def test_the_simulator_is_taken_only_where_there_is_no_real_tee(guest: Settings) -> None:
    guest.tee_seed.write_text(SEED)
    assert isinstance(tee.detect(guest), Simulated)

    set_flags(guest, "tdx_guest")
    assert isinstance(tee.detect(guest), Tdx)

    set_flags(guest, "")
    (guest.root / "dev").mkdir()
    (guest.root / "dev/sev-guest").touch()
    assert isinstance(tee.detect(guest), SevSnp)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"platform": "dstack-tdx", "seed": "00"}', '{"platform": "x", "seed": ""}']
    + ['{"platform": "dstack-amd-sev-snp", "seed": "' + "11" * 32 + '"}']
    + ['{"platform": "dstack-tdx", "seed": 5}', "[" * 100_000],
)
def test_a_broken_simulator_file_is_refused(guest: Settings, text: str) -> None:
    guest.tee_seed.write_text(text)

    with pytest.raises(Invalid):
        tee.detect(guest)


@pytest.fixture
def configfs(tmp_path: Path) -> Configfs:
    return Configfs(tmp_path / "report")


def test_a_report_is_asked_for_in_an_entry_of_its_own_that_is_removed(configfs: Configfs) -> None:
    reports = configfs.reports()

    first, second = reports.report(b"a" * 64), reports.report(b"b" * 64)

    assert first[0].startswith(b"report of casemate-") and first[0] != second[0]
    assert first[1] == b"certificates"
    assert configfs.asked == [b"a" * 64, b"b" * 64]
    assert list(configfs.folder.iterdir()) == []


def test_snp_gives_report_and_certificates_and_measures_nothing(configfs: Configfs) -> None:
    platform = SevSnp(configfs.reports())

    assert platform.quote(bytes(64)).startswith(b"report of")
    assert platform.certificates(bytes(64)) == ()  # what the stand-in gives is no table
    platform.extend(3, bytes(48))
    assert (platform.read_registers(), platform.boot_events()) == ((), ())


def test_tdx_extends_and_reads_through_the_kernels_files(
    configfs: Configfs, tmp_path: Path, vectors: Path
) -> None:
    for imr in range(4):
        (tmp_path / f"rtmr{imr}:sha384").write_bytes(bytes([imr]) * 48)
    platform = Tdx(configfs.reports(), tmp_path, vectors / "ccel.bin")

    platform.extend(3, b"d" * 48)

    assert platform.quote(bytes(64)).startswith(b"report of")
    assert platform.read_registers()[:3] == tuple(bytes([imr]) * 48 for imr in range(3))
    assert (tmp_path / "rtmr3:sha384").read_bytes() == b"d" * 48
    assert len(platform.boot_events()) == 18


def test_a_kernel_that_cannot_extend_says_which_can(configfs: Configfs, tmp_path: Path) -> None:
    platform = Tdx(configfs.reports(), tmp_path / "none", tmp_path / "CCEL")

    with pytest.raises(Unsupported, match=r"6\.16"):
        platform.extend(3, bytes(48))


def test_a_simulated_quote_carries_report_data_and_registers(tmp_path: Path) -> None:
    platform = Simulated(bytes(32), tmp_path / "registers")
    platform.reset()
    platform.extend(3, b"d" * 48)

    report = quote.parse(platform.quote(b"x" * 64)).report

    assert report.report_data == b"x" * 64
    assert report.rtmrs == platform.read_registers()
    assert report.rtmrs[3] == eventlog.extend(bytes(48), b"d" * 48)
    events: tuple[Event, ...] = platform.boot_events()
    assert [eventlog.replay(events, imr) for imr in range(3)] == list(report.rtmrs[:3])
    assert (tmp_path / "registers").stat().st_mode & 0o777 == 0o600


def test_a_simulated_guest_was_launched_from_the_image_that_its_host_describes(
    guest: Settings,
) -> None:
    described = evidence.vm_config()
    guest.tee_seed.write_text(SEED)
    guest = dataclasses.replace(guest, sys_config=guest.state / ".sys-config.json")
    guest.sys_config.write_text(json.dumps({"vm_config": described}))
    platform = tee.detect(guest)
    assert isinstance(platform, Simulated)
    platform.reset()

    report = quote.parse(platform.quote(bytes(64))).report

    os_image.check_tdx(report, platform.boot_events(), vm_config.parse(described), None)
    assert report.mrtd == evidence.MEASURED.mrtd_single_pass


def simulated_snp(guest: Settings, document: str, described: str) -> SimulatedSnp:
    text = evidence.processor().to_text()
    guest.tee_seed.write_text(json.dumps({"platform": "dstack-amd-sev-snp", "processor": text}))
    guest = dataclasses.replace(guest, sys_config=guest.state / ".sys-config.json")
    told = {"vm_config": described, "mr_config": document}
    guest.sys_config.write_text(json.dumps(told))
    platform = tee.detect(guest)
    assert isinstance(platform, SimulatedSnp)
    return platform


def test_a_simulated_snp_guest_reports_its_image_and_its_hosts_document(guest: Settings) -> None:
    platform = simulated_snp(guest, evidence.DOCUMENT, evidence.snp_config())
    platform.extend(3, bytes(48))
    log = EventLog(guest.state / "log", guest.state / "lock", platform)
    proof = Evidence(platform, log, evidence.snp_config(), evidence.DOCUMENT)

    known = verify_evidence(proof.attestation(b"x" * 64), evidence.trust())

    assert (known.reason, known.root, known.os_image_hash_verified) == (None, "simulated", True)
    assert known.report_data == b"x" * 64
    assert known.app_info is not None and known.app_info.app_id == evidence.APP_ID
    assert proof.measurements().device_id == known.app_info.device_id
    assert proof.measurements().mr_aggregated == known.app_info.mr_aggregated
    assert (platform.read_registers(), platform.boot_events()) == ((), ())


def test_a_simulated_snp_guest_is_refused_by_who_trusts_amd_alone(guest: Settings) -> None:
    platform = simulated_snp(guest, evidence.DOCUMENT, evidence.snp_config())
    log = EventLog(guest.state / "log", guest.state / "lock", platform)
    proof = Evidence(platform, log, evidence.snp_config(), evidence.DOCUMENT)

    known = verify_evidence(proof.attestation(bytes(64)), evidence.trust(snp_root=None))

    assert not known.is_valid and not known.quote_verified


def test_a_snp_guest_reads_the_certificates_of_its_hosts_table(configfs: Configfs) -> None:
    one, two = b"first", b"the second"
    head = 3 * 24
    entries = [
        (b"a" * 16, head, len(one)),
        (b"b" * 16, head + len(one), len(two)),
        (bytes(16), 0, 0),
    ]
    table = b"".join(struct.pack("<16sII", *entry) for entry in entries)

    configfs.table = table + one + two

    assert SevSnp(configfs.reports()).certificates(bytes(64)) == (one, two)
