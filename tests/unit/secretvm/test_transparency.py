"""What is made of what crt.sh tells of a domain."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from core.errors import Upstream
from secretvm.transparency import CRT_SH_MOST, Transparency
from tests.common.evidence import NOW


def told(monkeypatch: pytest.MonkeyPatch, *answers: bytes) -> Transparency:
    """crt.sh that gives these answers, one after the other."""
    left = list(answers)
    monkeypatch.setattr(Transparency, "_ask", lambda *_: left.pop(0))
    return Transparency(lambda: NOW)


def entry(number: Any, until: str = "2090-01-01T00:00:00") -> dict[str, Any]:
    return {"id": number, "not_after": until}


def test_of_many_certificates_the_newest_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    many = json.dumps([entry(number) for number in range(CRT_SH_MOST + 1)]).encode()

    made = told(monkeypatch, many, *[b"no certificate"] * CRT_SH_MOST).made("a.test", time.time())

    assert list(made.keys) == list(range(CRT_SH_MOST, 0, -1))
    assert (set(made.keys.values()), made.is_complete) == ({None}, False)


@pytest.mark.parametrize(
    "listed", [b"", b"{}", b"[1]", json.dumps([entry("1"), entry(1, "2020")]).encode()]
)
def test_what_names_no_certificate_that_counts_is_none(
    monkeypatch: pytest.MonkeyPatch, listed: bytes
) -> None:
    made = told(monkeypatch, listed).made("a.test", time.time())

    assert (made.keys, made.is_complete) == ({}, True)


def test_who_cannot_be_reached_is_told() -> None:
    with pytest.raises(Upstream, match="cannot be reached"):
        Transparency(url="http://127.0.0.1:1/").made("a.test", time.monotonic() + 5)
