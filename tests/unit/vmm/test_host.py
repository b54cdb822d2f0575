from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from core.config import Config
from core.errors import Unavailable
from vmm.host import Host, tee_platform


def tree(root: Path, flags: str = "", tdx: str | None = None) -> Path:
    (root / "proc").mkdir()
    (root / "proc/cpuinfo").write_text(
        f"processor\t: 0\nflags\t\t: fpu vme {flags}\nprocessor\t: 1\nflags\t\t: fpu\n"
    )
    if tdx is not None:
        (root / "sys/module/kvm_intel/parameters").mkdir(parents=True)
        (root / "sys/module/kvm_intel/parameters/tdx").write_text(f"{tdx}\n")
    return root


@pytest.mark.parametrize(
    ("flags", "tdx", "platform"),
    [
        ("", None, ""),
        ("", "N", ""),
        ("", "Y", "tdx"),
        ("", "1", "tdx"),
        ("tdx_host_platform", None, "tdx"),
        ("sev sev_es sev_snp", None, "amd-sev-snp"),
        ("sev sev_es", None, ""),
        ("tdx_guest", None, ""),
    ],
)
def test_the_platform_is_what_the_kernel_says(
    tmp_path: Path, flags: str, tdx: str | None, platform: str
) -> None:
    assert tee_platform("auto", tree(tmp_path, flags, tdx)) == platform


def test_a_host_whose_kernel_says_nothing_has_no_tee(tmp_path: Path) -> None:
    assert tee_platform("auto", tmp_path) == ""


@pytest.mark.parametrize("pinned", ["tdx", "amd-sev-snp"])
def test_a_pinned_platform_is_trusted(tmp_path: Path, pinned: str) -> None:
    assert tee_platform(pinned, tree(tmp_path)) == pinned


def test_a_host_is_described_from_its_qemu(config: Config) -> None:
    host = Host.discover(replace(config, cvm=replace(config.cvm, accel="tcg", platform="tdx")))

    assert (host.qemu, host.qemu_version, host.tee) == (config.cvm.qemu_path, (7, 2, 22), "tdx")
    assert (host.accelerator.name, host.accelerator.cpu) == ("tcg", "max,cx16=off")


@pytest.mark.parametrize("path", ["", "/nowhere/qemu"])
def test_without_qemu_the_refusal_says_what_to_do(config: Config, path: str) -> None:
    with pytest.raises(Unavailable, match=r"install qemu-system-x86 or set cvm\.qemu_path"):
        Host.discover(replace(config, cvm=replace(config.cvm, qemu_path=path)))
