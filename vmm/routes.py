"""/prpc: the VM management calls (vmm.md section 4)."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, Response, current_app, g

from accounts.roles import Caller
from core.prpc import Empty, Service
from models.account import MAIN_ID
from vmm.records import Owner
from vmm.revisions import Cause
from vmm.rpc import respond
from vmm.schemas import (
    AppId,
    Change,
    ComposeHash,
    Configuration,
    DhcpLeaseRequest,
    GetInfoResponse,
    GetMetaResponse,
    Id,
    ImageListResponse,
    ListGpusResponse,
    PublicKeyResponse,
    ReloadVmsResponse,
    ResizeVmRequest,
    StatusQuery,
    StatusRequest,
    StatusResponse,
    SvListResponse,
    UpdateVmRequest,
    VersionResponse,
    VmConfiguration,
)
from vmm.service import Vms
from vmm.version import VERSION, revision

blueprint = Blueprint("vmm", __name__, url_prefix="/prpc")
service = Service("Teepod", "Vmm")


def vms() -> Vms:
    """The service behind the current application."""
    found: Vms = current_app.extensions["vms"]
    return found


def caller() -> Caller:
    """Whoever makes the current request."""
    found: Caller = g.caller
    return found


@blueprint.route("/<path:method>", methods=["GET", "POST"])
def call(method: str) -> Response:
    """Answers any method of the service."""
    return respond(service, method)


@service.method("CreateVm", VmConfiguration, Id)
def create_vm(wanted: Configuration) -> dict[str, str]:
    """Makes a VM and starts it unless `stopped`."""
    return {"id": vms().create(wanted, _owner())}


def _owner() -> Owner:
    """What is made through this surface goes to the project of the caller's credential, else to main."""
    made_by = caller()
    return Owner(made_by.project_id or MAIN_ID, made_by.user_id)


@service.method("StartVm", Id)
def start_vm(given: dict[str, str]) -> None:
    """Starts a VM; a running one stays as it is."""
    vms().start(given["id"])


@service.method("StopVm", Id)
def stop_vm(given: dict[str, str]) -> None:
    """Ends a VM by force."""
    vms().stop(given["id"])


@service.method("ShutdownVm", Id)
def shutdown_vm(given: dict[str, str]) -> None:
    """Asks a VM to power off."""
    vms().shutdown(given["id"])


@service.method("UpdateVm", UpdateVmRequest, Id)
@service.method("UpgradeApp", UpdateVmRequest, Id)
def update_vm(change: Change) -> dict[str, str]:
    """Changes a VM; the answer is the app id of a new compose text."""
    return {"id": vms().update(change, cause=Cause(caller().user_id))}


@service.method("ResizeVm", ResizeVmRequest)
def resize_vm(change: Change) -> None:
    """Changes CPU, memory, disk or image of a stopped VM."""
    vms().resize(change)


@service.method("RemoveVm", Id)
def remove_vm(given: dict[str, str]) -> None:
    """Ends a VM and deletes all it had, in the background."""
    vms().remove(given["id"])


@service.method("Status", StatusRequest, StatusResponse)
def list_vms(query: StatusQuery) -> dict[str, Any]:
    """Lists VMs, oldest first."""
    return vms().status(query)


@service.method("GetInfo", Id, GetInfoResponse)
def get_info(given: dict[str, str]) -> dict[str, Any]:
    """One VM with its configuration; an unknown id is no error."""
    info = vms().info(given["id"])
    return {"found": info is not None, "info": info}


@service.method("GetComposeHash", VmConfiguration, ComposeHash)
def get_compose_hash(wanted: Configuration) -> dict[str, str]:
    """SHA-256 of the exact bytes of `compose_file`."""
    return {"hash": vms().compose_hash(wanted.name, wanted.compose_file)}


@service.method("ListImages", Empty, ImageListResponse)
def list_images(_: object) -> dict[str, Any]:
    """The images that can be booted."""
    return {"images": vms().images()}


@service.method("Version", Empty, VersionResponse)
def version(_: object) -> dict[str, str]:
    """This service's version."""
    return {"version": VERSION, "rev": revision()}


@service.method("GetMeta", Empty, GetMetaResponse)
def get_meta(_: object) -> dict[str, Any]:
    """Addresses and limits of this host."""
    return vms().meta()


@service.method("ListGpus", Empty, ListGpusResponse)
def list_gpus(_: object) -> dict[str, Any]:
    """The GPUs that VMs may be given."""
    return vms().gpus()


@service.method("GetAppEnvEncryptPubKey", AppId, PublicKeyResponse)
def get_app_env_encrypt_pub_key(given: dict[str, bytes]) -> Any:
    """The key to encrypt an app's variables with, asked of the KMS."""
    return vms().env_key(given["app_id"])


@service.method("ReloadVms", Empty, ReloadVmsResponse)
def reload_vms(_: object) -> dict[str, int]:
    """Reads the folders of all VMs again; what they say wins."""
    return vms().reload()


@service.method("ReportDhcpLease", DhcpLeaseRequest)
def report_dhcp_lease(given: dict[str, str]) -> None:
    """Notes the address of a network card and leads its VM's ports there."""
    vms().report_lease(given["mac"], given["ip"])


@service.method("SvList", Empty, SvListResponse)
def list_processes(_: object) -> dict[str, Any]:
    """The processes that belong to VMs."""
    return {"processes": vms().processes()}


@service.method("SvStop", Id)
def stop_process(given: dict[str, str]) -> None:
    """Ends a process of SvList by force."""
    vms().stop_process(given["id"])


@service.method("SvRemove", Id)
def remove_process(given: dict[str, str]) -> None:
    """Drops a process that has ended from the list."""
    vms().forget_process(given["id"])


@service.method("DeleteImage", Id)
def delete_image(given: dict[str, str]) -> None:
    """Deletes an image that no VM uses."""
    vms().delete_image(given["id"])
