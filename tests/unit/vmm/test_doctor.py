from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from core.config import AuthConfig, Config
from core.config_cvm import NetworkingConfig
from image.registry import Image
from vmm import accel, doctor
from vmm.doctor import Finding, examine, misfits


@pytest.fixture(autouse=True)
def emulation(monkeypatch: pytest.MonkeyPatch) -> None:
    """No KVM, found without a probe."""
    found = accel.Accelerator("tcg", "max", "it is not there")
    monkeypatch.setattr(accel, "choose", lambda *_: found)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A host's /dev, /proc and /sys."""
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 1 kB\nHugePages_Total:       0\n")
    return tmp_path


def found(config: Config, root: Path) -> dict[str, Finding]:
    return {each.name: each for each in examine(config, root)}


def test_a_bare_host_is_told_what_it_lacks(config: Config, image: Image, root: Path) -> None:
    findings = found(config, root)

    assert findings["QEMU"] == Finding("QEMU", "ok", "7.2.22")
    assert findings["accelerator"].state == "limited"
    assert "it is not there" in findings["accelerator"].what
    assert findings["TEE"].state == "limited"
    assert findings["vsock"].advice == "modprobe vhost_vsock"
    assert findings["huge pages"].advice.startswith("sysctl vm.nr_hugepages=")
    assert findings["images"].what == image.name
    assert all(each.advice for each in findings.values() if each.state == "missing")


def test_a_host_with_everything_lacks_nothing(config: Config, image: Image, root: Path) -> None:
    (root / "proc/meminfo").write_text("HugePages_Total:       8\n")
    (root / "proc/cpuinfo").write_text("flags\t\t: fpu sev_snp\n")
    (root / "dev").mkdir()
    (root / "dev/vhost-vsock").touch()

    findings = found(config, root)

    assert findings["huge pages"] == Finding("huge pages", "ok", "8 reserved")
    assert findings["TEE"] == Finding("TEE", "ok", "amd-sev-snp")
    assert findings["vsock"].state == "ok"


def test_without_qemu_or_an_image_no_vm_runs(config: Config, root: Path) -> None:
    bare = replace(config, cvm=replace(config.cvm, qemu_path="/nonexistent/qemu"))

    findings = found(bare, root)

    assert findings["QEMU"].state == "missing"
    assert findings["QEMU"].advice == "apt-get install qemu-system-x86"
    assert findings["images"].state == "missing"


def test_a_program_is_needed_or_only_useful_as_the_configuration_says(
    config: Config, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    passt = NetworkingConfig(mode="passt")
    other = replace(config, cvm=replace(config.cvm, networking=passt, host_share_mode="9p"))

    now, then = found(config, root), found(other, root)

    assert (now["mcopy"].state, then["mcopy"].state) == ("missing", "limited")
    assert (now["passt"].state, then["passt"].state) == ("limited", "missing")
    assert now["haproxy"] == Finding(
        "haproxy",
        "limited",
        "not installed: no clusters behind a balancer",
        "apt-get install haproxy",
    )


def test_a_disk_that_is_nearly_full_is_told(
    config: Config, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "DISK_WANTED_GIB", 10**9)

    assert found(config, root)["disk"].state == "limited"


def test_a_configuration_that_fits_has_no_misfits(config: Config, root: Path) -> None:
    assert misfits(config, root) == []


def test_what_a_configuration_names_and_the_host_has_not_is_told(
    config: Config, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    (root / "sys/class/net/br1/bridge").mkdir(parents=True)
    networking = NetworkingConfig(mode="passt", bridge="br0", bridges=("br1", "eth0"))
    cvm = replace(
        config.cvm, qemu_path="/nonexistent", networking=networking, user="nobody-of-here"
    )
    auth = AuthConfig(htpasswd_file=root / "htpasswd")

    wrong = misfits(replace(config, cvm=cvm, auth=auth), root)

    assert [each.split(": ")[0] for each in wrong] == [
        "cvm.qemu_path",
        "cvm.networking.bridge",
        "cvm.networking.bridge",
        "cvm.networking.mode",
        "cvm.user",
        "auth.htpasswd_file",
    ]
    assert [each for each in wrong if "br1" in each] == []
