"""/api: keys, session, agents, background jobs, prices and templates of the SecretVM interface.

Calls on VMs are in vm_routes.py, on clusters in cluster_routes.py, verification in verify_routes.py.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

from flask import Response, current_app, g, request

from accounts import agents
from accounts.agents import Signature
from accounts.credentials import Credentials
from core.errors import Invalid, Unauthenticated, Unsupported
from rest.access import caller, is_signable, public, signable
from rest.blueprint import Blueprint
from secretvm import pricing, schemas, templates
from secretvm.people import People
from secretvm.service import SecretVms

blueprint = Blueprint("secretvm", __name__, url_prefix="/api", description="VMs from compose files")
# A compose text, a tar of docker files in base64, and the other fields.
BODY_LIMIT = 16 * 1024**2


def refusal(message: str, status: int, error: Exception) -> Response:
    """An error in the form of this surface."""
    body = json.dumps({"statusCode": status, "message": message})
    return Response(body, status, mimetype="application/json")


def answer(body: Any) -> Response:
    """An answer, as it is: its schema describes it in the document."""
    return Response(json.dumps(body, ensure_ascii=False), mimetype="application/json")


def refuses(*statuses: int) -> Callable[[Any], Any]:
    """Documents the refusals of a view."""

    def mark(view: Any) -> Any:
        for status in statuses:
            view = blueprint.alt_response(status, schema=schemas.Refusal)(view)
        return view

    return mark


def secret_vms() -> SecretVms:
    """The verbs on VMs."""
    found: SecretVms = current_app.extensions["secret_vms"]
    return found


def _people() -> People:
    return People(secret_vms().accounts, secret_vms().config)


@blueprint.before_request
def _let_in() -> None:
    """A larger body than elsewhere, and the caller of a signed request."""
    request.max_content_length = BODY_LIMIT
    view = current_app.view_functions[request.endpoint or ""]
    if g.caller is None and is_signable(view):
        if not secret_vms().config.secretvm.agents:
            raise Unauthenticated("signed requests are not let in here; a key is needed")
        given = (
            request.headers.get(f"X-Agent-{each}", "") for each in Signature.__dataclass_fields__
        )
        shown = Signature(*given)
        digest = shown.digest_of(request.method, request.path, _signed_body())
        g.caller = agents.caller_of(secret_vms().database, shown, digest)
        g.is_agent = True


def _signed_body() -> str:
    """The text of the body that an agent signs: a form has a canonical one."""
    if request.mimetype != "multipart/form-data":
        return request.get_data(as_text=True)
    signed: dict[str, Any] = {"fields": request.form.to_dict()}
    files = list(request.files.items(multi=True))
    if len(files) > 1:
        raise Invalid.field(files[1][0], "is not under the signature; a signed form has one file")
    for name, file in files:
        content = file.stream.read()
        file.stream.seek(0)
        signed["file"] = {
            "fieldname": name,
            "originalname": file.filename,
            "mimetype": file.mimetype,
            "size": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
        }
    return json.dumps(signed, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


# Accounts ------------------------------------------------------------------------------------


@blueprint.post("/keys")
@blueprint.arguments(schemas.NewKey)
@blueprint.response(200, schemas.Key)
@refuses(401, 403)
def add_key(given: dict[str, Any]) -> Response:
    """Make a key; administrators only. The user, and a project of the same name, are made when they are new."""
    return answer(_people().add_key(caller(), **given))


@blueprint.get("/keys")
@blueprint.response(200, schemas.Key(many=True))
@refuses(401)
def list_keys() -> Response:
    """List keys: an administrator's see all, others their user's."""
    return answer(_people().keys(caller()))


@blueprint.delete("/keys/<key_id>")
@blueprint.response(200, schemas.Anything)
@refuses(401, 404)
def delete_key(key_id: str) -> Response:
    """End a key at once: {deleted, id}."""
    _people().delete_key(caller(), key_id)
    return answer({"deleted": True, "id": key_id})


@blueprint.get("/auth/session")
@blueprint.response(200, schemas.Anything)
@public
def session() -> Response:
    """Who a key belongs to: {user: {sub, name, email}, expires}, and {} without a valid one."""
    given = Credentials.of(
        request.headers.get("Authorization", ""), request.headers.get("X-Api-Key", "")
    )
    return answer(_people().session(given))


@blueprint.get("/balance")
@blueprint.response(200, schemas.Anything)
@refuses(401)
def balance() -> Response:
    """What the key's project has left: {project, balance}, in millionths of a US dollar as text."""
    return answer(_people().balance(caller()))


@blueprint.put("/balance")
@blueprint.arguments(schemas.NewBalance)
@blueprint.response(200, schemas.Anything)
@refuses(401, 403, 404)
def set_balance(given: dict[str, Any]) -> Response:
    """Give a project a balance; administrators only."""
    return answer(_people().set_balance(caller(), **given))


# Agents --------------------------------------------------------------------------------------


@blueprint.get("/agent/balance")
@blueprint.response(200, schemas.Anything)
@refuses(401)
@signable
def agent_balance() -> Response:
    """What an agent has left: {balance}."""
    return answer({"balance": _people().balance(caller())["balance"]})


@blueprint.post("/agent/add-funds")
@blueprint.response(200, schemas.Anything)
@refuses(401, 501)
@signable
def add_funds() -> Response:
    """Refused: this deployment takes no payments."""
    raise Unsupported("payment is not configured here; the administrator sets balances")


@blueprint.get("/agent/vm/<vm_id>")
@blueprint.response(200, schemas.Anything)
@refuses(401, 404)
@signable
def agent_vm(vm_id: str) -> Response:
    """An agent's VM in brief."""
    found = secret_vms().vm_object(secret_vms().find(caller(), vm_id))
    names = ("id", "name", "status", "vmDomain", "vmId", "created_at", "updated_at")
    return answer({**{name: found[name] for name in names}, "vmUid": found["vm_uid"]})


# Jobs ----------------------------------------------------------------------------------------


@blueprint.get("/background-job/<job_id>")
@blueprint.response(200, schemas.JobObject)
@refuses(401, 404)
def background_job(job_id: str) -> Response:
    """How far a background job is."""
    return answer(secret_vms().job(caller(), job_id))


# Prices and templates ------------------------------------------------------------------------


@blueprint.get("/pricing")
@blueprint.response(200, schemas.Anything)
@public
def prices_of_models() -> Response:
    """Prices of hosted language models: {models: [{key, name, inputPrice, outputPrice}]}."""
    return answer(pricing.models(secret_vms().config))


@blueprint.get("/coin-price/current")
@blueprint.response(200, schemas.Anything)
@public
def coin_price() -> Response:
    """The coin's price: {success, data?, error?}."""
    return answer(pricing.current(secret_vms().database, secret_vms().config))


@blueprint.get("/coin-price/history")
@blueprint.arguments(schemas.Hours, location="query")
@blueprint.response(200, schemas.Anything)
@public
def coin_price_history(given: dict[str, str]) -> Response:
    """The coin's prices of the last hours (1 to 168): {success, data?, error?}."""
    hours = given["hours"] or "24"
    return answer(pricing.history(secret_vms().database, secret_vms().config, hours))


@blueprint.put("/coin-price")
@blueprint.arguments(schemas.Price)
@blueprint.response(200, schemas.Anything)
@refuses(401, 403)
def set_coin_price(given: dict[str, float]) -> Response:
    """Set the coin's price; administrators only."""
    _people().check_admin(caller())
    svms = secret_vms()
    pricing.set_price(svms.database, svms.config, given["price_usd"], pricing.SET_BY_HAND)
    return answer(pricing.current(svms.database, svms.config))


@blueprint.get("/templates")
@blueprint.response(200, schemas.Template(many=True))
@public
def all_templates() -> Response:
    """All templates."""
    return answer(list(templates.listed()))
