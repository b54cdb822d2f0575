"""The containers of this VM, asked of the Docker Engine API on its Unix socket: list, logs, stop.

Spoken directly over http.client because the log calls need each frame's stream, which the docker package
does not give, and the guest has no room for it.  Source: Docker Engine API v1.41 (ContainerList,
ContainerLogs with its 8-byte frame header, ContainerStop); guest-agent.md sections 7 and 9.
"""

from __future__ import annotations

import http.client
import io
import json
import re
import select
import socket
import struct
import time
import urllib.parse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from core.errors import Invalid, NotFound, Upstream

# Below the engine's answer limit of the host's relay; a hanging engine must not hold the channel.
TIMEOUT_S = 3.0
# guest-agent.md section 7: a followed log without output ends after this long.
FOLLOW_IDLE_S = 600.0
# A merged log is one answer on the host's channel.
MERGED_LOG = 512 * 1024  # bytes
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*", re.ASCII)
_AGO = re.compile(r"(\d{1,12})([smhd])", re.ASCII)
_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}
# guest-agent.md section 7: larger plain numbers are absolute Unix seconds, smaller ones seconds ago.
_ABSOLUTE_FROM = 10**9
_CHANNELS = {1: "stdout", 2: "stderr"}


@dataclass(frozen=True)
class Container:
    """One container as ListContainers shows it; `created` in Unix seconds."""

    id: str
    names: list[str]
    image: str
    image_id: str
    created: int
    state: str
    status: str


@dataclass(frozen=True)
class LogQuery:
    """Which part of a log is wanted; `since` and `until` in Unix seconds, 0 for no limit."""

    since: int = 0
    until: int = 0
    tail: str = "1000"
    follow: bool = False
    timestamps: bool = False


@dataclass(frozen=True)
class Frame:
    """A piece of a log and the stream it was written to."""

    channel: str
    data: bytes


class Engine:
    """The Docker-compatible engine at `unix://PATH`."""

    def __init__(self, docker_host: str) -> None:
        self._path = docker_host.removeprefix("unix://")

    def ping(self, timeout_s: float = TIMEOUT_S) -> None:
        """Raises Upstream unless the engine answers in time."""
        self._ask("GET", "/_ping", timeout_s)

    def list(self) -> list[Container]:
        """Every container, running or not.  Raises Upstream when the engine does not answer."""
        found = json.loads(self._ask("GET", "/containers/json?all=1"))
        return [_container(entry) for entry in found]

    def stop(self, container_id: str, grace_s: int) -> None:
        """Asks a container to end, and kills it after `grace_s`."""
        self._ask("POST", f"/containers/{container_id}/stop?t={grace_s}", timeout_s=grace_s + 2)

    def logs(
        self, name: str, query: LogQuery, reader: socket.socket | None = None
    ) -> Iterator[Frame]:
        """The frames of a container's log, as they come when it is followed, until `reader` has left.

        Raises NotFound for an unknown container and Upstream when the engine does not answer.
        """
        if not _NAME.fullmatch(name):
            raise NotFound(f"no container {name!r}")
        inspected = json.loads(self._ask("GET", f"/containers/{name}/json"))
        is_tty = bool(inspected.get("Config", {}).get("Tty"))
        parameters = {
            "stdout": 1,
            "stderr": 1,
            "since": query.since,
            "until": query.until,
            "tail": query.tail,
            "follow": int(query.follow),
            "timestamps": int(query.timestamps),
        }
        path = f"/containers/{name}/logs?{urllib.parse.urlencode(parameters)}"
        answer = self._open("GET", path, FOLLOW_IDLE_S if query.follow else TIMEOUT_S * 10, reader)
        return _raw_frames(answer) if is_tty else _multiplexed_frames(answer)

    def merged_logs(self, service: str, query: LogQuery) -> str:
        """The logs of the containers of a service ("": of all), one container after the other, as text."""
        texts = []
        for container in self.list():
            if any(is_of(service, name) for name in container.names):
                data = b"".join(frame.data for frame in self.logs(container.id, query))
                texts.append(data[-MERGED_LOG:].decode(errors="replace"))
        return "".join(texts)[-MERGED_LOG:]

    def _ask(self, method: str, path: str, timeout_s: float = TIMEOUT_S) -> bytes:
        with self._open(method, path, timeout_s) as answer:
            return answer.read()

    def _open(
        self, method: str, path: str, timeout_s: float, reader: socket.socket | None = None
    ) -> http.client.HTTPResponse:
        connection = _UnixConnection(self._path, timeout_s)
        try:
            connection.request(method, path)
            incoming: Any = _Incoming(connection.sock, timeout_s, reader)
            answer = http.client.HTTPResponse(incoming, method=method)
            answer.begin()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise Upstream(f"the container engine does not answer: {error}") from None
        if answer.status == 404:
            raise NotFound("no such container")
        if answer.status >= 400:
            raise Upstream(f"the container engine answered {answer.status}: {_reason(answer)}")
        return answer


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class _Incoming(io.RawIOBase):
    """What a socket receives, waited for up to `timeout_s` each time; it ends when `reader` has left.

    Without that a silent log that nobody follows any more would hold a thread until it times out.
    """

    def __init__(
        self, connection: socket.socket, timeout_s: float, reader: socket.socket | None
    ) -> None:
        self._connection = connection
        self._timeout_s = timeout_s
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)
        if reader is not None:
            self._poll.register(reader, select.POLLRDHUP)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        ready = dict(self._poll.poll(self._timeout_s * 1000))
        if not ready:
            raise TimeoutError("timed out")
        if set(ready) != {self._connection.fileno()}:
            return 0
        return self._connection.recv_into(buffer)

    def close(self) -> None:
        self._connection.close()
        super().close()

    def makefile(self, mode: str) -> io.BufferedReader:
        """What http.client asks of a socket."""
        return io.BufferedReader(self)


def is_of(service: str, container: str) -> bool:
    """Whether a container is one of a compose service ("": of any): its name is `project_service_1`, or that alone."""
    return not service or bool(re.search(rf"(^|[-_]){re.escape(service)}([-_]\d+)?\Z", container))


def _reason(answer: http.client.HTTPResponse) -> str:
    body = answer.read(2000)
    try:
        return str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError):
        return body.decode(errors="replace")


def _container(entry: Mapping[str, Any]) -> Container:
    return Container(
        id=entry.get("Id", ""),
        names=[name.removeprefix("/") for name in entry.get("Names") or ()],
        image=entry.get("Image", ""),
        image_id=entry.get("ImageID", ""),
        created=int(entry.get("Created") or 0),
        state=entry.get("State", ""),
        status=entry.get("Status", ""),
    )


def _multiplexed_frames(answer: http.client.HTTPResponse) -> Iterator[Frame]:
    with answer:
        try:
            while len(header := answer.read(8)) == 8:
                stream, size = struct.unpack(">BxxxI", header)
                yield Frame(_CHANNELS.get(stream, "stdout"), answer.read(size))
        except (OSError, http.client.HTTPException):
            return


def _raw_frames(answer: http.client.HTTPResponse) -> Iterator[Frame]:
    with answer:
        try:
            while data := answer.read1(64 * 1024):
                yield Frame("stdout", data)
        except (OSError, http.client.HTTPException):
            return


def moment(name: str, text: str, now: float | None = None) -> int:
    """A `since` or `until` parameter as Unix seconds, 0 for no limit; Invalid for other text."""
    now = time.time() if now is None else now
    if match := _AGO.fullmatch(text):
        return max(1, int(now) - int(match[1]) * _UNIT_S[match[2]])
    if not re.fullmatch(r"\d{0,12}", text, re.ASCII):
        raise Invalid(f"Invalid {name}")
    seconds = int(text or 0)
    if seconds == 0 or seconds >= _ABSOLUTE_FROM:
        return seconds
    return max(1, int(now) - seconds)


def tail(text: str) -> str:
    """A `tail` parameter: a number of lines or `all`; Invalid for other text."""
    if text == "all" or re.fullmatch(r"\d{1,9}", text, re.ASCII):
        return text
    raise Invalid("Invalid tail")
