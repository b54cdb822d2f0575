"""What host and guest say to each other (vmm.md section 10); the peer is hostile.

JSON lines over the two virtio-serial ports of a VM, or HTTP over vsock (vmm/vsock.py) where it was started so.

`ask` puts one question to the guest; `Port` serves the questions of one guest for the background process.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from core import files
from core.errors import CasemateError, Conflict, Upstream, UpstreamTimeout, status_of
from core.prpc import read_json
from vmm import vsock

logger = logging.getLogger(__name__)

REQUEST_LIMIT = 1024**2
ANSWER_LIMIT = 4 * 1024**2
# Of a former exchange, or of nobody's asking: so many are skipped before the answer.
STRAY_LINES = 1000
BEGIN_S = 5.0
WHOLE_S = 10.0
# A guest that writes more lines than this, whatever they hold, waits until its second is over; a read
# counts like a line.
LINES_PER_SECOND = 50
# Then it is the next guest's turn: an answer may cost some milliseconds of disk.
LINES_AT_ONCE = 10

Answer = Callable[[str, object], object]


def ask(
    workdir: Path,
    method: str,
    params: dict[str, Any],
    *,
    begin_s: float = BEGIN_S,
    whole_s: float = WHOLE_S,
) -> Any:
    """Asks the agent of a VM and returns the JSON value it answers.

    QEMU serves one client of a serial port at a time, so callers take turns.  Raises UpstreamTimeout when nothing comes
    within `begin_s` seconds or not all within `whole_s`, Upstream when the guest refuses, breaks the form
    or sends more than 4 MiB.
    """
    begin = time.monotonic()
    try:
        if (cid := _vsock_number(workdir)) is not None:
            with vsock.connect(cid, begin_s) as connection:
                deadlines = {"first_by": begin + begin_s, "all_by": begin + whole_s}
                return vsock.ask(connection, method, params, **deadlines, limit=ANSWER_LIMIT)
        with (
            files.locked(workdir / "guest.lock", timeout_s=begin_s),
            socket.socket(socket.AF_UNIX) as connection,
        ):
            connection.settimeout(begin_s)
            connection.connect(str(workdir / "guest.sock"))
            call = secrets.randbits(48)
            request = json.dumps({"id": call, "method": method, "params": params})
            # The empty line ends whatever a former exchange left unfinished.
            connection.sendall(b"\n" + request.encode() + b"\n")
            lines = _lines(connection, begin + begin_s, begin + whole_s)
            for line in itertools.islice(lines, STRAY_LINES):
                answer = _object(line)
                if answer is not None and answer.get("id") == call:
                    return _result(answer)
    except (Conflict, TimeoutError):
        raise UpstreamTimeout("the guest agent did not answer in time") from None
    except OSError as error:
        raise Upstream(f"the guest's channel is closed: {error.strerror}") from None
    raise Upstream("the guest closed its channel, or said too much that nobody asked for")


def _vsock_number(workdir: Path) -> int | None:
    try:
        return int((workdir / "guest.cid").read_text())
    except FileNotFoundError:
        return None


def _lines(connection: socket.socket, first_by: float, all_by: float) -> Iterator[bytes]:
    buffer = bytearray()
    received = 0
    deadline = first_by
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        connection.settimeout(left)
        data = connection.recv(64 * 1024)
        if not data:
            return
        received += len(data)
        if received > ANSWER_LIMIT:
            raise Upstream(f"the guest's answer is larger than {ANSWER_LIMIT} bytes")
        if data.strip():
            deadline = all_by
        buffer += data
        *whole, rest = buffer.split(b"\n")
        buffer = bytearray(rest)
        yield from (bytes(line) for line in whole)


def _object(line: bytes) -> dict[str, Any] | None:
    with contextlib.suppress(CasemateError):
        value = read_json(line)
        return value if isinstance(value, dict) else None
    return None


def _result(answer: dict[str, Any]) -> Any:
    error = answer.get("error")
    if error is None:
        return answer.get("result")
    text = error.get("message") if isinstance(error, dict) else None
    raise Upstream(f"guest agent: {str(text)[:500]}")


class Port:
    """The host's end of one guest's question port: reads lines, answers each, keeps to a rate.

    Who asks is decided by the socket, never by a field.  `wait_until` is the time before which the
    guest is not to be read again.
    """

    def __init__(self, path: Path, answer: Answer) -> None:
        self.answer = answer
        self.wait_until = 0.0
        self._buffer = bytearray()
        self._skipping = False
        self._second = 0
        self._used = 0
        self.socket = socket.socket(socket.AF_UNIX)
        try:
            self.socket.setblocking(False)
            self.socket.connect(str(path))
            self.socket.send(b"\n")
        except OSError:
            self.socket.close()
            raise

    def close(self) -> None:
        """Gives the port up."""
        self.socket.close()

    @property
    def pending(self) -> bool:
        """Whether a whole line has come that was not answered yet."""
        return b"\n" in self._buffer

    def serve(self) -> bool:
        """Reads what has come and answers some whole lines; False when the other end is gone."""
        if not self.pending:
            try:
                data = self.socket.recv(64 * 1024)
            except BlockingIOError:
                return True
            except OSError:
                return False
            if not data:
                return False
            self._count()
            self._buffer += data
            if not self.pending and len(self._buffer) > REQUEST_LIMIT:
                # An endless line is dropped up to its end, not kept.
                self._buffer.clear()
                self._skipping = True
        for _ in range(LINES_AT_ONCE):
            if not self.pending or self.wait_until > time.monotonic():
                break
            line, _, self._buffer = self._buffer.partition(b"\n")
            self._count()
            if self._skipping:
                self._skipping = False
            elif not self._serve_line(bytes(line)):
                return False
        return True

    def _serve_line(self, line: bytes) -> bool:
        request = _object(line)
        if request is None or not isinstance(request.get("method"), str):
            return True
        if not isinstance(request.get("id"), (int, str)):
            return True
        reply = {"id": request["id"], **self._reply(request)}
        # The guest reads its answer at once or not at all: we never wait for it.
        with contextlib.suppress(BlockingIOError):
            try:
                self.socket.send(json.dumps(reply).encode() + b"\n")
            except (BrokenPipeError, ConnectionError):
                return False
        return True

    def _reply(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            return {"result": self.answer(request["method"], request.get("params") or {})}
        except CasemateError as error:
            return {"error": {"message": error.message, "code": status_of(error)}}

    def _count(self) -> None:
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._used = second, 0
        self._used += 1
        if self._used >= LINES_PER_SECOND:
            self.wait_until = second + 1.0
