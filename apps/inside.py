"""What goes on in a VM as its guest tells it: containers, load, network, logs (apps.md section 5)."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from apps.attestations import GUEST_S
from apps.cvms import Cvm
from apps.links import Links
from apps.versions import public_urls
from core.errors import CasemateError, Forbidden
from core.messages import (
    GuestText,
    ListContainersResponse,
    LogsOrder,
    NetworkInformation,
    SystemInfo,
)
from core.prpc import Message
from vmm.service import Vms

Json = dict[str, Any]

LINES_MOST = 100_000
# A guest is asked again each so many seconds for what is new in a log.
FOLLOW_S = 1.0
_DISK = ("name", "mount_point", "total_size", "free_size")


@dataclass(frozen=True)
class Heard:
    """A guest's answer, or why there is none."""

    told: Any = None
    error: str | None = None

    @property
    def is_online(self) -> bool:
        """Whether the guest answered."""
        return self.error is None


def ask(vms: Vms, cvm: Cvm, method: str, answer: type[Message]) -> Heard:
    """A guest's answer within its time; never an error, which `error` tells instead."""
    if cvm.status != "running":
        return Heard(error=f"the CVM is {cvm.status}")
    try:
        return Heard(vms.ask_guest(cvm.uuid, method, answer, within_s=GUEST_S))
    except CasemateError as error:
        return Heard(error=error.message)


def composition(vms: Vms, cvm: Cvm, links: Links) -> Json:
    """The containers of a VM, each with a link to its log where the app shows its logs."""
    is_public = cvm.flag("public_logs", False)
    heard = ask(vms, cvm, "ListContainers", ListContainersResponse)
    return {
        "is_online": heard.is_online,
        "is_public": is_public,
        "error": heard.error,
        "docker_compose_file": cvm.text("docker_compose_file"),
        "manifest_version": cvm.manifest_version,
        "version": cvm.row.image_version,
        "runner": cvm.text("runner"),
        "features": cvm.features,
        "containers": heard.is_online
        and [
            {
                **each,
                "command": None,
                "log_endpoint": links.container_log(cvm.uuid, _log_name(each))
                if is_public
                else None,
            }
            for each in heard.told["containers"]
        ]
        or None,
    }


def _log_name(container: Json) -> str:
    return str(next(iter(container["names"]), container["id"]))


def stats(vms: Vms, cvm: Cvm) -> Json:
    """The load of a VM, where the app shows it."""
    is_public = cvm.flag("public_sysinfo", False)
    heard = ask(vms, cvm, "SysInfo", SystemInfo)
    system = heard.told if heard.is_online and is_public else None
    return {
        "is_online": heard.is_online,
        "is_public": is_public,
        "error": heard.error,
        "sysinfo": system
        and {**system, "disks": [_picked(each, _DISK) for each in system["disks"]]},
        "status": cvm.status,
        "in_progress": cvm.target is not None,
        "boot_progress": cvm.told["boot_progress"],
        "boot_error": cvm.told["boot_error"],
    }


def _picked(whole: Json, names: tuple[str, ...]) -> Json:
    return {name: whole[name] for name in names}


def network(vms: Vms, cvm: Cvm) -> Json:
    """How a VM is reached."""
    heard = ask(vms, cvm, "NetworkInfo", NetworkInformation)
    return {
        "is_online": heard.is_online,
        "is_public": True,
        "error": heard.error,
        "internal_ip": _address(heard.told) if heard.is_online else None,
        "latest_handshake": None,
        "public_urls": public_urls(cvm),
    }


def _address(told: Json) -> str | None:
    found = (
        address["address"]
        for interface in told["interfaces"]
        if interface["name"] not in ("lo", "docker0")
        for address in interface["addresses"]
    )
    return next(found, None)


def state(cvm: Cvm) -> Json:
    """How a VM is; what is not known is left out."""
    told = {
        "id": cvm.uuid,
        "instance_id": cvm.row.instance_id,
        "name": cvm.row.name,
        "status": cvm.status,
        **{
            name: cvm.told[name]
            for name in ("uptime", "exited_at", "boot_progress", "boot_error", "shutdown_progress")
        },
    }
    return {name: value for name, value in told.items() if value is not None}


def watched(
    read: Callable[[], Json], wanted: Mapping[str, Any], left: Callable[[], bool]
) -> Iterator[str]:
    """The states of a VM as server-sent events, until it is in the wanted one, the time is over or the reader left."""
    deadline = time.monotonic() + wanted["timeout"]
    while not left():
        try:
            now = read()
        except CasemateError as error:  # it is gone, or not the caller's any more
            yield _event("error", {"error": error.message})
            return
        yield _event("state", now)
        rest = deadline - time.monotonic()
        if now["status"] == wanted["target"] or rest <= 0:
            yield _event("complete" if now["status"] == wanted["target"] else "timeout", now)
            return
        time.sleep(min(wanted["interval"], rest))


def _event(name: str, told: Json) -> str:
    return f"event: {name}\ndata: {json.dumps(told)}\n\n"


def status(cvm: Cvm) -> Json:
    """How a VM is, as many are asked about at once."""
    return {
        "vm_uuid": cvm.uuid,
        "status": cvm.status,
        "uptime": cvm.told["uptime"],
        "in_progress": cvm.target is not None,
        "boot_progress": cvm.told["boot_progress"],
        "boot_error": cvm.told["boot_error"],
        "operation_type": None,
        "operation_started_at": None,
        "correlation_id": None,
    }


def user_config(cvm: Cvm) -> Json:
    """What the user config of a VM says of the host name and ssh keys, if it is a document of that kind."""
    told = _document(cvm.row.user_config)
    keys = told.get("ssh_authorized_keys")
    hostname = told.get("hostname")
    return {
        "hostname": hostname if isinstance(hostname, str) else None,
        "ssh_authorized_keys": [each for each in keys if isinstance(each, str)]
        if isinstance(keys, list)
        else [],
        "default_gateway_domain": None,
    }


def _document(text: str) -> Json:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def container_log(vms: Vms, cvm: Cvm, wanted: LogsOrder) -> str:
    """The last lines of a container's log; Forbidden where the app does not show its logs."""
    if not cvm.flag("public_logs", False):
        raise Forbidden("public_logs is not enabled for this app")
    order = {**asdict(wanted), "lines": min(wanted.lines, LINES_MOST)}
    return str(vms.ask_guest(cvm.uuid, "Logs", GuestText, order)["text"])


def followed(read: Callable[[], str], lines: int, left: Callable[[], bool]) -> Iterator[str]:
    """The last lines of a log, and then what is new each time that it is read, until the reader has left."""
    whole = read()
    yield "".join(whole.splitlines(keepends=True)[-lines:]) if lines else ""
    while not left():
        time.sleep(FOLLOW_S)
        try:
            now = read()
        except CasemateError:
            return
        yield fresh(whole, now)
        whole = now


def fresh(before: str, now: str) -> str:
    """What of a log's end was not there before; the beginning may have been cut off meanwhile."""
    if now.startswith(before):
        return now[len(before) :]
    known = before[-2000:]
    place = now.rfind(known)
    return now[place + len(known) :] if place >= 0 else now
