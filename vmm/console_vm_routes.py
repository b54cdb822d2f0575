"""The console's pages of one VM: what it is, what it does, what it printed, and its buttons."""

from __future__ import annotations

import secrets
import shlex
from typing import Any

from flask import Response, request
from werkzeug.wrappers import Response as BaseResponse

from attest import compose
from core.errors import CasemateError
from vmm import guest_routes, usage
from vmm.console import VERBS, blueprint, do, info_of, local, show
from vmm.console_compose import shown
from vmm.routes import vms

LOG_LINES = 2000


@blueprint.get("/console/vm/<vm_id>")
def details(vm_id: str) -> Response:
    """One VM: what it is, what happened to it, what it uses."""
    vm = info_of(vm_id)
    has = vm["configuration"]
    curves = usage.history(vms().database, vm_id, processors=has["vcpu"], memory_mb=has["memory"])
    return show(
        "vm.html",
        vm=vm,
        usage=curves,
        compose=shown(has["compose_file"]),
        compose_hash=compose.compose_hash(has["compose_file"].encode()).hex(),
        command=[shlex.quote(word) for word in vms().command(vm_id)],
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
    return show("guest.html", vm=info_of(vm_id), **told)


@blueprint.get("/console/vm/<vm_id>/app-compose.json")
def download_compose(vm_id: str) -> Response:
    """The exact app-compose document."""
    return _download(info_of(vm_id)["configuration"]["compose_file"], "app-compose.json")


@blueprint.get("/console/vm/<vm_id>/user-config")
def download_user_config(vm_id: str) -> Response:
    """The user config as it was given."""
    return _download(info_of(vm_id)["configuration"]["user_config"], "user-config")


@blueprint.get("/console/vm/<vm_id>/log")
def log(vm_id: str) -> Response:
    """A log that follows."""
    channel, nonce = request.args.get("ch", "serial"), secrets.token_urlsafe(16)
    return show(
        "log.html",
        # xterm.js makes style elements of its own: those, and no others, carry the nonce.
        policy=f"style-src 'self' 'nonce-{nonce}'",
        nonce=nonce,
        vm=info_of(vm_id),
        channel=channel,
        newest="".join(vms().log(vm_id, channel, 200, keep_ansi=False)),
        lines=LOG_LINES,
    )


@blueprint.get("/console/vm/<vm_id>/<any(kill, remove):verb>")
def confirm(vm_id: str, verb: str) -> Response:
    """Asks before what cannot be undone."""
    return show("confirm.html", vm=info_of(vm_id), verb=verb, back=local(request.args.get("back")))


@blueprint.post("/console/vm/<vm_id>/<any(start, shutdown, kill, remove):verb>")
def act(vm_id: str, verb: str) -> BaseResponse:
    """Does one thing to one VM and goes back to the page that asked."""
    method, label, _ = VERBS[verb]
    return do(method, f"{label}: {info_of(vm_id)['name']}", id=vm_id)


def _download(text: str, name: str) -> Response:
    headers = {"Content-Disposition": f'attachment; filename="{name}"', "Cache-Control": "no-store"}
    return Response(text, mimetype="application/octet-stream", headers=headers)
