"""The serial channel over socket pairs that stand in for the ports."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.errors import Conflict, Invalid, NotFound, Upstream, UpstreamTimeout
from guest import channel
from guest.channel import Host, Lines, Notifier, Port
from guest.settings import GUEST


def answer(method: str, params: object) -> object:
    """A service with three methods, one of them faulty."""
    if method == "Echo":
        return params
    if method == "Large":
        return "x" * channel.MAX_ANSWER
    if method == "Fault":
        raise ZeroDivisionError
    raise NotFound(f"unknown method: {method}")


class Peer:
    """The host's end of a port."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.file = sock.makefile("rb")

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def line(self) -> bytes:
        """The next line that is not empty."""
        while not (line := self.file.readline().strip()):
            pass
        return line

    def ask(self, number: object, method: str, params: object = None) -> dict[str, object]:
        self.send(json.dumps({"id": number, "method": method, "params": params}).encode() + b"\n")
        reply: dict[str, object] = json.loads(self.line())
        return reply


@pytest.fixture
def peer() -> Iterator[Peer]:
    """A host whose guest serves `answer`."""
    ours, theirs = socket.socketpair()
    ours.settimeout(10)
    theirs.setblocking(False)
    serving = threading.Thread(
        target=channel.serve, args=(Port(theirs.fileno()), answer), daemon=True
    )
    serving.start()
    yield Peer(ours)
    # The socket stays open: its descriptor belongs to the thread that serves for ever.
    _kept.append((ours, theirs))


_kept: list[object] = []


def test_the_first_thing_said_is_an_empty_line(peer: Peer) -> None:
    assert peer.file.readline() == b"\n"


def test_a_call_is_answered_with_its_id(peer: Peer) -> None:
    assert peer.ask(7, "Echo", {"a": [1]}) == {"id": 7, "result": {"a": [1]}}
    assert peer.ask("text", "Echo") == {"id": "text", "result": {}}


def test_refusals_and_faults_are_told_apart_and_faults_tell_nothing(peer: Peer) -> None:
    unknown = {"message": "unknown method: Nope", "code": 404}
    assert peer.ask(1, "Nope") == {"id": 1, "error": unknown}
    assert peer.ask(2, "Fault") == {"id": 2, "error": {"message": "internal error", "code": 500}}
    assert peer.ask(3, "Large")["error"]["code"] == 413  # type: ignore[index] # an object


@pytest.mark.parametrize(
    "junk",
    [
        b"\n\n\n",
        b"not json\n",
        b"\x00\xff\xfe\n",
        b"[]\n",
        b'{"id": 1}\n',
        b'{"method": "Echo"}\n',
        b'{"id": 1, "method": 5}\n',
        b"[" * 100_000 + b"\n",
        b'{"id": 1, "method": "Echo", "par\n',
        b"x" * (channel.MAX_REQUEST + 1) + b"\n",
    ],
)
def test_junk_is_dropped_and_the_next_call_answered(peer: Peer, junk: bytes) -> None:
    peer.send(junk)

    assert peer.ask(9, "Echo", {"after": "junk"}) == {"id": 9, "result": {"after": "junk"}}


def test_a_call_arriving_byte_by_byte_is_answered(peer: Peer) -> None:
    for byte in b'{"id": 1, "method": "Echo", "params": {"x": 1}}\n':
        peer.send(bytes([byte]))

    assert json.loads(peer.line()) == {"id": 1, "result": {"x": 1}}


def test_lines_come_out_the_same_however_the_stream_is_cut() -> None:
    rng = random.Random(1)
    for _ in range(300):
        given = [bytes(rng.choices(b"abc", k=rng.randrange(12))) for _ in range(rng.randrange(8))]
        stream = b"".join(line + b"\n" for line in given)
        lines, got = Lines(8), []
        while stream:
            size = rng.randrange(1, 6)
            got += lines.feed(stream[:size])
            stream = stream[size:]
        assert got == [line for line in given if 0 < len(line) <= 8]


def test_random_bytes_never_end_the_service(peer: Peer) -> None:
    rng = random.Random(2)
    for _ in range(500):
        peer.send(rng.randbytes(rng.randrange(200)))
    peer.send(b"\n")

    assert peer.ask(1, "Echo", {"still": "here"})["result"] == {"still": "here"}


def test_a_fast_peer_is_answered_fast(peer: Peer) -> None:
    peer.ask(0, "Echo")
    began = time.monotonic()
    for number in range(100):
        peer.ask(number, "Echo", {"n": number})

    assert time.monotonic() - began < 10


class Ports:
    """`open_port` that hands out our end of a socket pair, with a host thread at the other."""

    def __init__(self, replies: list[bytes]) -> None:
        self.replies = replies
        self.asked: list[dict[str, object]] = []

    def open(self, device: Path) -> Port:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        threading.Thread(target=self._host, args=(theirs,), daemon=True).start()
        return Port(ours.detach())

    def _host(self, sock: socket.socket) -> None:
        with sock, sock.makefile("rb") as file:
            for line in file:
                if line.strip():
                    asked = json.loads(line)
                    self.asked.append(asked)
                    for reply in self.replies:
                        number = str(asked["id"]).encode()
                        sock.sendall(reply.replace(b"ID", number) + b"\n")


@pytest.fixture
def ports(monkeypatch: pytest.MonkeyPatch) -> Ports:
    made = Ports([])
    monkeypatch.setattr(channel, "open_port", made.open)
    return made


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path / "device", tmp_path / "lock")


def test_the_host_is_asked_and_only_its_answer_to_us_counts(ports: Ports, host: Host) -> None:
    ports.replies = [b"", b"junk", b'{"id": 1, "result": 1}', b'{"id": ID, "result": {"ok": 2}}']

    assert host.call("Info", {}) == {"ok": 2}


def test_ids_never_repeat(ports: Ports, host: Host) -> None:
    ports.replies = [b'{"id": ID, "result": null}']

    for _ in range(20):
        host.call("Info", {})

    numbers = [asked["id"] for asked in ports.asked]
    assert numbers == sorted(set(numbers), key=int)  # type: ignore[call-overload] # whole numbers


def test_a_refusal_of_the_host_is_passed_on(ports: Ports, host: Host) -> None:
    ports.replies = [
        b'{"id": ID, "error": {"message": "Key provider is not enabled", "code": 400}}'
    ]

    with pytest.raises(Upstream, match="Key provider is not enabled"):
        host.call("GetSealingKey", {"quote": ""})


def test_a_silent_host_costs_no_more_than_the_deadline(ports: Ports, host: Host) -> None:
    began = time.monotonic()

    with pytest.raises(UpstreamTimeout):
        host.call("Info", {}, timeout_s=0.2)

    assert 0.2 <= time.monotonic() - began < 5


def test_two_processes_never_talk_at_once(ports: Ports, host: Host, tmp_path: Path) -> None:
    from core import files

    with files.locked(tmp_path / "lock"), pytest.raises(Conflict):
        host.call("Info", {}, timeout_s=0.1)


def test_a_request_over_the_limit_is_not_sent(ports: Ports, host: Host) -> None:
    with pytest.raises(Invalid):
        host.call("Notify", {"payload": "x" * channel.MAX_REQUEST})
    assert ports.asked == []


def test_notifications_do_not_wait_and_keep_their_order(ports: Ports, host: Host) -> None:
    ports.replies = [b'{"id": ID, "result": {}}']
    notifier = Notifier(host)

    for step in ("one", "two", "three"):
        notifier.notify("boot.progress", step)
    notifier.close()

    assert [asked["params"] for asked in ports.asked] == [
        {"event": "boot.progress", "payload": step} for step in ("one", "two", "three")
    ]


def test_without_a_host_nothing_is_told_and_nothing_waits(tmp_path: Path) -> None:
    assert channel.host(dataclasses.replace(GUEST, state=tmp_path, root=tmp_path)) is None
    notifier = Notifier(None)
    notifier.notify("boot.progress", "done")
    notifier.close()


def test_ports_are_found_by_name(tmp_path: Path) -> None:
    for device, name in (("vport1p1", "casemate.host.0"), ("vport1p2", "casemate.guest.0")):
        folder = tmp_path / "sys/class/virtio-ports" / device
        folder.mkdir(parents=True)
        (folder / "name").write_text(f"{name}\n")

    assert channel.find_port(channel.GUEST_PORT, tmp_path) == tmp_path / "dev/vport1p2"
    assert channel.find_port("other", tmp_path) is None


def test_a_peer_that_went_away_is_noticed_and_not_spun_on() -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.close()
    port = Port(ours.fileno())
    began = time.monotonic()

    assert port.read(5) is None
    assert time.monotonic() - began >= channel.ABSENT_HOST_PAUSE_S
    assert port.write(b"x", 1) is False
    ours.close()


def test_writing_to_a_peer_that_does_not_read_ends_with_the_deadline() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)

    assert Port(writing).write(bytes(1024 * 1024), 0.2) is False
    os.close(reading)
    os.close(writing)
