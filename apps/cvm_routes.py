"""/api/v1/cvms: making, changing, starting and reading of VMs (apps.md section 5)."""

from __future__ import annotations

from typing import Any

from flask import Response, jsonify, request

from apps import answers, attestations, guest_answers, inside, offers, pages
from apps.changes import Changes
from apps.cvms import Cvm
from apps.deployments import Deployments
from apps.host_answers import ImagesOfVersion
from apps.routes import PREFIX, allowlist, links, service, version
from apps.schemas import (
    Allowance,
    AllowanceOfCvm,
    Commitment,
    CommitRequest,
    CvmChange,
    CvmPatch,
    CvmsQuery,
    Deployment,
    InstanceIds,
    Proof,
    ProvisionRequest,
    ReplicaRequest,
    Restart,
    StateQuery,
    StatusBatch,
)
from apps.updates import Updates
from apps.versions import promise_of
from rest.access import caller
from rest.blueprint import Blueprint
from vmm.log_routes import has_left, lasting

blueprint = Blueprint(
    "cvms", __name__, url_prefix=PREFIX, description="CVMs: the VMs that apps run in."
)


def found(name: str) -> Cvm:
    """The VM of the caller that a name in the path means."""
    return service().cvm(caller(), name)


def acted(cvm: Cvm) -> Any:
    """The VM as calls that did something to it answer."""
    return version().action(cvm, links())


def updates() -> Updates:
    """What changes VMs."""
    return Updates(service(), allowlist(), links())


# Making ------------------------------------------------------------------------------------------


@blueprint.post("/cvms/provision")
@blueprint.arguments(ProvisionRequest)
@blueprint.response(200, answers.Promised, description="What was promised; nothing boots yet.")
def provision(wanted: Deployment) -> Any:
    """Checks a deployment, draws its app id and keeps it for 14 days."""
    return promise_of(Deployments(service()).provision(caller(), wanted), service().catalog)


@blueprint.post("/cvms")
@blueprint.arguments(CommitRequest)
@blueprint.response(200, answers.CvmActed, description="The VM, which starts.")
def commit(given: Commitment) -> Any:
    """Makes and starts the VM of a promise."""
    return acted(Deployments(service()).commit(caller(), given))


@blueprint.post("/cvms/<name>/replicas")
@blueprint.arguments(ReplicaRequest)
@blueprint.response(200, answers.CvmActed, description="The new VM, which starts.")
def replicate(wanted: dict[str, Any], name: str) -> Any:
    """Makes one more VM of a CVM's app."""
    Deployments(service()).check_node(wanted["node_id"])
    return acted(Changes(service()).replicate(caller(), found(name), CvmChange()))


# Reading -----------------------------------------------------------------------------------------


@blueprint.get("/cvms/paginated")
@blueprint.arguments(CvmsQuery, location="query")
@blueprint.response(
    200, answers.CvmList, description="A page of the caller's VMs, the newest first."
)
def cvms(wanted: dict[str, Any]) -> Any:
    """Lists VMs."""
    page = pages.cvms_page(service(), caller(), wanted)
    return pages.listing(page, lambda cvm: version().listed(cvm, links()))


@blueprint.get("/cvms/<name>")
@blueprint.response(200, answers.CvmDetail, description="The VM.")
def cvm(name: str) -> Any:
    """Shows one VM by any of its names."""
    return version().detail(found(name), links())


@blueprint.post("/status/batch")
@blueprint.arguments(StatusBatch)
@blueprint.response(
    200, answers.STATUSES, description="The status of each VM that the caller sees, by its uuid."
)
def status_batch(wanted: dict[str, Any]) -> Any:
    """Tells the status of many VMs at once."""
    return jsonify(pages.statuses(service(), caller(), wanted["vm_uuids"]))


@blueprint.patch("/cvms/instance-ids")
@blueprint.arguments(InstanceIds)
@blueprint.response(
    200, answers.InstanceIdList, description="The instance id of each VM; none changes."
)
def instance_ids(wanted: dict[str, Any]) -> Any:
    """Tells the instance ids of many VMs, which are always those that their guests told."""
    return pages.instance_ids(service(), caller(), wanted, version())


@blueprint.patch("/cvms/<name>/instance-id")
@blueprint.response(
    200, answers.InstanceId, description="The instance id of the VM; it does not change."
)
def instance_id(name: str) -> Any:
    """Tells the instance id of a VM, which is always the one that its guest told."""
    return pages.instance_id(service().find(caller(), name), version())


@blueprint.get("/cvms/<name>/state")
@blueprint.arguments(StateQuery, location="query")
@blueprint.response(200, answers.State, description="The state; what is not known is left out.")
def state(wanted: dict[str, Any], name: str) -> Any:
    """Tells how a VM is; who accepts `text/event-stream` is told again until it is in the `target` state."""
    cvm = found(name)
    if "text/event-stream" not in request.headers.get("Accept", ""):
        return inside.state(cvm)
    apps, asker = service(), caller()
    events = inside.watched(lambda: inside.state(apps.cvm(asker, cvm.uuid)), wanted, has_left())
    return lasting(Response(events, mimetype="text/event-stream"))


@blueprint.get("/cvms/<name>/composition")
@blueprint.response(
    200, guest_answers.Composition, description="The containers, with links to their logs."
)
def composition(name: str) -> Any:
    """Lists the containers of a VM."""
    return inside.composition(service().vms, found(name), links())


@blueprint.get("/cvms/<name>/stats")
@blueprint.response(200, guest_answers.Stats, description="Kernel, CPU, memory, load and disks.")
def stats(name: str) -> Any:
    """Tells the load of a VM."""
    return inside.stats(service().vms, found(name))


@blueprint.get("/cvms/<name>/network")
@blueprint.response(200, guest_answers.Network, description="Addresses.")
def network(name: str) -> Any:
    """Tells how a VM is reached."""
    return inside.network(service().vms, found(name))


@blueprint.get("/cvms/<name>/attestation")
@blueprint.response(200, guest_answers.CvmAttestation, description="Certificates and measurements.")
def attestation(name: str) -> Any:
    """Asks a VM's guest for its evidence."""
    cvm = found(name)
    return attestations.of_cvm(cvm, attestations.heard(service().vms, cvm))


@blueprint.get("/cvms/<name>/compose_file")
@blueprint.response(200, answers.DOCUMENT, description="The app-compose document.")
def compose_file(name: str) -> Any:
    """Shows what a VM boots."""
    return jsonify(found(name).compose)


@blueprint.get("/cvms/<name>/docker-compose.yml")
@blueprint.response(200, description="The docker-compose text.", content_type="text/yaml")
def docker_compose(name: str) -> Response:
    """Shows the docker-compose text of a VM."""
    return Response(found(name).text("docker_compose_file") or "", mimetype="text/yaml")


@blueprint.get("/cvms/<name>/pre-launch-script")
@blueprint.response(200, description="The script.", content_type="text/plain")
def pre_launch_script(name: str) -> Response:
    """Shows the script that runs before the containers of a VM."""
    return Response(found(name).text("pre_launch_script") or "", mimetype="text/plain")


@blueprint.get("/cvms/<name>/user_config")
@blueprint.response(200, guest_answers.UserConfig, description="Host name and ssh keys.")
def user_config(name: str) -> Any:
    """Shows what the user config of a VM says."""
    return inside.user_config(found(name))


@blueprint.get("/cvms/<name>/available-os-images")
@blueprint.response(200, ImagesOfVersion(many=True), description="The images by version.")
def available_images(name: str) -> Any:
    """Lists the OS images that a VM could be given."""
    return jsonify(offers.images_for(service().catalog, found(name)))


@blueprint.post("/cvms/<name>/is-allowed")
@blueprint.arguments(AllowanceOfCvm)
@blueprint.response(200, answers.CvmVerdict, description="What the contract says.")
def is_allowed(wanted: Allowance, name: str) -> Any:
    """Asks the contract of a CVM's app whether it may run."""
    row, answer = allowlist().of_cvm(caller(), name, wanted)
    return {**answer, "cvm_id": version().id(row)}


# Power -------------------------------------------------------------------------------------------


@blueprint.post("/cvms/<name>/start")
@blueprint.response(200, answers.CvmActed, description="The VM.")
def start(name: str) -> Any:
    """Starts a VM."""
    return acted(Changes(service()).start(caller(), name))


@blueprint.post("/cvms/<name>/stop")
@blueprint.response(200, answers.CvmActed, description="The VM.")
def stop(name: str) -> Any:
    """Ends a VM by force."""
    return acted(Changes(service()).stop(caller(), name))


@blueprint.post("/cvms/<name>/shutdown")
@blueprint.response(200, answers.CvmActed, description="The VM.")
def shutdown(name: str) -> Any:
    """Asks a VM to power off."""
    return acted(Changes(service()).shutdown(caller(), name))


@blueprint.post("/cvms/<name>/restart")
@blueprint.arguments(Restart)
@blueprint.response(200, answers.CvmActed, description="The VM.")
def restart(wanted: dict[str, Any], name: str) -> Any:
    """Ends a VM, by force or with some seconds of grace, and starts it."""
    return acted(Changes(service()).restart(caller(), name, force=wanted["force"]))


@blueprint.delete("/cvms/<name>")
@blueprint.response(204, description="The VM goes, with its disk.")
def remove(name: str) -> Any:
    """Removes a VM."""
    Changes(service()).remove(caller(), name)


# Changing ----------------------------------------------------------------------------------------


@blueprint.patch("/cvms/<name>")
@blueprint.arguments(Proof, location="headers")
@blueprint.arguments(CvmPatch)
@blueprint.response(202, answers.Accepted, description="It is under way.")
def patch(proof: dict[str, str], wanted: CvmChange, name: str) -> Any:
    """Changes a VM; a running one is started anew."""
    return updates().patch(caller(), found(name), wanted, **proof)
