"""/api/v1/apps: the ten calls on apps (apps.md section 3), and how the views of this interface find what they need."""

from __future__ import annotations

from typing import Any

from flask import Response, current_app, jsonify, request

from apps import allowlist as allowance
from apps import answers, attestations, pages, refusals
from apps.allowlist import Allowlist
from apps.guest_answers import AppAttestation
from apps.links import Links
from apps.schemas import (
    Allowance,
    AllowanceOfApp,
    AppsQuery,
    AppsWanted,
    RevisionQuery,
    RevisionsQuery,
)
from apps.service import Apps
from apps.versions import Version, version_of
from rest.access import caller
from rest.blueprint import Blueprint

PREFIX = "/api/v1"
# As the interface's own description names its ten calls, without the clients' base.
BARE_PATH = "/apps"

blueprint = Blueprint("apps", __name__, url_prefix=PREFIX, description="Apps and their history.")


# What every view needs ---------------------------------------------------------------------------


def service() -> Apps:
    """The service behind the current application."""
    found: Apps = current_app.extensions["apps"]
    return found


def allowlist() -> Allowlist:
    """The contracts of apps."""
    found: Allowlist = current_app.extensions["allowlist"]
    return found


def version() -> Version:
    """The version that the current request asks for."""
    return version_of(request.headers.get("X-Phala-Version"))


def links() -> Links:
    """The links that an answer to the current request may hold."""
    return Links(request.host_url.rstrip("/") + PREFIX, service().link_key)


def tell_version(response: Response) -> Response:
    """Says which version an answer is written in."""
    response.headers["X-Phala-Version"] = version().name
    return response


def refusal(message: str, status: int, error: Exception) -> Response:
    """A refusal in the form of this interface."""
    body, code = refusals.body_of(error, message, status)
    response = jsonify(body)
    response.status_code = code
    return tell_version(response)


# Apps --------------------------------------------------------------------------------------------


@blueprint.get("/apps")
@blueprint.arguments(AppsQuery, location="query")
@blueprint.response(
    200, answers.AppList, description="A page of the apps that fit, the newest first."
)
def apps(wanted: AppsWanted) -> Any:
    """Lists the apps that have a VM that fits all filters."""
    page = service().matching(caller(), wanted)
    rows = pages.apps_of(service(), page.items, version(), links())
    return pages.own_listing("dstack_apps", page, rows)


@blueprint.get("/apps/filter-options")
@blueprint.response(
    200, answers.FilterOptions, description="The values that the filters of the list can have."
)
def filter_options() -> Any:
    """Tells what the list of apps can be filtered by."""
    return service().filter_options(caller())


@blueprint.get("/apps/<app_id>")
@blueprint.response(200, answers.App, description="The app with its VMs.")
def app(app_id: str) -> Any:
    """Shows one app."""
    found = service().app(caller(), app_id)
    return pages.one_app(service(), found, version(), links())


@blueprint.get("/apps/<app_id>/cvms")
@blueprint.response(200, answers.Cvm(many=True), description="Its VMs, the oldest first.")
def app_cvms(app_id: str) -> Any:
    """Lists the VMs of one app."""
    found = service().app(caller(), app_id)
    cvms = service().cvms([row.id for row in found.rows])
    return jsonify([version().listed(cvm, links()) for cvm in cvms])


@blueprint.get("/apps/<app_id>/revisions")
@blueprint.arguments(RevisionsQuery, location="query")
@blueprint.response(
    200, answers.RevisionList, description="A page of what its VMs have booted, the newest first."
)
def revisions(wanted: dict[str, Any], app_id: str) -> Any:
    """Lists what the VMs of an app have booted."""
    page = service().revisions(service().app(caller(), app_id), **wanted)
    names = service().refs(page.items)
    rows = [pages.revision_of(each, *names) for each in page.items]
    return pages.own_listing("revisions", page, rows)


@blueprint.get("/apps/<app_id>/revisions/<revision_id>")
@blueprint.arguments(RevisionQuery, location="query")
@blueprint.response(200, answers.RevisionDetail, description="The revision with its texts.")
def revision(wanted: dict[str, Any], app_id: str, revision_id: str) -> Any:
    """Shows one revision; `raw_compose_file` gives the compose text exactly as it was."""
    found = service().revision(service().app(caller(), app_id), revision_id)
    texts = pages.texts_of(found, raw=wanted["raw_compose_file"])
    return pages.revision_of(found, *service().refs([found])) | texts


# Evidence and contracts --------------------------------------------------------------------------


@blueprint.get("/apps/<app_id>/attestations")
@blueprint.response(
    200, AppAttestation, description="What each guest says of itself, or why it does not."
)
def app_attestations(app_id: str) -> Any:
    """Asks all guests of an app for their evidence at once."""
    found = service().app(caller(), app_id)
    return attestations.asked(service(), found)


@blueprint.get("/apps/<app_id>/device-allowlist")
@blueprint.response(
    200, answers.DeviceAllowlist, description="The devices, and whether the contract allows each."
)
def device_allowlist(app_id: str) -> Any:
    """Asks an app's contract about the devices that it runs on."""
    return allowlist().devices(service().app(caller(), app_id), version().id)


@blueprint.post("/apps/<app_id>/is-allowed")
@blueprint.arguments(AllowanceOfApp)
@blueprint.response(
    200, answers.Verdict, description="What the contract says, or why it could not be asked."
)
def is_allowed(wanted: Allowance, app_id: str) -> Any:
    """Asks a contract whether a deployment would be allowed; the app need not be here."""
    return allowlist().of_app(caller(), app_id, wanted)


@blueprint.post("/apps/<app_id>/cvms/is-allowed")
@blueprint.response(200, answers.CvmVerdicts, description="What the contract says of each VM.")
def cvms_are_allowed(app_id: str) -> Any:
    """Asks an app's contract about all its VMs at once."""
    found = service().app(caller(), app_id)
    return allowance.batch(found, allowlist().of_cvms(found), version().id)
