"""The runtime event log and RTMR3, kept equal by one lock over processes and threads.

A line is appended first and the register extended after it; whoever comes next and finds the register one
step behind finishes that step.  Source: guest-agent.md section 5 (EmitEvent), quality.md section 2.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from attest import eventlog
from attest.eventlog import Event
from core import files
from core.errors import Invalid
from guest.settings import Settings
from guest.tee import Tee

# guest-agent.md section 5: name and payload together.
MAX_EVENT_SIZE = 10 * 1024 * 1024


class LogMismatch(RuntimeError):
    """RTMR3 was extended by somebody who did not write the log; no quote of ours would replay."""


@dataclass(frozen=True)
class Quoted:
    """Evidence and the log that goes with it, taken under one lock."""

    quote: bytes
    events: tuple[Event, ...]
    registers: tuple[bytes, ...]


class EventLog:
    """The log file at `path`, extended together with RTMR3 of `tee`."""

    def __init__(self, path: Path, lock: Path, tee: Tee) -> None:
        self._path = path
        self._lock = lock
        self._tee = tee
        self._boot = tee.boot_events()
        self._seen = _Seen()

    def emit(self, name: str, payload: bytes, version: int = 1) -> Event:
        """Measures one event into RTMR3 and the log; Invalid for a name that is empty or too much data."""
        if not name:
            raise Invalid.field("event", "must not be empty")
        if len(name.encode()) + len(payload) > MAX_EVENT_SIZE:
            raise Invalid.field("payload", f"event and payload exceed {MAX_EVENT_SIZE} bytes")
        event = eventlog.runtime_event(name, payload, version)
        with files.locked(self._lock):
            self._settle()
            self._append(event)
            self._tee.extend(eventlog.RUNTIME_IMR, event.digest)
        return event

    def runtime_events(self) -> tuple[Event, ...]:
        """The RTMR3 events so far, in order."""
        with files.locked(self._lock):
            self._settle()
            return tuple(self._seen.events)

    def quoted(self, quote: Callable[[], bytes]) -> Quoted:
        """What `quote` answers while nobody can extend RTMR3, with the whole log at that moment."""
        with files.locked(self._lock):
            registers = self._settle()
            return Quoted(quote(), self._seen.after(self._boot), registers)

    def _settle(self) -> tuple[bytes, ...]:
        """Reads what others appended and finishes an extension that a crash cut off."""
        self._read_new()
        registers = self._tee.read_registers()
        if not registers or registers[eventlog.RUNTIME_IMR] == self._seen.register:
            return registers
        last = self._seen.events[-1].digest if self._seen.events else b""
        if eventlog.extend(registers[eventlog.RUNTIME_IMR], last) != self._seen.register:
            raise LogMismatch("the runtime event log does not replay to RTMR3")
        self._tee.extend(eventlog.RUNTIME_IMR, last)
        return self._tee.read_registers()

    def _read_new(self) -> None:
        try:
            # Most often there is nothing new, and a look costs a third of opening the file.
            if os.stat(self._path).st_size == self._seen.offset:
                return
            with self._path.open("rb+") as file:
                if os.fstat(file.fileno()).st_size < self._seen.offset:
                    self._seen = _Seen()
                file.seek(self._seen.offset)
                data = file.read()
                # A line cut off in the middle was never extended: its writer died first.
                whole = data[: data.rfind(b"\n") + 1]
                if len(whole) < len(data):
                    file.truncate(self._seen.offset + len(whole))
        except FileNotFoundError:
            self._seen = _Seen()
            return
        self._seen.add(map(_from_line, whole.splitlines()), len(whole))

    def _append(self, event: Event) -> None:
        line = _to_line(event)
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb", buffering=0) as file:
            _write_whole(file.fileno(), line)
        self._seen.add([event], len(line))


def event_log(settings: Settings, platform: Tee) -> EventLog:
    """The event log that all processes of this VM share."""
    return EventLog(settings.runtime_log, settings.state / "events.lock", platform)


class _Seen:
    """The part of the log this process has read, with its replayed register."""

    def __init__(self) -> None:
        self.offset = 0
        self.register = bytes(eventlog.REGISTER_SIZE)
        self.events: list[Event] = []
        self._whole: tuple[Event, ...] | None = None

    def after(self, boot: tuple[Event, ...]) -> tuple[Event, ...]:
        """The whole log, the same object until an event is added: what is made of it can be kept."""
        if self._whole is None:
            self._whole = (*boot, *self.events)
        return self._whole

    def add(self, events: Iterable[Event], size: int) -> None:
        for event in events:
            self._whole = None
            self.events.append(event)
            self.register = eventlog.extend(self.register, event.digest)
        self.offset += size


def _write_whole(fd: int, data: bytes) -> None:
    start = os.fstat(fd).st_size
    if os.write(fd, data) != len(data):
        os.ftruncate(fd, start)
        raise OSError("the runtime event log has no room")


def _to_line(event: Event) -> bytes:
    fields: dict[str, object] = {
        "event": event.event,
        "payload": base64.b64encode(event.event_payload).decode(),
    }
    if event.version == 2:
        fields["version"] = 2
    return json.dumps(fields, separators=(",", ":")).encode() + b"\n"


def _from_line(line: bytes) -> Event:
    fields = json.loads(line)
    payload = base64.b64decode(fields["payload"])
    return eventlog.runtime_event(fields["event"], payload, fields.get("version", 1))
