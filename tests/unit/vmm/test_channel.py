from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core import files
from core.errors import Invalid, NotFound, Upstream, UpstreamTimeout
from tests.common.waiting import until
from vmm import channel
from vmm.channel import Port

Guest = Callable[[socket.socket], None]


@pytest.fixture
def guest(data_dir: Path) -> Iterator[Callable[[Guest], None]]:
    """Lets a function play the agent at the guest port of a VM, for one caller after another."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(data_dir / "guest.sock"))
    listener.listen()

    def start(play: Guest) -> None:
        def run() -> None:
            while True:
                try:
                    connection = listener.accept()[0]
                except OSError:
                    return
                with connection:
                    try:
                        play(connection)
                    except OSError:
                        continue  # the caller had enough

        threading.Thread(target=run, daemon=True).start()

    yield start
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


def question(connection: socket.socket) -> dict[str, Any]:
    data = b""
    while data.count(b"\n") < 2:
        data += connection.recv(65536)
    assert data.startswith(b"\n")
    call: dict[str, Any] = json.loads(data)
    return call


def line(value: object) -> bytes:
    return json.dumps(value).encode() + b"\n"


def answering(*lines: object, result: object = "fine") -> Guest:
    """Says the lines (bytes as they are), then answers the question."""

    def play(connection: socket.socket) -> None:
        call = question(connection)
        for each in lines:
            connection.sendall(each if isinstance(each, bytes) else line(each))
        connection.sendall(line({"id": call["id"], "result": result}))

    return play


def test_the_agents_answer_comes_back(data_dir: Path, guest: Callable[[Guest], None]) -> None:
    asked: list[dict[str, Any]] = []

    def play(connection: socket.socket) -> None:
        asked.append(call := question(connection))
        connection.sendall(line({"id": call["id"], "result": {"a": [1]}}))

    guest(play)

    assert channel.ask(data_dir, "Info", {"b": 2}) == {"a": [1]}
    assert channel.ask(data_dir, "Info", {}) == {"a": [1]}
    assert [(call["method"], call["params"]) for call in asked] == [
        ("Info", {"b": 2}),
        ("Info", {}),
    ]
    assert asked[0]["id"] != asked[1]["id"]


def test_what_is_left_of_a_former_exchange_is_dropped(
    data_dir: Path, guest: Callable[[Guest], None]
) -> None:
    guest(
        answering(
            b'alf of a line", "id": 3}\n',
            b"\n\n\0\xff\n",
            {"id": 1, "result": "of another call"},
            {"id": None, "result": "of nobody"},
            {"result": "without an id"},
            [1],
            3,
            b'{"id": NaN}\n',
            b"[" * 50_000 + b"\n",
        )
    )

    assert channel.ask(data_dir, "Info", {}) == "fine"


@pytest.mark.parametrize(
    ("error", "text"),
    [
        ({"message": "no such method", "code": 404}, "guest agent: no such method"),
        ({"message": "a" * 10_000}, "guest agent: a{500}$"),
        ("broken", "guest agent: None"),
        ({}, "guest agent: None"),
        ([1], "guest agent: None"),
    ],
)
def test_a_refusal_of_the_agent_is_told_in_its_words(
    data_dir: Path, guest: Callable[[Guest], None], error: object, text: str
) -> None:
    def play(connection: socket.socket) -> None:
        connection.sendall(line({"id": question(connection)["id"], "error": error}))

    guest(play)

    with pytest.raises(Upstream, match=text):
        channel.ask(data_dir, "Info", {})


def timed(data_dir: Path, **limits: float) -> float:
    began = time.monotonic()
    with pytest.raises(UpstreamTimeout, match="did not answer in time"):
        channel.ask(data_dir, "Info", {}, **limits)
    return time.monotonic() - began


def test_an_agent_that_says_nothing_is_given_up(
    data_dir: Path, guest: Callable[[Guest], None]
) -> None:
    guest(lambda connection: connection.recv(1) and threading.Event().wait(3))

    assert 0.2 <= timed(data_dir, begin_s=0.2, whole_s=60) < 5


@pytest.mark.parametrize("drip", [b"{", b"{}\n", line({"id": 1})])
def test_an_agent_that_drips_is_given_up(
    data_dir: Path, guest: Callable[[Guest], None], drip: bytes
) -> None:
    def play(connection: socket.socket) -> None:
        while True:
            connection.sendall(drip)
            threading.Event().wait(0.02)

    guest(play)

    assert 0.4 <= timed(data_dir, begin_s=60, whole_s=0.4) < 5


def test_empty_lines_are_no_beginning_of_an_answer(
    data_dir: Path, guest: Callable[[Guest], None]
) -> None:
    def play(connection: socket.socket) -> None:
        while True:
            connection.sendall(b"\n \n")
            threading.Event().wait(0.02)

    guest(play)

    assert timed(data_dir, begin_s=0.2, whole_s=60) < 5


@pytest.mark.parametrize("part", [b"a" * 65536, b"a" * 65535 + b"\n"])
def test_an_answer_of_more_than_four_mebibytes_is_cut_off(
    data_dir: Path, guest: Callable[[Guest], None], part: bytes
) -> None:
    def play(connection: socket.socket) -> None:
        while True:
            connection.sendall(part)

    guest(play)

    with pytest.raises(Upstream, match="larger than 4194304 bytes"):
        channel.ask(data_dir, "Info", {})


def test_an_agent_that_babbles_is_cut_off(data_dir: Path, guest: Callable[[Guest], None]) -> None:
    guest(lambda connection: connection.sendall(b"{}\n" * 1_000_000))

    with pytest.raises(Upstream, match="said too much"):
        channel.ask(data_dir, "Info", {})


def test_an_answer_just_below_the_limit_is_taken(
    data_dir: Path, guest: Callable[[Guest], None]
) -> None:
    guest(answering(result="a" * (4 * 1024**2 - 200)))

    assert len(channel.ask(data_dir, "Info", {})) == 4 * 1024**2 - 200


def test_an_agent_that_hangs_up_is_a_failure_of_the_guest(
    data_dir: Path, guest: Callable[[Guest], None]
) -> None:
    guest(lambda connection: question(connection) and None)

    with pytest.raises(Upstream, match="closed its channel"):
        channel.ask(data_dir, "Info", {})


def test_a_vm_without_a_channel_is_a_failure_of_the_guest(data_dir: Path) -> None:
    with pytest.raises(Upstream, match="channel is closed: No such file"):
        channel.ask(data_dir, "Info", {})
    with pytest.raises(Upstream, match="channel is closed: No such file"):
        channel.ask(data_dir / "removed", "Info", {})


def test_callers_take_turns_and_none_waits_beyond_its_deadline(
    data_dir: Path, guest: Callable[[Guest], None]
) -> None:
    guest(answering())

    with files.locked(data_dir / "guest.lock"):
        assert timed(data_dir, begin_s=0.1) < 5

    answers: list[str] = []
    threads = [
        threading.Thread(target=lambda: answers.append(channel.ask(data_dir, "Info", {})))
        for _ in range(10)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == ["fine"] * 10


class Machine:
    """A VM's end of its question port, and the host's end with what it was asked."""

    def __init__(self, data_dir: Path) -> None:
        self.asked: list[tuple[str, object]] = []
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(data_dir / "host.sock"))
        listener.listen()
        self.port = Port(data_dir / "host.sock", self.answer)
        self.guest = listener.accept()[0]
        listener.close()
        self.guest.setblocking(False)
        assert self.guest.recv(10) == b"\n"

    def answer(self, method: str, params: object) -> object:
        self.asked.append((method, params))
        if method == "Refuse":
            raise Invalid("event: must not be empty")
        if method == "Nowhere":
            raise NotFound("unknown method")
        if method == "Fail":
            raise RuntimeError("a fault")
        return {"name": "casemate"}

    def say(self, data: bytes) -> None:
        """Writes as much as the socket takes while the host reads."""
        while data:
            try:
                data = data[self.guest.send(data) :]
            except BlockingIOError:
                self.port.wait_until = 0
                assert self.port.serve()

    def heard(self) -> list[Any]:
        try:
            return [json.loads(each) for each in self.guest.recv(1 << 20).splitlines()]
        except BlockingIOError:
            return []

    def close(self) -> None:
        self.port.close()
        self.guest.close()


@pytest.fixture
def machine(data_dir: Path) -> Iterator[Machine]:
    made = Machine(data_dir)
    yield made
    made.close()


def test_a_guests_question_is_answered(machine: Machine) -> None:
    machine.say(b"\n" + line({"id": 7, "method": "Info", "params": {"a": 1}}))

    assert machine.port.serve()

    assert machine.asked == [("Info", {"a": 1})]
    assert machine.heard() == [{"id": 7, "result": {"name": "casemate"}}]


def test_refusals_go_back_with_their_status(machine: Machine) -> None:
    machine.say(line({"id": 1, "method": "Refuse"}) + line({"id": 2, "method": "Nowhere"}))

    assert machine.port.serve()

    assert machine.heard() == [
        {"id": 1, "error": {"message": "event: must not be empty", "code": 400}},
        {"id": 2, "error": {"message": "unknown method", "code": 404}},
    ]


def test_a_question_may_come_in_pieces(machine: Machine) -> None:
    for byte in line({"id": 1, "method": "Info"}):
        machine.say(bytes([byte]))
        assert machine.port.serve()

    assert [method for method, _ in machine.asked] == ["Info"]


def test_nothing_to_read_is_no_end(machine: Machine) -> None:
    assert machine.port.serve()


def test_the_guests_end_is_noticed(machine: Machine) -> None:
    machine.guest.close()

    assert not machine.port.serve()


@pytest.mark.parametrize(
    "garbage",
    [
        b"]]]\n",
        b"\0\xff\xfe\n",
        b"3\n",
        b"[]\n",
        b"{}\n",
        line({"id": 1}),
        line({"id": 1, "method": 3}),
        line({"method": "Info"}),
        line({"id": None, "method": "Info"}),
        line({"id": {}, "method": "Info"}),
        b'{"id": ' + b"[" * 900 + b"]" * 900 + b', "method": "Info"}\n',
        b"[" * 100_000 + b"\n",
        b'{"id": NaN, "method": "Info"}\n',
    ],
)
def test_garbage_is_dropped_and_the_next_question_answered(
    machine: Machine, garbage: bytes
) -> None:
    machine.say(garbage + line({"id": 2, "method": "Info"}))

    def answered() -> bool:
        machine.port.wait_until = 0
        return machine.port.serve() and bool(machine.asked)

    until(answered)

    assert machine.heard() == [{"id": 2, "result": {"name": "casemate"}}]


def test_an_endless_line_is_dropped_up_to_its_end_and_not_kept(machine: Machine) -> None:
    for _ in range(80):
        machine.say(b"a" * 65536)
        machine.port.wait_until = 0
        assert machine.port.serve()
        assert len(machine.port._buffer) <= channel.REQUEST_LIMIT + 65536

    machine.say(b'"}\n' + line({"id": 2, "method": "Info"}))

    def answered() -> bool:
        machine.port.wait_until = 0
        return machine.port.serve() and bool(machine.asked)

    until(answered)
    assert len(machine.asked) == 1


def test_a_guest_that_does_not_read_its_answers_does_not_hold_us(machine: Machine) -> None:
    asked = line({"id": 1, "method": "Info"})

    began = time.monotonic()
    for _ in range(100):
        machine.say(asked * 100)
    assert time.monotonic() - began < 20


@pytest.mark.parametrize("flood", [line({"id": 1, "method": "Info"}), b"x\n", b"\n", b"a"])
def test_a_flood_waits_until_its_second_is_over(
    machine: Machine, flood: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1000.25]
    monkeypatch.setattr(channel.time, "monotonic", lambda: clock[0])
    sent = 0
    looks = 0

    def write() -> None:
        nonlocal sent
        try:
            while True:
                sent += machine.guest.send(flood * 1000)
        except BlockingIOError:
            return

    for second in range(5):
        clock[0] = 1000.25 + second
        while machine.port.wait_until <= clock[0]:
            write()
            assert machine.port.serve()
            looks += 1
        assert machine.port.wait_until == 1001 + second

    # Five seconds' worth, however much was waiting.
    assert len(machine.asked) <= 5 * channel.LINES_PER_SECOND
    assert looks <= 5 * channel.LINES_PER_SECOND
    assert len(machine.port._buffer) <= channel.REQUEST_LIMIT + 65536


def test_what_the_rate_held_back_is_answered_later(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1000.0]
    monkeypatch.setattr(channel.time, "monotonic", lambda: clock[0])
    machine.say(b"".join(line({"id": number, "method": "Info"}) for number in range(120)))

    asked = []
    for _ in range(3):
        while machine.port.wait_until <= clock[0] and (machine.port.pending or not asked):
            before = len(machine.asked)
            assert machine.port.serve()
            assert len(machine.asked) - before <= channel.LINES_AT_ONCE
        asked.append(len(machine.asked))
        clock[0] += 1

    assert asked[0] < channel.LINES_PER_SECOND
    assert asked[1] - asked[0] <= channel.LINES_PER_SECOND
    assert asked[2] == 120
    assert not machine.port.pending


def test_a_fault_in_answering_is_not_hidden(machine: Machine) -> None:
    machine.say(line({"id": 1, "method": "Fail"}))

    with pytest.raises(RuntimeError, match="a fault"):
        machine.port.serve()


def test_a_port_that_nobody_listens_on_leaves_no_descriptor(data_dir: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        Port(data_dir / "host.sock", lambda method, params: None)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(
    st.lists(
        st.binary(max_size=60)
        | st.builds(
            line,
            st.dictionaries(
                st.sampled_from(["id", "method", "params", "x"]),
                st.none() | st.integers() | st.text() | st.lists(st.integers()),
            ),
        ),
        max_size=8,
    )
)
def test_nothing_that_a_guest_writes_breaks_its_port(
    machine: Machine, written: list[bytes]
) -> None:
    for data in written:
        machine.say(data.replace(b"Fail", b""))
        machine.port.wait_until = 0
        assert machine.port.serve()
    machine.say(b"\n")
    machine.port.wait_until = 0
    assert machine.port.serve()
    machine.heard()
