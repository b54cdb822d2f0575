from __future__ import annotations

import logging

import pytest
from flask import Flask

from core import errors
from core.errors import CasemateError, Invalid, RateLimited, status_of


def make(cls: type[CasemateError]) -> CasemateError:
    error = cls.__new__(cls)
    CasemateError.__init__(error, f"because of {cls.__name__}")
    if cls is RateLimited:
        error = RateLimited(f"because of {cls.__name__}", 3)
    return error


def test_every_refusal_of_every_area_has_a_status() -> None:
    found, todo = set[type[CasemateError]](), [CasemateError]
    while todo:
        narrower = todo.pop().__subclasses__()
        found.update(narrower)
        todo += narrower

    assert found >= set(errors.STATUS)
    for cls in found:
        assert 400 <= status_of(make(cls)) <= 504


@pytest.mark.parametrize(("cls", "status"), errors.STATUS.items())
def test_every_refusal_reaches_the_caller_in_the_body_of_the_vmm(
    app: Flask, cls: type[CasemateError], status: int
) -> None:
    def refuse() -> None:
        raise make(cls)

    app.add_url_rule("/prpc/refuse", view_func=refuse)

    answer = app.test_client().get("/prpc/refuse")

    # Conflict is a bad request on this surface (vmm.md section 2).
    assert answer.status_code == (400 if cls is errors.Conflict else status)
    assert answer.content_type == "application/json"
    assert answer.json == dict.fromkeys(("message", "error"), f"because of {cls.__name__}")
    assert ("WWW-Authenticate" in answer.headers) == (cls is errors.Unauthenticated)


def test_a_bug_is_answered_with_a_reference_that_the_log_has_and_nothing_else(
    app: Flask, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise KeyError("the inside of the service")

    app.add_url_rule("/prpc/fail", view_func=fail)

    with caplog.at_level(logging.ERROR):
        answer = app.test_client().get("/prpc/fail")

    assert answer.status_code == 500
    assert answer.json is not None
    assert "inside" not in answer.text
    reference = answer.json["message"].split()[-1]
    assert reference in caplog.messages[-1]
    assert "the inside of the service" in caplog.text


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("GET", "/prpc/", 404),
        ("GET", "/prpc/Nope", 404),
        ("PUT", "/prpc/Version", 405),
        ("DELETE", "/guest/Info", 405),
        ("POST", "/logs", 405),
    ],
)
def test_what_routing_refuses_has_the_same_body(
    app: Flask, method: str, path: str, status: int
) -> None:
    answer = app.test_client().open(path, method=method)

    assert answer.status_code == status
    assert answer.json is not None
    assert set(answer.json) == {"message", "error"}
    assert answer.json["message"] == answer.json["error"] != ""
    assert (status == 405) == ("Allow" in answer.headers)


def test_a_refusal_without_a_status_is_a_bug() -> None:
    with pytest.raises(TypeError, match="has no HTTP status"):
        status_of(CasemateError("no kind"))


def test_a_subclass_has_the_status_of_its_nearest_kind() -> None:
    class Narrower(errors.NotFound):
        pass

    assert status_of(Narrower("gone")) == 404


def test_a_field_refusal_says_field_and_reason() -> None:
    refusal = Invalid.field("ports[0].host_port", "must be between 1 and 65535")

    assert refusal.message == "ports[0].host_port: must be between 1 and 65535"
    assert refusal.fields == {"ports[0].host_port": ["must be between 1 and 65535"]}


def test_details_travel_with_a_refusal() -> None:
    assert errors.Conflict("taken", code="name_taken").details == {"code": "name_taken"}
