"""Requests made by schemathesis out of the runs interface's own document: none is a fault of the service."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from flask import Flask
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode

from core.config import Config
from runs.specs import FleetSpec, RunSpec
from tests.common import fuzz

TOKEN = "cm_of-the-fuzzer"


@pytest.fixture
def config(config: Config) -> Config:
    return replace(config, admin_token=TOKEN)


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_no_call_fails_whatever_it_is_given(app: Flask, mode: GenerationMode) -> None:
    tried = fuzz.meet_no_fault(
        app,
        "/openapi.json",
        mode,
        headers={"Authorization": f"Bearer {TOKEN}"},
        meant={501, *fuzz.MISSING},  # 501 says that it is not offered here
        is_described=True,
    )

    assert tried.keys() >= {
        "/api/runs/list",
        "/api/users/create",
        "/api/project/{project_name}/runs/apply",
    }


ODD = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.just("9" * 400),
    st.lists(st.integers(), max_size=2), st.dictionaries(st.text(max_size=4), st.integers(), max_size=2),
    st.sampled_from(["..", "1..", "8GB..", "a/b", "-1", "off", "*:80", "\x00", "99999999999999999999"]),
)  # fmt: skip
TASK = RunSpec().load({"run_name": "x", "configuration": {"type": "task", "commands": ["true"]}})
SERVICE = RunSpec().load(
    {"configuration": {"type": "service", "port": 80, "commands": ["true"], "replicas": 1}}
)
FLEET = FleetSpec().load({"configuration": {"type": "fleet", "nodes": "0..1"}, "profile": {}})


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to everything in a JSON value."""
    yield at
    inner = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, each in inner:
        yield from places(each, (*at, key))


def with_odd(value: Any, at: tuple[Any, ...], odd: Any) -> Any:
    """A copy with something else in one place."""
    if not at:
        return odd
    changed = copy.copy(value)
    changed[at[0]] = with_odd(value[at[0]], at[1:], odd)
    return changed


@pytest.mark.parametrize(
    ("path", "name", "spec"),
    [
        ("runs/get_plan", "run_spec", TASK),
        ("runs/get_plan", "run_spec", SERVICE),
        ("runs/apply", "run_spec", TASK),
        ("fleets/get_plan", "spec", FLEET),
        ("fleets/apply", "spec", FLEET),
    ],
)
def test_a_spec_with_something_odd_in_one_place_is_no_fault(
    app: Flask, path: str, name: str, spec: Any
) -> None:
    client, ways = app.test_client(), list(places(spec))

    @settings(
        max_examples=300, suppress_health_check=list(HealthCheck), database=None, derandomize=True
    )
    @given(st.sampled_from(ways), ODD)
    def meets_no_fault(at: tuple[Any, ...], odd: Any) -> None:
        given_spec = with_odd(spec, at, odd)
        body = (
            {name: given_spec}
            if path.endswith("plan")
            else {"plan": {name: given_spec}, "force": True}
        )
        answer = client.post(
            f"/api/project/main/{path}",
            data=json.dumps(body),
            headers={"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"},
        )
        assert answer.status_code < 500, answer.text

    meets_no_fault()
