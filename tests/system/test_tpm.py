"""The seed in a TPM, against a real software TPM."""

from __future__ import annotations

import shutil
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from core import proc
from core.errors import Unavailable
from guest import tpm
from tests.common.waiting import until


@contextmanager
def running(state: Path) -> Iterator[tpm.Send]:
    """A software TPM whose state lies in a folder, as after power-on."""
    if shutil.which("swtpm") is None:
        pytest.skip("swtpm is not installed")
    state.mkdir(exist_ok=True)
    server, control = state / "data.sock", state / "control.sock"
    process = subprocess.Popen(
        ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={state}"]
        + ["--server", f"type=unixio,path={server}", "--ctrl", f"type=unixio,path={control}"]
        + ["--flags", "not-need-init,startup-clear"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    connection = socket.socket(socket.AF_UNIX)
    # Its file is there before it listens; a look of our own would take its one connection.
    until(lambda: connection.connect_ex(str(server)) == 0, what="swtpm")

    def send(command: bytes) -> bytes:
        connection.sendall(command)
        return connection.recv(4096)

    try:
        yield send
    finally:
        connection.close()
        proc.stop(process, patience_s=5)


def test_a_seed_is_drawn_once_and_outlives_power(tmp_path: Path) -> None:
    with running(tmp_path / "tpm") as send:
        first = tpm.seed(send)
        assert tpm.seed(send) == first
    with running(tmp_path / "tpm") as send:
        again = tpm.seed(send)
    with running(tmp_path / "other") as send:
        other = tpm.seed(send)

    assert len(first) == 32 and first == again != other


def test_a_seed_that_was_cut_off_before_it_was_written_is_drawn_again(tmp_path: Path) -> None:
    with running(tmp_path / "tpm") as send:
        written: list[int] = []

        def cut_off(command: bytes) -> bytes:
            code = struct.unpack_from(">I", command, 6)[0]
            written.append(code)
            if code == tpm._NV_WRITE:
                raise KeyboardInterrupt
            return send(command)

        with pytest.raises(KeyboardInterrupt):
            tpm.seed(cut_off)
        assert written == [tpm._NV_READ, tpm._NV_DEFINE_SPACE, tpm._NV_WRITE]

        assert tpm.seed(send) == tpm.seed(send)


def test_a_tpm_that_refuses_is_told_with_its_error() -> None:
    refusal = struct.pack(">HII", 0x8001, 10, 0x101)

    with pytest.raises(Unavailable, match=r"does not give the seed back \(error 0x101\)"):
        tpm.seed(lambda command: refusal)


@pytest.mark.parametrize("answer", [b"", bytes(9), bytes(10), struct.pack(">HII", 0x8002, 10, 0)])
def test_an_answer_that_is_none_is_refused(answer: bytes) -> None:
    with pytest.raises(Unavailable):
        tpm.seed(lambda command: answer)


def test_the_device_is_found(tmp_path: Path) -> None:
    assert tpm.find(tmp_path) is None
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/tpm0").write_bytes(b"")
    assert tpm.find(tmp_path) == tmp_path / "dev/tpm0"
    (tmp_path / "dev/tpmrm0").write_bytes(b"")
    assert tpm.find(tmp_path) == tmp_path / "dev/tpmrm0"
