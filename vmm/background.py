"""The one background process: notices VMs that end, serves the guests' questions, finishes what was begun.

Rows are the truth and this is only the hand: it may be killed at any time, and the next one finds all that is
left to do by looking at them.
"""

from __future__ import annotations

import logging
import math
import os
import selectors
import signal
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from sqlalchemy import select as select_rows

from core.errors import CasemateError, NotFound
from core.messages import Report
from models.base import change_watch
from models.vm import Vm
from vmm import process, records, rotation, simulation, vsock
from vmm.channel import Port
from vmm.hostapi import HostApi
from vmm.lifecycle import Action, Observed, Wished, next_action
from vmm.restart import decide
from vmm.service import LOG_CHANNELS, Vms
from vmm.tally import SWEEPS
from vmm.usage import INTERVAL_S, Usage

logger = logging.getLogger(__name__)

# How long a VM's end, a new VM or a wish may go unnoticed.
LOOK_S = 0.1
# A sweep happens at least this often, whatever the database says.
SWEEP_S = 2.0
# How often QEMU's monitors and the programs beside them are looked after.
HEAR_S = 30.0
# The simulated TEE's collateral is valid for days; verifiers read the file at any time.
COLLATERAL_S = 6 * 3600.0


class Duty(Protocol):
    """Something else that must be done once per host, by threads of its own in this process."""

    def start(self) -> None:
        """Begins; whatever another process left unfinished is found in the rows."""

    def stop(self) -> None:
        """Asks it to end; may be killed instead at any time."""


@runtime_checkable
class Hears(Protocol):
    """A duty that takes what the runners of VMs report (guest/runner.py)."""

    def heard(self, vm_id: str, report: Report) -> int:
        """Takes a report quickly, in any thread; answers as vmm.hostapi.Heard."""


@dataclass
class Watched:
    """What is held open for one living VM."""

    process: process.Process
    pidfd: int
    port: Port | None = None


@dataclass
class Background:
    """The state of the background process; all of it can be lost.

    `born_ms` is when the service started: a VM that ended later ended by itself.
    """

    vms: Vms
    duties: Sequence[Duty] = ()
    born_ms: int = field(default_factory=records.now_ms)
    watched: dict[str, Watched] = field(default_factory=dict)
    jobs: dict[str, Future[None]] = field(default_factory=dict)
    selector: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector)
    pool: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(8, thread_name_prefix="reconcile")
    )
    stopping: bool = False
    listener: vsock.Listener | None = None
    # When VMs that ended by themselves were last looked for.
    looked_for_ended: float = -math.inf

    def run(self, parent: int, *, recover: bool) -> None:
        """Works until SIGTERM, or until the parent process is gone.

        `recover` says that the service was started just now: VMs that should run and do not (the host
        went down) are started at once.
        """
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
        changed = change_watch(self.vms.database.path)
        swept, rotated, heard, renewed = 0.0, 0.0, 0.0, time.monotonic()
        usage, measured = Usage(self.vms.database), 0.0
        if recover:
            self._recover()
        for duty in self.duties:
            duty.start()
        while not self.stopping and os.getppid() == parent:
            due = time.monotonic() - swept > SWEEP_S
            if due and time.monotonic() - measured > INTERVAL_S:
                # Its own commit would call for a sweep, and one is due anyway.
                usage.sample({vm_id: each.process.pid for vm_id, each in self.watched.items()})
                measured = time.monotonic()
            if changed() or due:
                self.sweep()
                swept = time.monotonic()
            if time.monotonic() - renewed > COLLATERAL_S:
                self._renew_collateral()
                renewed = time.monotonic()
            if time.monotonic() - rotated > self.vms.config.cvm.log.check_interval_secs:
                self._rotate_logs()
                rotated = time.monotonic()
            if time.monotonic() - heard > HEAR_S:
                self._hear()
                heard = time.monotonic()
            self.serve(LOOK_S)
        for duty in self.duties:
            duty.stop()
        self.pool.shutdown(wait=False, cancel_futures=True)

    def _hear(self) -> None:
        """Looks whether each QEMU still answers and each relay still leads to its guest."""
        if self.listener is None and self.vms.host.has_vsock:
            try:
                port = self.vms.config.host_api.port
                self.listener = vsock.Listener.on_vsock(port, self._answer_of)
                self.listener.start()
            except OSError as error:
                logger.warning("the host API is not on vsock: %s", error)
        for vm_id in self.watched:
            self.pool.submit(self._ask_monitor, vm_id)
            self._reconcile(vm_id)

    def _ask_monitor(self, vm_id: str) -> None:
        try:
            self.vms.reconciler.listen(vm_id)
        except Exception:  # a thread of the pool would swallow it without a word
            logger.exception("VM %s: its monitor could not be asked", vm_id)

    def _answer_of(self, cid: int) -> vsock.Answer:
        with self.vms.database.reading() as session:
            alive = select_rows(Vm.id).where(Vm.cid == cid, Vm.observed != Observed.ABSENT)
            vm_id = session.scalar(alive)
        if vm_id is None:
            raise NotFound(f"no running VM has the number {cid}")
        return self._api(vm_id).answer

    def _api(self, vm_id: str) -> HostApi:
        hears = next((duty.heard for duty in self.duties if isinstance(duty, Hears)), None)
        return HostApi(vm_id, self.vms.config, self.vms.database, hears)

    def _stop(self, signum: int, frame: object) -> None:
        self.stopping = True

    def _recover(self) -> None:
        for lock in self.vms.config.run_path.glob(".*.lock"):
            if self.vms.info(lock.name[1 : -len(".lock")]) is None:
                lock.unlink(missing_ok=True)  # of a removal that was cut off at its very end
        with self.vms.database.reading() as session:
            should_run = session.scalars(select_rows(Vm.id).where(Vm.wished == Wished.RUNNING))
            for vm_id in should_run:
                folder = self.vms.reconciler.workdir(vm_id).path
                if process.find(folder) is not None:
                    continue
                process.wait_unlocked(folder, 1)  # its runner may be about to write the ending
                ended = process.ending(folder)
                if ended is None or ended.at_ms <= self.born_ms:
                    self._reconcile(vm_id, start=True)

    def _rotate_logs(self) -> None:
        for vm_id in self.watched:
            workdir = self.vms.reconciler.workdir(vm_id)
            try:
                for channel_name in LOG_CHANNELS:
                    rotation.rotate_large(workdir.log(channel_name), self.vms.config.cvm.log)
            except OSError as error:  # the disk is full, or the VM was removed just now
                logger.warning("VM %s: a log was not rotated: %s", vm_id, error)

    def _renew_collateral(self) -> None:
        if self.vms.config.cvm.simulate:
            simulation.prepare(self.vms.config.tee_dir)

    def sweep(self) -> None:
        """Looks at every row once and does or schedules what it asks for."""
        SWEEPS.add("sweeps")
        columns = (Vm.id, Vm.wished, Vm.observed, Vm.restarts, Vm.next_restart_ms, Vm.started_ms)
        with self.vms.database.reading() as session:
            rows = session.execute(select_rows(*columns)).all()
        restarts = self._is_time_for_restarts()
        for row in rows:
            if row.observed == Observed.ALIVE:
                self._watch(row.id)
            lives = row.id in self.watched
            if next_action(row.wished, row.observed, lives) is not Action.NONE:
                self._reconcile(row.id)
            if restarts:
                self._restart(row.id, row.wished, row.observed, row.restarts, row.next_restart_ms)
            self._forgive(row.id, row.observed, row.restarts, row.started_ms)
        for vm_id in self.watched.keys() - {row.id for row in rows}:
            self._unwatch(vm_id)

    def serve(self, timeout_s: float) -> None:
        """Waits for guests that speak and VMs that end, at most `timeout_s` seconds."""
        now = time.monotonic()
        ready = self.selector.select(timeout_s)
        for key, _ in ready:
            vm_id, what = key.data
            watched = self.watched.get(vm_id)
            if watched is None:
                continue
            if what == "ended":
                self._unwatch(vm_id)
                self._reconcile(vm_id)
            elif watched.port is not None and watched.port.wait_until <= now:
                self._listen(watched)
        for watched in self.watched.values():
            if watched.port and watched.port.pending and watched.port.wait_until <= now:
                self._listen(watched)
        if ready and all(key.data[1] == "speaks" for key, _ in ready):
            # A guest that may not be read yet keeps its port ready: do not spin on it.
            waiting = [w.port.wait_until for w in self.watched.values() if w.port]
            if waiting and max(waiting) > now:
                time.sleep(LOOK_S / 4)

    def _listen(self, watched: Watched) -> None:
        port = watched.port
        assert port is not None
        if not _serve(port):
            self.selector.unregister(port.socket)
            port.close()
            watched.port = None

    def _watch(self, vm_id: str) -> None:
        workdir = self.vms.reconciler.workdir(vm_id)
        known = self.watched.get(vm_id)
        found = known.process if known else process.find(workdir.path)
        if known is None and found is not None:
            pidfd = process.open_pidfd(found)
            if pidfd is None:
                return
            known = self.watched[vm_id] = Watched(found, pidfd)
            self.selector.register(pidfd, selectors.EVENT_READ, (vm_id, "ended"))
        if known is not None and known.port is None:
            try:
                known.port = Port(workdir.host_socket, self._api(vm_id).answer)
            except OSError:
                return  # not listening yet, or ending: the next sweep tries again
            self.selector.register(known.port.socket, selectors.EVENT_READ, (vm_id, "speaks"))

    def _unwatch(self, vm_id: str) -> None:
        watched = self.watched.pop(vm_id)
        self.selector.unregister(watched.pidfd)
        os.close(watched.pidfd)
        if watched.port is not None:
            # What the guest said last is still in the socket and counts, within its rate.
            port = watched.port
            while port.wait_until <= time.monotonic():
                if not (port.pending or process.is_ready(port.socket.fileno(), 0)):
                    break
                if not _serve(port):
                    break
            self.selector.unregister(watched.port.socket)
            watched.port.close()

    def _reconcile(self, vm_id: str, *, start: bool = False, retry: bool = False) -> None:
        running = self.jobs.get(vm_id)
        if running is not None and not running.done():
            return
        self.jobs = {key: job for key, job in self.jobs.items() if not job.done()}
        self.jobs[vm_id] = self.pool.submit(self._one, vm_id, start, retry)

    def _one(self, vm_id: str, start: bool, retry: bool) -> None:
        try:
            self.vms.reconciler.one(vm_id, start=start, retry=retry)
        except NotFound:
            return  # removed by somebody else
        except CasemateError as error:
            logger.warning("VM %s: %s", vm_id, error.message)
        except Exception:  # a thread of the pool would swallow it without a word
            logger.exception("VM %s could not be reconciled", vm_id)

    def _is_time_for_restarts(self) -> bool:
        if time.monotonic() - self.looked_for_ended < self.vms.config.cvm.auto_restart.interval:
            return False
        self.looked_for_ended = time.monotonic()
        return True

    def _restart(
        self, vm_id: str, wished: str, observed: str, restarts: int, next_restart_ms: int | None
    ) -> None:
        if wished != Wished.RUNNING or observed != Observed.ABSENT:
            return
        rules = self.vms.config.cvm.auto_restart
        decision = decide(restarts, next_restart_ms, records.now_ms(), rules)
        if decision is None:
            return
        with self.vms.database.writing() as session:
            vm = session.get(Vm, vm_id)
            if vm is None or vm.wished != Wished.RUNNING or vm.observed != Observed.ABSENT:
                return
            vm.restarts, vm.next_restart_ms = decision.restarts, decision.next_restart_ms
            if decision.give_up:
                keep = self.vms.config.event_buffer_size
                body = f"gave up after {rules.max_retries} tries"
                records.add_event(session, vm_id, "vmm.auto_restart.exhausted", body, keep)
        if decision.start:
            self._reconcile(vm_id, start=True, retry=True)

    def _forgive(self, vm_id: str, observed: str, restarts: int, started_ms: int | None) -> None:
        window_ms = self.vms.config.cvm.auto_restart.reset_window * 1000
        if observed != Observed.ALIVE or not restarts or not started_ms:
            return
        if records.now_ms() - started_ms > window_ms:
            with self.vms.database.writing() as session:
                vm = session.get(Vm, vm_id)
                if vm is not None:
                    vm.restarts, vm.next_restart_ms = 0, None


def _serve(port: Port) -> bool:
    try:
        return port.serve()
    except Exception:  # one guest's question must not end the service to all others
        logger.exception("serving a guest failed")
        return False
