"""Plans, submissions, updates, lists and deletions of runs, without a scheduler."""

from __future__ import annotations

from typing import Any

import pytest

from models.base import Database
from tests.api.runs.conftest import Api, begin
from tests.api.runs.test_wire import issue

SIZED = {"cpu": "1..", "memory": "1GB.."}


def spec(name: str | None = None, **more: Any) -> dict[str, Any]:
    wanted = {"type": "task", "commands": ["true"], "resources": SIZED, **more}
    return {"run_name": name, "configuration": wanted}


def plan(api: Api, given: dict[str, Any], **more: Any) -> Any:
    return api.ask("runs/get_plan", {"run_spec": given, **more})


def apply(api: Api, given: dict[str, Any], current: Any = None, *, force: bool = False) -> Any:
    wanted = {"run_spec": given, "current_resource": current}
    return api.ask("runs/apply", {"plan": wanted, "force": force})


def test_the_curls_of_the_first_page_work_as_printed(api: Api) -> None:
    fleet = {
        "configuration": {
            "type": "fleet", "name": "cpu-fleet", "nodes": "0..1", "idle_duration": "1h", "resources": {"gpu": 0},
        },
        "profile": {},
    }  # fmt: skip
    offers = {
        "type": "task",
        "commands": [":"],
        "image": "scratch",
        "user": "root",
        "resources": {"gpu": 0},
    }
    hello = {
        "run_name": "hello-api",
        "configuration": {"type": "task", "commands": ["echo hello world"]},
    }

    assert api.ask("fleets/list", {"include_imported": True}) == []
    planned = plan(api, {"configuration": offers}, max_offers=5)
    assert api.ask("fleets/get_plan", {"spec": fleet})["action"] == "create"
    made = api.ask("fleets/apply", {"plan": {"spec": fleet}, "force": False})
    submitted = api.ask("runs/apply", {"plan": {"run_spec": hello}, "force": False})
    run = api.get("hello-api")
    logs = {
        "run_name": "hello-api",
        "job_submission_id": run["latest_job_submission"]["id"],
        "limit": 100,
    }

    assert 0 < len(planned["job_plans"][0]["offers"]) <= 5
    assert made["status"] == "active"
    assert submitted["status"] == "submitted"
    assert api.ask("logs/poll", logs) == {"logs": [], "external_url": None, "next_token": None}


def test_a_run_without_a_name_gets_one(api: Api) -> None:
    first, second = apply(api, spec()), apply(api, spec())

    assert first["run_spec"]["run_name"] != second["run_spec"]["run_name"]
    assert first["jobs"][0]["job_spec"]["job_name"] == f"{first['run_spec']['run_name']}-0-0"


def test_a_plan_says_what_would_happen(api: Api) -> None:
    assert plan(api, spec("one"))["action"] == "create"
    apply(api, spec("one"))

    same = plan(api, spec("one"))
    urgent = plan(api, spec("one", priority=5))
    other = plan(api, spec("one", commands=["false"]))

    assert [each["action"] for each in (same, urgent, other)] == ["update", "update", "create"]
    assert same["effective_run_spec"] == same["current_resource"]["run_spec"]


def test_an_active_run_changes_only_where_it_can(api: Api) -> None:
    run = apply(api, spec("one"))

    changed = apply(api, spec("one", priority=5), run)
    assert (changed["deployment_num"], changed["id"]) == (1, run["id"])

    wanted = {"run_spec": spec("one", commands=["false"]), "current_resource": changed}
    assert api.refusal("runs/apply", {"plan": wanted, "force": True}) == (
        "error",
        "Cannot override active run. Stop the run first.",
    )
    stale = {"run_spec": spec("one", priority=9), "current_resource": run}
    code, said = api.refusal("runs/apply", {"plan": stale, "force": False})
    assert (code, said[:21]) == ("error", "Failed to apply plan.")
    assert apply(api, spec("one", priority=9), force=True)["deployment_num"] == 2


def test_a_stopped_run_that_nothing_began_is_over_with_the_next_round(api: Api, vms: Any) -> None:
    apply(api, spec("one"))
    api.ask("runs/stop", {"runs_names": ["one"], "abort": False})
    assert api.get("one")["status"] == "terminating"

    host = begin(vms)
    try:
        run = api.until("one", "terminated")
    finally:
        host.end()

    assert run["latest_job_submission"]["status_message"] == "stopped"
    code, _ = api.refusal("runs/get", {"run_name": "two"})
    assert code == "resource_not_exists"
    again = apply(api, spec("one"))
    assert again["id"] != run["id"]
    assert api.get("one")["id"] == again["id"]
    assert api.ask("runs/get", {"id": run["id"]})["deleted"] is True


def test_an_active_run_is_not_deleted(api: Api) -> None:
    apply(api, spec("one"))

    code, said = api.refusal("runs/delete", {"runs_names": ["one", "nobody"]})

    assert (code, said) == ("error", "Cannot delete active runs: one")


def test_runs_are_listed_newest_first_and_page_by_page(api: Api) -> None:
    names = [apply(api, spec(f"run-{number}"))["run_spec"]["run_name"] for number in range(5)]
    newest = [each["run_spec"]["run_name"] for each in api.ask("/api/runs/list", {"limit": 2})]
    last = api.ask("/api/runs/list", {"limit": 2})[-1]
    cursor = {"prev_submitted_at": last["submitted_at"], "prev_run_id": last["id"]}
    rest = api.ask("/api/runs/list", cursor)
    oldest = api.ask("/api/runs/list", {"ascending": True, "limit": 1})

    assert newest == names[:-3:-1]
    assert [each["run_spec"]["run_name"] for each in rest] == names[2::-1]
    assert oldest[0]["run_spec"]["run_name"] == names[0]
    assert api.ask("/api/runs/list", {"limit": 0}) == []
    assert api.ask("/api/runs/list", {"repo_id": "none"}) == []
    assert len(api.ask("/api/runs/list", {"repo_id": "none", "project_name": "main"})) == 5
    assert api.ask("/api/runs/list", {"username": "nobody"}) == []
    brief = api.ask("/api/runs/list", {"include_jobs": False, "job_submissions_limit": 0})[0]
    assert brief["jobs"] == []
    assert (
        api.ask("/api/runs/list", {"job_submissions_limit": 0})[0]["jobs"][0]["job_submissions"]
        == []
    )


def test_a_tenant_sees_the_runs_of_their_projects_alone(api: Api, database: Database) -> None:
    apply(api, spec("one"))
    alice = Api(api.client, issue(database, "alice"), project="alice")
    apply(alice, spec("hers"))

    assert [each["run_spec"]["run_name"] for each in alice.ask("/api/runs/list")] == ["hers"]
    assert len(api.ask("/api/runs/list")) == 2
    assert alice.post("/api/runs/list", {"project_name": "main"}).status_code == 403
    run = api.get("one")
    query = {"run_name": "one", "job_submission_id": run["latest_job_submission"]["id"]}
    assert alice.ask("logs/poll", query)["logs"] == []
    assert alice.refusal("runs/get", {"id": run["id"]})[0] == "resource_not_exists"


@pytest.mark.parametrize(
    "more",
    [
        {"volumes": ["v:/x"]}, {"repos": ["."]}, {"files": ["a:b"]}, {"docker": True},
        {"schedule": {"cron": "* * * * *"}}, {"groups": [{}]}, {"instances": ["default-0"]},
    ],
)  # fmt: skip
def test_what_is_left_out_of_a_configuration_is_refused(api: Api, more: Any) -> None:
    code, said = api.refusal("runs/get_plan", {"run_spec": spec("one", **more)})

    assert (code, said) == ("error", f"{next(iter(more))}: not supported by Casemate")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (spec("one", env=["SECRET"]), "env: SECRET must be given a value"),
        (spec("one", env=["A=${{ secrets.a }}"]), "secrets: not supported by Casemate"),
        (
            spec("one", registry_auth={"username": "joe", "password": "${{secrets.a}}"}),
            "secrets: not supported by Casemate",
        ),
        (spec("one", working_dir="x"), "working_dir must be an absolute path"),
        (
            spec("one", entrypoint="'open"),
            "entrypoint: No closing quotation; quote it as for a shell",
        ),
        (
            {**spec("one"), "repo_id": "none"},
            "repo_id and repo_data must be set together or not at all",
        ),
        (spec("No"), "Resource name should match regex '^[a-z][a-z0-9-]{1,40}$'"),
    ],
)
def test_a_rule_across_fields_is_told(api: Api, given: Any, said: str) -> None:
    assert api.refusal("runs/apply", {"plan": {"run_spec": given}, "force": False}) == (
        "error",
        said,
    )


def test_offers_follow_the_fleet_and_the_wish(api: Api) -> None:
    scratch = spec(image="scratch")
    whole = plan(api, scratch)["job_plans"][0]["total_offers"]
    assert plan(api, spec())["job_plans"][0]["offers"] == []

    api.fleet("small", resources={"cpu": 1, "memory": "1GB..", "disk": None})

    of_fleet = plan(api, spec(fleets=["small"]))["job_plans"][0]
    assert 0 < of_fleet["total_offers"] < whole
    assert {each["instance"]["resources"]["cpus"] for each in of_fleet["offers"]} == {1}
    assert plan(api, spec(fleets=["nowhere"]))["job_plans"][0]["offers"] == []
    assert plan(api, spec(backends=["aws"]))["job_plans"][0]["offers"] == []
    assert (
        plan(
            api, {**scratch, "configuration": {**scratch["configuration"], "resources": {"gpu": 1}}}
        )["job_plans"][0]["offers"]
        == []
    )
    one = plan(api, scratch, max_offers=1)["job_plans"][0]
    assert (len(one["offers"]), one["total_offers"]) == (1, whole)
    assert plan(api, scratch, reverse_offers=True)["job_plans"][0]["offers"][0] != one["offers"][0]


def test_events_are_found_by_what_they_are_about(api: Api) -> None:
    run = apply(api, spec("one"))
    api.fleet()
    api.ask("runs/stop", {"runs_names": ["one"], "abort": False})
    project = api.ask("/api/projects/main/get")["project_id"]

    assert api.events(target_runs=[run["id"]]) == [
        "Run submitted. Status: SUBMITTED",
        "Run status changed SUBMITTED -> TERMINATING. Termination reason: STOPPED_BY_USER",
    ]
    assert len(api.events(within_runs=[run["id"]])) == 3
    assert api.events(within_projects=[project], include_target_types=["fleet"]) == [
        "Fleet created. Status: ACTIVE"
    ]
    assert len(api.events(actors=[None])) == 1
    newest = api.ask("/api/events/list", {"limit": 1})[0]
    assert newest["actor_user"] == "admin"
    older = {"prev_recorded_at": newest["recorded_at"], "prev_id": newest["id"]}
    assert newest["id"] not in [each["id"] for each in api.ask("/api/events/list", older)]
    both = {"within_runs": [run["id"]], "within_projects": [project]}
    assert api.post("/api/events/list", both).status_code == 422
    assert api.post("/api/events/list", {"limit": 101}).status_code == 422
    assert api.post("/api/events/list", {"target_runs": [run["id"]] * 17}).status_code == 422


def test_a_tenant_sees_the_events_of_their_projects_alone(api: Api, database: Database) -> None:
    run = apply(api, spec("one"))
    alice = Api(api.client, issue(database, "alice"), project="alice")

    assert alice.events() == []
    assert alice.events(target_runs=[run["id"]]) == []


def test_a_bad_token_of_a_log_is_refused(api: Api) -> None:
    run = apply(api, spec("one"))
    query = {"run_name": "one", "job_submission_id": run["latest_job_submission"]["id"]}

    for given in (query, {**query, "run_name": "unknown"}):
        for token in ("x", "-1", "1e9", "9" * 20, ""):
            code, said = api.refusal("logs/poll", {**given, "next_token": token})
            assert (code, said) == ("error", "next_token: is none that this log gave")
    unknown = {**query, "run_name": "unknown", "next_token": "5"}
    assert api.ask("logs/poll", unknown)["logs"] == []
    assert api.ask("logs/poll", {**query, "diagnose": True})["logs"] == []
    assert api.ask("logs/poll", {**query, "run_name": "other"})["logs"] == []


def test_only_a_repo_that_is_none_is_taken(api: Api) -> None:
    assert api.ask("repos/init", {"repo_id": "none", "repo_info": {"repo_type": "virtual"}}) is None
    remote = {"repo_id": "x", "repo_info": {"repo_type": "remote", "repo_name": "x"}}
    assert api.refusal("repos/init", remote)[1] == "repositories: not supported by Casemate"


def test_gpus_are_none(api: Api) -> None:
    assert api.ask("gpus/list", {"run_spec": spec(), "group_by": ["backend"]})["gpus"] == []
