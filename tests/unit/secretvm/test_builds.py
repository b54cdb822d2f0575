from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from attest import artifacts, eventlog, lite
from attest.artifacts import Registry, TdxBuild
from attest.errors import Malformed
from attest.eventlog import Event, runtime_event
from attest_sim import launch
from core.errors import Invalid, NotFound
from image import manifest
from secretvm import builds
from secretvm.builds import Builds, SevClaim, TdxClaim
from tests.common.evidence import MEASURED
from tests.unit.attest.test_artifacts import COMPOSE, REGISTERS, ROOTFS, sev_json

APP_ID = b"\x0a" * 20
FILES = b"\x09" * 32
SIZES = {"2gb": "small"}


def published(**changes: Any) -> TdxBuild:
    build = TdxBuild("medium", "prod", "v0.0.25", REGISTERS, ROOTFS, b"\xab" * 48)
    return dataclasses.replace(build, **changes)


def of(*known: TdxBuild, images: Path = Path("/nowhere"), acpi: tuple[bytes, ...] = ()) -> Builds:
    registry = Registry(known, artifacts.parse("sev.json", sev_json()).sev)
    return Builds(lambda: registry, images, SIZES, acpi)


def claim(**changes: Any) -> TdxClaim:
    whole = TdxClaim(COMPOSE, REGISTERS, artifacts.rtmr3(COMPOSE, ROOTFS))
    return dataclasses.replace(whole, **changes)


def test_the_build_whose_rootfs_was_measured_is_found_among_equal_ones() -> None:
    others = [published(version=f"v0.0.{n}", rootfs=bytes([n]) * 32) for n in (7, 26)]
    found = of(others[0], published(), others[1]).check_tdx(claim())

    assert (found.code, found.size, found.build) == ("", "medium", published())


def test_both_schemes_count_with_and_without_docker_files() -> None:
    known = of(published())

    for files in (b"", FILES):
        original = claim(rtmr3=artifacts.rtmr3(COMPOSE, ROOTFS, files), docker_files=files)
        dstack = claim(
            rtmr3=artifacts.dstack_rtmr3(APP_ID, COMPOSE, ROOTFS, files),
            docker_files=files,
            app_id=APP_ID,
        )
        assert [known.check_tdx(each).code for each in (original, dstack)] == ["", ""]
        assert known.check_tdx(original).docker_files == files
    alone = claim(rtmr3=artifacts.dstack_rtmr3(APP_ID, COMPOSE, ROOTFS))
    assert "dstack_app_id" in known.check_tdx(alone).message


def test_a_compose_file_in_a_page_counts_as_what_it_shows() -> None:
    page = b"<pre>services: {a: {image: b}}\n</pre>"

    assert of(published()).check_tdx(claim(compose=page)).code == ""


def test_another_compose_file_is_a_mismatch_with_what_was_expected() -> None:
    found = of(published()).check_tdx(claim(compose=b"other"))

    assert (found.code, found.build) == ("MISMATCH", published())
    assert found.expected == artifacts.rtmr3(b"other", ROOTFS)


def test_registers_that_nobody_knows_are_no_known_build() -> None:
    unknown = (*REGISTERS[:3], bytes(48))

    assert of(published()).check_tdx(claim(registers=unknown)).code == "UNKNOWN_IMAGE"
    with pytest.raises(NotFound):
        of(published()).resolve(unknown)


def test_the_newest_build_is_answered_and_all_are_named() -> None:
    older, newer = published(version="v0.0.9"), published(version="v0.0.10", rootfs=bytes(32))

    assert of(older, newer).resolve(REGISTERS) == (newer, older)


# VMs of this host


@dataclasses.dataclass(frozen=True)
class OwnVm:
    """A simulated VM of an image of this host: what it measured, and where the image lies."""

    folder: Path
    digest: bytes
    app: dict[str, Any] = dataclasses.field(
        default_factory=lambda: {"name": "a", "docker_compose_file": COMPOSE.decode()}
    )
    memory: int = 2

    @property
    def app_compose(self) -> str:
        return json.dumps(self.app)

    def events(self, **changes: bytes) -> tuple[Event, ...]:
        boot = launch.Launch().events
        logs = lite.logs(MEASURED, self.memory * 1024**3, lite.acpi_digests(boot))
        left = [iter(digests) for digests in logs]
        measured = {
            "app-id": APP_ID,
            "compose-hash": hashlib.sha256(self.app_compose.encode()).digest(),
            "os-image-hash": self.digest,
            "system-ready": b"",
            **{name.replace("_", "-"): value for name, value in changes.items()},
        }
        return (
            *(dataclasses.replace(event, digest=next(left[event.imr])) for event in boot),
            *(runtime_event(name, payload) for name, payload in measured.items()),
        )

    def claim(self, events: tuple[Event, ...] = (), **changes: Any) -> TdxClaim:
        log = events or self.events()
        values = [eventlog.replay(log, imr) for imr in range(4)]
        whole = TdxClaim(
            COMPOSE,
            (MEASURED.mrtd(single_pass=True), *values[:3]),
            values[3],
            event_log=eventlog.to_json(log),
            app_compose=self.app_compose,
        )
        return dataclasses.replace(whole, **changes)


@pytest.fixture
def vm(tmp_path: Path) -> OwnVm:
    folder = tmp_path / "images/own-0.5.4"
    folder.mkdir(parents=True)
    for name in ("bzImage", "initrd"):
        (folder / name).write_bytes(name.encode())
    (folder / lite.FILE).write_bytes(lite.encode(MEASURED))
    metadata = {"name": "own", "version": "0.5.4", "kernel": "bzImage", "initrd": "initrd"}
    digest = manifest.write(folder, metadata, ["bzImage", "initrd", lite.FILE])
    return OwnVm(folder.parent, bytes.fromhex(digest))


def acpi() -> tuple[bytes, ...]:
    return lite.acpi_digests(launch.Launch().events)


def test_a_vm_of_this_host_is_found_out_by_its_log(vm: OwnVm) -> None:
    found = of(images=vm.folder).check_tdx(vm.claim())

    assert found.code == "", found.message
    assert isinstance(found.build, TdxBuild)
    assert (found.size, found.build.environment, found.build.version) == ("small", "prod", "0.5.4")


def test_memory_without_a_name_is_told_as_it_is(vm: OwnVm) -> None:
    larger = dataclasses.replace(vm, memory=13)

    assert of(images=vm.folder).check_tdx(larger.claim()).size == "13gb"


def test_without_its_log_such_a_vm_is_a_mismatch_that_says_what_to_send(vm: OwnVm) -> None:
    alone = vm.claim(event_log="", app_compose="")

    found = of(images=vm.folder, acpi=acpi()).check_tdx(alone)
    assert (found.code, found.expected) == ("MISMATCH", None)
    assert "event_log and app_compose" in found.message


def test_such_a_build_is_resolved_where_its_hosts_acpi_data_are_known(vm: OwnVm) -> None:
    registers = vm.claim().registers

    assert of(images=vm.folder, acpi=acpi()).resolve(registers)[0].size == "small"
    with pytest.raises(NotFound):
        of(images=vm.folder).resolve(registers)


def test_everything_in_a_log_must_fit(vm: OwnVm) -> None:
    known = of(images=vm.folder)
    other = dataclasses.replace(vm, app={**vm.app, "docker_compose_file": "other"})
    cases = [
        (vm.claim(rtmr3=bytes(48)), "adds up to another rtmr3"),
        (vm.claim(app_compose=other.app_compose), "compose-hash"),
        (other.claim(), "another docker_compose_file"),
        (vm.claim(docker_files=FILES), "other docker files"),
        (vm.claim(vm.events(os_image_hash=bytes(32))), "another image"),
        (vm.claim(vm.events(compose_hash=bytes(32))), "compose-hash"),
    ]
    for asked, why in cases:
        found = known.check_tdx(asked)
        assert (found.code, found.build is not None) == ("MISMATCH", True), why
        assert why in found.message


def test_an_event_that_the_app_forges_after_the_boot_is_not_looked_at(vm: OwnVm) -> None:
    wrong = dataclasses.replace(vm, app={**vm.app, "docker_compose_file": "other"})
    forged = (*wrong.events(), runtime_event("compose-hash", vm.events()[-3].event_payload))

    assert of(images=vm.folder).check_tdx(vm.claim(forged)).code == "MISMATCH"


def test_docker_files_are_told_by_the_measured_document(vm: OwnVm) -> None:
    app = {**vm.app, "secretvm": {"docker_files_sha256": FILES.hex()}}
    with_files = dataclasses.replace(vm, app=app)

    found = of(images=vm.folder).check_tdx(with_files.claim())
    assert (found.code, found.docker_files) == ("", FILES)


def test_half_of_the_two_fields_or_a_broken_one_is_a_bad_request(vm: OwnVm) -> None:
    known = of(images=vm.folder)

    for name in ("event_log", "app_compose"):
        with pytest.raises(Invalid, match=f"{name}: must be there too"):
            known.check_tdx(vm.claim(**{name: ""}))
    with pytest.raises(Malformed):
        known.check_tdx(vm.claim(event_log="{"))
    with pytest.raises(Invalid):
        known.check_tdx(vm.claim(app_compose="[]"))


# SEV-SNP


def test_a_launch_with_the_compose_file_is_recognised() -> None:
    known = artifacts.parse("sev.json", sev_json()).sev[0]
    for files, size, vcpus in ((b"", "small", 1), (FILES, "large", 4)):
        measurement = next(known.measurements(COMPOSE, files, vcpus))
        asked = SevClaim(COMPOSE, f"prod-{size}-sev", "v0.0.25", measurement, files)

        found = of().check_sev(asked)
        assert (found.code, found.size, found.build) == ("", size, known)


def test_another_launch_is_a_mismatch_with_what_was_expected() -> None:
    known = artifacts.parse("sev.json", sev_json()).sev[0]

    found = of().check_sev(SevClaim(COMPOSE, "prod-small-sev", "v0.0.25", bytes(48)))
    assert (found.code, found.expected) == ("MISMATCH", next(known.measurements(COMPOSE, b"", 1)))


@pytest.mark.parametrize(
    ("family", "image"),
    [
        ("prod-tiny-sev", "v0.0.25"),
        ("prod-small", "v0.0.25"),
        ("small", "v0.0.25"),
        ("dev-small-sev", "v0.0.25"),
        ("prod-small-sev", "v9.9.9"),
        ("", ""),
    ],
)
def test_a_name_that_nobody_knows_is_no_known_build(family: str, image: str) -> None:
    assert of().check_sev(SevClaim(COMPOSE, family, image, bytes(48))).code == "UNKNOWN_IMAGE"


def test_names_are_read_however_they_are_padded() -> None:
    padded = b"prod-small-sev\0\0"
    for text in ("prod-small-sev", "prod-small-sev##", padded.decode(), padded.hex()):
        assert builds.padded_text(text) == "prod-small-sev"
