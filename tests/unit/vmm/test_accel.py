from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from pathlib import Path

import pytest

from core.errors import Unavailable
from vmm import accel

REAL = shutil.which("qemu-system-x86_64") or "qemu-system-x86_64"


def program(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_the_rom_is_the_one_that_was_tried() -> None:
    rom = accel.probe_rom()

    assert len(rom) == 64 * 1024
    assert rom[0xFFF0:0xFFF3] == b"\xe9\x0d\x00"
    assert hashlib.sha256(rom).hexdigest() == hashlib.sha256(accel.probe_rom()).hexdigest()


def test_the_rom_runs_to_its_end_in_a_real_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accel, "PROBE_TIMEOUT_S", 30)  # emulation on a busy machine

    assert accel.PROBE_EXIT == 35
    assert accel.runs_code(REAL, "tcg", "max", tmp_path)


def test_a_processor_that_cannot_compute_in_64_bits_fails_the_probe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accel, "PROBE_TIMEOUT_S", 2)

    assert not accel.runs_code(REAL, "tcg", "qemu32", tmp_path)


def test_an_accelerator_that_hangs_fails_the_probe_within_its_time(tmp_path: Path) -> None:
    hanging = program(tmp_path / "qemu", "exec sleep 60")

    began = time.monotonic()
    works = accel.runs_code(hanging, "kvm", "host", tmp_path)

    assert not works
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("text", ["exit 0", "exit 1", "kill -9 $$"])
def test_any_other_end_fails_the_probe(tmp_path: Path, text: str) -> None:
    assert not accel.runs_code(program(tmp_path / "qemu", text), "kvm", "host", tmp_path)


def test_a_program_that_is_not_there_fails_the_probe(tmp_path: Path) -> None:
    assert not accel.runs_code(str(tmp_path / "nothing"), "kvm", "host", tmp_path)


@pytest.fixture
def kvm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A QEMU whose KVM works, on a host whose /dev/kvm opens; it counts its probes."""
    monkeypatch.setattr(os, "access", lambda path, mode: path == "/dev/kvm")
    return program(
        tmp_path / "qemu",
        f'[ "$1" = --version ] && {{ echo "QEMU emulator version 8.1.0"; exit; }}\n'
        f"echo probe >> {tmp_path}/probes; exit $(cat {tmp_path}/code)",
    )


def probes(tmp_path: Path) -> int:
    path = tmp_path / "probes"
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_kvm_is_taken_when_it_runs_code(tmp_path: Path, kvm: str) -> None:
    (tmp_path / "code").write_text("35")

    for wanted in ("auto", "kvm"):
        assert accel.choose(wanted, kvm, tmp_path) == accel.Accelerator(
            "kvm", "host", "KVM ran the probe"
        )
    assert probes(tmp_path) == 1  # remembered


def test_kvm_that_opens_and_does_not_run_code_is_not_taken(tmp_path: Path, kvm: str) -> None:
    (tmp_path / "code").write_text("1")

    chosen = accel.choose("auto", kvm, tmp_path)

    assert (chosen.name, chosen.cpu) == ("tcg", "max,cx16=off")
    with pytest.raises(Unavailable, match="probe failed"):
        accel.choose("kvm", kvm, tmp_path)


def test_a_failed_probe_is_remembered_for_one_start_of_the_service(
    tmp_path: Path, kvm: str
) -> None:
    (tmp_path / "code").write_text("1")
    assert accel.choose("auto", kvm, tmp_path).name == "tcg"
    (tmp_path / "code").write_text("35")
    assert accel.choose("auto", kvm, tmp_path).name == "tcg"

    a_minute_ago = time.time() - accel.FAILURE_S - 1
    os.utime(tmp_path / "kvm-probe.json", (a_minute_ago, a_minute_ago))

    assert accel.choose("auto", kvm, tmp_path).name == "kvm"
    assert probes(tmp_path) == 2


def test_another_qemu_is_probed_anew(tmp_path: Path, kvm: str) -> None:
    (tmp_path / "code").write_text("35")
    accel.choose("auto", kvm, tmp_path)

    os.utime(kvm, ns=(1, 1))
    accel.choose("auto", kvm, tmp_path)

    assert probes(tmp_path) == 2


@pytest.mark.parametrize("memory", ["", "{", "[]", "3", "{}", '{"key": 1}'])
def test_a_memory_that_cannot_be_read_is_no_memory(tmp_path: Path, kvm: str, memory: str) -> None:
    (tmp_path / "code").write_text("35")
    (tmp_path / "kvm-probe.json").write_text(memory)

    assert accel.choose("auto", kvm, tmp_path).name == "kvm"
    assert json.loads((tmp_path / "kvm-probe.json").read_text())["works"] is True


def test_tcg_is_not_probed(tmp_path: Path, kvm: str) -> None:
    chosen = accel.choose("tcg", kvm, tmp_path)

    assert (chosen.name, chosen.why) == ("tcg", "cvm.accel is tcg")
    assert probes(tmp_path) == 0


def test_without_the_device_there_is_no_probe(
    tmp_path: Path, kvm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)

    assert accel.choose("auto", kvm, tmp_path).name == "tcg"
    assert probes(tmp_path) == 0


@pytest.mark.parametrize(
    ("said", "numbers", "cpu"),
    [
        ("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg)", (7, 2, 22), "max,cx16=off"),
        ("QEMU emulator version 9.2.4", (9, 2, 4), "max,cx16=off"),
        ("QEMU emulator version 10.0.0", (10, 0, 0), "max"),
        ("QEMU emulator version 10.1.2-rc1", (10, 1, 2), "max"),
    ],
)
def test_the_flag_bug_of_qemu_before_10_is_kept_from_guests(
    tmp_path: Path, said: str, numbers: tuple[int, ...], cpu: str
) -> None:
    qemu = program(tmp_path / "qemu", f"echo '{said}'")

    assert accel.version(qemu) == numbers
    assert accel.choose("tcg", qemu, tmp_path).cpu == cpu


def test_a_program_that_is_no_qemu_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="does not say its version"):
        accel.version(program(tmp_path / "qemu", "echo hello"))
    with pytest.raises(Unavailable, match="exited with 3"):
        accel.version(program(tmp_path / "qemu", "exit 3"))
