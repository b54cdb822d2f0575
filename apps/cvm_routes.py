"""/api/v1/cvms: making, changing, starting and reading of VMs (apps.md section 5)."""

from __future__ import annotations

from typing import Any

from apps import pages
from apps.deployments import Deployments
from apps.routes import PREFIX, caller, links, service, version
from apps.schemas import Commitment, CommitRequest, CvmsQuery, Deployment, ProvisionRequest
from apps.versions import promise_of
from rest.blueprint import Blueprint

blueprint = Blueprint(
    "cvms", __name__, url_prefix=PREFIX, description="CVMs: the VMs that apps run in."
)


def deployments() -> Deployments:
    """What makes VMs."""
    return Deployments(service())


@blueprint.post("/cvms/provision")
@blueprint.arguments(ProvisionRequest)
@blueprint.response(200, description="What was promised; nothing boots yet.")
def provision(wanted: Deployment) -> Any:
    """Checks a deployment, draws its app id and keeps it for 14 days."""
    return promise_of(deployments().provision(caller(), wanted), service().catalog)


@blueprint.post("/cvms")
@blueprint.arguments(CommitRequest)
@blueprint.response(200, description="The VM, which starts.")
def commit(given: Commitment) -> Any:
    """Makes and starts the VM of a promise."""
    return version().action(deployments().commit(caller(), given), links())


@blueprint.get("/cvms/paginated")
@blueprint.arguments(CvmsQuery, location="query")
@blueprint.response(200, description="A page of the caller's VMs, the newest first.")
def cvms(wanted: dict[str, Any]) -> Any:
    """Lists VMs."""
    page = pages.cvms_page(service(), caller(), wanted)
    return pages.listing(page, lambda cvm: version().listed(cvm, links()))


@blueprint.get("/cvms/<name>")
@blueprint.response(200, description="The VM.")
def cvm(name: str) -> Any:
    """Shows one VM by any of its names."""
    return version().detail(service().cvm(caller(), name), links())
