from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from core import files
from core.errors import Upstream, UpstreamTimeout
from tests.common.waiting import until
from vmm import qmp

GREETING = json.dumps({"QMP": {"version": {"qemu": {}, "package": ""}, "capabilities": []}})
Speak = Callable[[socket.socket], None]


@pytest.fixture
def monitor(data_dir: Path) -> Iterator[Callable[[Speak], None]]:
    """Lets a function speak on the monitor of a machine, for one connection after another."""
    listener = socket.socket(socket.AF_UNIX)
    held = []

    def start(speak: Speak) -> None:
        listener.bind(str(data_dir / "qmp.sock"))
        listener.listen()

        def run() -> None:
            while True:
                try:
                    connection = listener.accept()[0]
                except OSError:
                    return
                held.append(connection)
                speak(connection)

        threading.Thread(target=run, daemon=True).start()

    yield start
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    for connection in held:
        connection.close()


def answering(*answers: dict[str, object], end: bool = False) -> Speak:
    """Greets, then gives one answer to each command; then hangs up, if told so."""

    def speak(connection: socket.socket) -> None:
        connection.sendall(GREETING.encode() + b"\n")
        for answer in ({"return": {}}, *answers):
            call = json.loads(connection.recv(65536))
            del call["execute"]
            connection.sendall(json.dumps({**call, **answer}).encode() + b"\n")
        if end:
            connection.close()

    return speak


def test_a_commands_answer_comes_back(data_dir: Path, monitor: Callable[[Speak], None]) -> None:
    monitor(answering({"return": {"status": "running"}}))

    assert qmp.execute(data_dir, "query-status") == {"status": "running"}


def test_an_answer_counts_also_when_qemu_ends_with_it(
    data_dir: Path, monitor: Callable[[Speak], None]
) -> None:
    monitor(answering({"return": {}}, end=True))

    for _ in range(20):
        assert qmp.execute(data_dir, "quit") == {}


def test_a_refused_command_is_a_failure_of_qemu(
    data_dir: Path, monitor: Callable[[Speak], None]
) -> None:
    monitor(answering({"error": {"class": "CommandNotFound", "desc": "no such command"}}))

    with pytest.raises(Upstream, match="no such command"):
        qmp.execute(data_dir, "nonsense")


@pytest.mark.parametrize("said", [b"garbage\n", b"{}\n", b"[]\n", b'{"QMP": 3}\n', b"\xff\xfe\n"])
def test_garbage_is_a_failure_of_qemu(
    data_dir: Path, monitor: Callable[[Speak], None], said: bytes
) -> None:
    monitor(lambda connection: connection.sendall(said))

    with pytest.raises(Upstream):
        qmp.execute(data_dir, "query-status", deadline_s=5)


def test_a_monitor_that_hangs_up_is_a_failure_of_qemu(
    data_dir: Path, monitor: Callable[[Speak], None]
) -> None:
    monitor(lambda connection: connection.close())

    with pytest.raises(Upstream):
        qmp.execute(data_dir, "query-status")


@pytest.mark.parametrize("said", [b"", GREETING.encode() + b"\n", b"{"])
def test_a_monitor_that_falls_silent_is_given_up_at_the_deadline(
    data_dir: Path, monitor: Callable[[Speak], None], said: bytes
) -> None:
    monitor(lambda connection: connection.sendall(said))

    began = time.monotonic()
    with pytest.raises(UpstreamTimeout, match="did not answer within"):
        qmp.execute(data_dir, "query-status", deadline_s=0.3)

    assert time.monotonic() - began < 5


def test_an_endless_answer_is_given_up(data_dir: Path, monitor: Callable[[Speak], None]) -> None:
    def flood(connection: socket.socket) -> None:
        try:
            while True:
                connection.sendall(b"a" * 65536)
        except OSError:
            return

    monitor(flood)

    with pytest.raises((Upstream, UpstreamTimeout)):
        qmp.execute(data_dir, "query-status", deadline_s=1)


def test_no_monitor_is_a_failure_of_qemu(data_dir: Path) -> None:
    with pytest.raises(Upstream):
        qmp.execute(data_dir, "query-status")
    with pytest.raises(Upstream, match="the VM is gone"):
        qmp.execute(data_dir / "removed", "query-status")


def test_callers_take_turns_and_none_waits_beyond_its_deadline(data_dir: Path) -> None:
    with (
        files.locked(data_dir / "qmp.lock"),
        pytest.raises(UpstreamTimeout, match="busy with another caller"),
    ):
        qmp.execute(data_dir, "query-status", deadline_s=0.1)


def test_a_greeting_is_waited_for(data_dir: Path, monitor: Callable[[Speak], None]) -> None:
    looks: list[int] = []
    waiting = threading.Thread(
        target=lambda: looks.append(
            qmp.wait_for_greeting(data_dir, lambda: bool(looks.append(0) or True), deadline_s=10)
        )
    )
    waiting.start()
    until(lambda: len(looks) > 3)

    monitor(answering({"return": {}}))

    waiting.join(10)
    assert looks[-1] is True


def test_a_machine_that_ends_before_its_greeting_is_told_at_once(data_dir: Path) -> None:
    looks: list[int] = []

    assert not qmp.wait_for_greeting(
        data_dir, lambda: looks.append(1) or len(looks) < 4, deadline_s=60
    )


def test_a_machine_that_never_greets_is_given_up(
    data_dir: Path, monitor: Callable[[Speak], None]
) -> None:
    monitor(lambda connection: None)

    with pytest.raises(UpstreamTimeout):
        qmp.wait_for_greeting(data_dir, lambda: True, deadline_s=0.2)


def test_a_machine_without_a_monitor_is_given_up(data_dir: Path) -> None:
    with pytest.raises(UpstreamTimeout):
        qmp.wait_for_greeting(data_dir, lambda: True, deadline_s=0.1)
