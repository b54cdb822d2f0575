"""Stand-ins for what the kernel of a TEE guest shows in its file trees."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from attest import eventlog
from guest.tee import REGISTERS, ReportFolder, SevSnp, Tdx


class Configfs:
    """What the kernel does in configfs-tsm: a new entry has its files at once."""

    def __init__(self, folder: Path, evidence: Callable[[Path], bytes] | None = None) -> None:
        self.folder = folder
        self.asked: list[bytes] = []
        self.table = b"certificates"
        self._evidence = evidence or (lambda entry: b"report of " + entry.name.encode())
        folder.mkdir(parents=True)

    def mkdir(self, entry: Path) -> None:
        assert entry.parent == self.folder
        entry.mkdir()
        (entry / "outblob").write_bytes(self._evidence(entry))
        (entry / "auxblob").write_bytes(self.table)

    def rmdir(self, entry: Path) -> None:
        self.asked.append((entry / "inblob").read_bytes())
        for file in entry.iterdir():
            file.unlink()
        entry.rmdir()

    def reports(self) -> ReportFolder:
        return ReportFolder(self.folder, self.mkdir, self.rmdir)


class Register(type(Path())):  # type: ignore[misc] # the platform's own kind of path
    """A register's file: what is written to it extends it."""

    def write_bytes(self, data: bytes) -> int:
        assert len(data) == eventlog.REGISTER_SIZE
        super().write_bytes(eventlog.extend(self.read_bytes(), data))
        return len(data)


class KernelTdx(Tdx):
    """A TDX guest whose registers are files of `folder`; a quote is the four registers at that moment."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        for imr in range(REGISTERS):
            if not (folder / f"rtmr{imr}:sha384").exists():
                (folder / f"rtmr{imr}:sha384").write_bytes(bytes(eventlog.REGISTER_SIZE))
        kernel = Configfs(folder / f"report{id(self)}", lambda _: b"".join(self.read_registers()))
        super().__init__(kernel.reports(), Register(folder), folder / "CCEL")

    def boot_events(self) -> tuple[eventlog.Event, ...]:
        """None: the firmware of this guest measured nothing."""
        return ()


def kernel_snp(folder: Path) -> SevSnp:
    """An SEV-SNP guest whose report names nothing but its entry."""
    return SevSnp(Configfs(folder / "report").reports())
