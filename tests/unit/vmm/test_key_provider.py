"""The relay to the SGX key provider: its frame, its sizes, its time."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from core.config import Config, KeyProviderConfig
from core.errors import CasemateError, Invalid, RateLimited, Unsupported, Upstream, UpstreamTimeout
from models.base import Database
from tests.common.waiting import free_port
from vmm import key_provider
from vmm.hostapi import HostApi

Play = Callable[[Callable[[bytes], bytes]], int]


def frame(value: object) -> bytes:
    body = json.dumps(value).encode()
    return len(body).to_bytes(4, "big") + body


@pytest.fixture
def play() -> Iterator[Play]:
    """Plays a provider: gives a function the request's body, sends what it returns; gives the port."""
    threads: list[threading.Thread] = []

    def serve(speak: Callable[[bytes], bytes]) -> int:
        listener = socket.create_server(("127.0.0.1", 0))

        def one() -> None:
            with listener, listener.accept()[0] as peer, peer.makefile("rb") as stream:
                size = int.from_bytes(stream.read(4), "big")
                peer.sendall(speak(stream.read(size)))

        threads.append(threading.Thread(target=one))
        threads[-1].start()
        port: int = listener.getsockname()[1]
        return port

    yield serve
    for each in threads:
        each.join(10)


def test_a_quote_is_turned_into_a_key(play: Play, config: Config, database: Database) -> None:
    asked: list[object] = []

    def speak(body: bytes) -> bytes:
        asked.append(json.loads(body))
        return frame({"encrypted_key": [1, 2], "provider_quote": [255]})

    settings = KeyProviderConfig(True, "127.0.0.1", play(speak))
    api = HostApi("vm", replace(config, key_provider=settings), database)

    told = api.answer("GetSealingKey", {"quote": "00ff"})

    assert told == {"encrypted_key": "0102", "provider_quote": "ff"}
    assert asked == [{"quote": [0, 255]}]


def test_a_guest_that_asks_again_and_again_does_not_hold_the_others_up(
    config: Config, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bytes] = []
    keys = {"encrypted_key": b"", "provider_quote": b""}
    monkeypatch.setattr(key_provider, "sealing_key", lambda quote, *_: asked.append(quote) or keys)
    api = HostApi("vm", config, database)

    api.answer("GetSealingKey", {"quote": "01"})
    for _ in range(20):
        with pytest.raises(RateLimited, match="one sealing key in 10 s"):
            api.answer("GetSealingKey", {"quote": "02"})
    HostApi("other", config, database).answer("GetSealingKey", {"quote": "03"})

    assert asked == [b"\1", b"\3"]


def test_a_host_without_one_says_so(config: Config, database: Database) -> None:
    api = HostApi("vm", replace(config, key_provider=KeyProviderConfig(False)), database)

    with pytest.raises(Unsupported, match="Key provider is not enabled"):
        api.answer("GetSealingKey", {"quote": "00"})


def test_one_that_is_not_there_is_told() -> None:
    with pytest.raises(Upstream, match="cannot be reached: Connection refused"):
        key_provider.sealing_key(b"x", "127.0.0.1", free_port())


@pytest.mark.parametrize("quote", [b"", b"x" * (key_provider.QUOTE_LIMIT + 1)])
def test_what_can_be_no_quote_is_not_sent(quote: bytes) -> None:
    with pytest.raises(Invalid, match="quote: must have 1 to 65536 bytes"):
        key_provider.sealing_key(quote, "127.0.0.1", 1)


@pytest.mark.parametrize(
    ("said", "text"),
    [
        (b"", "ended the connection before its answer"),
        (b"\0\0", "ended the connection before its answer"),
        (b"\0\0\0\x09{}", "ended the connection before its answer"),
        (b"\xff\xff\xff\xff", "more than 262144 bytes"),
        (frame([]), "an answer that is none"),
        (frame({"encrypted_key": 10**9, "provider_quote": []}), "an answer that is none"),
        (frame({"encrypted_key": [256], "provider_quote": []}), "an answer that is none"),
        (frame({"encrypted_key": "00", "provider_quote": []}), "an answer that is none"),
    ],
)
def test_an_answer_that_is_none_is_an_upstream_failure(play: Play, said: bytes, text: str) -> None:
    port = play(lambda _: said)

    with pytest.raises(Upstream, match=text):
        key_provider.sealing_key(b"x", "127.0.0.1", port)


def test_one_that_does_not_answer_is_left_in_time(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_provider, "DEADLINE_S", 0.2)
    over = threading.Event()

    def wait(_: bytes) -> bytes:
        over.wait(10)
        return b""

    port = play(wait)
    began = time.monotonic()
    with pytest.raises(UpstreamTimeout):
        key_provider.sealing_key(b"x", "127.0.0.1", port)
    over.set()
    assert time.monotonic() - began < 5
    assert issubclass(UpstreamTimeout, CasemateError)
