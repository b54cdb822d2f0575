"""The platforms a guest can run on, one class each behind quote, extend and read_registers.

Sources: Linux Documentation/ABI/testing/configfs-tsm (reports) and sysfs-devices-virtual-misc-tdx_guest
(registers, Linux 6.16 and later); attestation.md sections 2 and 5 for the simulated platforms.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import struct
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from attest import eventlog, mr_config
from attest.eventlog import Event
from core.errors import Invalid, Unsupported
from guest import ccel
from guest.identity import SysConfig
from guest.settings import Settings

if TYPE_CHECKING:
    from attest_sim.launch import Launch
    from attest_sim.snp import SimulatedProcessor
    from attest_sim.tdx import SimulatedPlatform

REPORT_DATA_SIZE = 64
REGISTERS = 4
REGISTER_SIZE = eventlog.REGISTER_SIZE

TDX = "dstack-tdx"
SEV_SNP = "dstack-amd-sev-snp"
NO_TEE = ""
# The kernel refuses larger reports; auxiliary data (certificates) may be long.
MAX_REPORT_SIZE = 1024 * 1024
# GHCB specification, certificate table: GUID, offset, length; a zero GUID ends it.
_CERTIFICATE_ENTRY = struct.Struct("<16sII")


class Tee(Protocol):
    """A platform that signs report data and, on TDX, keeps four registers."""

    variant: str

    def quote(self, report_data: bytes) -> bytes:
        """Evidence over 64 bytes: a TDX quote or an SEV-SNP report."""
        ...

    def extend(self, imr: int, digest: bytes) -> None:
        """Extends register `imr` with a 48-byte digest; nothing on a platform without registers."""
        ...

    def read_registers(self) -> tuple[bytes, ...]:
        """RTMR0 to RTMR3, 48 bytes each; empty on a platform without registers."""
        ...

    def boot_events(self) -> tuple[Event, ...]:
        """The firmware's and loader's entries of the event log (RTMR0 to 2)."""
        ...


class ReportFolder:
    """Attestation reports through configfs-tsm: one entry per report, removed after it was read."""

    def __init__(
        self,
        folder: Path,
        mkdir: Callable[[Path], None] = os.mkdir,
        rmdir: Callable[[Path], None] = os.rmdir,
    ) -> None:
        self._folder = folder
        self._mkdir = mkdir
        self._rmdir = rmdir
        self._numbers = itertools.count()

    def report(self, report_data: bytes) -> tuple[bytes, bytes]:
        """The report over 64 bytes and its auxiliary data (empty when there is none)."""
        name = f"casemate-{os.getpid()}-{threading.get_ident()}-{next(self._numbers)}"
        entry = self._folder / name
        self._mkdir(entry)
        try:
            (entry / "inblob").write_bytes(report_data)
            return _read(entry / "outblob"), _read(entry / "auxblob")
        finally:
            self._rmdir(entry)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_REPORT_SIZE)
    except FileNotFoundError:
        return b""


class Tdx:
    """A TDX guest: quotes from configfs-tsm, RTMRs from the guest driver's files."""

    variant = TDX

    def __init__(self, reports: ReportFolder, measurements: Path, log_table: Path) -> None:
        self._reports = reports
        self._measurements = measurements
        self._log_table = log_table

    def quote(self, report_data: bytes) -> bytes:
        """A TDX quote."""
        return self._reports.report(report_data)[0]

    def extend(self, imr: int, digest: bytes) -> None:
        """Extends an RTMR; Unsupported on a kernel before Linux 6.16, which has no file for it."""
        self._register(imr).write_bytes(digest)

    def read_registers(self) -> tuple[bytes, ...]:
        """The four RTMRs."""
        return tuple(self._register(imr).read_bytes() for imr in range(REGISTERS))

    def boot_events(self) -> tuple[Event, ...]:
        """The firmware's log, from the ACPI table CCEL."""
        return ccel.parse(self._log_table.read_bytes())

    def _register(self, imr: int) -> Path:
        path = self._measurements / f"rtmr{imr}:sha384"
        if not path.exists():
            raise Unsupported("this kernel cannot extend RTMR3 (Linux 6.16 or later can)")
        return path


class SevSnp:
    """An SEV-SNP guest: reports from configfs-tsm; the platform has no run-time registers."""

    variant = SEV_SNP

    def __init__(self, reports: ReportFolder) -> None:
        self._reports = reports

    def quote(self, report_data: bytes) -> bytes:
        """An attestation report of 1184 bytes."""
        return self._reports.report(report_data)[0]

    def certificates(self, report_data: bytes) -> tuple[bytes, ...]:
        """The certificates that the host gave along with a report, maybe none: VCEK, ASK and ARK in DER."""
        return _certificates(self._reports.report(report_data)[1])

    def extend(self, imr: int, digest: bytes) -> None:
        """Nothing: what the host measured at launch stands in the report itself."""

    def read_registers(self) -> tuple[bytes, ...]:
        """None."""
        return ()

    def boot_events(self) -> tuple[Event, ...]:
        """None."""
        return ()


class Simulated:
    """A simulated TDX guest: registers in a file, quotes signed from a seed that proves nothing."""

    variant = TDX

    def __init__(self, seed: bytes, registers: Path, vm_config: str = "") -> None:
        self._seed = seed
        self._path = registers
        self._vm_config = vm_config
        self._making = threading.Lock()
        self._made: SimulatedPlatform | None = None
        self._launched: Launch | None = None

    @property
    def platform(self) -> SimulatedPlatform:
        """The host that the seed stands for; made when first asked for."""
        from attest_sim.tdx import SimulatedPlatform

        with self._making:
            if self._made is None:
                self._made = SimulatedPlatform.from_seed(self._seed)
            return self._made

    @property
    def launch(self) -> Launch:
        """What was measured before this guest's own code ran, as `vm_config` describes it."""
        from attest_sim import launch

        if self._launched is None:
            self._launched = launch.of_vm(self._vm_config)
        return self._launched

    def reset(self) -> None:
        """What a reboot does: RTMR0 to 2 as the boot events make them, RTMR3 zero."""
        events = self.boot_events()
        registers = b"".join(eventlog.replay(events, imr) for imr in range(REGISTERS))
        fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb", buffering=0) as file:
            file.write(registers)

    def quote(self, report_data: bytes) -> bytes:
        """A quote in the real layout under the simulated root."""
        mrtd = self.launch.mrtd
        return self.platform.quote(report_data, mrtd=mrtd, rtmrs=self.read_registers())

    def extend(self, imr: int, digest: bytes) -> None:
        """Extends a register with one write, which a kill cannot cut in two."""
        value = eventlog.extend(self.read_registers()[imr], digest)
        os.pwrite(self._file, value, imr * REGISTER_SIZE)

    def read_registers(self) -> tuple[bytes, ...]:
        """The four RTMRs."""
        data = os.pread(self._file, REGISTERS * REGISTER_SIZE, 0)
        return tuple(
            data[start : start + REGISTER_SIZE] for start in range(0, len(data), REGISTER_SIZE)
        )

    @functools.cached_property
    def _file(self) -> int:
        # Kept open: every quote and event reads it.
        fd = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        weakref.finalize(self, os.close, fd)
        return fd

    def boot_events(self) -> tuple[Event, ...]:
        """The entries of a simulated boot."""
        return self.launch.events


class SimulatedSnp:
    """A simulated SEV-SNP guest: reports signed by a processor that proves nothing; no registers either."""

    variant = SEV_SNP

    def __init__(self, processor: str, described: SysConfig) -> None:
        self._text = processor
        self._described = described

    @functools.cached_property
    def _processor(self) -> SimulatedProcessor:
        from attest_sim.snp import SimulatedProcessor

        return SimulatedProcessor.from_text(self._text)

    def quote(self, report_data: bytes) -> bytes:
        """A report in the real layout, over what the host says that it launched."""
        from attest_sim import launch

        return self._processor.report(
            report_data,
            measurement=launch.of_snp_vm(self._described.vm_config),
            host_data=mr_config.host_data(self._described.mr_config),
        )

    def certificates(self, report_data: bytes) -> tuple[bytes, ...]:
        """VCEK, ASK and the simulated ARK in DER."""
        return self._processor.chain_der

    def extend(self, imr: int, digest: bytes) -> None:
        """Nothing, as on the real one."""

    def read_registers(self) -> tuple[bytes, ...]:
        """None."""
        return ()

    def boot_events(self) -> tuple[Event, ...]:
        """None."""
        return ()


class NoTee:
    """A VM without a TEE: it measures nothing and proves nothing."""

    variant = NO_TEE

    def quote(self, report_data: bytes) -> bytes:
        """Invalid: nobody here can sign."""
        raise Invalid("this VM has no TEE, so there is nothing to quote")

    def extend(self, imr: int, digest: bytes) -> None:
        """Nothing."""

    def read_registers(self) -> tuple[bytes, ...]:
        """None."""
        return ()

    def boot_events(self) -> tuple[Event, ...]:
        """None."""
        return ()


def detect(settings: Settings) -> Tee:
    """The platform this guest runs on; a real one wins over a simulated one.

    Raises Invalid when the simulator's file is there and wrong.
    """
    sys_folder = settings.root / "sys"
    reports = ReportFolder(sys_folder / "kernel/config/tsm/report")
    if not settings.simulated and _has_cpu_flag(settings.root, "tdx_guest"):
        return Tdx(
            reports,
            sys_folder / "devices/virtual/misc/tdx_guest/measurements",
            sys_folder / "firmware/acpi/tables/data/CCEL",
        )
    if not settings.simulated and (settings.root / "dev/sev-guest").exists():
        return SevSnp(reports)
    if settings.tee_seed.exists():
        return _simulated(settings)
    return NoTee()


def _simulated(settings: Settings) -> Tee:
    given = _read_simulator(settings.tee_seed.read_bytes())
    platform, described = given["platform"], SysConfig.read(settings.sys_config)
    if platform == TDX:
        seed = _seed(given.get("seed", ""))
        return Simulated(seed, settings.state / "registers", described.vm_config)
    if platform == SEV_SNP and "processor" in given:
        return SimulatedSnp(given["processor"], described)
    raise Invalid(f"a simulated TEE of platform {platform} is not offered by this file")


def _has_cpu_flag(root: Path, flag: str) -> bool:
    cpuinfo = (root / "proc/cpuinfo").read_text(errors="replace")
    lines = (line for line in cpuinfo.splitlines() if line.startswith("flags"))
    return flag in next(lines, "").split()


def _read_simulator(raw: bytes) -> dict[str, str]:
    """The simulated TEE's file: `platform`, and with it `seed` (64 hex, TDX) or `processor` (PEM, SEV-SNP)."""
    try:
        given = json.loads(raw)
    except (ValueError, RecursionError):
        given = None
    if not isinstance(given, dict) or "platform" not in given:
        raise Invalid("the simulated TEE's file must be a JSON object with a platform")
    if not all(isinstance(value, str) for value in given.values()):
        raise Invalid("the simulated TEE's file must hold texts alone")
    return given


def _seed(text: str) -> bytes:
    try:
        seed = bytes.fromhex(text)
    except ValueError:
        seed = b""
    if len(seed) != 32:
        raise Invalid("the simulated TEE's seed must be 32 bytes in hex")
    return seed


def _certificates(table: bytes) -> tuple[bytes, ...]:
    """The certificates of the host's table, in its order; the host may have written anything there."""
    found = []
    for at in range(0, len(table) - _CERTIFICATE_ENTRY.size + 1, _CERTIFICATE_ENTRY.size):
        guid, offset, length = _CERTIFICATE_ENTRY.unpack_from(table, at)
        if guid == bytes(16):
            break
        found.append(table[offset : offset + length])
    return tuple(found)
