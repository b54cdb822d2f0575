"""The console: pages that show and change the VMs of this host.

A page asks and acts through the calls of /prpc, with the checks and in the words of these.  All works without
script; with it (static/console.js) pages renew themselves in place.
"""

from __future__ import annotations

import hmac
import json
import secrets
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

from accounts.service import Accounts
from attest import compose
from core.errors import CasemateError, Forbidden, NotFound, Unauthenticated, status_of
from image import registry
from vmm import console_forms, guest_routes, usage
from vmm.console_compose import Form, shown, wanted
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
PAGE_SIZES = (10, 25, 50, 100)
LOG_LINES = 2000
# What a button of a VM may ask for, what it is called, and what is asked before it is done.
VERBS = {
    "start": ("StartVm", "Start", ""),
    "shutdown": ("ShutdownVm", "Shut down", ""),
    "kill": ("StopVm", "Kill", "Its processes get no time to write what they have not written yet."),
    "remove": ("RemoveVm", "Remove", "Its disk, logs and ports go too. Nothing brings them back."),
}


def signed_in() -> bool:
    """Whether this browser may see what the token's owner sees."""
    return g.caller is not None  # found by app.py, an operator whose credential is still valid


def ask(method: str, **message: Any) -> dict[str, Any]:
    """A call of /prpc with the checks that it has there."""
    return service.find(method).call(message) or {}


@blueprint.before_request
def guard() -> BaseResponse | None:
    """Strangers are sent to the form for their token; a change must come from a page of ours."""
    if request.endpoint in ("console.sign_in_page", "console.sign_in"):
        return None
    if not signed_in():
        if "HX-Request" in request.headers:
            return Response(status=401, headers={"HX-Redirect": url_for("console.sign_in_page")})
        asked = request.full_path.rstrip("?") if request.method == "GET" else "/"
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
        "guarded": current_app.extensions["accounts"].enabled,
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
    return _page(
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
    return _page("plain.html", **ask("Status", brief=True))


# One VM --------------------------------------------------------------------------------------------


@blueprint.get("/console/vm/<vm_id>")
def details(vm_id: str) -> Response:
    """One VM: what it is, what happened to it, what it uses."""
    vm = _info(vm_id)
    has = vm["configuration"]
    curves = usage.history(
        vms().database, vm_id, processors=has["vcpu"], memory_mb=has["memory"]
    )
    return _page(
        "vm.html",
        vm=vm,
        usage=curves,
        compose=shown(has["compose_file"]),
        compose_hash=compose.compose_hash(has["compose_file"].encode()).hex(),
        command=vms().command(vm_id),
        console="".join(vms().log(vm_id, "serial", 30, keep_ansi=False)),
    )


@blueprint.get("/console/vm/<vm_id>/guest")
def guest(vm_id: str) -> Response:
    """What the agent in the VM says of network and containers, just now."""
    told: dict[str, Any] = {"refusal": ""}
    try:
        for method in ("NetworkInfo", "ListContainers", "SysInfo"):
            told[method] = guest_routes.service.find(method).call({"id": vm_id})
    except CasemateError as refusal:
        told["refusal"] = refusal.message
    return _page("guest.html", vm=_info(vm_id), **told)


@blueprint.get("/console/vm/<vm_id>/app-compose.json")
def download_compose(vm_id: str) -> Response:
    """The exact app-compose document."""
    return _download(_info(vm_id)["configuration"]["compose_file"], "app-compose.json")


@blueprint.get("/console/vm/<vm_id>/user-config")
def download_user_config(vm_id: str) -> Response:
    """The user config as it was given."""
    return _download(_info(vm_id)["configuration"]["user_config"], "user-config")


@blueprint.get("/console/vm/<vm_id>/log")
def log(vm_id: str) -> Response:
    """A log that follows."""
    channel, nonce = request.args.get("ch", "serial"), secrets.token_urlsafe(16)
    newest = "".join(vms().log(vm_id, channel, 200, keep_ansi=False))
    page = _page(
        "log.html", vm=_info(vm_id), channel=channel, newest=newest, lines=LOG_LINES, nonce=nonce
    )
    # xterm.js makes style elements of its own: those, and no others, carry the nonce.
    page.headers["Content-Security-Policy"] = f"{CSP}; style-src 'self' 'nonce-{nonce}'"
    return page


# Verbs ---------------------------------------------------------------------------------------------


@blueprint.get("/console/vm/<vm_id>/<any(kill, remove):verb>")
def confirm(vm_id: str, verb: str) -> Response:
    """Asks before what cannot be undone."""
    return _page("confirm.html", vm=_info(vm_id), verb=verb, back=_local(request.args.get("back")))


@blueprint.post("/console/vm/<vm_id>/<any(start, shutdown, kill, remove):verb>")
def act(vm_id: str, verb: str) -> BaseResponse:
    """Does one thing to one VM and goes back to the page that asked."""
    method, label, _ = VERBS[verb]
    return _do(method, f"{label}: {_info(vm_id)['name']}", id=vm_id)


@blueprint.post("/console/reload")
def reload() -> BaseResponse:
    """Reads the VMs' folders again."""
    return _do("ReloadVms", "The VMs' folders were read again")


# Deploy and update ---------------------------------------------------------------------------------


@blueprint.get("/console/deploy")
def deploy_page() -> Response:
    """The form of a new VM, empty or with what another one has."""
    source = request.args.get("from", "")
    if not source:
        found = ask("ListImages")["images"]
        return _form(console_forms.empty(found[0]["name"] if found else ""))
    info = _info(source)
    form, has = console_forms.filled(info), info["configuration"]
    form["name"] = f"{form['name'][:59]}-copy"
    form["encrypted_env"] = has["encrypted_env"]
    if not has["encrypted_env"] and _app_id(has["compose_file"]) == has["app_id"]:
        form.pop("app_id")
    return _form(form)


@blueprint.post("/console/deploy")
def deploy() -> BaseResponse:
    """Makes the VM, or shows the form again with the reasons beside the fields."""
    try:
        made = ask("CreateVm", **console_forms.configuration(request.form))
    except CasemateError as refusal:
        return _form(request.form, refusal=refusal)
    return _go(url_for("console.details", vm_id=made["id"]))


@blueprint.get("/console/vm/<vm_id>/update")
def update_page(vm_id: str) -> Response:
    """The form of a change, filled with what the VM has."""
    info = _info(vm_id)
    return _form(console_forms.filled(info), vm=info)


@blueprint.post("/console/vm/<vm_id>/update")
def update(vm_id: str) -> BaseResponse:
    """Changes the VM with one call, or shows the form again with the reasons beside the fields."""
    info = _info(vm_id)
    change = console_forms.change(request.form, info)
    if len(change) == 1:
        flash("Nothing was changed", "note")
        return _go(url_for("console.details", vm_id=vm_id))
    try:
        ask("UpdateVm", **change)
    except CasemateError as refusal:
        return _form(request.form, vm=info, refusal=refusal)
    flash(f"Changed: {info['name']}", "note")
    return _go(url_for("console.details", vm_id=vm_id))


@blueprint.post("/console/compose-hash")
def compose_hash() -> Response:
    """What a form's compose text will be measured as; the form shows it while one types."""
    text, before, app_id = _subject(request.form)
    values: dict[str, Any] = {"text": text, "app_id": app_id, "changed": text != before}
    try:
        name = request.form.get("name", "").strip() or "unnamed"
        values["hash"] = ask("GetComposeHash", name=name, compose_file=text)["hash"]
    except CasemateError as refusal:
        values["refusal"] = refusal.message
    return _page("hash.html", **values)


@blueprint.post("/console/env-key")
def env_key() -> Response:
    """The public key, from the KMS, that the variables of a form's app are encrypted with."""
    try:
        _, _, app_id = _subject(request.form)
        status, told = 200, ask("GetAppEnvEncryptPubKey", app_id=app_id)
    except CasemateError as refusal:
        status, told = status_of(refusal), {"message": refusal.message}
    return Response(json.dumps(told), status, mimetype="application/json")


# The host ------------------------------------------------------------------------------------------


@blueprint.get("/console/images")
def images() -> Response:
    """The images that can be booted, and the folders that cannot, with the reason."""
    broken = registry.broken_images(vms().config.image.path)
    return _page("images.html", images=ask("ListImages")["images"], broken=broken)


@blueprint.post("/console/images/<name>/delete")
def delete_image(name: str) -> BaseResponse:
    """Deletes an image that no VM uses."""
    return _do("DeleteImage", f"Deleted: {name}", id=name)


@blueprint.get("/console/processes")
def processes() -> Response:
    """The processes behind the VMs."""
    return _page("processes.html", **ask("SvList"))


@blueprint.post("/console/processes/<name>/<any(stop, remove):verb>")
def end_process(name: str, verb: str) -> BaseResponse:
    """Stops a process, or forgets one that has ended."""
    method = {"stop": "SvStop", "remove": "SvRemove"}[verb]
    return _do(method, f"{verb.capitalize()}: {name}", id=name)


# Who is there --------------------------------------------------------------------------------------


@blueprint.get("/sign-in")
def sign_in_page() -> Response:
    """The form that takes a token."""
    return _page("sign_in.html", refusal="", next=_local(request.args.get("next")))


@blueprint.post("/sign-in")
def sign_in() -> BaseResponse:
    """Keeps the caller in a session cookie, or says why not."""
    accounts: Accounts = current_app.extensions["accounts"]
    back = _local(request.form.get("next"))
    try:
        # With a user, an entry of the htpasswd file: then the token is the password.
        user = request.form.get("user", "").strip()
        caller = accounts.session_of(request.form.get("token", "").strip(), user)
    except (Unauthenticated, Forbidden) as refusal:
        page = _page("sign_in.html", refusal=refusal.message, next=back)
        page.status_code = status_of(refusal)
        return page
    session.clear()
    session["caller"] = caller
    return redirect(back)


@blueprint.post("/sign-out")
def sign_out() -> BaseResponse:
    """Forgets the caller."""
    session.clear()
    return _go(url_for("console.sign_in_page"))


# Steps ---------------------------------------------------------------------------------------------


def _info(vm_id: str) -> dict[str, Any]:
    found = ask("GetInfo", id=vm_id)["info"]
    if found is None:
        raise NotFound("there is no such VM")
    info: dict[str, Any] = found
    return info


def _app_id(text: str) -> str:
    return compose.app_id(text.encode()).hex()


def _subject(form: Form) -> tuple[str, str, str]:
    """The compose text that a form asks for, the one before it, and the app id."""
    if vm_id := form.get("vm", ""):
        info = _info(vm_id)
        before = info["configuration"]["compose_file"]
        return wanted(form, before), before, info["app_id"]
    given = form.get("app_id", "").strip().lower().removeprefix("0x")
    return wanted(form), "", given or _app_id(wanted(form))


def _do(method: str, done: str, **message: Any) -> BaseResponse:
    try:
        ask(method, **message)
        flash(done, "note")
    except CasemateError as refusal:
        flash(refusal.message, "refusal")
    return redirect(_local(request.form.get("back")), 303)


def _form(form: Form, *, vm: Any = None, refusal: CasemateError | None = None) -> Response:
    page = _page(
        "form.html",
        form=form,
        vm=vm,
        why=console_forms.reasons(refusal) if refusal else {},
        images=ask("ListImages")["images"],
        gpus=ask("ListGpus") if "ListGpus" in service.methods else {"gpus": []},
        cvm=vms().config.cvm,
        host_tee=vms().host.tee,
    )
    page.status_code = status_of(refusal) if refusal else 200
    return page


def _local(path: str | None) -> str:
    """A path of this service to go back to; never another host."""
    is_ours = path and path[0] == "/" and path[1:2] not in ("/", "\\") and path.isprintable()
    return path if path and is_ours else "/"


def _go(path: str) -> BaseResponse:
    # A redirect would be followed by the script, inside the page.
    if "HX-Request" in request.headers:
        return Response(status=200, headers={"HX-Redirect": path})
    return redirect(path, 303)


def _download(text: str, name: str) -> Response:
    headers = {"Content-Disposition": f'attachment; filename="{name}"', "Cache-Control": "no-store"}
    return Response(text, mimetype="application/octet-stream", headers=headers)


def _page(template: str, **values: Any) -> Response:
    page = make_response(render_template(template, **values))
    page.headers["Content-Security-Policy"] = CSP
    page.headers["X-Content-Type-Options"] = "nosniff"
    page.headers["Referrer-Policy"] = "no-referrer"
    page.headers["Cache-Control"] = "no-store"
    return page
