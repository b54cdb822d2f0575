"""The engine's answers, given by a stand-in on a Unix socket."""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.errors import Invalid, NotFound, Upstream
from guest import containers
from guest.containers import Engine, LogQuery

LISTED = {
    "Id": "abc",
    "Names": ["/dstack-web-1"],
    "Image": "hello",
    "ImageID": "sha256:1",
    "Created": 5,
    "State": "running",
    "Status": "Up 1 second",
}


def frame(stream: int, data: bytes) -> bytes:
    return struct.pack(">BxxxI", stream, len(data)) + data


class StandIn:
    """An engine that knows one container; keeps the paths it was asked for."""

    def __init__(self, path: Path) -> None:
        self.name = "web"
        self.asked: list[str] = []
        self.log = frame(1, b"out\n") + frame(2, b"err\n")
        self.is_tty = False
        self.left = threading.Event()
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.bind(str(path))
        self.sock.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self.sock.accept()
            except OSError:
                return
            with client, client.makefile("rb") as file:
                path = file.readline().split()[1].decode()
                self.asked.append(path)
                status, body = self._answer(path)
                length = "" if "follow=1" in path else f"Content-Length: {len(body)}\r\n"
                head = f"HTTP/1.1 {status} x\r\n{length}\r\n"
                client.sendall(head.encode() + body)
                if "follow=1" in path:
                    file.read()
                    self.left.set()

    def _answer(self, path: str) -> tuple[int, bytes]:
        if path.startswith("/containers/json"):
            return 200, json.dumps([LISTED]).encode()
        if path == f"/containers/{self.name}/json":
            return 200, json.dumps({"Config": {"Tty": self.is_tty}}).encode()
        if path.startswith(f"/containers/{self.name}/logs"):
            return 200, self.log
        if path.startswith("/broken"):
            return 500, b'{"message": "out of order"}'
        return 404, b'{"message": "no such container"}'


@pytest.fixture
def stand_in(tmp_path: Path) -> Iterator[StandIn]:
    made = StandIn(tmp_path / "engine.sock")
    yield made
    made.sock.close()


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return Engine(f"unix://{tmp_path}/engine.sock")


def test_names_lose_dockers_slash(stand_in: StandIn, engine: Engine) -> None:
    (found,) = engine.list()

    assert (found.names, found.state, found.created) == (["dstack-web-1"], "running", 5)


def test_both_framings_are_read(stand_in: StandIn, engine: Engine) -> None:
    frames = list(engine.logs("web", LogQuery()))
    assert [(frame.channel, frame.data) for frame in frames] == [
        ("stdout", b"out\n"),
        ("stderr", b"err\n"),
    ]

    stand_in.is_tty, stand_in.log = True, b"raw bytes"
    frames = list(engine.logs("web", LogQuery()))
    assert [(frame.channel, frame.data) for frame in frames] == [("stdout", b"raw bytes")]


def test_the_query_reaches_the_engine(stand_in: StandIn, engine: Engine) -> None:
    list(engine.logs("web", LogQuery(since=5, until=9, tail="all", timestamps=True)))

    assert stand_in.asked[-1] == (
        "/containers/web/logs?stdout=1&stderr=1&since=5&until=9&tail=all&follow=0&timestamps=1"
    )


@pytest.mark.parametrize("name", ["", ".", "../x", "-a", "a b", "a/b", "a?b", "é", "a\n"])
def test_a_name_that_is_none_is_not_asked_for(stand_in: StandIn, engine: Engine, name: str) -> None:
    with pytest.raises(NotFound):
        engine.logs(name, LogQuery())
    assert stand_in.asked == []


def test_an_unknown_container_is_not_found(stand_in: StandIn, engine: Engine) -> None:
    with pytest.raises(NotFound):
        engine.logs("other", LogQuery())


def test_an_engine_that_is_not_there_is_an_upstream_failure(engine: Engine) -> None:
    with pytest.raises(Upstream):
        engine.list()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("", 0),
        ("0", 0),
        ("30m", 1_700_000_000 - 1800),
        ("1h", 1_700_000_000 - 3600),
        ("2d", 1_700_000_000 - 172_800),
        ("5s", 1_700_000_000 - 5),
        ("3600", 1_700_000_000 - 3600),
        ("1000000000", 1_000_000_000),
        ("1699999999", 1_699_999_999),
    ],
)
def test_moments_are_ago_or_absolute(text: str, seconds: int) -> None:
    assert containers.moment("since", text, now=1_700_000_000.9) == seconds


@pytest.mark.parametrize("text", ["x", "1w", "-1", "1.5", "1 h", "١", "1" * 13])
def test_other_moments_and_tails_are_refused(text: str) -> None:
    with pytest.raises(Invalid, match="Invalid until"):
        containers.moment("until", text)
    with pytest.raises(Invalid, match="Invalid tail"):
        containers.tail(text if not text.isdigit() or not text.isascii() else "1" * 10)


@pytest.mark.parametrize("is_tty", [False, True])
def test_a_followed_log_ends_at_once_when_its_reader_leaves(
    stand_in: StandIn, engine: Engine, is_tty: bool
) -> None:
    stand_in.is_tty = is_tty
    ours, theirs = socket.socketpair()

    frames = engine.logs("web", LogQuery(follow=True), ours)
    assert next(frames).data.startswith(b"out" if not is_tty else b"\x01")
    theirs.close()
    rest = list(frames)

    assert len(rest) <= 1
    assert stand_in.left.wait(30)


def test_a_followed_log_ends_when_it_is_silent_for_long(
    stand_in: StandIn, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(containers, "FOLLOW_IDLE_S", 0.1)

    frames = list(engine.logs("web", LogQuery(follow=True)))

    assert [frame.channel for frame in frames] == ["stdout", "stderr"]
    assert stand_in.left.wait(30)


def test_an_engine_that_breaks_off_ends_the_log(stand_in: StandIn, engine: Engine) -> None:
    stand_in.log = frame(1, b"whole\n") + frame(1, b"x" * 100)[:20]

    frames = list(engine.logs("web", LogQuery()))

    assert frames[0].data == b"whole\n"
    assert b"".join(each.data for each in frames[1:]) == b"x" * 12


def test_the_logs_of_a_services_containers_are_one_text(stand_in: StandIn, engine: Engine) -> None:
    stand_in.name = LISTED["Id"]

    query = LogQuery(since=1_700_000_000, tail="5", timestamps=True)

    assert engine.merged_logs("", query) == engine.merged_logs("web", query) == "out\nerr\n"
    for part in ("tail=5", "since=1700000000", "timestamps=1"):
        assert part in stand_in.asked[-1]
    assert engine.merged_logs("other", query) == ""


def test_a_merged_log_has_an_end(
    stand_in: StandIn, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in.name = LISTED["Id"]
    monkeypatch.setattr("guest.containers.MERGED_LOG", 3)

    assert engine.merged_logs("", LogQuery(tail="5")) == "rr\n"


@pytest.mark.parametrize(
    ("service", "container", "is_its"),
    [
        ("web", "dstack-web-1", True),
        ("web", "dstack_web_1", True),
        ("web", "web", True),
        ("web", "webber-1", False),
        ("web", "dstack-web-db-1", False),
        ("w.b", "dstack-web-1", False),
        ("", "anything", True),
    ],
)
def test_a_container_belongs_to_the_service_in_its_name(
    service: str, container: str, is_its: bool
) -> None:
    assert containers.is_of(service, container) is is_its
