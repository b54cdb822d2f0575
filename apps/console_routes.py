"""The console's pages of apps: their VMs, the history of what these boot, their evidence and their contracts."""

from __future__ import annotations

import secrets

from flask import Blueprint, Response, current_app, request

from apps import diffs, evidence
from apps.routes import allowlist, service
from apps.schemas import AppsWanted
from rest.access import caller
from vmm import console
from vmm.console import show

blueprint = Blueprint("apps_console", __name__, url_prefix="/console/apps")
blueprint.before_request(console.guard_tenants)

PAGE = 25


@blueprint.get("")
def index() -> Response:
    """The apps that the caller sees, with their VMs."""
    wanted = AppsWanted(_page(), PAGE, search=request.args.get("q", ""))
    page = service().matching(caller(), wanted)
    ids = [row.id for app in page.items for row in app.rows]
    return show(
        "apps/apps.html",
        page=page,
        keyword=wanted.search,
        cvms={cvm.uuid: cvm for cvm in service().cvms(ids)},
    )


@blueprint.get("/<app_id>")
def app(app_id: str) -> Response:
    """One app."""
    found = service().app(caller(), app_id)
    revisions = service().revisions(found, _page(), PAGE)
    _, users = service().refs(revisions.items)
    return show(
        "apps/app.html",
        app=found,
        cvms=service().cvms([row.id for row in found.rows]),
        revisions=revisions,
        users=users,
    )


@blueprint.get("/<app_id>/diff")
def diff(app_id: str) -> Response:
    """What changed between two revisions."""
    found = service().app(caller(), app_id)
    before, after = (
        service().revision(found, request.args.get(each, "")) for each in ("from", "to")
    )
    changes = diffs.between(before.compose_file, after.compose_file)
    return show("apps/diff.html", app=found, before=before, after=after, changes=changes)


@blueprint.get("/<app_id>/evidence")
def proof(app_id: str) -> Response:
    """What the guests prove of themselves, asked just now."""
    found = service().app(caller(), app_id)
    words = evidence.of_app(service(), current_app.extensions["verifier"], found)
    return show("apps/evidence.html", app=found, words=words)


@blueprint.get("/<app_id>/allowlist")
def contract(app_id: str) -> Response:
    """What the app's contract says of its VMs, asked just now."""
    found = service().app(caller(), app_id)
    return show("apps/allowlist.html", app=found, verdicts=allowlist().of_cvms(found))


@blueprint.get("/<app_id>/log/<vm_id>")
def log(app_id: str, vm_id: str) -> Response:
    """The serial log of one of its VMs, which follows."""
    found, nonce = service().app(caller(), app_id), secrets.token_urlsafe(16)
    return show(
        "apps/log.html",
        # As in the operators' logs: the styles that xterm.js makes.
        policy=f"style-src 'self' 'nonce-{nonce}'",
        nonce=nonce,
        app=found,
        cvm=service().cvm(caller(), vm_id),
    )


def _page() -> int:
    return max(1, min(request.args.get("page", 1, int), 10**6))
