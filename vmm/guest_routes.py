"""/guest: calls relayed to the agent inside one VM (vmm.md section 10)."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, Response

from core.messages import GuestInfo, ListContainersResponse, NetworkInformation, SystemInfo
from core.prpc import Empty, Service
from vmm.routes import vms
from vmm.rpc import respond
from vmm.schemas import Id

blueprint = Blueprint("guest", __name__, url_prefix="/guest")
service = Service("ProxiedGuestApi")


@blueprint.route("/<path:method>", methods=["GET", "POST"])
def call(method: str) -> Response:
    """Answers any method of the service."""
    return respond(service, method)


@service.method("Info", Id, GuestInfo)
def info(given: dict[str, str]) -> Any:
    """The agent's public view of itself."""
    return vms().ask_guest(given["id"], "Info", GuestInfo)


@service.method("SysInfo", Id, SystemInfo)
def sys_info(given: dict[str, str]) -> Any:
    """The guest's kernel, CPU, memory, load and disks."""
    return vms().ask_guest(given["id"], "SysInfo", SystemInfo)


@service.method("NetworkInfo", Id, NetworkInformation)
def network_info(given: dict[str, str]) -> Any:
    """The guest's addresses, routes and counters."""
    return vms().ask_guest(given["id"], "NetworkInfo", NetworkInformation)


@service.method("ListContainers", Id, ListContainersResponse)
def list_containers(given: dict[str, str]) -> Any:
    """The guest's containers."""
    return vms().ask_guest(given["id"], "ListContainers", ListContainersResponse)


@service.method("Shutdown", Id)
def shutdown(given: dict[str, str]) -> None:
    """Asks the agent to power the guest off."""
    vms().ask_guest(given["id"], "Shutdown", Empty)
