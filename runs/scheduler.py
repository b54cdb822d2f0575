"""The scheduler of runs: one thread of the host's background process that makes jobs, instances and fleets follow
what is wished of them.

It lives on rows alone: HTTP workers write wishes, an executor tells what guests do (runs/reports.py), and after a restart
everything is found again.  Every step is a transaction that looks at the state first, so that none undoes another's.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from sqlalchemy.orm import Session

from core.messages import Report
from models.base import change_watch
from models.run import Run, RunJob
from runs import lifecycle, orders, placement, planner, progress, pruning, records, rolling
from runs.desk import HOUR_S, Desk
from runs.executor import Executor, Listener, VmExecutor
from runs.instances import SSH_PORT, Instances
from runs.lifecycle import Kind, Reason, Status
from runs.mishaps import Mishaps
from runs.moments import now_us
from runs.placement import Placed
from runs.probes import Prober
from runs.reports import Reports
from vmm.service import Vms

# How often the database is asked for changes, which costs microseconds, and how often timers are looked at.
LOOK_S = 0.1
TIMERS_S = 2.0
# A runner that does not end its job within the grace and this long is given up with its VM.
GRACE_MARGIN_S = 30
# Requests that were on their way to a replica when it was taken out of service still reach it.
DRAIN_US = 1_000_000
FOREVER_S = 10 * 365 * 86_400

MakeExecutor = Callable[[Vms, Listener], Executor]


class Scheduler:
    """A duty of the background process."""

    def __init__(self, vms: Vms, make_executor: MakeExecutor = VmExecutor) -> None:
        self.database = vms.database
        self.desk = Desk(vms)
        self.reports = Reports(self.desk)
        self.executor = self.desk.executor = make_executor(vms, self.reports)
        self.pool = ThreadPoolExecutor(4, thread_name_prefix="runs")
        self.mishaps = Mishaps()
        self.instances = Instances(self.desk, self.pool, self.mishaps)
        self.prober = Prober(self.desk)
        self.ending = False
        self.thread = threading.Thread(target=self._run, name="runs-scheduler", daemon=True)

    # The duty ----------------------------------------------------------------------------------

    def start(self) -> None:
        """Takes up whatever is in the rows."""
        with self.database.reading() as session:
            known = [each.vm_id for each in records.live_instances(session) if each.vm_id]
            for run in records.unfinished_runs(session):
                self.desk.begun |= {job.id for job in run.jobs}
        for vm_id in known:
            self.executor.watch(vm_id)
        self.thread.start()

    def stop(self) -> None:
        """Ends the threads; jobs run on."""
        self.ending = self.instances.ending = True
        self.desk.wake.set()
        self.prober.close()
        self.executor.close()
        self.pool.shutdown(wait=False, cancel_futures=True)

    def heard(self, vm_id: str, report: Report) -> int:
        """Takes what the runner of a VM reports."""
        assert isinstance(self.executor, VmExecutor)
        return self.executor.heard(vm_id, report)

    def _run(self) -> None:
        changed, looked = change_watch(self.database.path), 0.0
        pruned = -HOUR_S
        while not self.ending:
            is_awake = self.desk.wake.wait(LOOK_S)
            self.desk.wake.clear()
            is_due = time.monotonic() - looked > TIMERS_S
            if self.ending or not (changed() or is_awake or is_due):
                continue
            looked = time.monotonic()
            if looked - pruned > HOUR_S:
                pruned = looked
                self.pool.submit(self.mishaps.guarded, self._prune)
            self.mishaps.guarded(self.tick)

    def _prune(self) -> None:
        kept_us = self.desk.config.runs.keep_days * pruning.DAY_US
        pruning.prune(self.database, self.desk.config.data_dir, now_us() - kept_us)

    def tick(self) -> None:
        """One round over all that is not finished."""
        with self.database.reading() as session:
            runs = {run.id: run for run in records.unfinished_runs(session)}
            instances = [(each.id, each.status) for each in records.live_instances(session)]
            fleets = [fleet.id for fleet in records.present_fleets(session)]
            # A row that cannot be read asks for nothing.
            asking = [key for key in runs if self.mishaps.guarded(self._asks, key, runs[key])]
            self.prober.follow(job for run in runs.values() for job in run.jobs)
        self.mishaps.keep([*runs, *fleets, *(instance_id for instance_id, _ in instances)])
        for run_id in asking:
            self.mishaps.guarded(self._tend_run, run_id)
        for fleet_id in fleets:
            self.mishaps.guarded(self.instances.tend_fleet, fleet_id)
        for instance_id, status in instances:
            self.mishaps.guarded(self.instances.tend_instance, instance_id, status)

    # Runs --------------------------------------------------------------------------------------

    def _asks(self, run_id: str, run: Run) -> bool:
        """Whether a run may want something; one that just runs does not."""
        jobs = records.latest_jobs(run)
        return (
            run.status != Status.RUNNING
            or bool(rolling.step(run, now_us()))
            or any(job.status == Status.FAILED for job in rolling.counted(run, jobs))
            or any(self._wants(run, job) for job in jobs)
        )

    def _wants(self, run: Run, job: RunJob) -> bool:
        return not lifecycle.is_finished(Kind.JOB, job.status) and (
            job.status != Status.RUNNING
            or job.id not in self.desk.submitted
            or job.spec["max_duration"] is not None
            or (job.deployment_num != run.deployment_num and not rolling.is_service(run))
        )

    def _tend_run(self, run_id: str) -> None:
        """Places, submits, stops and times the jobs of a run."""
        after: list[Callable[[], None]] = []
        with self.database.writing() as session:
            run = session.get(Run, run_id, options=records.run_parts())
            if run is None or lifecycle.is_finished(Kind.RUN, run.status):
                return
            if run.status == Status.TERMINATING:
                progress.settle(session, run)
            else:
                progress.retry(session, run, self.desk.safe)
                rolling.roll(session, run, self.desk.safe)
            for job in records.latest_jobs(run):
                self._tend_job(session, run, job, after)
        for order in after:
            order()

    def _tend_job(
        self, session: Session, run: Run, job: RunJob, after: list[Callable[[], None]]
    ) -> None:
        if job.status == Status.SUBMITTED:
            if run.status != Status.TERMINATING and _may_start(run, job):
                place = placement.place(
                    session, job, self.desk.sizes, self.desk.config.runs.hostname
                )
                if place is not Placed.WAITING:
                    progress.settle(session, run)
                    self.desk.wake.set()
            return
        if lifecycle.is_finished(Kind.JOB, job.status):
            return
        vm_id = job.instance.vm_id if job.instance else None
        if vm_id is not None and job.id not in self.desk.submitted:
            self._submit(session, run, job, vm_id, after)
        if job.status == Status.TERMINATING:
            self._stop(session, job, vm_id, after)
        else:
            self._time(session, job)

    def _submit(
        self, session: Session, run: Run, job: RunJob, vm_id: str, after: list[Callable[[], None]]
    ) -> None:
        if job.status == Status.TERMINATING and job.id not in self.desk.begun:
            return
        order = orders.order_of(session, run, job, self.desk.safe, self.desk.log(job.id).length())
        if job.provisioning is not None and job.provisioning["ssh_port"] is None:
            job.provisioning = {**job.provisioning, "ssh_port": self._ssh_port(vm_id)}
        self.desk.submitted.add(job.id)
        after.append(lambda: self.executor.submit(vm_id, order))

    def _ssh_port(self, vm_id: str) -> int:
        port = self.desk.vms.published(vm_id).get(SSH_PORT)
        return SSH_PORT if port is None else port.host_port

    def _stop(
        self, session: Session, job: RunJob, vm_id: str | None, after: list[Callable[[], None]]
    ) -> None:
        """Asks the guest to end a job, once; a job that never began ends here, one that does not end is given up."""
        grace = _grace(job)
        if vm_id is None or job.id not in self.desk.submitted or job.id not in self.desk.begun:
            self._end(session, job, after)
            return
        waited = now_us() - (job.terminating_us or 0)
        if job.termination_reason == Reason.SCALED_DOWN and job.ready and waited < DRAIN_US:
            return
        if job.id not in self.desk.stopped or (self.desk.stopped[job.id] != 0 and grace == 0):
            self.desk.stopped[job.id] = grace
            wait = FOREVER_S if grace is None else grace
            after.append(lambda: self.executor.stop(vm_id, job.id, wait))
        if grace is not None and waited > (grace + GRACE_MARGIN_S) * 1_000_000:
            self._give_up(session, job, "the job did not end")
            self._end(session, job, after)

    def _end(self, session: Session, job: RunJob, after: list[Callable[[], None]]) -> None:
        if progress.finish_job(session, job):
            after.append(lambda: self.desk.released(job.id, job.instance))

    def _give_up(self, session: Session, job: RunJob, message: str) -> None:
        if job.instance is not None:
            records.move_instance(
                session, job.instance, Status.TERMINATING, reason="unreachable", message=message
            )

    def _time(self, session: Session, job: RunJob) -> None:
        """Ends what takes too long."""
        now, spec = now_us(), job.spec
        limit = spec["max_duration"]
        if limit is not None and job.running_us and now - job.running_us > limit * 1_000_000:
            self.desk.begin_end(session, job, Reason.MAX_DURATION_EXCEEDED)
        waited = now - (job.provisioned_us or now)
        timeout = self.desk.config.runs.provisioning_timeout
        if job.status == Status.PROVISIONING and waited > timeout * 1_000_000:
            message = f"no word of the VM's runner within {timeout} s"
            self._give_up(session, job, message)
            progress.end_job(session, job, Reason.WAITING_RUNNER_LIMIT_EXCEEDED, message)


def _may_start(run: Run, job: RunJob) -> bool:
    """Whether the order in which a run's nodes start lets a job begin."""
    order = planner.merged(run.spec)["startup_order"]
    beside = [each for each in records.latest_jobs(run) if each.replica_num == job.replica_num]
    if order == "master-first" and job.job_num > 0:
        awaited = [each for each in beside if each.job_num == 0]
    elif order == "workers-first" and job.job_num == 0:
        awaited = [each for each in beside if each.job_num > 0]
    else:
        return True
    return all(each.running_us is not None for each in awaited)


def _grace(job: RunJob) -> int | None:
    """How many seconds a job that is stopped may take; None: as long as it wants."""
    if job.run.termination_reason == Reason.ABORTED_BY_USER:
        return 0
    grace: int | None = job.spec["stop_duration"]
    return grace
