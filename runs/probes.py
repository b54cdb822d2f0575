"""Whether the replicas of a service may be sent requests: its probes, or, without any, that its port answers.

A thread asks for each probe of each running replica, so that a service which is slow holds up nobody else.  What was
found is in the rows of the jobs; after a restart each is asked again at once.
"""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from models.run import RunJob
from runs import records, sealing
from runs.desk import Desk
from runs.lifecycle import Status
from runs.mishaps import Mishaps
from runs.specs import Spec
from vmm.network import Port

# A port without probes is asked until it answers, so often, each time for so long.
LISTENS_EVERY_S = 0.5
LISTENS_S = 10.0
HEAD = b"HEAD / HTTP/1.0\r\nHost: localhost\r\n\r\n"


@dataclass(frozen=True)
class Asked:
    """A replica whose readiness is looked after."""

    job_id: str
    vm_id: str
    port: int
    probes: tuple[Spec, ...]


@dataclass(frozen=True)
class Standing:
    """How a replica stands: how often each probe has passed in a row, and whether it may be sent requests."""

    streaks: list[int]
    ready: bool


class Prober:
    """Looks after the readiness of the services of this host."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.mishaps = Mishaps()
        self._ending = threading.Event()
        self._followed: set[str] = set()

    def follow(self, jobs: Iterable[RunJob]) -> None:
        """Looks after these jobs, as far as they are replicas that run, until they do not any more."""
        running = {job.id: job for job in jobs if job.status == Status.RUNNING}
        self._followed &= running.keys()
        self.mishaps.keep(running)
        for job_id in running.keys() - self._followed:
            if self.mishaps.guarded(self._follow, job_id, running[job_id]):
                self._followed.add(job_id)

    def close(self) -> None:
        """Asks no more."""
        self._ending.set()

    def _follow(self, job_id: str, job: RunJob) -> bool:
        vm_id = job.instance.vm_id if job.instance else None
        port: int | None = job.spec["service_port"]
        if vm_id is None or port is None:
            return True
        probes = tuple(sealing.unseal(job.spec, self.desk.safe, job.run_id)["probes"])
        asked = Asked(job_id, vm_id, port, probes)
        streaks = job.streaks or [0] * len(probes)
        nums: list[int | None] = [
            num for num, probe in enumerate(probes) if not _is_done(probe, streaks[num])
        ]
        if not probes and not job.ready:
            nums = [None]
        for each in nums:
            threading.Thread(target=self._ask_on, args=(asked, each), daemon=True).start()
        return True

    def _ask_on(self, asked: Asked, num: int | None) -> None:
        wait_s = LISTENS_EVERY_S if num is None else asked.probes[num]["interval"]
        while not self._ending.is_set():
            if self.mishaps.guarded(self._ask, asked.job_id, asked, num):
                return
            self._ending.wait(wait_s)

    def _ask(self, job_id: str, asked: Asked, num: int | None) -> bool:
        """Asks once and notes what came of it; whether nothing is left to ask."""
        passed = self._passes(asked, num)
        with self.desk.database.reading() as session:
            job = session.get(RunJob, job_id)
            if job is None or job.status != Status.RUNNING:
                return True
            before, after = standing(job), standing_after(asked.probes, job, num, passed)
        if before != after:
            self._note(asked, num, passed)
        return passed if num is None else _is_done(asked.probes[num], after.streaks[num])

    def _note(self, asked: Asked, num: int | None, passed: bool) -> None:
        with self.desk.database.writing() as session:
            job = records.job_with_run(session, asked.job_id)
            if job is not None:
                # Another probe may have written meanwhile.
                after = standing_after(asked.probes, job, num, passed)
                records.note_probes(session, job, after.streaks, ready=after.ready)

    def _passes(self, asked: Asked, num: int | None) -> bool:
        port = self.desk.vms.published(asked.vm_id).get(asked.port)
        if port is None:
            return False
        return answers(port) if num is None else succeeds(asked.probes[num], port)


def standing(job: RunJob) -> Standing:
    """How a replica stands by its row."""
    return Standing(list(job.streaks or ()), job.ready)


def standing_after(probes: Sequence[Spec], job: RunJob, num: int | None, passed: bool) -> Standing:
    """How a replica stands once a probe (None: its port) was asked: a streak is counted as far as it is needed."""
    streaks = list(job.streaks or [0] * len(probes))
    if num is None:
        return Standing(streaks, job.ready or passed)
    streaks[num] = min(streaks[num] + 1, probes[num]["ready_after"]) if passed else 0
    return Standing(streaks, all(map(_has_passed, probes, streaks)))


def _has_passed(probe: Spec, streak: int) -> bool:
    return bool(streak >= probe["ready_after"])


def _is_done(probe: Spec, streak: int) -> bool:
    """Whether a probe is not asked any more."""
    return bool(probe["until_ready"]) and _has_passed(probe, streak)


def succeeds(probe: Spec, port: Port) -> bool:
    """Whether a service answers a probe's request with a status of 2xx in time."""
    timeout = float(probe["timeout"])
    connection = http.client.HTTPConnection(_address(port), port.host_port, timeout=timeout)
    try:
        method, body = probe["method"].upper(), probe["body"]
        connection.putrequest(method, probe["url"], skip_host=True, skip_accept_encoding=True)
        for name, value in _headers(probe):
            connection.putheader(name, value)
        connection.endheaders(body.encode() if body else None)
        return 200 <= connection.getresponse().status < 300
    except (OSError, http.client.HTTPException, ValueError):
        return False
    finally:
        connection.close()


def _headers(probe: Spec) -> list[tuple[str, str]]:
    given = [(each["name"], each["value"]) for each in probe["headers"]]
    names = {name.lower() for name, _ in given}
    own = [("Host", "localhost"), ("Connection", "close")]
    if probe["body"]:
        own.append(("Content-Length", str(len(probe["body"].encode()))))
    return given + [(name, value) for name, value in own if name.lower() not in names]


def answers(port: Port) -> bool:
    """Whether somebody listens behind a port of a VM.

    QEMU takes every connection, and hangs up if the guest does not: who says something or keeps the line is there.
    """
    try:
        with socket.create_connection((_address(port), port.host_port), LISTENS_S) as line:
            line.sendall(HEAD)
            return bool(line.recv(1))
    except TimeoutError:
        return True
    except OSError:
        return False


def _address(port: Port) -> str:
    return port.host_address.replace("0.0.0.0", "127.0.0.1")
