"""/logs: the last lines of a VM's logs, and what comes."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from flask import Flask
from flask.testing import FlaskClient

from core import logs
from core.config import Config
from tests.api.vmm.calls import create
from tests.common.waiting import until
from vmm.service import Vms


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "POLL_S", 0.005)


@pytest.fixture
def vm_id(client: FlaskClient) -> str:
    return create(client, stopped=True)


@pytest.fixture
def log(config: Config, vm_id: str) -> Path:
    return config.run_path / vm_id / "serial.log"


def get(client: FlaskClient, vm_id: str, query: str = "") -> str:
    answer = client.get(f"/logs?id={vm_id}{query}")
    assert answer.status_code == 200, answer.text
    assert answer.content_type == "text/plain; charset=utf-8"
    assert answer.headers["X-Accel-Buffering"] == "no"
    return answer.text


def test_the_last_lines_are_text(client: FlaskClient, vm_id: str, log: Path) -> None:
    log.write_text("one\ntwö\nthree\n")

    assert get(client, vm_id) == "one\ntwö\nthree\n"
    assert get(client, vm_id, "&lines=2") == "twö\nthree\n"
    assert get(client, vm_id, "&lines=0") == ""
    assert get(client, vm_id, "&lines=") == "one\ntwö\nthree\n"
    assert get(client, vm_id, "&lines=999999999") == "one\ntwö\nthree\n"


def test_ten_thousand_lines_are_the_default(client: FlaskClient, vm_id: str, log: Path) -> None:
    log.write_text("x\n" * 10_500)

    assert get(client, vm_id) == "x\n" * 10_000


def test_a_log_that_is_not_there_yet_is_empty(client: FlaskClient, vm_id: str) -> None:
    assert get(client, vm_id) == ""


def test_escape_sequences_are_taken_out_unless_asked_for(
    client: FlaskClient, vm_id: str, log: Path
) -> None:
    log.write_bytes(b"\x1b[31mred\x1b[0m \xff</script>\n")

    for query in ("", "&ansi=false", "&ansi=0"):
        assert get(client, vm_id, query) == "red \ufffd</script>\n"
    for query in ("&ansi", "&ansi=1", "&ansi=true"):
        assert get(client, vm_id, query) == "\x1b[31mred\x1b[0m \ufffd</script>\n"


def test_each_channel_is_a_log_of_its_own(client: FlaskClient, vm_id: str, log: Path) -> None:
    for name in ("serial", "stdout", "stderr"):
        log.with_name(f"{name}.log").write_text(f"{name} said\n")

    for name in ("serial", "stdout", "stderr"):
        assert get(client, vm_id, f"&ch={name}") == f"{name} said\n"


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("&ch=../../../etc/passwd", "ch: must be one of serial, stdout, stderr"),
        ("&ch=", "ch: must be one of"),
        ("&ch=serial.log", "ch: must be one of"),
        ("&ch=%00", "ch: must be one of"),
        ("&lines=-1", "lines: must be a whole number"),
        ("&lines=1e3", "lines: must be a whole number"),
        ("&lines=9999999999", "lines: must be a whole number"),
        ("&lines=%D9%A1", "lines: must be a whole number"),
        ("&follow=maybe", "follow: must be true or false"),
        ("&ansi=maybe", "ansi: must be true or false"),
    ],
)
def test_a_bad_query_is_refused_by_its_field(
    client: FlaskClient, vm_id: str, query: str, text: str
) -> None:
    answer = client.get(f"/logs?id={vm_id}{query}")

    assert answer.status_code == 400
    assert answer.json is not None
    assert answer.json["message"].startswith(text)


@pytest.mark.parametrize(
    "vm_id",
    ["", "nobody", "../../etc", "..%2f..%2fetc%2fpasswd", "%2e%2e", "a%00b", "a" * 5000, "%ff"],
)
def test_the_log_of_an_unknown_vm_is_not_found(client: FlaskClient, vm_id: str) -> None:
    assert client.get(f"/logs?id={vm_id}").status_code == 404
    assert client.get(f"/logs?id={vm_id}&follow=true").status_code == 404


def test_without_an_id_nothing_is_found(client: FlaskClient) -> None:
    assert client.get("/logs").status_code == 404


def follow(client: FlaskClient, vm_id: str, query: str = "") -> Iterator[bytes]:
    answer = client.get(f"/logs?id={vm_id}&follow=true{query}", buffered=False)
    assert answer.status_code == 200
    return answer.iter_encoded()


def test_a_followed_log_gives_what_comes_until_the_vm_is_removed(
    app: Flask, client: FlaskClient, vm_id: str, log: Path
) -> None:
    log.write_text("one\ntwo\n")
    heard: list[bytes] = []

    def listen() -> None:
        heard.extend(follow(app.test_client(), vm_id, "&lines=1"))

    listening = threading.Thread(target=listen)
    listening.start()
    until(lambda: b"".join(heard) == b"two\n")
    with open(log, "a") as console:
        console.write("three\n")
    until(lambda: b"".join(heard) == b"two\nthree\n")

    vms: Vms = app.extensions["vms"]
    vms.remove(vm_id)
    vms.reconciler.one(vm_id)

    listening.join(10)
    assert not listening.is_alive()


def test_a_reader_that_leaves_a_silent_log_ends_its_stream(
    client: FlaskClient, vm_id: str, log: Path
) -> None:
    log.write_text("one\n")
    ours, theirs = socket.socketpair()
    answer = client.get(
        f"/logs?id={vm_id}&follow=true",
        buffered=False,
        environ_overrides={"gunicorn.socket": ours},
    )
    pieces = answer.iter_encoded()
    while next(pieces) != b"one\n":
        pass

    theirs.close()

    assert b"".join(pieces) == b""
    ours.close()


def test_followers_have_half_of_the_threads_and_give_them_back(
    app: Flask, client: FlaskClient, vm_id: str, log: Path, config: Config
) -> None:
    log.write_text("one\n")
    places = config.server.threads // 2
    open_streams = [client.get(f"/logs?id={vm_id}&follow=1", buffered=False) for _ in range(places)]
    assert {answer.status_code for answer in open_streams} == {200}

    refused = client.get(f"/logs?id={vm_id}&follow=1")
    assert refused.status_code == 503
    assert refused.json is not None
    assert "try again later" in refused.json["message"]
    assert get(client, vm_id) == "one\n"

    for answer in open_streams:
        answer.close()
    again = client.get(f"/logs?id={vm_id}&follow=1", buffered=False)
    assert again.status_code == 200
    again.close()


def test_a_refused_follower_takes_no_place(app: Flask, client: FlaskClient, vm_id: str) -> None:
    before = app.extensions["stream_places"]._value

    for query in ("id=nobody", f"id={vm_id}&ch=x", f"id={vm_id}&lines=x"):
        assert client.get(f"/logs?{query}&follow=1").status_code in (400, 404)
    client.head(f"/logs?id={vm_id}&follow=1").close()

    assert app.extensions["stream_places"]._value == before
