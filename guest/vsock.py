"""HTTP over vsock with the host, for VMs whose host gave them no serial ports (vmm.md section 10).

The host's calls are carried to the agent's own socket; ours go to the port that `host_api_url` names.
"""

from __future__ import annotations

import http.client
import json
import logging
import selectors
import socket
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from core.errors import CasemateError, Upstream, UpstreamTimeout
from guest.identity import SysConfig

logger = logging.getLogger(__name__)

AGENT_PORT = 8000
HOST_CID = 2  # linux/vm_sockets.h, VMADDR_CID_HOST
# vmm.md section 10: where the host listens unless it says otherwise.
HOST_PORT = 10000
MAX_ANSWER = 4 * 1024 * 1024
# virtio specification 5: the device id of a socket device, as sysfs shows it.
_DEVICE_ID = "0x0013"
_READ_SIZE = 64 * 1024
_BACKLOG = 16


def is_there(root: Path = Path("/")) -> bool:
    """Whether this VM has a vsock device."""
    ids = (root / "sys/bus/virtio/devices").glob("*/device")
    return any(each.read_text().strip() == _DEVICE_ID for each in ids)


def relay_in_background(agent: Path) -> None:
    """Carries what the host says on port 8000 to the agent's socket for as long as this process lives."""
    listening = socket.socket(socket.AF_VSOCK)
    listening.bind((socket.VMADDR_CID_ANY, AGENT_PORT))
    listening.listen(_BACKLOG)
    threading.Thread(target=relay, args=(listening, agent), name="vsock", daemon=True).start()


def relay(listening: socket.socket, agent: Path) -> None:
    """Carries every connection of the host to the agent's socket, each in a thread, until `listening` is closed."""
    while True:
        try:
            connection, (cid, _) = listening.accept()
        except OSError:
            return
        if cid != HOST_CID:
            connection.close()  # a program of this VM, which has no business here
            continue
        threading.Thread(target=_carry, args=(connection, agent), daemon=True).start()


def _carry(host: socket.socket, path: Path) -> None:
    with (
        host,
        socket.socket(socket.AF_UNIX) as agent,
        selectors.DefaultSelector() as speaking,
    ):
        other = {host: agent, agent: host}
        try:
            agent.connect(str(path))
            for each in other:
                speaking.register(each, selectors.EVENT_READ)
            while True:
                for key, _ in speaking.select():
                    source: Any = key.fileobj
                    data = source.recv(_READ_SIZE)
                    if not data:
                        return
                    other[source].sendall(data)
        except OSError as error:
            logger.warning("a call of the host broke off: %s", error)


class Host:
    """Calls to the host; the address is looked up in the file `sys_config` at each, for it comes late."""

    def __init__(self, sys_config: Path) -> None:
        self._sys_config = sys_config

    def call(self, method: str, params: Mapping[str, object], timeout_s: float) -> Any:
        """The result of a host call; Upstream when the host refuses, UpstreamTimeout when it is silent."""
        connection = _Connection(self._port(), timeout_s)
        try:
            body = json.dumps(params).encode()
            headers = {"Content-Type": "application/json", "Connection": "close"}
            connection.request("POST", f"/api/{method}?json", body, headers)
            answer = connection.getresponse()
            text = answer.read(MAX_ANSWER)
        except TimeoutError:
            raise UpstreamTimeout(f"the host did not answer {method}") from None
        except (OSError, http.client.HTTPException) as error:
            raise Upstream(f"the host cannot be asked: {error}") from None
        finally:
            connection.close()
        return _result(method, answer.status, text)

    def _port(self) -> int:
        try:
            url = urlsplit(SysConfig.read(self._sys_config).host_api_url)
            return url.port if url.scheme == "vsock" and url.port else HOST_PORT
        except (CasemateError, ValueError):
            return HOST_PORT  # what is wrong with it the boot finds out


def _result(method: str, status: int, text: bytes) -> Any:
    try:
        value = json.loads(text) if text.strip() else None
    except (ValueError, RecursionError):
        raise Upstream(f"the host's answer to {method} is not JSON") from None
    if status != 200:
        said = value.get("error") if isinstance(value, dict) else None
        raise Upstream(f"the host refused {method}: {str(said or status)[:500]}")
    return value


class _Connection(http.client.HTTPConnection):
    def __init__(self, port: int, timeout_s: float) -> None:
        super().__init__("host", port, timeout=timeout_s)

    def connect(self) -> None:
        self.sock = connect(self.port, self.timeout or 0)


def connect(port: int, timeout_s: float) -> socket.socket:
    """A connection to a port of the host."""
    made = socket.socket(socket.AF_VSOCK)
    try:
        made.settimeout(timeout_s)
        made.connect((HOST_CID, port))
    except OSError:
        made.close()
        raise
    return made
