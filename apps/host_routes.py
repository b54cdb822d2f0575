"""/api/v1: who the caller is, and what this host offers: node, sizes, images, KMS entries, workspaces."""

from __future__ import annotations

from typing import Any

from apps import host_answers as answers
from apps import offers
from apps.answers import KmsContracts
from apps.contracts import Contracts
from apps.pages import listing
from apps.routes import PREFIX, allowlist, service, version
from apps.schemas import ImagesQuery, KmsQuery, NextIdsQuery, Page, WorkspacesQuery
from rest.access import caller
from rest.blueprint import Blueprint

blueprint = Blueprint(
    "app_host", __name__, url_prefix=PREFIX, description="The caller, and what this host offers."
)


@blueprint.get("/auth/me")
@blueprint.response(
    200, answers.Me, description="The user, and the workspace that the key makes things in."
)
def me() -> Any:
    """Tells whose key it is."""
    return version().me(service().me(caller()))


@blueprint.get("/workspaces")
@blueprint.arguments(WorkspacesQuery, location="query")
@blueprint.response(200, answers.Workspaces, description="All workspaces of the caller.")
def workspaces(_: dict[str, Any]) -> Any:
    """Lists the caller's workspaces, which are projects."""
    found = offers.workspaces(service(), caller())
    return {
        "data": found,
        "pagination": {"has_more": False, "next_cursor": None, "total": len(found)},
    }


@blueprint.get("/workspaces/<slug>")
@blueprint.response(200, answers.Workspace, description="The workspace.")
def workspace(slug: str) -> Any:
    """Shows one workspace."""
    return offers.workspace(service(), caller(), slug)


@blueprint.get("/workspaces/<slug>/nodes")
@blueprint.arguments(Page, location="query")
@blueprint.response(200, answers.NodeList, description="The nodes that it may use.")
def workspace_nodes(wanted: dict[str, Any], slug: str) -> Any:
    """Lists the nodes of a workspace: this host."""
    offers.workspace(service(), caller(), slug)
    return listing(offers.nodes(service(), **wanted), lambda node: node)


@blueprint.get("/workspaces/<slug>/quotas")
@blueprint.response(200, answers.Quotas, description="What the host has, and what of it is free.")
def workspace_quotas(slug: str) -> Any:
    """Tells how much a workspace may still use."""
    return offers.quotas(service(), offers.workspace(service(), caller(), slug))


@blueprint.get("/teepods/available")
@blueprint.response(
    200, answers.AvailableNodes, description="The node, its images, and the KMS entries."
)
def available_nodes() -> Any:
    """Tells where CVMs can be made: on this host."""
    return offers.available(service())


@blueprint.get("/instance-types")
@blueprint.response(200, answers.InstanceTypes, description="The sizes by family.")
def instance_types() -> Any:
    """Lists the sizes that have a name."""
    return {"result": offers.families(service().config.apps.instance_types)}


@blueprint.get("/instance-types/<family>")
@blueprint.response(200, answers.FamilyTypes, description="The sizes of the family.")
def family(family: str) -> Any:
    """Lists the sizes of one family."""
    return offers.family(service().config.apps.instance_types, family)


@blueprint.get("/os-images")
@blueprint.arguments(ImagesQuery, location="query")
@blueprint.response(200, answers.OsImageList, description="A page of the images, the newest first.")
def os_images(wanted: dict[str, Any]) -> Any:
    """Lists the OS images of this host."""
    return listing(offers.images(service().catalog, **wanted), offers.image)


@blueprint.get("/kms")
@blueprint.arguments(KmsQuery, location="query")
@blueprint.response(
    200, answers.KmsList, description="A page of the KMS entries; of contracts since 2026-06-23."
)
def kms_list(wanted: dict[str, Any]) -> Any:
    """Lists the KMS entries of this host."""
    return listing(offers.kms_page(service().catalog, **wanted), version().kms)


@blueprint.get("/kms/phala/next_app_id")
@blueprint.arguments(NextIdsQuery, location="query")
@blueprint.response(200, answers.NextIds, description="The ids, with the nonce that gives each.")
def next_app_ids(wanted: dict[str, Any]) -> Any:
    """Foretells the app ids that the key's workspace draws next."""
    home = service().accounts.home(caller())
    drawn = service().vms.next_app_ids(home, wanted["counts"])
    return {"app_ids": [{"app_id": app_id, "nonce": nonce} for nonce, app_id in drawn]}


@blueprint.get("/kms/on-chain/<chain>")
@blueprint.response(
    200, KmsContracts, description="The contracts, and which device and images each allows."
)
def kms_on_chain(chain: str) -> Any:
    """Asks the KMS contracts of a chain about this host's device and images."""
    return Contracts(service().catalog, allowlist().chains).on(chain)


@blueprint.get("/kms/<name>")
@blueprint.response(200, answers.Kms, description="The KMS entry.")
def kms(name: str) -> Any:
    """Shows one KMS entry by its id or slug."""
    return version().kms(offers.kms(service().catalog, name))


@blueprint.get("/kms/<name>/nodes")
@blueprint.response(200, answers.KmsNodes, description="Where the KMS is reached.")
def kms_nodes(name: str) -> Any:
    """Lists the servers of a KMS: one."""
    found = offers.kms(service().catalog, name)
    return {"items": [offers.kms_node(found)], "total": 1}


@blueprint.get("/kms/<name>/pubkey/<app_id>")
@blueprint.response(200, answers.AppKey, description="The X25519 key, signed by the KMS.")
def kms_pubkey(name: str, app_id: str) -> Any:
    """Asks a KMS for the key that an app's variables are sealed to."""
    return offers.env_key(service(), name, app_id)
