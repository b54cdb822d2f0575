"""The jobs of a run."""

from __future__ import annotations

from typing import Any

import pytest

from runs.jobs import commands, job_specs
from runs.specs import RunSpec


def spec(**more: Any) -> Any:
    kind = {"type": "task", "commands": ["a", "b"], **more}
    return RunSpec().load({"run_name": "one", "configuration": kind})


def test_commands_are_one_line_of_a_shell() -> None:
    assert commands(spec()) == ["/bin/bash", "-i", "-c", "a && b"]
    assert commands(spec(image="x")) == ["/bin/sh", "-i", "-c", "a && b"]
    assert commands(spec(shell="/bin/zsh"))[0] == "/bin/zsh"
    assert commands(spec(entrypoint="run 'it all'")) == ["run", "it all", "a", "b"]
    assert commands(spec(image="x", commands=[])) == []


def test_each_node_is_a_job_of_its_own() -> None:
    jobs = job_specs(spec(nodes=2, max_duration="off", retry=True, user="1000:staff"), 1)

    assert [job["job_name"] for job in jobs] == ["one-0-1", "one-1-1"]
    assert jobs[0]["requirements"]["multinode"] is True
    assert jobs[0]["max_duration"] is None
    assert jobs[0]["stop_duration"] == 300
    assert jobs[0]["retry"] == {
        "on_events": ["no-capacity", "interruption", "error"],
        "duration": 3600,
    }
    assert jobs[0]["user"] == {"uid": 1000, "gid": None, "username": None, "groupname": "staff"}


@pytest.mark.parametrize("name", ["²", "٣", "9" * 5000])
def test_a_user_is_a_number_in_plain_digits_alone(name: str) -> None:
    (job,) = job_specs(spec(user=f"{name}:{name}"), 0)

    assert job["user"] == {"uid": None, "gid": None, "username": name, "groupname": name}


def test_ports_are_forwarded_but_for_those_of_the_machinery() -> None:
    (job,) = job_specs(spec(ports=["80:8000", 10999]), 0)

    assert [(app["port"], app["map_to_port"]) for app in job["app_specs"]] == [(8000, 80)]


def test_a_dev_environment_stays_and_tells_the_way() -> None:
    kind = {"type": "dev-environment", "ide": "vscode", "init": ["make"]}
    given = RunSpec().load({"run_name": "dev", "configuration": kind})

    line = commands(given)[-1]
    assert line.startswith("make && ")
    assert "vscode://vscode-remote/ssh-remote+dev/root" in line
    assert line.endswith("exec tail -f /dev/null")
