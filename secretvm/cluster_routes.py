"""/api/cluster: VMs of one app behind one front (secretvm.md section 6)."""

from __future__ import annotations

from flask import Response, request

from accounts import limits
from models.cluster import Cluster
from rest.access import caller
from rest.blueprint import Blueprint
from secretvm import cluster_object, cluster_schemas, schemas
from secretvm.cluster_shape import Shape
from secretvm.clusters import Clusters
from secretvm.routes import BODY_LIMIT, answer, refuses, secret_vms
from secretvm.wanted import Wanted

blueprint = Blueprint(
    "clusters", __name__, url_prefix="/api/cluster", description="Several VMs behind one front"
)


def _clusters() -> Clusters:
    return Clusters(secret_vms())


def _found(cluster_id: str) -> Cluster:
    return _clusters().find(caller(), cluster_id)


@blueprint.before_request
def _let_in() -> None:
    """A larger body than elsewhere."""
    request.max_content_length = BODY_LIMIT


@blueprint.get("")
@blueprint.response(200, cluster_schemas.ListedCluster(many=True))
@refuses(401)
def listed() -> Response:
    """The clusters of the key's projects, newest first."""
    return answer(_clusters().objects(caller()))


@blueprint.post("/create-background")
@blueprint.arguments(cluster_schemas.NewCluster, location="multipart")
@blueprint.response(200, schemas.Queued)
@refuses(401, 402, 413, 429, 503)
def create(asked: tuple[Shape, Wanted]) -> Response:
    """Make a cluster from a docker-compose file, in the background."""
    svms = secret_vms()
    limits.count(svms.database, caller().digest, svms.config.secretvm.creates_per_minute)
    job_id = _clusters().create(caller(), *asked)
    return answer({"jobId": job_id, "status": "pending"})


@blueprint.get("/<cluster_id>")
@blueprint.response(200, cluster_schemas.ClusterObject)
@refuses(401, 404)
def details(cluster_id: str) -> Response:
    """A cluster with its VMs, and with how its balancer sees them."""
    return answer(cluster_object.cluster_object(_clusters().view(_found(cluster_id))))


@blueprint.delete("/<cluster_id>")
@blueprint.response(200, schemas.Anything)
@refuses(401, 404)
def delete(cluster_id: str) -> Response:
    """Delete a cluster with its VMs: {deleted, id}. It is gone at once; what it had goes in the background."""
    cluster = _found(cluster_id)
    _clusters().delete(cluster.id)
    return answer({"deleted": True, "id": cluster.id})


@blueprint.put("/<cluster_id>/docker-compose")
@blueprint.arguments(cluster_schemas.Compose)
@blueprint.response(200, schemas.Anything)
@refuses(401, 404, 409, 413)
def store_compose(given: dict[str, str], cluster_id: str) -> Response:
    """Keep a docker-compose text for nodes that are made from now on: {updated, clusterId}."""
    cluster = _found(cluster_id)
    _clusters().store_compose(cluster, given["dockerCompose"])
    return answer({"updated": True, "clusterId": cluster.id})


@blueprint.post("/<cluster_id>/vms/add-background")
@blueprint.arguments(cluster_schemas.AddNode)
@blueprint.response(200, cluster_schemas.QueuedHere)
@refuses(401, 402, 404, 409, 413, 503)
def add(asked: Wanted, cluster_id: str) -> Response:
    """Add a VM, in the background; what is left out is as the cluster was made."""
    job_id, name = _clusters().add(_found(cluster_id), asked)
    told = {"success": True, "jobId": job_id, "status": "pending"}
    return answer({**told, "message": f"VM {name} is being added", "vmName": name})


@blueprint.delete("/<cluster_id>/vms/<vm_id>")
@blueprint.response(200, schemas.Anything)
@refuses(401, 404, 409)
def remove(cluster_id: str, vm_id: str) -> Response:
    """Remove a VM: {deleted, vmId}. It gets no further requests, finishes those under way, and ends."""
    cluster, found = _found(cluster_id), _clusters().vm_of(caller(), vm_id)
    _clusters().remove_node(cluster, found)
    return answer({"deleted": True, "vmId": found})


@blueprint.post("/<cluster_id>/update-vms-background")
@blueprint.arguments(cluster_schemas.UpdateNodes)
@blueprint.response(200, cluster_schemas.QueuedHere)
@refuses(401, 404, 409, 413, 503)
def update(asked: Wanted, cluster_id: str) -> Response:
    """Change all VMs one by one, in the background, so that the front always has one that serves."""
    job_id = _clusters().update_nodes(caller(), _found(cluster_id), asked)
    told = {"success": True, "jobId": job_id, "status": "pending"}
    return answer({**told, "message": "the VMs are being updated one by one"})


@blueprint.get("/<cluster_id>/backends")
@blueprint.response(200, cluster_schemas.Backends)
@refuses(401, 404)
def backends(cluster_id: str) -> Response:
    """The servers of a cluster's front, with their health."""
    view = _clusters().view(_found(cluster_id))
    return answer({"backends": cluster_object.backends(view)})


@blueprint.get("/<cluster_id>/traffic")
@blueprint.response(200, cluster_schemas.Traffic)
@refuses(401, 404, 503)
def traffic(cluster_id: str) -> Response:
    """Requests, latency, bytes and status codes since the cluster was made."""
    view = _clusters().heard(_found(cluster_id))
    return answer(cluster_object.traffic(view.cluster, _clusters().totals(view.cluster.id)))


@blueprint.get("/<cluster_id>/stats")
@blueprint.response(200, cluster_schemas.Stats)
@refuses(401, 404, 503)
def stats(cluster_id: str) -> Response:
    """What the balancer counts itself, since it loaded its configuration last."""
    view = _clusters().heard(_found(cluster_id))
    return answer(cluster_object.stats(view, _clusters().balancer.uptime_s()))


@blueprint.get("/<cluster_id>/metrics")
@blueprint.response(200, schemas.Anything)
@refuses(401, 404, 503)
def metrics(cluster_id: str) -> Response:
    """The same for Prometheus, where Accept prefers text/plain; else {clusterId, series: {name: [{labels, value}]}}."""
    view = _clusters().heard(_found(cluster_id))
    figures = list(cluster_object.figures(view, _clusters().totals(view.cluster.id)))
    kinds = ["application/json", "text/plain"]
    if request.accept_mimetypes.best_match(kinds) == "text/plain":
        return Response(cluster_object.exposition(figures), mimetype="text/plain")
    return answer({"clusterId": view.cluster.id, "series": cluster_object.series(figures)})
