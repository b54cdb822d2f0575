"""The calls that the host may make, and answering them on the serial port without any HTTP.

Source: guest-agent.md section 9, vmm.md section 10.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path

from core.messages import GuestInfo, ListContainersResponse, NetworkInformation, SystemInfo
from core.prpc import Empty, Service
from guest import channel
from guest.service import Agent

logger = logging.getLogger(__name__)


def guest_service(agent: Agent) -> Service:
    """Info, SysInfo, NetworkInfo, ListContainers and Shutdown."""
    service = Service("GuestApi", "ProxiedGuestApi")
    service.method("Info", Empty, GuestInfo)(lambda _: agent.guest_info())
    service.method("SysInfo", Empty, SystemInfo)(lambda _: agent.sys_info())
    service.method("NetworkInfo", Empty, NetworkInformation)(lambda _: agent.network_info())
    service.method("ListContainers", Empty, ListContainersResponse)(
        lambda _: agent.list_containers()
    )
    service.method("Shutdown", Empty, Empty)(lambda _: agent.shutdown())
    return service


def serve_in_background(agent: Agent, device: Path) -> None:
    """Answers the host on the port's device for as long as this process lives."""
    service = guest_service(agent)
    port = channel.open_port(device)

    def answer(method: str, params: object) -> object:
        return service.find(method).call(params) or {}

    threading.Thread(
        target=channel.serve, args=(port, answer), name="guest port", daemon=True
    ).start()
