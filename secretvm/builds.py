"""Which build a VM runs, and whether it measured a given compose file: answers out of the registry of builds.

The registry is what set-up brought, what an operator imported, and the images of this host.
Source: secretvm.md section 8.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from attest import artifacts, eventlog, lite, policy
from attest.artifacts import Registers, Registry, SevBuild, TdxBuild
from attest.compose import AppCompose, compose_hash
from attest.errors import Mismatch, VerificationError
from attest.eventlog import RUNTIME_IMR, Event, platform_payload
from core.config import Config
from core.errors import Invalid, NotFound
from image import known

# Where set-up puts what was published (setup.sh).
PUBLISHED = Path(sys.prefix) / "share/casemate/registry"

UNKNOWN_IMAGE, MISMATCH = "UNKNOWN_IMAGE", "MISMATCH"


def imported(data_dir: Path) -> Path:
    """Where an operator's own registry files lie."""
    return data_dir / "registry"


@dataclass(frozen=True)
class TdxClaim:
    """A compose file, and the registers (48 bytes each) of the quote of a VM that is said to run it.

    `docker_files` is the SHA-256 of their archive.  A log with the app-compose tells more than the original
    scheme can: all that the VM measured.
    """

    compose: bytes
    registers: Registers
    rtmr3: bytes
    docker_files: bytes = b""
    app_id: bytes = b""
    event_log: str = ""
    app_compose: str = ""


@dataclass(frozen=True)
class SevClaim:
    """A compose file, and what the report of a VM says that is said to run it."""

    compose: bytes
    family_id: str
    image_id: str
    measurement: bytes
    docker_files: bytes = b""


@dataclass(frozen=True)
class Finding:
    """The outcome for a claim: no code when the VM runs that compose file; `expected` is what else it would have measured."""

    message: str
    code: str = ""
    build: TdxBuild | SevBuild | None = None
    size: str = ""
    expected: bytes | None = None
    docker_files: bytes = b""


class Builds:
    """Answers about builds; `acpi` are the digests of ACPI data of this host's simulated VMs, if it has any."""

    def __init__(
        self,
        registry: Callable[[], Registry],
        images: Path,
        sizes: Mapping[str, str],
        acpi: tuple[bytes, ...] = (),
    ) -> None:
        self._registry = registry
        self._images = images
        self._sizes = sizes
        self._acpi = acpi

    @classmethod
    def of(cls, config: Config, acpi: tuple[bytes, ...] = ()) -> Builds:
        """The builds that a service knows; files that are added while it runs count at once."""
        folders = (PUBLISHED, imported(config.data_dir))
        sizes = {f"{each.ram}gb": each.id for each in config.secretvm.vm_types}
        return cls(lambda: artifacts.read(folders), config.image.path, sizes, acpi)

    def resolve(self, registers: Registers) -> tuple[TdxBuild, ...]:
        """The builds with these registers, newest first; NotFound when there is none."""
        found = (*self._registry().candidates(registers), *self._own(registers, self._acpi))
        if not found:
            raise NotFound("no known build has these four registers")
        return artifacts.newest_first(found)

    def _own(self, registers: Registers, acpi: tuple[bytes, ...]) -> list[TdxBuild]:
        """This host's images with these registers."""
        found = known.measured(self._images, registers, acpi) if acpi else []
        return [replace(each, size=self._sizes.get(each.size, each.size)) for each in found]

    def check_tdx(self, claim: TdxClaim) -> Finding:
        """Whether a known build measured that compose file; Invalid when the log cannot be read."""
        log = _Log.of(claim)
        published = self._registry().candidates(claim.registers)
        own = self._own(claim.registers, log.acpi if log else self._acpi)
        if not published and not own:
            return Finding("no known build has these four registers", UNKNOWN_IMAGE)
        for build in (*published, *own):
            if log.tells(build) if log else _measured(claim, build):
                return _runs(build, claim.docker_files or (log.docker_files if log else b""))
        return _differs(claim, log, (*published, *own)[0], is_own=not published)

    def check_sev(self, claim: SevClaim) -> Finding:
        """Whether the build that a report names was launched with that compose file."""
        environment, _, size = claim.family_id.removesuffix("-sev").partition("-")
        if not claim.family_id.endswith("-sev") or size not in artifacts.SEV_VCPUS:
            return Finding(
                "family_id must be ENVIRONMENT-SIZE-sev with one of the sizes "
                + ", ".join(artifacts.SEV_VCPUS),
                UNKNOWN_IMAGE,
            )
        builds = self._registry().launched(environment, claim.image_id)
        if not builds:
            return Finding(
                f"no known build is called {environment} {claim.image_id}", UNKNOWN_IMAGE
            )
        expected = b""
        for build, measurement in _launches(claim, builds, artifacts.SEV_VCPUS[size]):
            if measurement == claim.measurement:
                return Finding("the VM was launched with this compose file", "", build, size)
            expected = expected or measurement
        why = "the VM was launched with another compose file, or with docker files that were not named"
        return Finding(why, MISMATCH, builds[0], size, expected)


@dataclass(frozen=True)
class _Log:
    """A log that was read, what it says, and why it does not tell of the claimed compose file."""

    events: tuple[Event, ...]
    acpi: tuple[bytes, ...]
    docker_files: bytes
    why_not: str

    @classmethod
    def of(cls, claim: TdxClaim) -> _Log | None:
        if not claim.event_log and not claim.app_compose:
            return None
        for name, text in (("event_log", claim.event_log), ("app_compose", claim.app_compose)):
            if not text:
                raise Invalid.field(name, "must be there too: the log alone cannot tell the app")
        events = eventlog.from_json(claim.event_log)
        app = AppCompose.parse(claim.app_compose.encode())
        docker_files = app.secretvm.docker_files_sha256 if app.secretvm else b""
        try:
            acpi = lite.acpi_digests(events)
        except VerificationError:
            acpi = ()
        return cls(events, acpi, docker_files, _why_not(claim, events, app, docker_files))

    def tells(self, build: TdxBuild) -> bool:
        """Whether the log is of a VM of that build with the claimed compose file."""
        measured = platform_payload(self.events, "os-image-hash")
        return not self.why_not and measured in (None, b"", build.rootfs)


def _why_not(
    claim: TdxClaim, events: tuple[Event, ...], app: AppCompose, docker_files: bytes
) -> str:
    """The first thing that does not fit between a log, its app-compose and a claim; empty when all does."""
    try:
        policy.check_runtime_events(events)
    except Mismatch as error:
        return error.message
    measured = platform_payload(events, "compose-hash")
    holds = (
        (eventlog.replay(events, RUNTIME_IMR) == claim.rtmr3, "event_log adds up to another rtmr3"),
        (
            measured == compose_hash(claim.app_compose.encode()),
            "app_compose is not the document whose compose-hash was measured",
        ),
        (
            app.docker_compose_file.encode() in artifacts.compose_texts(claim.compose),
            "app_compose holds another docker_compose_file than dockercompose",
        ),
        (
            claim.docker_files in (b"", docker_files),
            "app_compose names other docker files than dockerFilesSha256",
        ),
    )
    return next((why for is_so, why in holds if not is_so), "")


def _measured(claim: TdxClaim, build: TdxBuild) -> bool:
    """Whether RTMR3 is that of the compose file, by one scheme or the other."""
    return any(expected == claim.rtmr3 for expected in _expected(claim, build))


def _expected(claim: TdxClaim, build: TdxBuild) -> Iterator[bytes]:
    for text in artifacts.compose_texts(claim.compose):
        yield artifacts.rtmr3(text, build.rootfs, claim.docker_files)
        if claim.app_id:
            yield artifacts.dstack_rtmr3(claim.app_id, text, build.rootfs, claim.docker_files)


def _runs(build: TdxBuild, docker_files: bytes) -> Finding:
    return Finding(
        "the VM measured this compose file", "", build, build.size, docker_files=docker_files
    )


def _differs(claim: TdxClaim, log: _Log | None, build: TdxBuild, *, is_own: bool) -> Finding:
    if log:
        why = log.why_not or "the log has the os-image-hash of another image"
        expected = eventlog.replay(log.events, RUNTIME_IMR)
    elif is_own:
        why = "this VM measures more than its compose file: send its event_log and app_compose too"
        expected = None
    else:
        why = "the VM measured another compose file"
        if not claim.app_id:
            why += "; where its KMS is dstack's, send dstack_app_id too"
        expected = next(_expected(claim, build))
    return Finding(why, MISMATCH, build, build.size, expected, claim.docker_files)


def _launches(
    claim: SevClaim, builds: Sequence[SevBuild], vcpus: int
) -> Iterator[tuple[SevBuild, bytes]]:
    for build in builds:
        for text in artifacts.compose_texts(claim.compose):
            for measurement in build.measurements(text, claim.docker_files, vcpus):
                yield build, measurement


def padded_text(given: str) -> str:
    """The text in a report's field of 16 bytes, as it is, padded with # or NUL, or in hex."""
    with_hex = given.removeprefix("0x")
    if len(with_hex) == 32 and all(digit in "0123456789abcdefABCDEF" for digit in with_hex):
        given = bytes.fromhex(with_hex).decode(errors="replace")
    return given.rstrip("#\0")
