"""Which specs of runs are refused, and with what words."""

from __future__ import annotations

from typing import Any

import pytest

from core.errors import CasemateError
from runs import rules
from runs.specs import RunSpec


def spec(outside: dict[str, Any] | None = None, **more: Any) -> Any:
    kind = {"type": "task", "commands": ["true"], **more}
    return RunSpec().load({"run_name": "one", "configuration": kind, **(outside or {})})


def test_a_plain_task_breaks_no_rule() -> None:
    rules.check(spec(env={"A": "1"}, working_dir="/srv", entrypoint="run 'it all'"))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (spec(name="-"), "Resource name should match"),
        (spec({"run_name": "A"}), "Resource name should match"),
        (spec({"repo_id": "x"}), "repo_id and repo_data must be set together"),
        (spec(volumes=["data:/data"]), "volumes: not supported"),
        (spec(docker=True), "docker: not supported"),
        (spec(schedule={"cron": "0 8 * * *"}), "schedule: not supported"),
        (spec({"profile": {"instances": ["one"]}}), "instances: not supported"),
        (spec(env=["A"]), "env: A must be given a value"),
        (spec(env={"A": "${{ secrets.A }}"}), "secrets: not supported"),
        (spec(entrypoint="run 'it"), "entrypoint: No closing quotation; quote it"),
        (spec(working_dir="srv"), "working_dir must be an absolute path"),
    ],
)
def test_a_broken_rule_is_named(given: Any, said: str) -> None:
    with pytest.raises(CasemateError) as refused:
        rules.check(given)

    assert said in refused.value.message
