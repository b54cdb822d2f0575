"""The calls that the host may make, and answering them on the serial port without any HTTP.

Source: guest-agent.md section 9, vmm.md section 10.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from pathlib import Path

from core.errors import STATUS, NotFound, Upstream
from core.messages import (
    GuestInfo,
    GuestText,
    JobName,
    JobOrder,
    JobStop,
    ListContainersResponse,
    LogsRequest,
    NetworkInformation,
    SystemInfo,
)
from core.prpc import Empty, Message, Service, instance
from guest import channel
from guest.service import Agent
from guest.settings import RUNNER_SOCKET

logger = logging.getLogger(__name__)


def guest_service(agent: Agent) -> Service:
    """Info, SysInfo, NetworkInfo, ListContainers and Shutdown, and the runner's calls where it has a runner."""
    service = Service("GuestApi", "ProxiedGuestApi")
    service.method("Info", Empty, GuestInfo)(lambda _: agent.guest_info())
    service.method("SysInfo", Empty, SystemInfo)(lambda _: agent.sys_info())
    service.method("NetworkInfo", Empty, NetworkInformation)(lambda _: agent.network_info())
    service.method("ListContainers", Empty, ListContainersResponse)(
        lambda _: agent.list_containers()
    )
    service.method("Logs", LogsRequest, GuestText)(
        lambda order: {"text": agent.container_logs(order)}
    )
    service.method("Quote", Empty, GuestText)(lambda _: {"text": agent.quote_text()})
    service.method("Shutdown", Empty, Empty)(lambda _: agent.shutdown())
    runner = agent.settings.state / RUNNER_SOCKET
    for name, request in (("SubmitJob", JobOrder), ("StopJob", JobStop), ("ReleaseJob", JobName)):
        _hand_over(service, name, request, runner)
    return service


def _hand_over(service: Service, name: str, request: type[Message], runner: Path) -> None:
    def call(given: object) -> None:
        ask_runner(runner, name, instance(request).dump(given))

    service.method(name, request, Empty)(call)


def ask_runner(path: Path, method: str, params: object) -> object:
    """Hands a host's call to the runner at a socket; NotFound, as for any unknown call, in a VM that has none."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(channel.CALL_TIMEOUT_S)
            connection.connect(os.fspath(path))
            connection.sendall(channel.line_of({"id": 1, "method": method, "params": params}))
            with connection.makefile("rb") as reader:
                answer = channel.decode(reader.readline(channel.MAX_ANSWER))
    except (FileNotFoundError, ConnectionRefusedError):
        raise NotFound(f"unknown method: {method}") from None
    except OSError as error:
        raise Upstream(f"the runner does not answer: {error}") from None
    if answer is None:
        raise Upstream("the runner did not answer")
    if refusal := answer.get("error"):
        kinds = {status: kind for kind, status in STATUS.items()}
        raise kinds.get(refusal["code"], Upstream)(refusal["message"])
    return answer.get("result")


def serve_in_background(agent: Agent, device: Path) -> None:
    """Answers the host on the port's device for as long as this process lives."""
    service = guest_service(agent)
    port = channel.open_port(device)

    def answer(method: str, params: object) -> object:
        return service.find(method).call(params) or {}

    threading.Thread(
        target=channel.serve, args=(port, answer), name="guest port", daemon=True
    ).start()
