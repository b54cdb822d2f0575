"""The two virtio-serial ports to the host: JSON lines, one exchange at a time.

`casemate.guest.0` is where the host asks and we answer, `casemate.host.0` where we ask.  Each side writes an
empty line first and drops what it cannot read, so a restart of either resynchronises.  Source: vmm.md
section 10.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import select
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from core import files
from core.errors import CasemateError, Invalid, TooLarge, Upstream, UpstreamTimeout, status_of
from guest.settings import Settings

logger = logging.getLogger(__name__)

GUEST_PORT = "casemate.guest.0"
HOST_PORT = "casemate.host.0"
MAX_REQUEST = 1024 * 1024
MAX_ANSWER = 4 * 1024 * 1024
# vmm.md section 10: guests wait a few seconds at most.
CALL_TIMEOUT_S = 3.0
# The kernel answers POLLHUP at once while the host is away: look again after this long.
ABSENT_HOST_PAUSE_S = 0.05
_READ_SIZE = 64 * 1024


def find_port(name: str, root: Path = Path("/")) -> Path | None:
    """The device of the virtio-serial port with this name; None when the VM has none."""
    for entry in sorted((root / "sys/class/virtio-ports").glob("*/name")):
        if entry.read_text().strip() == name:
            return root / "dev" / entry.parent.name
    return None


class Lines:
    """Cuts a byte stream into lines of at most `limit` bytes; longer ones are dropped whole."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._pending = bytearray()
        self._skipping = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The whole, non-empty lines that `data` completes."""
        *ended, rest = data.split(b"\n")
        for part in ended:
            self._take(part)
            if self._pending and not self._skipping:
                yield bytes(self._pending)
            self._pending.clear()
            self._skipping = False
        self._take(rest)

    def _take(self, part: bytes) -> None:
        if len(self._pending) + len(part) > self._limit:
            self._pending.clear()
            self._skipping = True
        if not self._skipping:
            self._pending += part


class Port:
    """An open port: writes and reads with a deadline, and says when the host is away."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def read(self, timeout_s: float | None) -> bytes | None:
        """What has arrived, waiting up to `timeout_s` (None: for ever); b"" when nothing has.

        None, after a pause, while the host is not connected.
        """
        ready = _poll(self.fd, select.POLLIN, timeout_s)
        data: bytes | None = None
        if ready & select.POLLIN:
            data = _nonblocking(os.read, self.fd, _READ_SIZE)
        if ready and not data:
            time.sleep(ABSENT_HOST_PAUSE_S)
            return None
        return data or b""

    def write(self, data: bytes, timeout_s: float) -> bool:
        """Writes all of `data` within `timeout_s`; False when the host went away or did not read it."""
        deadline = time.monotonic() + timeout_s
        rest = memoryview(data)
        while rest:
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            ready = _poll(self.fd, select.POLLOUT, left)
            if ready & select.POLLHUP:
                return False
            if ready & select.POLLOUT:
                rest = rest[_nonblocking(os.write, self.fd, rest) or 0 :]
        return True


def _poll(fd: int, events: int, timeout_s: float | None) -> int:
    poller = select.poll()
    poller.register(fd, events)
    found = poller.poll(None if timeout_s is None else max(0, timeout_s * 1000))
    return found[0][1] if found else 0


def _nonblocking(call: Callable[..., Any], *args: Any) -> Any:
    try:
        return call(*args)
    except BlockingIOError:
        return None


def open_port(device: Path) -> Port:
    """Opens a port's device; one process may hold it at a time (OSError EBUSY otherwise)."""
    return Port(os.open(device, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC))


def serve(port: Port, answer: Callable[[str, object], object]) -> None:
    """Answers the host's requests for ever: `answer(method, params)` gives the result or raises."""
    lines = Lines(MAX_REQUEST)
    greeted = False
    while True:
        # Repeated for every host that connects: the empty line ends whatever stood there before.
        greeted = greeted or port.write(b"\n", ABSENT_HOST_PAUSE_S)
        data = port.read(None if greeted else ABSENT_HOST_PAUSE_S)
        if data is None:
            greeted = False
            continue
        for line in lines.feed(data):
            reply = respond(line, answer)
            if reply and not port.write(reply, CALL_TIMEOUT_S):
                logger.warning("the host did not read an answer of %d bytes", len(reply))
                greeted = False


def respond(line: bytes, answer: Callable[[str, object], object]) -> bytes:
    """The answer line to a request line; empty when the line is no request."""
    request = decode(line)
    if request is None or "id" not in request or not isinstance(request.get("method"), str):
        logger.warning("dropped a line of %d bytes that is no request", len(line))
        return b""
    number = request["id"]
    try:
        result = answer(str(request["method"]), request.get("params") or {})
        reply = line_of({"id": number, "result": result})
        if len(reply) <= MAX_ANSWER:
            return reply
        return _error_line(number, TooLarge(f"the answer exceeds {MAX_ANSWER} bytes"))
    except CasemateError as error:
        return _error_line(number, error)
    except Exception:
        # The host must get an answer whatever happened, and our log the reason.
        logger.exception("%s failed", request["method"])
        return line_of({"id": number, "error": {"message": "internal error", "code": 500}})


def _error_line(number: object, error: CasemateError) -> bytes:
    return line_of({"id": number, "error": {"message": error.message, "code": status_of(error)}})


def line_of(value: Mapping[str, object]) -> bytes:
    """A message as it goes over a channel."""
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


def decode(line: bytes) -> Mapping[str, Any] | None:
    """The message that a line holds; None when it holds none."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, Mapping) else None


class Asks(Protocol):
    """A way to ask the host."""

    def call(self, method: str, params: Mapping[str, object], timeout_s: float) -> Any:
        """The result of a host call; Upstream when the host refuses, UpstreamTimeout when it is silent."""
        ...


class Host:
    """Calls to the host over `device`; `lock` keeps the processes of this guest from mixing theirs."""

    def __init__(self, device: Path, lock: Path) -> None:
        self._device = device
        self._lock = lock

    def call(
        self, method: str, params: Mapping[str, object], timeout_s: float = CALL_TIMEOUT_S
    ) -> Any:
        """The result of a host call; Upstream when the host refuses, UpstreamTimeout when it is silent."""
        deadline = time.monotonic() + timeout_s
        with files.locked(self._lock, timeout_s=timeout_s):
            port = open_port(self._device)
            try:
                return _exchange(port, method, params, deadline)
            finally:
                os.close(port.fd)


def _exchange(port: Port, method: str, params: Mapping[str, object], deadline: float) -> Any:
    # Unique and increasing over all processes of this boot: each holds the lock for longer than 1 us.
    number = time.monotonic_ns() // 1000
    request = b"\n" + line_of({"id": number, "method": method, "params": params})
    if len(request) > MAX_REQUEST:
        raise Invalid(f"a request to the host exceeds {MAX_REQUEST} bytes")
    while not port.write(request, max(0.0, deadline - time.monotonic())):
        if time.monotonic() >= deadline:
            raise UpstreamTimeout("the host is not listening")
        time.sleep(ABSENT_HOST_PAUSE_S)
    lines = Lines(MAX_ANSWER)
    while (left := deadline - time.monotonic()) > 0:
        for line in lines.feed(port.read(left) or b""):
            answer = decode(line)
            if answer is None or answer.get("id") != number:
                continue
            if "error" in answer:
                error = answer["error"]
                text = error.get("message") if isinstance(error, Mapping) else error
                raise Upstream(f"the host refused {method}: {text}")
            return answer.get("result")
    raise UpstreamTimeout(f"the host did not answer {method}")


class Notifier:
    """Tells the host what happens without making the caller wait; nothing is told when there is no host."""

    def __init__(self, host: Asks | None) -> None:
        self._host = host
        self._waiting: queue.SimpleQueue[tuple[str, str] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="notify", daemon=True)
        if host is not None:
            self._thread.start()

    def notify(self, event: str, payload: str) -> None:
        """Queues one Notify call."""
        self._waiting.put((event, payload))

    def close(self, timeout_s: float = CALL_TIMEOUT_S) -> None:
        """Waits up to `timeout_s` until everything queued was told."""
        if self._host is not None:
            self._waiting.put(None)
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while (item := self._waiting.get()) is not None:
            self._tell(*item)

    def _tell(self, event: str, payload: str) -> None:
        assert self._host is not None  # the thread only runs with one
        try:
            self._host.call("Notify", {"event": event, "payload": payload}, CALL_TIMEOUT_S)
        except (CasemateError, OSError) as error:
            logger.warning("the host was not told of %s: %s", event, error)


def host(settings: Settings) -> Asks | None:
    """The way to ask this VM's host; None when the VM has none."""
    device = find_port(HOST_PORT, settings.root)
    if device is not None:
        return Host(device, settings.state / "host-port.lock")
    from guest import vsock

    return vsock.Host(settings.sys_config) if vsock.is_there(settings.root) else None
