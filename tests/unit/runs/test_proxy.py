"""What goes to a service and what comes back, with a real HTTP server that writes down what it is asked."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable

import pytest

from core.errors import Upstream
from runs.proxy import SANDBOX, Answer, Endpoint, Request, forward
from tests.common.waiting import free_port
from tests.unit.runs.conftest import Service

PREFIX = "/proxy/services/main/web"


def endpoint(service: Service, *, strips: bool = True, keeps: bool = False) -> Endpoint:
    return Endpoint("127.0.0.1", service.port, PREFIX, strips, keeps)


def request(
    target: str = f"{PREFIX}/", method: str = "GET", body: bytes = b"", **headers: str
) -> Request:
    given = [(name.replace("_", "-"), value) for name, value in headers.items()]
    return Request(method, target, given, body, "192.0.2.7", "https", "runs.example")


def whole(answer: Answer) -> bytes:
    return b"".join(answer.pieces)


def test_a_request_arrives_below_its_own_root_and_the_answer_comes_back(service: Service) -> None:
    answer = forward(endpoint(service), request(f"{PREFIX}/a%2Fb/c?x=1&y=%20", "POST", b"body"))

    assert (answer.status, whole(answer)) == (200, b"hello")
    ((method, path, headers, body),) = service.asked
    assert (method, path, body) == ("POST", "/a%2Fb/c?x=1&y=%20", b"body")
    assert headers["Host"] == "runs.example"
    assert headers["X-Forwarded-For"] == "192.0.2.7"
    assert headers["X-Forwarded-Proto"] == "https"
    assert headers["X-Forwarded-Prefix"] == PREFIX


def test_a_service_that_wants_the_prefix_gets_it(service: Service) -> None:
    whole(forward(endpoint(service, strips=False), request(f"{PREFIX}/x")))

    assert service.asked[0][1] == f"{PREFIX}/x"


def test_the_service_never_sees_the_callers_secrets(service: Service) -> None:
    secret = {"Authorization": "Bearer s3cret", "Cookie": "session=s3cret", "X_Api_Key": "s3cret"}
    whole(forward(endpoint(service), request(**secret)))

    assert "s3cret" not in str(service.asked)


def test_a_service_with_a_login_of_its_own_is_shown_the_credential_but_no_cookie(
    service: Service,
) -> None:
    whole(forward(endpoint(service, keeps=True), request(Authorization="Basic abc", Cookie="a=b")))

    headers = service.asked[0][2]
    assert headers["Authorization"] == "Basic abc"
    assert "Cookie" not in headers


def test_nobody_forges_where_a_request_came_from_and_hop_by_hop_headers_end_here(
    service: Service,
) -> None:
    forged = {
        "X_Forwarded_For": "10.0.0.1",
        "X_Forwarded_User": "root",
        "Connection": "X-Mine",
        "X_Mine": "1",
    }
    whole(forward(endpoint(service), request(**forged, TE="trailers", Upgrade="h2c")))

    headers = service.asked[0][2]
    assert headers["X-Forwarded-For"] == "192.0.2.7"
    assert not {"X-Forwarded-User", "X-Mine", "TE", "Upgrade"} & set(headers)


def test_an_answer_cannot_touch_this_hosts_own_pages(service: Service) -> None:
    headers = {
        "Set-Cookie": "session=x",
        "Clear-Site-Data": '"*"',
        "X-Own": "1",
        "Connection": "X-Hop",
        "X-Hop": "1",
    }
    service.answer = (200, headers, b"")

    names = {name.lower(): value for name, value in forward(endpoint(service), request()).headers}

    assert names["content-security-policy"] == SANDBOX
    assert names["x-own"] == "1"
    assert not {"set-cookie", "clear-site-data", "connection", "x-hop"} & set(names)


@pytest.mark.parametrize(
    ("said", "seen"),
    [
        ("/login", f"{PREFIX}/login"),
        ("next", "next"),
        ("https://elsewhere.example/", "https://elsewhere.example/"),
        ("//elsewhere.example/", "//elsewhere.example/"),
    ],
)
def test_a_redirect_is_handed_on_and_not_followed(service: Service, said: str, seen: str) -> None:
    service.answer = (302, {"Location": said}, b"")

    answer = forward(endpoint(service), request())

    assert answer.status == 302
    assert dict(answer.headers)["Location"] == seen
    assert len(service.asked) == 1


def test_a_known_length_is_kept_and_the_bytes_are_the_same(service: Service) -> None:
    text = bytes(range(256)) * 4096
    service.answer = (200, {"Content-Length": str(len(text))}, text)

    answer = forward(endpoint(service), request())

    assert dict(answer.headers)["Content-Length"] == str(len(text))
    assert whole(answer) == text


def raw_service(*pieces: bytes, wait: threading.Event | None = None) -> Callable[[], Endpoint]:
    """A service that says these bytes, the last one after `wait`, and hangs up."""
    listening = socket.create_server(("127.0.0.1", 0))

    def speak() -> None:
        with listening, listening.accept()[0] as connection:
            connection.recv(65536)
            for place, piece in enumerate(pieces):
                if wait is not None and place == len(pieces) - 1:
                    wait.wait(10)
                connection.sendall(piece)

    threading.Thread(target=speak, daemon=True).start()
    port = listening.getsockname()[1]
    return lambda: Endpoint("127.0.0.1", port, PREFIX, True, False)


def test_pieces_come_as_the_service_sends_them() -> None:
    go = threading.Event()
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n"
    answer = forward(raw_service(head, b"4\r\nlast\r\n0\r\n\r\n", wait=go)(), request())

    assert next(answer.pieces) == b"first"
    go.set()
    assert whole(answer) == b"last"
    assert "content-length" not in {name.lower() for name, _ in answer.headers}


@pytest.mark.parametrize("said", [b"", b"SSH-2.0-x\r\n", b"HTTP/1.1 x\r\n\r\n"])
def test_what_does_not_speak_http_is_no_service(said: bytes) -> None:
    with pytest.raises(Upstream, match="the service does not answer"):
        forward(raw_service(said)(), request())


def test_a_port_that_nobody_has_is_no_service() -> None:
    with pytest.raises(Upstream, match="the service does not answer"):
        forward(Endpoint("127.0.0.1", free_port(), PREFIX, True, False), request())
