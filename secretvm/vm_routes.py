"""/api/vm: the calls on VMs (secretvm.md section 3); a path takes a VM's id or its short id."""

from __future__ import annotations

import re
import time
from typing import Any

from flask import Response, g, request

from accounts import limits
from core.errors import Invalid, NotFound
from rest.access import caller, public, signable
from secretvm import registration, schemas, sizes, templates, vm_object
from secretvm.routes import answer, blueprint, refuses, secret_vms
from secretvm.vm_object import Row
from secretvm.wanted import Wanted, for_agent

_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
BATCH = "/vm/batch/<any(start, stop, restart, delete):verb>"


def _found(vm_id: str) -> Row:
    """The VM that a path names; Invalid when it names none at all."""
    if not _ID.fullmatch(vm_id):
        raise Invalid.field("id", "must be 1 to 64 letters, digits, _ and -")
    return secret_vms().find(caller(), vm_id)


def _told(vm_id: str) -> Response:
    """What launch and start answer."""
    row = secret_vms().row(vm_id)
    told = {"id": row.vm.id, "vm_status": vm_object.status_of(row), "vm_name": row.vm.name}
    return answer({"status": "success", "vm": told})


# Lists and what anybody may know ---------------------------------------------------------------


@blueprint.get("/vm/instances")
@blueprint.response(200, schemas.VmObject(many=True))
@refuses(401)
def instances() -> Response:
    """The VMs of the key's projects, newest first."""
    return answer(secret_vms().instances(caller()))


@blueprint.get("/vm/types")
@blueprint.response(200, schemas.VmType(many=True))
@public
def types() -> Response:
    """The sizes that VMs come in."""
    return answer(sizes.listed(secret_vms().config))


@blueprint.get("/vm/templates")
@blueprint.response(200, schemas.Templates)
@public
def vm_templates() -> Response:
    """Compose texts to begin with."""
    found = list(templates.listed())
    told = {"count": len(found), "status": "success", "templates": found}
    return answer({**told, "timestamp": vm_object.iso(time.time_ns() // 1_000_000)})


@blueprint.get("/vm/encryption-keys")
@blueprint.response(200, schemas.EncryptionKeys)
@public
def encryption_keys() -> Response:
    """The public keys that secrets are encrypted to."""
    return answer(secret_vms().keys.public())


@blueprint.get("/vm/latest-artifacts")
@blueprint.response(200, schemas.Artifacts)
@refuses(401, 404)
def latest_artifacts() -> Response:
    """The newest image version among the key's VMs."""
    version = secret_vms().latest_artifacts(caller())
    return answer({"artifacts_version": version, "status": "success"})


# One VM ----------------------------------------------------------------------------------------


@blueprint.post("/vm/create")
@blueprint.arguments(schemas.CreateVm, location="multipart")
@blueprint.response(200, schemas.VmObject)
@refuses(401, 402, 413, 429, 503)
@signable
def create(asked: Wanted) -> Response:
    """Make a VM from a docker-compose file, and start it unless skip_launch or custom_domain is set."""
    svms = secret_vms()
    limits.count(svms.database, caller().digest, svms.config.secretvm.creates_per_minute)
    wanted = for_agent(asked) if "is_agent" in g else asked
    vm_id = svms.create_vm(svms.owner_of_new(caller()), wanted)
    return answer(svms.vm_object(svms.find(caller(), vm_id)))


@blueprint.get("/vm/<vm_id>")
@blueprint.response(200, schemas.VmObject)
@refuses(400, 401, 404)
def details(vm_id: str) -> Response:
    """One VM."""
    return answer(secret_vms().vm_object(_found(vm_id)))


@blueprint.post("/vm/<vm_id>/launch")
@blueprint.arguments(schemas.LaunchVm, location="multipart", required=False)
@blueprint.response(200, schemas.Done)
@refuses(401, 402, 404, 409, 413, 503)
def launch(asked: Wanted, vm_id: str) -> Response:
    """Start a created or stopped VM, with another compose file or other secrets where they are given."""
    found = _found(vm_id).vm.id
    secret_vms().launch(caller(), found, asked)
    return _told(found)


@blueprint.post("/vm/<vm_id>/start")
@blueprint.response(200, schemas.Done)
@refuses(400, 401, 402, 404, 409, 503)
def start(vm_id: str) -> Response:
    """Start a VM; a running one stays as it is."""
    found = _found(vm_id).vm.id
    secret_vms().start(found)
    return _told(found)


@blueprint.post("/vm/<vm_id>/stop")
@blueprint.response(200, schemas.Stopped)
@refuses(400, 401, 404, 503)
def stop(vm_id: str) -> Response:
    """Ask a VM to power off; it is `stopping` until it has, and `stopped` then."""
    found = _found(vm_id).vm.id
    secret_vms().stop_later(found)
    row = secret_vms().row(found)
    details = {"id": found, "vm_status": vm_object.status_of(row), "vm_name": row.vm.name}
    return answer({"status": "success", "message": "the VM stops", "details": details})


@blueprint.delete("/vm/<vm_id>/terminate")
@blueprint.response(200, schemas.Done)
@refuses(400, 401, 403, 404)
def terminate(vm_id: str) -> Response:
    """Remove a VM with its disk and its secrets."""
    row = _found(vm_id)
    secret_vms().terminate(caller(), row)
    return answer({"status": "success", "vm": {"id": row.vm.id, "vm_name": row.vm.name}})


@blueprint.get("/vm/<vm_id>/docker_logs")
@blueprint.arguments(schemas.LogQuery, location="query")
@blueprint.response(200, content_type="text/plain")
@refuses(401, 404)
def docker_logs(given: dict[str, Any], vm_id: str) -> Response:
    """The merged logs of the VM's containers, or of those of one service; before there are any, those of its boot."""
    text = secret_vms().logs(_found(vm_id), given.get("service", ""), given["lines"])
    return Response(text, mimetype="text/plain")


@blueprint.get("/vm/<vm_id>/cpu")
@blueprint.response(200, content_type="text/plain")
@refuses(400, 401, 404, 409, 503)
def cpu(vm_id: str) -> Response:
    """The VM's quote: hex for TDX, base64 for SEV-SNP."""
    return Response(secret_vms().quote(_found(vm_id)), mimetype="text/plain")


@blueprint.post("/vm/<vm_id>/update-background")
@blueprint.arguments(schemas.UpdateVm)
@blueprint.response(200, schemas.Queued)
@refuses(401, 404, 409, 413, 503)
def update_background(asked: Wanted, vm_id: str) -> Response:
    """Change a VM, and restart it in the background if it runs; what is left out stays as it is."""
    job_id = secret_vms().update_later(caller(), _found(vm_id), asked)
    return answer({"jobId": job_id, "status": "pending"})


@blueprint.get("/vm/<vm_id>/eip8004")
@blueprint.response(200, schemas.Registration)
@refuses(400, 401, 404)
def eip8004(vm_id: str) -> Response:
    """The VM's EIP-8004 metadata; null when none was given."""
    row = _found(vm_id)
    metadata = secret_vms().metadata(row)
    uri = f"{request.url_root}api/public/eip8004/{row.vm.id}.json"
    told: dict[str, Any] = {"metadata": metadata, "agentUri": uri}
    return answer({**told, "error": registration.NOT_ON_CHAIN} if metadata else told)


@blueprint.get("/public/eip8004/<vm_id>.json")
@blueprint.response(200, schemas.Anything)
@refuses(404)
@public
def public_eip8004(vm_id: str) -> Response:
    """The metadata of a VM that has some, for everybody."""
    metadata = secret_vms().metadata(secret_vms().row(vm_id))
    if metadata is None:
        raise NotFound(f"VM {vm_id[:64]} not found")
    return answer(metadata)


@blueprint.post(BATCH)
@blueprint.arguments(schemas.Ids)
@blueprint.response(200, schemas.Batch)
@refuses(401, 404)
def batch(given: dict[str, list[str]], verb: str) -> Response:
    """Start, stop, restart or delete several VMs in the background; those that are not there for the key are left out."""
    queued = secret_vms().batch(caller(), verb, given["ids"])
    return answer({"success": True, "jobs": queued})
