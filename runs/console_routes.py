"""The console's pages of runs: runs, their jobs and logs, fleets, the timeline, and the caller's SSH keys."""

from __future__ import annotations

import secrets
from typing import Any

from flask import Blueprint, Response, request
from werkzeug.wrappers import Response as BaseResponse

from core.errors import Invalid
from rest.access import caller
from runs.fleets import ListQuery
from runs.moments import microseconds
from runs.routes import service
from runs.service import RunsQuery
from runs.timeline import Query
from vmm import console
from vmm.console import attempt, show

blueprint = Blueprint("runs_console", __name__, url_prefix="/console")
blueprint.before_request(console.guard_tenants)

PAGE = 50


@blueprint.get("/runs")
def runs() -> Response:
    """The runs that the caller sees, the newest first."""
    before = _before()
    query = RunsQuery(
        only_active="active" in request.args,
        job_submissions_limit=1,
        prev_submitted_at=before[0],
        prev_run_id=before[1],
        limit=PAGE,
    )
    return show("runs/runs.html", runs=service().search(caller(), query), most=PAGE)


@blueprint.get("/runs/<project_name>/<run_id>")
def run(project_name: str, run_id: str) -> Response:
    """One run: its jobs, and what happened to it."""
    found = service().get(caller(), project_name, None, run_id)
    query = Query(within_type="run", within_ids=[run_id], limit=PAGE)
    return show("runs/run.html", run=found, events=service().events(caller(), query))


@blueprint.post("/runs/<project_name>/<run_id>/stop")
def stop(project_name: str, run_id: str) -> BaseResponse:
    """Wishes that a run ends."""
    name = service().get(caller(), project_name, None, run_id)["run_spec"]["run_name"]
    return attempt(
        lambda: service().stop(caller(), project_name, [name], "abort" in request.form),
        f"Stopping: {name}",
    )


@blueprint.get("/runs/<project_name>/<run_id>/log/<submission_id>")
def log(project_name: str, run_id: str, submission_id: str) -> Response:
    """The log of a job that follows."""
    found, nonce = service().get(caller(), project_name, None, run_id), secrets.token_urlsafe(16)
    return show(
        "runs/log.html",
        # As in the logs of VMs: the styles that xterm.js makes.
        policy=f"style-src 'self' 'nonce-{nonce}'",
        nonce=nonce,
        run=found,
        submission=_submission(found, submission_id),
        beginning=service().output(caller(), project_name, submission_id, 0),
    )


@blueprint.get("/runs/<project_name>/<run_id>/output/<submission_id>")
def output(project_name: str, run_id: str, submission_id: str) -> Response:
    """What a job said behind `after`; the headers say where that ends, and whether it is all."""
    found = service().output(caller(), project_name, submission_id, _place())
    headers = {"X-Log-End": str(found.end), "X-Log-Over": str(int(found.is_over))}
    headers["Cache-Control"] = "no-store"
    return Response(found.data, mimetype="application/octet-stream", headers=headers)


@blueprint.get("/fleets")
def fleets() -> Response:
    """The fleets that the caller sees, with their instances; the newest first."""
    query = ListQuery(True, *_before(), limit=PAGE)
    found = service().fleets.search(caller(), None, query)
    return show("runs/fleets.html", fleets=found, most=PAGE)


@blueprint.post("/fleets/<project_name>/<fleet_id>/delete")
def delete_fleet(project_name: str, fleet_id: str) -> BaseResponse:
    """Wishes that a fleet and its instances end."""
    name = service().fleets.get(caller(), project_name, None, fleet_id)["name"]
    return attempt(
        lambda: service().fleets.delete(caller(), project_name, [name]), f"Deleting: {name}"
    )


@blueprint.get("/events")
def events() -> Response:
    """What happened, the newest first."""
    query = Query(before=_before(), limit=PAGE)
    return show("runs/events.html", events=service().events(caller(), query), most=PAGE)


@blueprint.get("/keys")
def keys() -> Response:
    """The caller's own public keys."""
    return show("runs/keys.html", keys=service().people.public_keys(caller()))


@blueprint.post("/keys")
def add_key() -> BaseResponse:
    """Adds one."""
    text, name = request.form.get("key", ""), request.form.get("name", "").strip()
    return attempt(
        lambda: service().people.add_public_key(caller(), text, name or None), "The key was added"
    )


@blueprint.post("/keys/<key_id>/delete")
def delete_key(key_id: str) -> BaseResponse:
    """Removes one."""
    return attempt(
        lambda: service().people.delete_public_keys(caller(), [key_id]), "The key was removed"
    )


def _before() -> tuple[int | None, str | None]:
    """The moment and the id that a page of a list begins behind."""
    text = request.args.get("before", "")
    return microseconds(text) if text else None, request.args.get("id")


def _place() -> int:
    text = request.args.get("after", "0")
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise Invalid.field("after", "must be a whole number, 0 or more")
    return int(text)


def _submission(run: dict[str, Any], submission_id: str) -> dict[str, Any]:
    """The submission of one of a run's jobs, with the name of its job."""
    found = (
        {**each, "job_name": job["job_spec"]["job_name"]}
        for job in run["jobs"]
        for each in job["job_submissions"]
        if each["id"] == submission_id
    )
    return next(found, {"id": submission_id, "job_name": "", "status": ""})
