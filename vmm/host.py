"""What this host can do, looked up once per service start."""

from __future__ import annotations

import json
import os
import pwd
from dataclasses import dataclass
from pathlib import Path

from core.config import Config
from core.errors import Invalid, Unavailable
from core.proc import CommandFailed, run
from vmm import accel

_ASK_SEV = (
    b'{"execute": "qmp_capabilities"}\n'
    b'{"execute": "query-sev-capabilities", "id": "sev"}\n'
    b'{"execute": "quit"}\n'
)


@dataclass(frozen=True)
class Account:
    """The user that QEMU runs as, when it is not the service's own."""

    uid: int
    gid: int

    @classmethod
    def of(cls, name: str) -> Account:
        """A user of this host; Invalid names cvm.user when there is none or we may not become it."""
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            raise Invalid.field("cvm.user", f"{name} is no user of this host") from None
        if os.geteuid() not in (0, entry.pw_uid):
            raise Invalid.field("cvm.user", "needs the service to run as root")
        return cls(entry.pw_uid, entry.pw_gid)


@dataclass(frozen=True)
class Host:
    """QEMU, its version, the accelerator that works, and the TEE: "tdx", "amd-sev-snp" or "".

    `root` is where /dev, /proc and /sys are found.
    """

    qemu: str
    qemu_version: tuple[int, ...]
    accelerator: accel.Accelerator
    tee: str
    root: Path = Path("/")

    @property
    def has_vsock(self) -> bool:
        """Whether /dev/vhost-vsock opens now: the module may be loaded at any time."""
        try:
            os.close(os.open(self.root / "dev/vhost-vsock", os.O_RDWR | os.O_CLOEXEC))
            return True
        except OSError:
            return False

    def sev_numbers(self) -> tuple[int, int]:
        """The position of the C-bit and the address bits it costs, asked of this very QEMU.

        Unavailable with QEMU's words when it cannot tell.
        """
        argv = [self.qemu, "-machine", "none", "-accel", "kvm", "-nodefaults", "-display", "none"]
        try:
            told = run([*argv, "-qmp", "stdio"], input=_ASK_SEV, timeout_s=10, check=False)
        except CommandFailed as error:
            raise Unavailable(f"QEMU does not tell SEV's capabilities: {error.message}") from None
        return sev_numbers(told.stdout, told.stderr)

    @classmethod
    def discover(cls, config: Config) -> Host:
        """Asks QEMU and the kernel; Unavailable when QEMU is missing or KVM was demanded in vain."""
        qemu = config.cvm.qemu_path
        if not qemu or not Path(qemu).is_file():
            raise Unavailable("QEMU was not found; install qemu-system-x86 or set cvm.qemu_path")
        return cls(
            qemu=qemu,
            qemu_version=accel.version(qemu),
            accelerator=accel.choose(config.cvm.accel, qemu, config.data_dir),
            tee=tee_platform(config.cvm.platform),
        )


def tee_platform(pinned: str, root: Path = Path("/")) -> str:
    """The TEE for `cvm.platform`: a pinned one is trusted, `auto` looks at the kernel's word.

    Source: vmm.md section 7 (cpuinfo flags, kvm_intel's tdx parameter).
    """
    if pinned != "auto":
        return pinned
    cpuinfo = root / "proc/cpuinfo"
    flags: set[str] = set()
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else []:
        if line.startswith("flags"):
            flags = set(line.partition(":")[2].split())
            break
    if "sev_snp" in flags:
        return "amd-sev-snp"
    parameter = root / "sys/module/kvm_intel/parameters/tdx"
    if "tdx_host_platform" in flags or (
        parameter.exists() and parameter.read_text().strip() in ("Y", "1")
    ):
        return "tdx"
    return ""


def sev_numbers(said: bytes, complained: bytes = b"") -> tuple[int, int]:
    """Reads QEMU's answer to query-sev-capabilities; Unavailable with its reason when there is none."""
    for line in said.splitlines():
        try:
            answer = json.loads(line)
        except ValueError:
            continue
        if not isinstance(answer, dict) or answer.get("id") != "sev":
            continue
        told, refused = answer.get("return"), answer.get("error")
        if isinstance(told, dict):
            numbers = told.get("cbitpos"), told.get("reduced-phys-bits")
            if all(isinstance(each, int) for each in numbers):
                return numbers  # type: ignore[return-value]
        if isinstance(refused, dict):
            complained = str(refused.get("desc")).encode()
    why = complained.decode(errors="replace").strip()[-500:] or "no answer"
    raise Unavailable(f"QEMU does not tell SEV's capabilities: {why}")
