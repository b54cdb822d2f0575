"""The console: pages that show and change the VMs of this host, and what all pages have in common.

A page asks and acts through the calls of /prpc, with the checks and in the words of these.  All works without
script; with it (static/console.js) pages renew themselves in place.  The pages of tenants are in the
console_routes.py of their areas.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable
from typing import Any

from flask import (
    Blueprint,
    Response,
    current_app,
    flash,
    g,
    make_response,
    redirect,
    render_template,
    request,
    session,
    url_for,
)
from werkzeug.wrappers import Response as BaseResponse

from accounts.roles import Caller
from accounts.service import Accounts
from core.errors import CasemateError, Forbidden, NotFound, Unauthenticated, status_of
from image import registry
from vmm import usage
from vmm.routes import service, vms
from vmm.version import VERSION, revision

blueprint = Blueprint("console", __name__)

# Links of the pages that lead to another blueprint; all of it only reads.
READ_WITH_SESSION = {"logs", "openapi"}
# Pico draws arrows and check marks with data: images.
CSP = (
    "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; "
    "form-action 'self'; object-src 'none'"
)
# Where whoever is no operator begins: the pages of the areas above.
START_OF_TENANTS = "apps_console.index"
# Open to everybody (seed 001): whoever is unknown finds the form for a token there, not elsewhere, as dstack's
# command line takes the address where a redirect ends for that of the service.
OPEN = ("console.index", "console.plain")
PAGE_SIZES = (10, 25, 50, 100)
# What a button of a VM may ask for, what it is called, and what is asked before it is done.
VERBS = {
    "start": ("StartVm", "Start", ""),
    "shutdown": ("ShutdownVm", "Shut down", ""),
    "kill": (
        "StopVm",
        "Kill",
        "Its processes get no time to write what they have not written yet.",
    ),
    "remove": ("RemoveVm", "Remove", "Its disk, logs and ports go too. Nothing brings them back."),
}


def ask(method: str, **message: Any) -> dict[str, Any]:
    """A call of /prpc with the checks that it has there."""
    return service.find(method).call(message) or {}


@blueprint.before_request
def guard() -> BaseResponse | None:
    """These pages are for operators; whoever else has signed in has pages of their own."""
    if request.endpoint in ("console.sign_in_page", "console.sign_in"):
        return None
    if answer := admit(g.caller):
        return answer
    if not g.caller.is_operator and request.endpoint != "console.sign_out":
        if request.endpoint == "console.index":
            return redirect(url_for(START_OF_TENANTS))
        raise Forbidden(f"this page is for operators, and {g.caller.name} is none")
    return None


def guard_tenants() -> BaseResponse | None:
    """For the blueprints of tenants' pages: what belongs to somebody is shown to a credential alone."""
    return admit(g.caller if g.caller and g.caller.digest else None)


def admit(caller: Caller | None) -> BaseResponse | None:
    """Strangers are sent to the form for their token; a change must come from a page of ours."""
    if caller is None:
        if "HX-Request" in request.headers:
            return Response(status=401, headers={"HX-Redirect": url_for("console.sign_in_page")})
        asked = request.full_path.rstrip("?") if request.method == "GET" else "/"
        if request.endpoint in OPEN:
            return show("sign_in.html", refusal="", next=asked)
        return redirect(url_for("console.sign_in_page", next=None if asked == "/" else asked))
    if request.method == "POST":
        request.max_form_memory_size = request.max_content_length
        given, kept = request.form.get("csrf", ""), session.get("csrf", "")
        if not kept or not hmac.compare_digest(given.encode(), kept.encode()):
            raise Forbidden("this page is too old to be trusted; load it anew and try again")
    return None


@blueprint.app_context_processor
def surroundings() -> dict[str, Any]:
    """What every page shows around its own."""
    session.setdefault("csrf", secrets.token_urlsafe(32))
    return {
        "node": vms().config.node_name,
        "version": VERSION,
        "rev": revision(),
        "caller": g.get("caller"),
        "has_signed_in": bool(g.get("caller") and g.caller.digest),
        "docs": "openapi" in current_app.blueprints,
        "csrf": session["csrf"],
        "can": set(service.methods),
        "verbs": VERBS,
    }


# The list ------------------------------------------------------------------------------------------


@blueprint.get("/")
@blueprint.get("/v1")
@blueprint.get("/beta")
def index() -> Response:
    """The list of VMs, a page at a time."""
    keyword, size = request.args.get("q", ""), request.args.get("size", 25, int)
    size = size if size in PAGE_SIZES else 25
    page = max(1, min(request.args.get("page", 1, int), 10**6))
    found = ask("Status", brief=True, keyword=keyword, page=page - 1, page_size=size)
    return show(
        "vms.html",
        **found,
        keyword=keyword,
        page=page,
        size=size,
        sizes=PAGE_SIZES,
        pages=max(1, -(-found["total"] // size)),
        usage=usage.host_history(vms().database),
    )


@blueprint.get("/v0")
def plain() -> Response:
    """Name, status and uptime of every VM: nothing else, and no script."""
    return show("plain.html", **ask("Status", brief=True))


# The host ------------------------------------------------------------------------------------------


@blueprint.get("/console/images")
def images() -> Response:
    """The images that can be booted, and the folders that cannot, with the reason."""
    broken = registry.broken_images(vms().config.image.path)
    return show("images.html", images=ask("ListImages")["images"], broken=broken)


@blueprint.post("/console/images/<name>/delete")
def delete_image(name: str) -> BaseResponse:
    """Deletes an image that no VM uses."""
    return do("DeleteImage", f"Deleted: {name}", id=name)


@blueprint.get("/console/processes")
def processes() -> Response:
    """The processes behind the VMs."""
    return show("processes.html", **ask("SvList"))


@blueprint.post("/console/processes/<name>/<any(stop, remove):verb>")
def end_process(name: str, verb: str) -> BaseResponse:
    """Stops a process, or forgets one that has ended."""
    method = {"stop": "SvStop", "remove": "SvRemove"}[verb]
    return do(method, f"{verb.capitalize()}: {name}", id=name)


@blueprint.post("/console/reload")
def reload() -> BaseResponse:
    """Reads the VMs' folders again."""
    return do("ReloadVms", "The VMs' folders were read again")


# Who is there --------------------------------------------------------------------------------------


@blueprint.get("/sign-in")
def sign_in_page() -> Response:
    """The form that takes a token."""
    return show("sign_in.html", refusal="", next=local(request.args.get("next")))


@blueprint.post("/sign-in")
def sign_in() -> BaseResponse:
    """Keeps the caller in a session cookie, or says why not."""
    accounts: Accounts = current_app.extensions["accounts"]
    back = local(request.form.get("next"))
    try:
        # With a user, an entry of the htpasswd file: then the token is the password.
        user = request.form.get("user", "").strip()
        caller = accounts.session_of(request.form.get("token", "").strip(), user)
    except Unauthenticated as refusal:
        return show("sign_in.html", status_of(refusal), refusal=refusal.message, next=back)
    session.clear()
    session["caller"] = caller
    return redirect(back)


@blueprint.post("/sign-out")
def sign_out() -> BaseResponse:
    """Forgets the caller."""
    session.clear()
    return go(url_for("console.sign_in_page"))


# What the pages share ----------------------------------------------------------------------------


def info_of(vm_id: str) -> dict[str, Any]:
    """GetInfo of a VM that must be there."""
    found = ask("GetInfo", id=vm_id)["info"]
    if found is None:
        raise NotFound("there is no such VM")
    info: dict[str, Any] = found
    return info


def do(method: str, done: str, **message: Any) -> BaseResponse:
    """Makes a call and goes back to the page that asked, which says `done`, or why not."""
    return attempt(lambda: ask(method, **message), done)


def attempt(action: Callable[[], object], done: str) -> BaseResponse:
    """The same with anything that a service does."""
    try:
        action()
        flash(done, "note")
    except CasemateError as refusal:
        flash(refusal.message, "refusal")
    return redirect(local(request.form.get("back")), 303)


def local(path: str | None) -> str:
    """A path of this service to go back to; never another host."""
    is_ours = path and path[0] == "/" and path[1:2] not in ("/", "\\") and path.isprintable()
    return path if path and is_ours else "/"


def go(path: str) -> BaseResponse:
    """Leads the browser to another page of ours."""
    # A redirect would be followed by the script, inside the page.
    if "HX-Request" in request.headers:
        return Response(status=200, headers={"HX-Redirect": path})
    return redirect(path, 303)


def show(template: str, status: int = 200, *, policy: str = "", **values: Any) -> Response:
    """A page; `policy` adds to what it may load."""
    made = make_response(render_template(template, **values), status)
    made.headers["Content-Security-Policy"] = f"{CSP}; {policy}" if policy else CSP
    made.headers["X-Content-Type-Options"] = "nosniff"
    made.headers["Referrer-Policy"] = "no-referrer"
    made.headers["Cache-Control"] = "no-store"
    return made
