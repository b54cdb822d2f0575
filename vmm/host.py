"""What this host can do, looked up once per service start."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from core.config import Config
from core.errors import Unavailable
from vmm import accel


@dataclass(frozen=True)
class Host:
    """QEMU, its version, the accelerator that works, and the TEE: "tdx", "amd-sev-snp" or ""."""

    qemu: str
    qemu_version: tuple[int, ...]
    accelerator: accel.Accelerator
    tee: str

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
