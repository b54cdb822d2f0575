"""Runs, their logs and the timeline, and the parts of the interface that there are none of here."""

from __future__ import annotations

from typing import Any

from flask import jsonify

from rest.access import caller
from rest.blueprint import Blueprint
from runs import answers, refusals, schemas
from runs.routes import service
from runs.service import LogQuery, RunsQuery
from runs.timeline import query_of

blueprint = Blueprint("runs", __name__)
absent = Blueprint("runs_absent", __name__)
PROJECT = "/api/project/<project_name>"


@blueprint.post("/api/runs/list")
@blueprint.arguments(schemas.ListRuns)
@blueprint.response(200, answers.Run(many=True))
def list_runs(asked: dict[str, Any]) -> Any:
    """The runs of all projects that the caller sees, or of one."""
    return jsonify(service().search(caller(), RunsQuery(**asked)))


@blueprint.post(f"{PROJECT}/runs/get")
@blueprint.arguments(schemas.GetRun)
@blueprint.response(200, answers.Run)
def get_run(asked: dict[str, Any], project_name: str) -> Any:
    """A run by name or id."""
    return jsonify(service().get(caller(), project_name, asked["run_name"], asked["id"]))


@blueprint.post(f"{PROJECT}/runs/get_plan")
@blueprint.arguments(schemas.GetRunPlan)
@blueprint.response(200, answers.RunPlan)
def get_run_plan(asked: dict[str, Any], project_name: str) -> Any:
    """What applying a run would do, with the offers for its jobs."""
    plan = service().plan(
        caller(),
        project_name,
        asked["run_spec"],
        asked["max_offers"],
        reverse=asked["reverse_offers"],
    )
    return jsonify(plan)


@blueprint.post(f"{PROJECT}/runs/apply")
@blueprint.arguments(schemas.ApplyRunPlan)
@blueprint.response(200, answers.Run)
def apply_run(asked: dict[str, Any], project_name: str) -> Any:
    """Submits or changes a run."""
    plan = asked["plan"]
    made = service().apply(
        caller(), project_name, plan["run_spec"], plan["current_resource"], asked["force"]
    )
    return jsonify(made)


@blueprint.post(f"{PROJECT}/runs/stop")
@blueprint.arguments(schemas.StopRuns)
@blueprint.response(200, answers.NOTHING)
def stop_runs(asked: dict[str, Any], project_name: str) -> Any:
    """Ends runs."""
    service().stop(caller(), project_name, asked["runs_names"], asked["abort"])
    return jsonify(None)


@blueprint.post(f"{PROJECT}/runs/delete")
@blueprint.arguments(schemas.RunNames)
@blueprint.response(200, answers.NOTHING)
def delete_runs(asked: dict[str, Any], project_name: str) -> Any:
    """Marks finished runs deleted."""
    service().delete(caller(), project_name, asked["runs_names"])
    return jsonify(None)


@blueprint.post(f"{PROJECT}/gpus/list")
@blueprint.arguments(schemas.ListGpus)
@blueprint.response(200, answers.Gpus)
def list_gpus(_: dict[str, Any], project_name: str) -> Any:
    """The GPUs of a run's offers, grouped."""
    return jsonify(service().gpus(caller(), project_name))


@blueprint.post(f"{PROJECT}/logs/poll")
@blueprint.arguments(schemas.PollLogs)
@blueprint.response(200, answers.Logs)
def poll_logs(asked: dict[str, Any], project_name: str) -> Any:
    """A part of what a job said."""
    return jsonify(service().logs(caller(), project_name, LogQuery(**asked)))


@blueprint.post("/api/events/list")
@blueprint.arguments(schemas.ListEvents)
@blueprint.response(200, answers.Event(many=True))
def list_events(asked: dict[str, Any]) -> Any:
    """The events that the caller may see."""
    return jsonify(service().events(caller(), query_of(asked)))


@blueprint.post(f"{PROJECT}/repos/init")
@blueprint.arguments(schemas.InitRepo)
@blueprint.response(200, answers.NOTHING)
def init_repo(asked: dict[str, Any], project_name: str) -> Any:
    """Says where code comes from."""
    service().init_repo(caller(), project_name, asked["repo_info"])
    return jsonify(None)


# What there is none of ---------------------------------------------------------------------------

LISTS = (
    "backends/list_types", "volumes/list", "project/<project_name>/repos/list",
    "project/<project_name>/secrets/list", "project/<project_name>/gateways/list",
    "project/<project_name>/volumes/list", "project/<project_name>/templates/list",
    "project/<project_name>/exports/list", "project/<project_name>/imports/list",
)  # fmt: skip
OF_A_PROJECT = {
    "backends": ("create", "update", "delete", "create_yaml", "update_yaml"),
    "backends/<backend_name>": ("config_info", "get_yaml"),
    "secrets": ("get", "create_or_update", "delete"),
    "gateways": (
        "get", "get_plan", "apply", "create", "delete", "set_default", "set_wildcard_domain",
    ),
    "volumes": ("get", "create", "delete"),
    "exports": ("create", "update", "delete"),
    "imports": ("delete",),
    "repos": ("get", "delete", "upload_code"),
}  # fmt: skip
REFUSED = (
    "/api/files/get_archive_by_hash", "/api/files/upload_archive", "/api/sshproxy/get_upstream",
    "/proxy/models/<project_name>/chat/completions",
    *(f"{PROJECT}/{what}/{verb}" for what, verbs in OF_A_PROJECT.items() for verb in verbs),
)  # fmt: skip


@absent.get(f"{PROJECT}/metrics/job/<run_name>")
@absent.response(200, answers.Metrics)
def get_job_metrics(project_name: str, run_name: str) -> Any:
    """The measurements of a job, of which none are taken."""
    service().get(caller(), project_name, run_name, None)
    return jsonify({"metrics": []})


@absent.get("/proxy/models/<project_name>/models")
@absent.response(200, answers.Models)
def list_models(project_name: str) -> Any:
    """The models that services of a project offer, of which there are none."""
    return jsonify({"object": "list", "data": service().nothing(caller(), project_name)})


@absent.response(200, answers.EMPTY)
def list_nothing(project_name: str | None = None) -> Any:
    """Nothing: there is none of these here."""
    return jsonify(service().nothing(caller(), project_name))


def refuse(project_name: str | None = None, **_: str) -> Any:
    """Refused: there is none of these here."""
    service().nothing(caller(), project_name)
    raise refusals.unsupported("this part of dstack")


def _declare(path: str, view: Any) -> None:
    endpoint = path.strip("/").translate(str.maketrans("/", "_", "<>"))
    absent.add_url_rule(path, endpoint, view, methods=["POST"])


for _path in LISTS:
    _declare(f"/api/{_path}", list_nothing)
for _path in REFUSED:
    _declare(_path, refuse)
