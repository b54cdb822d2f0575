from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core import log

Written = Callable[[Callable[[], None]], list[str]]


@pytest.fixture
def written(capsys: pytest.CaptureFixture[str]) -> Iterator[Written]:
    """The lines on standard error while something is done with logging set up."""
    root = logging.getLogger()
    before = root.handlers[:], root.level

    def during(work: Callable[[], None]) -> list[str]:
        log.setup()
        work()
        return capsys.readouterr().err.splitlines()

    yield during
    root.handlers, root.level = before


@pytest.mark.parametrize(
    "text",
    [
        "token=hunter2",
        "?token=hunter2&id=1",
        "CASEMATE_ADMIN_TOKEN=hunter2",
        "X-Admin-Token: hunter2",
        "password: 'hunter2'",
        'password: "more than hunter2 one word"',
        "Authorization: Bearer hunter2",
        "authorization=Basic hunter2=",
        "authorization: hunter2",
        "{'Authorization': 'Bearer hunter2'}",
        '{"token": "hunter2", "id": 1}',
        '{"tokens": ["hunter2"]}',
        "api_key=hunter2",
        "api-key: hunter2",
        "apikey = hunter2",
        "Cookie: session=hunter2",
        "seed: hunter2",
        "['--token', 'hunter2']",
        "client_secret=hunter2",
        "TOKEN=HUNTER2hunter2",
    ],
)
def test_a_secret_in_a_text_is_taken_out(text: str) -> None:
    assert "hunter2" not in log.redact(text)
    assert log.REDACTED in log.redact(text)


@pytest.mark.parametrize(
    "text", ["VM 5ef1: exit code 0", "the basics are fine", "host port tcp 127.0.0.1:80 is used"]
)
def test_a_text_without_secrets_is_left_as_it_is(text: str) -> None:
    assert log.redact(text) == text


secret = st.text("abcXYZ019-_+/.=", min_size=8)


@given(secret, st.sampled_from(["token", "admin_token", "password", "api_key", "secret", "seed"]))
def test_a_secret_is_taken_out_in_every_form_it_may_have(value: str, name: str) -> None:
    marked = f"MARK{value}"
    for text in (
        f"{name}={marked}",
        f"{name.upper()}: {marked}",
        json.dumps({name: marked, "id": 3}),
        repr({name: marked}),
        json.dumps({name: [marked]}),
        f"Authorization: Bearer {marked}",
        f"GET /prpc/Status?{name}={marked}&x=1",
    ):
        assert "MARK" not in log.redact(text)


def test_records_are_json_lines_with_secrets_taken_out(written: Written) -> None:
    (line,) = written(lambda: logging.getLogger("vmm").warning("a call with %s", "token=hunter2"))

    record = json.loads(line)
    assert (record["level"], record["logger"]) == ("warning", "vmm")
    assert record["event"] == f"a call with token={log.REDACTED}"
    assert record["timestamp"].endswith("Z")


def test_a_traceback_is_one_line_with_secrets_taken_out(written: Written) -> None:
    def fail() -> None:
        try:
            raise ValueError("Bearer hunter2")
        except ValueError:
            logging.getLogger("vmm").exception("failed")

    (line,) = written(fail)

    assert "ValueError" in json.loads(line)["exception"]
    assert "hunter2" not in line


def test_debug_records_are_not_written(written: Written) -> None:
    assert written(lambda: logging.getLogger("vmm").debug("running ['qemu']")) == []


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(st.text())
def test_whatever_is_logged_is_one_line_of_json(written: Written, text: str) -> None:
    (line,) = written(lambda: logging.getLogger("vmm").warning("%s", text))

    json.loads(line)
