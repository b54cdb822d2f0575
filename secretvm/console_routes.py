"""The console's pages of SecretVM: clusters, jobs, templates, prices, and the verifier, which is for everybody."""

from __future__ import annotations

from flask import Blueprint, Response, current_app, request
from werkzeug.wrappers import Response as BaseResponse

from core.errors import CasemateError, status_of
from rest.access import caller
from secretvm import cluster_object, pricing, proof, sizes, templates
from secretvm.clusters import Clusters
from secretvm.proof import REGISTERS, Asked
from secretvm.routes import secret_vms
from secretvm.verify_routes import MULTIPART_LIMIT
from vmm import console
from vmm.console import show
from vmm.console_compose import lines

blueprint = Blueprint("secretvm_console", __name__, url_prefix="/console")

JOBS = 100
HOURS = "24"


@blueprint.before_request
def guard() -> BaseResponse | None:
    """Evidence is for everybody; all else is somebody's."""
    if request.endpoint in ("secretvm_console.verifier", "secretvm_console.examine"):
        return None
    return console.guard_tenants()


@blueprint.get("/clusters")
def clusters() -> Response:
    """The clusters of the caller's projects."""
    return show("secretvm/clusters.html", clusters=Clusters(secret_vms()).objects(caller()))


@blueprint.get("/clusters/<cluster_id>")
def cluster(cluster_id: str) -> Response:
    """One cluster: its nodes, how its balancer sees them, and what goes through its front."""
    service = Clusters(secret_vms())
    view = service.view(service.find(caller(), cluster_id))
    return show(
        "secretvm/cluster.html",
        cluster=cluster_object.cluster_object(view),
        nodes=cluster_object.backends(view),
        traffic=cluster_object.traffic(view.cluster, service.totals(cluster_id)),
        curves=service.history(cluster_id),
        job=view.job,
    )


@blueprint.get("/jobs")
def jobs() -> Response:
    """What goes on in the background, the newest first."""
    return show("secretvm/jobs.html", jobs=secret_vms().jobs(caller(), JOBS), most=JOBS)


@blueprint.get("/templates")
def all_templates() -> Response:
    """Compose texts to begin with."""
    return show("secretvm/templates.html", templates=templates.listed())


@blueprint.get("/templates/<template_id>")
def template(template_id: str) -> Response:
    """One of them, to read and to copy."""
    return show("secretvm/template.html", found=templates.named(template_id))


@blueprint.get("/prices")
def prices() -> Response:
    """What sizes, models and the coin cost here."""
    config, database = secret_vms().config, secret_vms().database
    return show(
        "secretvm/prices.html",
        sizes=sizes.listed(config),
        is_billed=config.billing.enabled,
        models=pricing.models(config)["models"],
        coin=pricing.current(database, config),
        symbol=config.secretvm.coin_symbol,
    )


@blueprint.get("/verifier")
def verifier() -> Response:
    """The form that takes evidence."""
    return show("secretvm/verifier.html", names=REGISTERS, form={}, proof=None, refusal=None)


@blueprint.post("/verifier")
def examine() -> Response:
    """Says what the evidence in the form proves; nothing of it is kept, so it may come from anywhere."""
    request.max_content_length = request.max_form_memory_size = MULTIPART_LIMIT
    found, refusal = None, None
    try:
        found = proof.examine(current_app.extensions["verification"], _asked())
    except CasemateError as error:
        refusal = error
    return show(
        "secretvm/verifier.html",
        status_of(refusal) if refusal else 200,
        names=REGISTERS,
        form=request.form,
        proof=found,
        refusal=refusal,
    )


def _asked() -> Asked:
    form = request.form
    return Asked(
        quote=proof.quote_of(form.get("quote", ""), _file("quote_file")),
        compose=_file("compose_file") or lines(form.get("compose", "")).encode(),
        registers={name: form.get(name, "") for name in REGISTERS},
        docker_files=form.get("docker_files", ""),
        app_id=form.get("app_id", ""),
        event_log=form.get("event_log", ""),
        app_compose=lines(form.get("app_compose", "")),
    )


def _file(name: str) -> bytes:
    return request.files[name].read() if name in request.files else b""
