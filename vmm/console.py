"""The console's pages: the VMs of this host, each with its events and logs; reading only, without script."""

from __future__ import annotations

from typing import Any

from flask import (
    Blueprint,
    Response,
    current_app,
    make_response,
    redirect,
    render_template,
    request,
    session,
    url_for,
)
from werkzeug.wrappers import Response as BaseResponse

from accounts.service import Accounts
from core.errors import NotFound, Unauthenticated
from vmm.routes import vms
from vmm.schemas import StatusQuery
from vmm.version import VERSION

blueprint = Blueprint("console", __name__)

# Links of the pages that lead to another blueprint; all of it only reads.
READ_WITH_SESSION = {"logs"}
CSP = "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"


def signed_in() -> bool:
    """Whether this browser may see what the token's owner sees."""
    accounts: Accounts = current_app.extensions["accounts"]
    return accounts.allows_session(session.get("caller", ""))


@blueprint.get("/")
@blueprint.get("/v1")
@blueprint.get("/beta")
@blueprint.get("/v0")
def index() -> BaseResponse:
    """The list of VMs, or the way to sign in."""
    if not signed_in():
        return redirect(url_for("console.sign_in_page"))
    listing = vms().status(StatusQuery(brief=True, keyword=request.args.get("q", "")))
    return _page("vms.html", keyword=request.args.get("q", ""), **listing)


@blueprint.get("/console/vm/<vm_id>")
def details(vm_id: str) -> BaseResponse:
    """One VM: what it is, what happened to it, what its console printed last."""
    if not signed_in():
        return redirect(url_for("console.sign_in_page"))
    info = vms().info(vm_id)
    if info is None:
        raise NotFound("there is no such VM")
    console = "".join(vms().log(vm_id, "serial", 60, follow=False, keep_ansi=False))
    return _page("vm.html", vm=info, console=console)


@blueprint.get("/sign-in")
def sign_in_page() -> BaseResponse:
    """The form that takes a token."""
    return _page("sign_in.html", refusal="")


@blueprint.post("/sign-in")
def sign_in() -> BaseResponse:
    """Keeps the caller in a session cookie, or says why not."""
    accounts: Accounts = current_app.extensions["accounts"]
    try:
        session["caller"] = accounts.session_of(request.form.get("token", "").strip())
    except Unauthenticated as refusal:
        page = _page("sign_in.html", refusal=refusal.message)
        page.status_code = 401
        return page
    return redirect("/")


def _page(template: str, **values: Any) -> Response:
    config = vms().config
    page = make_response(
        render_template(template, node=config.node_name, version=VERSION, **values)
    )
    page.headers["Content-Security-Policy"] = CSP
    page.headers["X-Content-Type-Options"] = "nosniff"
    page.headers["Referrer-Policy"] = "no-referrer"
    page.headers["Cache-Control"] = "no-store"
    return page
