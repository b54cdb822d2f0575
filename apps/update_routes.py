"""/api/v1/cvms: the older calls that change one thing each, and the commit of an update (apps.md section 5)."""

from __future__ import annotations

from typing import Any

from flask import request

from apps import answers
from apps.changes import Changes
from apps.cvm_routes import found, updates
from apps.deployments import Deployments
from apps.routes import PREFIX, links, service, version
from apps.schemas import (
    CommitUpdate,
    ComposeChange,
    ComposeCommit,
    CvmChange,
    EnvsPatch,
    ImagePatch,
    InstanceRequest,
    Proof,
    ResourcesPatch,
    VisibilityPatch,
)
from apps.versions import VERSIONS
from core.errors import Invalid
from rest.access import caller
from rest.blueprint import Blueprint

blueprint = Blueprint(
    "cvm_updates", __name__, url_prefix=PREFIX, description="Changes of one thing each."
)


def body_text() -> str:
    """The request's body as text."""
    try:
        return request.get_data().decode()
    except UnicodeDecodeError:
        raise Invalid.field("body", "must be UTF-8 text") from None


@blueprint.post("/cvms/<name>/commit-update")
@blueprint.arguments(CommitUpdate)
@blueprint.response(202, answers.Accepted, description="It is under way.")
def commit_update(wanted: dict[str, Any], name: str) -> Any:
    """Makes the update that waited for its compose hash."""
    return updates().commit(
        caller(),
        found(name),
        wanted["token"],
        wanted["compose_hash"] or "",
        wanted["transaction_hash"] or "",
    )


@blueprint.patch("/cvms/<name>/docker-compose")
@blueprint.arguments(Proof, location="headers")
@blueprint.response(202, answers.Accepted, description="It is under way.")
def docker_compose(proof: dict[str, str], name: str) -> Any:
    """Gives a VM another docker-compose text, which is the body."""
    change = CvmChange(docker_compose_file=body_text())
    return updates().patch(caller(), found(name), change, **proof)


@blueprint.patch("/cvms/<name>/pre-launch-script")
@blueprint.arguments(Proof, location="headers")
@blueprint.response(202, answers.Accepted, description="It is under way.")
def pre_launch_script(proof: dict[str, str], name: str) -> Any:
    """Gives a VM another script, which is the body."""
    change = CvmChange(pre_launch_script=body_text())
    return updates().patch(caller(), found(name), change, **proof)


@blueprint.patch("/cvms/<name>/envs")
@blueprint.arguments(EnvsPatch)
@blueprint.response(202, answers.EnvsAccepted, description="It is under way.")
def envs(wanted: dict[str, Any], name: str) -> Any:
    """Gives a VM other sealed variables."""
    cvm = found(name)
    change = CvmChange(encrypted_env=wanted["encrypted_env"], allowed_envs=wanted["env_keys"])
    proof = {each: wanted[each] or "" for each in ("compose_hash", "transaction_hash")}
    told = updates().patch(caller(), cvm, change, **proof)
    names = cvm.compose.get("allowed_envs", [])
    return {**told, "allowed_envs_changed": wanted["env_keys"] not in (None, names)}


@blueprint.patch("/cvms/<name>/visibility")
@blueprint.arguments(VisibilityPatch)
@blueprint.response(
    200, answers.CvmOfFirstVersion, description="The VM, in the form of 2025-10-28."
)
def visibility(wanted: dict[str, Any], name: str) -> Any:
    """Changes who may see what of a VM."""
    cvm = found(name)
    updates().patch(caller(), cvm, CvmChange(**wanted))
    return VERSIONS["2025-10-28"].detail(found(cvm.uuid), links())


@blueprint.patch("/cvms/<name>/resources")
@blueprint.arguments(ResourcesPatch)
@blueprint.response(204, description="It is under way.")
def resources(wanted: dict[str, Any], name: str) -> None:
    """Gives a VM another size."""
    size = wanted["instance_type"] and Deployments(service()).size_named(wanted["instance_type"])
    change = CvmChange(
        vcpu=wanted["vcpu"] or (size and size.vcpu) or None,
        memory=wanted["memory"] or (size and size.memory_mb) or None,
        disk_size=wanted["disk_size"],
    )
    Changes(service()).update(caller(), found(name), change)


@blueprint.patch("/cvms/<name>/os-image")
@blueprint.arguments(ImagePatch)
@blueprint.response(204, description="It is under way.")
def os_image(wanted: dict[str, Any], name: str) -> None:
    """Gives a VM another OS image."""
    change = CvmChange(image=wanted["os_image_name"])
    Changes(service()).update(caller(), found(name), change)


@blueprint.post("/cvms/<name>/compose_file/provision")
@blueprint.arguments(ComposeChange)
@blueprint.response(
    200, answers.ComposePrepared, description="The compose hash that is to be committed."
)
def provision_compose(wanted: CvmChange, name: str) -> Any:
    """Checks another compose document for a VM and keeps it."""
    return updates().prepare(found(name), wanted)


@blueprint.patch("/cvms/<name>/compose_file")
@blueprint.arguments(ComposeCommit)
@blueprint.response(204, description="It is under way.")
def commit_compose(wanted: dict[str, Any], name: str) -> None:
    """Gives a VM the compose document that was kept under a hash."""
    updates().commit_prepared(
        caller(), found(name), wanted["compose_hash"], wanted["encrypted_env"]
    )


@blueprint.post("/apps/<app_id>/instances")
@blueprint.arguments(InstanceRequest)
@blueprint.response(200, answers.Cvm, description="The new VM, which starts.")
def add_instance(wanted: dict[str, Any], app_id: str) -> Any:
    """Makes one more VM of an app, maybe with another text."""
    Deployments(service()).check_node(wanted["node_id"])
    made = updates().add_instance(caller(), service().app(caller(), app_id), wanted)
    return version().added(made, links())


@blueprint.post("/apps/<app_id>/revisions/<revision_id>/redeploy")
@blueprint.response(202, answers.Accepted, description="It is under way.")
def redeploy(app_id: str, revision_id: str) -> Any:
    """Gives the VM of a revision what it booted then."""
    return updates().redeploy(caller(), service().app(caller(), app_id), revision_id)
