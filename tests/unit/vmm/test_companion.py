from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from core import proc
from core.errors import Unavailable
from vmm import companion, process, qmp
from vmm.network import Port


@pytest.fixture
def folder(data_dir: Path) -> Path:
    path = data_dir / "vm/id/beside"
    path.parent.mkdir(parents=True)
    return path


def program(text: str) -> list[str]:
    return [sys.executable, "-ISc", text]


READY = "open('sock', 'w').close(); import time; time.sleep(3600)"


def test_each_port_is_an_option_of_its_own_to_passt() -> None:
    ports = [Port("tcp", "127.0.0.1", 8080, 80), Port("udp", "::1", 53, 5353)]

    argv = companion.passt_argv(Path("/w/passt0/sock"), ports, as_root=False)

    assert argv[0] == "passt"
    assert argv[argv.index("--socket") + 1] == "/w/passt0/sock"
    assert argv[argv.index("-t") + 1] == "127.0.0.1/8080:80"
    assert argv[argv.index("-u") + 1] == "::1/53:5353"
    assert "--no-map-gw" in argv and "--runas" not in argv
    assert "--runas" in companion.passt_argv(Path("/w"), [], as_root=True)


def test_a_program_runs_until_it_is_ended(folder: Path) -> None:
    companion.start(folder, program(READY), folder / "sock")

    assert process.find(folder) is not None
    companion.end_all(folder.parent)
    assert process.find(folder) is None
    companion.end_all(folder.parent)  # and once more does no harm


def test_a_second_start_takes_the_place_of_the_first(folder: Path) -> None:
    companion.start(folder, program(READY), folder / "sock")
    first = process.find(folder)

    companion.start(folder, program(READY), folder / "sock")

    assert first is not None and not process.is_alive(first)
    assert process.find(folder) not in (None, first)


def test_a_program_that_ends_at_once_is_quoted(folder: Path) -> None:
    companion.start(folder, program(READY), folder / "sock")  # whose sock is stale now

    with pytest.raises(Unavailable, match="beside did not start: no such option"):
        companion.start(folder, program("import sys; sys.exit('no such option')"), folder / "sock")


def test_a_program_that_never_gets_ready_is_given_up(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(companion, "READY_S", 0.2)

    with pytest.raises(Unavailable, match="beside did not start"):
        companion.start(folder, program("import time; time.sleep(3600)"), folder / "sock")

    assert process.find(folder) is None


@pytest.mark.skipif(shutil.which("swtpm") is None, reason="swtpm is not installed")
def test_a_real_qemu_has_the_software_tpm(folder: Path) -> None:
    workdir = folder.parent
    tpm = workdir / companion.TPM
    sock = companion.socket_of(tpm)
    sock.parent.mkdir(parents=True)
    companion.start(tpm, companion.swtpm_argv(sock), sock)
    argv = [
        *("qemu-system-x86_64", "-M", "q35", "-accel", "tcg", "-m", "16", "-S"),
        *("-nodefaults", "-no-user-config", "-display", "none"),
        *("-qmp", f"unix:{workdir}/qmp.sock,server=on,wait=off"),
        *("-chardev", f"socket,id=chrtpm,path={sock}"),
        *("-tpmdev", "emulator,id=tpm0,chardev=chrtpm", "-device", "tpm-tis,tpmdev=tpm0"),
    ]
    started = proc.start(argv, log=workdir / "qemu.log")
    try:
        assert qmp.wait_for_greeting(workdir, lambda: started.poll() is None, deadline_s=30)
        (found,) = qmp.execute(workdir, "query-tpm")
        assert (found["model"], found["options"]["type"]) == ("tpm-tis", "emulator")
    finally:
        started.kill()
        started.wait()
    companion.end_all(workdir)
    assert process.find(tpm) is None
