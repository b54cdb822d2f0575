"""The console's forms: a new VM, a clone, a change, and what they show while one types."""

from __future__ import annotations

import json
from typing import Any

from flask import Response, flash, request, url_for
from werkzeug.wrappers import Response as BaseResponse

from attest import compose
from core.errors import CasemateError, status_of
from vmm import console_forms
from vmm.change import RESOURCES
from vmm.console import ask, blueprint, go, info_of, show
from vmm.console_compose import Form, wanted
from vmm.routes import vms

LOCKED = {*RESOURCES, "memory_unit"}


@blueprint.get("/console/deploy")
def deploy_page() -> Response:
    """The form of a new VM, empty or with what another one has."""
    source = request.args.get("from", "")
    if not source:
        found = ask("ListImages")["images"]
        return _form(console_forms.empty(found[0]["name"] if found else ""))
    info = info_of(source)
    form, has = console_forms.filled(info), info["configuration"]
    form["name"] = f"{form['name'][:59]}-copy"
    form["like"] = source
    form["encrypted_env"] = has["encrypted_env"]
    if not has["encrypted_env"] and _app_id(has["compose_file"]) == has["app_id"]:
        form.pop("app_id")
    return _form(form)


@blueprint.post("/console/deploy")
def deploy() -> BaseResponse:
    """Makes the VM, or shows the form again with the reasons beside the fields."""
    try:
        made = ask("CreateVm", **console_forms.configuration(request.form, _before(request.form)))
    except CasemateError as refusal:
        return _form(request.form, refusal=refusal)
    return go(url_for("console.details", vm_id=made["id"]))


@blueprint.get("/console/vm/<vm_id>/update")
def update_page(vm_id: str) -> Response:
    """The form of a change, filled with what the VM has."""
    info = info_of(vm_id)
    return _form(console_forms.filled(info), vm=info)


@blueprint.post("/console/vm/<vm_id>/update")
def update(vm_id: str) -> BaseResponse:
    """Changes the VM with one call, or shows the form again with the reasons beside the fields."""
    info = info_of(vm_id)
    try:
        change = console_forms.change(request.form, info)
        if len(change) > 1:
            ask("UpdateVm", **change)
    except CasemateError as refusal:
        return _form(request.form, vm=info, refusal=refusal)
    flash(f"Changed: {info['name']}" if len(change) > 1 else "Nothing was changed", "note")
    return go(url_for("console.details", vm_id=vm_id))


@blueprint.post("/console/compose-hash")
def compose_hash() -> Response:
    """What a form's compose text will be measured as; the form shows it while one types."""
    text, before, app_id = _subject(request.form)
    values: dict[str, Any] = {"text": text, "app_id": app_id, "changed": text != before}
    try:
        # The name has a field of its own, which may not be filled yet.
        values["hash"] = ask("GetComposeHash", name="any", compose_file=text)["hash"]
    except CasemateError as refusal:
        values["refusal"] = refusal.message
    return show("hash.html", **values)


@blueprint.post("/console/env-key")
def env_key() -> Response:
    """The public key, from the KMS, that the variables of a form's app are encrypted with."""
    try:
        _, _, app_id = _subject(request.form)
        status, told = 200, ask("GetAppEnvEncryptPubKey", app_id=app_id)
    except CasemateError as refusal:
        status, told = status_of(refusal), {"message": refusal.message}
    return Response(json.dumps(told), status, mimetype="application/json")


def _form(form: Form, *, vm: Any = None, refusal: CasemateError | None = None) -> Response:
    # What is locked while a VM runs is not sent by its browser, and is shown all the same.
    has = console_forms.filled(vm) if vm else Form()
    locked = ((name, has[name]) for name in LOCKED & set(has) - set(form))
    form = Form([*form.items(multi=True), *locked])
    return show(
        "form.html",
        status_of(refusal) if refusal else 200,
        form=form,
        port_rows=console_forms.port_rows(form),
        card_rows=console_forms.card_rows(form),
        vm=vm,
        names_before=has.get("allowed_envs", ""),
        why=console_forms.reasons(refusal) if refusal else {},
        images=ask("ListImages")["images"],
        gpus=ask("ListGpus"),
        cvm=vms().config.cvm,
        host_tee=vms().host.tee,
    )


def _subject(form: Form) -> tuple[str, str, str]:
    """The compose text that a form asks for, the one before it, and the app id."""
    before = _before(form)
    text = wanted(form, before)
    if vm_id := form.get("vm", ""):
        return text, before, info_of(vm_id)["app_id"]
    given = form.get("app_id", "").strip().lower().removeprefix("0x")
    return text, before, given or _app_id(text)


def _before(form: Form) -> str:
    """The compose text of the VM that a form changes, or is to make another of."""
    found = ask("GetInfo", id=form.get("vm") or form.get("like", ""))["info"]
    return str(found["configuration"]["compose_file"]) if found else ""


def _app_id(text: str) -> str:
    return compose.app_id(text.encode()).hex()
