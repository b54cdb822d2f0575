"""The scheduler of runs: one thread of the host's background process that makes jobs, instances and fleets follow
what is wished of them.

It lives on rows alone: HTTP workers write wishes, an executor tells what guests do, and after a restart everything is
found again.  Every step is a transaction that looks at the state first, so that none undoes another's.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from sqlalchemy.orm import Session

from accounts.keypairs import Safe
from core.config import Config
from core.errors import CasemateError, Conflict, NotFound
from core.messages import Report
from image import registry
from models.base import change_watch
from models.fleet import Fleet, Instance
from models.run import Run, RunJob
from runs import description, lifecycle, placement, planner, progress, pruning, records, sealing
from runs.executor import Executor, JobOrder, Listener, Stage, VmExecutor
from runs.fleets import fleet_sizes
from runs.lifecycle import Kind, Reason, Status
from runs.logs import Log
from runs.moments import now_us
from runs.people import keys_of
from runs.placement import Placed
from runs.service import log_of, room_of
from vmm.records import Owner
from vmm.schemas import Configuration
from vmm.service import Vms

logger = logging.getLogger(__name__)

# How often the database is asked for changes, which costs microseconds, and how often timers are looked at.
LOOK_S = 0.1
TIMERS_S = 2.0
# A runner that does not end its job within the grace and this long is given up with its VM.
GRACE_MARGIN_S = 30
# An instance that could not be made is not made again at once.
BACKOFF_US = 60_000_000
HOUR_S = 3600.0
FOREVER_S = 10 * 365 * 86_400
SSH_PORT = 22
CONSOLE_LINES = 20

MakeExecutor = Callable[[Vms, Listener], Executor]


@dataclass
class Quota:
    """Bytes of output of one job in the hour that began at `since`."""

    since: float = field(default_factory=time.monotonic)
    used: int = 0

    def add(self, count: int) -> int:
        """How many bytes there are now in the hour."""
        if time.monotonic() - self.since > HOUR_S:
            self.since, self.used = time.monotonic(), 0
        self.used += count
        return self.used


class Scheduler:
    """A duty of the background process, and the listener of its executor."""

    def __init__(self, vms: Vms, make_executor: MakeExecutor = VmExecutor) -> None:
        self.vms = vms
        self.config: Config = vms.config
        self.database = vms.database
        self.safe = Safe.of(self.config.data_dir)
        self.sizes = planner.sizes(self.config.offers, room_of(self.config))
        self.executor = make_executor(vms, self)
        self.pool = ThreadPoolExecutor(4, thread_name_prefix="runs")
        self.making: dict[str, Future[None]] = {}
        # What this process has told the executor; after a restart it tells all of it again.
        self.submitted: set[str] = set()
        self.stopped: dict[str, int | None] = {}
        # Jobs whose guest has the order; whatever an earlier process submitted may be one.
        self.begun: set[str] = set()
        self.forgotten: set[str] = set()
        self.logs: dict[str, Log] = {}
        self.quotas: dict[str, Quota] = {}
        self.wake = threading.Event()
        self.ending = False
        self.thread = threading.Thread(target=self._run, name="runs-scheduler", daemon=True)

    # The duty ----------------------------------------------------------------------------------

    def start(self) -> None:
        """Takes up whatever is in the rows."""
        with self.database.reading() as session:
            known = [each.vm_id for each in records.live_instances(session) if each.vm_id]
            for run in records.unfinished_runs(session):
                self.begun |= {job.id for job in run.jobs}
        for vm_id in known:
            self.executor.watch(vm_id)
        self.thread.start()

    def stop(self) -> None:
        """Ends the thread; jobs run on."""
        self.ending = True
        self.wake.set()
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
            is_awake = self.wake.wait(LOOK_S)
            self.wake.clear()
            is_due = time.monotonic() - looked > TIMERS_S
            if not (changed() or is_awake or is_due):
                continue
            looked = time.monotonic()
            if looked - pruned > HOUR_S:
                pruned = looked
                self.pool.submit(self._guarded, self._prune)
            try:
                self.tick()
            except Exception:  # the thread must not end; the next round tries again
                logger.exception("a round of the scheduler failed")

    def _prune(self) -> None:
        pruning.prune(self.database, self.config.data_dir, now_us() - pruning.KEPT_US)

    def tick(self) -> None:
        """One round over all that is not finished."""
        with self.database.reading() as session:
            runs = [run.id for run in records.unfinished_runs(session) if self._asks(run)]
            instances = [(each.id, each.status) for each in records.live_instances(session)]
            fleets = [fleet.id for fleet in records.present_fleets(session)]
        for run_id in runs:
            self._guarded(self._tend_run, run_id)
        for fleet_id in fleets:
            self._guarded(self._tend_fleet, fleet_id)
        for instance_id, status in instances:
            self._guarded(self._tend_instance, instance_id, status)

    def _guarded(self, step: Callable[..., None], *of: str) -> None:
        try:
            step(*of)
        except Exception:  # one broken row must not hold up all others; the next round tries again
            logger.exception("%s %s failed", step.__name__, " ".join(of))

    # Runs --------------------------------------------------------------------------------------

    def _asks(self, run: Run) -> bool:
        """Whether a run may want something; one that just runs does not."""
        jobs = records.latest_jobs(run)
        return run.status != Status.RUNNING or any(
            job.status != Status.RUNNING
            or job.id not in self.submitted
            or job.spec["max_duration"] is not None
            for job in jobs
        )

    def _tend_run(self, run_id: str) -> None:
        """Places, submits, stops and times the jobs of a run."""
        orders: list[Callable[[], None]] = []
        with self.database.writing() as session:
            run = session.get(Run, run_id, options=records.run_parts())
            if run is None or lifecycle.is_finished(Kind.RUN, run.status):
                return
            if run.status == Status.TERMINATING:
                progress.settle(session, run)
            else:
                progress.retry(session, run)
            for job in records.latest_jobs(run):
                self._tend_job(session, run, job, orders)
        for order in orders:
            order()

    def _tend_job(
        self, session: Session, run: Run, job: RunJob, orders: list[Callable[[], None]]
    ) -> None:
        if job.status == Status.SUBMITTED:
            if run.status != Status.TERMINATING and _may_start(run, job):
                place = placement.place(session, job, self.sizes, self.config.runs.hostname)
                if place is not Placed.WAITING:
                    progress.settle(session, run)
                self.wake.set()
            return
        if lifecycle.is_finished(Kind.JOB, job.status):
            return
        vm_id = job.instance.vm_id if job.instance else None
        if vm_id is not None and job.id not in self.submitted:
            self._submit(session, run, job, vm_id, orders)
        if job.status == Status.TERMINATING:
            self._stop(session, job, vm_id, orders)
        else:
            self._time(session, job)

    def _submit(
        self, session: Session, run: Run, job: RunJob, vm_id: str, orders: list[Callable[[], None]]
    ) -> None:
        if job.status == Status.TERMINATING and job.id not in self.begun:
            return
        order = order_of(session, run, job, self.safe, self._log(job.id).length())
        if job.provisioning is not None and job.provisioning["ssh_port"] is None:
            job.provisioning = {**job.provisioning, "ssh_port": self._ssh_port(vm_id)}
        self.submitted.add(job.id)
        orders.append(lambda: self.executor.submit(vm_id, order))

    def _ssh_port(self, vm_id: str) -> int:
        port = self.vms.published(vm_id).get(SSH_PORT)
        return SSH_PORT if port is None else port.host_port

    def _stop(
        self, session: Session, job: RunJob, vm_id: str | None, orders: list[Callable[[], None]]
    ) -> None:
        """Asks the guest to end a job, once; a job that never began ends here, one that does not end is given up."""
        grace = _grace(job)
        if vm_id is None or job.id not in self.submitted or job.id not in self.begun:
            self._end(session, job, orders)
            return
        if job.id not in self.stopped or (self.stopped[job.id] != 0 and grace == 0):
            self.stopped[job.id] = grace
            wait = FOREVER_S if grace is None else grace
            orders.append(lambda: self.executor.stop(vm_id, job.id, wait))
        waited = now_us() - (job.terminating_us or 0)
        if grace is not None and waited > (grace + GRACE_MARGIN_S) * 1_000_000:
            self._give_up(session, job, "the job did not end")
            self._end(session, job, orders)

    def _end(self, session: Session, job: RunJob, orders: list[Callable[[], None]]) -> None:
        if progress.finish_job(session, job):
            orders.append(lambda: self._released(job.id, job.instance))

    def _released(self, job_id: str, instance: Instance | None) -> None:
        if instance is not None and instance.vm_id is not None and job_id in self.submitted:
            self.executor.release(instance.vm_id, job_id)
        self.submitted.discard(job_id)
        self.begun.discard(job_id)
        self.stopped.pop(job_id, None)
        self.quotas.pop(job_id, None)
        if log := self.logs.pop(job_id, None):
            log.close()
        self.wake.set()

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
            self._begin_end(session, job, Reason.MAX_DURATION_EXCEEDED)
        waited = now - (job.provisioned_us or now)
        timeout = self.config.runs.provisioning_timeout
        if job.status == Status.PROVISIONING and waited > timeout * 1_000_000:
            message = f"no word of the VM's runner within {timeout} s"
            self._give_up(session, job, message)
            progress.end_job(session, job, Reason.WAITING_RUNNER_LIMIT_EXCEEDED, message)

    def _begin_end(self, session: Session, job: RunJob, reason: Reason, message: str = "") -> None:
        if records.move_job(session, job, Status.TERMINATING, reason=reason, message=message):
            self.wake.set()

    # Fleets and instances ----------------------------------------------------------------------

    def _tend_fleet(self, fleet_id: str) -> None:
        """Keeps as many instances as a fleet has at least, and ends those of a fleet on its way out."""
        with self.database.writing() as session:
            fleet = session.get(Fleet, fleet_id)
            if fleet is None or fleet.deleted:
                return
            live = records.live(fleet)
            if fleet.status == Status.TERMINATING:
                for each in live:
                    records.move_instance(session, each, Status.TERMINATING, reason="fleet_deleted")
                if not live:
                    records.move_fleet(session, fleet, Status.TERMINATED, deleted=True)
                return
            least = fleet.spec["configuration"]["nodes"]["min"]
            fitting = fleet_sizes(fleet.spec, self.sizes)
            rested = now_us() - records.last_failure(session, fleet) > BACKOFF_US
            if fitting and len(live) < least and rested:
                instance = placement.new_instance(session, fleet, fitting[0])
                records.tell_instance(
                    session, "Instance created. Instance status: PENDING", instance, None
                )
                self.wake.set()

    def _tend_instance(self, instance_id: str, status: str) -> None:
        if status == Status.PENDING:
            self._make_vm(instance_id)
        elif status == Status.IDLE:
            self._end_idle(instance_id)
        elif status == Status.TERMINATING:
            self._remove_vm(instance_id)
        elif status == Status.PROVISIONING:
            self._time_boot(instance_id)

    def _end_idle(self, instance_id: str) -> None:
        with self.database.writing() as session:
            instance = session.get_one(Instance, instance_id)
            fleet = instance.fleet
            if instance.status != Status.IDLE or instance.idle_since_us is None:
                return
            spare = len(records.live(fleet)) > fleet.spec["configuration"]["nodes"]["min"]
            limit = _idle_limit(instance)
            is_over = now_us() - instance.idle_since_us >= limit * 1_000_000
            if spare and limit >= 0 and is_over:
                records.move_instance(session, instance, Status.TERMINATING, reason="idle_timeout")

    def _time_boot(self, instance_id: str) -> None:
        """Ends an instance without a job whose runner does not come."""
        with self.database.writing() as session:
            instance = session.get_one(Instance, instance_id)
            if instance.vm_id is not None and self.executor.is_ready(instance.vm_id):
                self._is_there(session, instance)
                return
            timeout = self.config.runs.provisioning_timeout * 1_000_000
            has_job = records.unfinished_jobs_on(session, instance_id)
            if not has_job and now_us() - instance.created_us > timeout:
                records.move_instance(
                    session, instance, Status.TERMINATING, reason="provisioning_timeout"
                )

    def _make_vm(self, instance_id: str) -> None:
        running = self.making.get(instance_id)
        if not self.ending and (running is None or running.done()):
            self.making = {key: each for key, each in self.making.items() if not each.done()}
            self.making[instance_id] = self.pool.submit(self._guarded, self._make, instance_id)

    def _make(self, instance_id: str) -> None:
        with self.database.reading() as session:
            instance = session.get_one(Instance, instance_id)
            if instance.status != Status.PENDING:
                return
            owner = Owner(instance.fleet.project_id, instance.fleet.user_id)
            name = vm_name(instance)
            # An earlier process may have made it and not lived to note it.
            vm_id = records.vm_named(session, name, owner.project_id)
        if vm_id is None:
            try:
                vm_id = self._create_vm(instance, name, owner)
            except Conflict as error:
                self._no_room(instance_id, error.message)
                return
            except CasemateError as error:
                self._fail(instance_id, Reason.CREATING_CONTAINER_ERROR, error.message)
                return
        self.executor.watch(vm_id)
        with self.database.writing() as session:
            instance = session.get_one(Instance, instance_id)
            instance.vm_id = vm_id
            records.move_instance(session, instance, Status.PROVISIONING)

    def _create_vm(self, instance: Instance, name: str, owner: Owner) -> str:
        ssh = self.config.runs.ssh
        wanted = Configuration(
            name=name,
            image=registry.chosen(self.config.image),
            compose_file=self.executor.prepare(instance.name, ssh=ssh),
            vcpu=instance.size["cpu"],
            memory=instance.size["memory_mib"],
            disk_size=instance.size["disk_gb"],
            app_id=self.vms.draw_app_id(owner.project_id),
        )
        return self.vms.create(wanted, owner, publish=(SSH_PORT,) if ssh else ())

    def _no_room(self, instance_id: str, message: str) -> None:
        """The host is full: an idle instance somewhere makes room, else there is none."""
        with self.database.writing() as session:
            others = records.live_instances(session)
            if any(each.status == Status.TERMINATING for each in others):
                return  # the next round tries again
            for each in others:
                least = each.fleet.spec["configuration"]["nodes"]["min"]
                if each.status == Status.IDLE and len(records.live(each.fleet)) > least:
                    records.move_instance(session, each, Status.TERMINATING, reason="replaced")
                    return
        self._fail(instance_id, Reason.NO_CAPACITY, message)

    def _fail(self, instance_id: str, reason: Reason, message: str) -> None:
        """Ends an instance and what it has of jobs."""
        with self.database.writing() as session:
            instance = session.get_one(Instance, instance_id)
            records.move_instance(
                session, instance, Status.TERMINATING, reason=reason, message=message
            )
            self._fail_jobs(session, instance, reason, message)

    def _fail_jobs(
        self, session: Session, instance: Instance, reason: Reason, message: str
    ) -> None:
        for job_id in records.unfinished_jobs_on(session, instance.id):
            job = records.job_with_run(session, job_id)
            assert job is not None
            progress.end_job(session, job, reason, message)
            self.submitted.discard(job_id)
            self.stopped.pop(job_id, None)
        self.wake.set()

    def _remove_vm(self, instance_id: str) -> None:
        with self.database.writing() as session:
            instance = session.get_one(Instance, instance_id)
            vm_id = instance.vm_id or records.vm_named(
                session, vm_name(instance), instance.fleet.project_id
            )
            making = self.making.get(instance_id)
            if making is not None and not making.done():
                return
            if vm_id is None or not records.has_vm(session, vm_id):
                records.move_instance(session, instance, Status.TERMINATED)
                self.forgotten.discard(instance_id)
                return
        if instance_id not in self.forgotten:
            self.executor.forget(vm_id)
            with contextlib.suppress(NotFound):
                self.vms.remove(vm_id)
            self.forgotten.add(instance_id)

    # What guests say ---------------------------------------------------------------------------

    def on_ready(self, vm_id: str) -> None:
        """The runner of a VM answers."""
        with self.database.writing() as session:
            instance = records.instance_of_vm(session, vm_id)
            if instance is not None:
                self._is_there(session, instance)

    def _is_there(self, session: Session, instance: Instance) -> None:
        has_job = records.unfinished_jobs_on(session, instance.id)
        if instance.status == Status.PROVISIONING:
            records.move_instance(session, instance, Status.BUSY if has_job else Status.IDLE)
        self.wake.set()

    def on_state(
        self, submission_id: str, stage: Stage, exit_status: int | None, message: str
    ) -> None:
        """A job came to a stage."""
        self.begun.add(submission_id)
        with self.database.writing() as session:
            job = records.job_with_run(session, submission_id)
            if job is None or lifecycle.is_finished(Kind.JOB, job.status):
                return
            if stage is Stage.PULLING:
                records.move_job(session, job, Status.PULLING)
            elif stage is Stage.RUNNING:
                self._has_begun(session, job)
            else:
                self._has_ended(session, job, stage, exit_status, message)
            progress.settle(session, job.run)
            instance = job.instance
        if stage in (Stage.EXITED, Stage.FAILED):
            self._released(submission_id, instance)
        self.wake.set()

    def _has_begun(self, session: Session, job: RunJob) -> None:
        instance = job.instance
        assert instance is not None
        if instance.status == Status.PROVISIONING:
            records.move_instance(session, instance, Status.BUSY)
        user, spec = job.spec["user"] or {}, job.spec
        runtime = description.runtime(
            instance.size,
            spec["working_dir"] or spec["home_dir"],
            user.get("username") or "root",
        )
        records.move_job(session, job, Status.RUNNING, runtime=runtime)

    def _has_ended(
        self, session: Session, job: RunJob, stage: Stage, exit_status: int | None, message: str
    ) -> None:
        job.exit_status = exit_status
        session.flush()
        if stage is Stage.EXITED:
            reason = Reason.CONTAINER_EXITED_WITH_ERROR if exit_status else Reason.DONE_BY_RUNNER
            progress.end_job(session, job, reason, message)
            return
        word, _, told = message.partition(": ")
        known = word in set(Reason)
        progress.end_job(
            session,
            job,
            Reason(word) if known else Reason.EXECUTOR_ERROR,
            told if known else message,
        )

    def on_output(self, submission_id: str, data: bytes) -> None:
        """The next bytes of a job's terminal."""
        quota = self.quotas.setdefault(submission_id, Quota())
        if quota.used > self.config.runs.log_quota:
            return  # its end was ordered: what it says until then fills no disk
        self._log(submission_id).append(data)
        used = quota.add(len(data))
        if used > self.config.runs.log_quota >= used - len(data):
            with self.database.writing() as session:
                job = records.job_with_run(session, submission_id)
                if job is not None:
                    said = f"more than {self.config.runs.log_quota} bytes of output in an hour"
                    self._begin_end(session, job, Reason.LOG_QUOTA_EXCEEDED, said)

    def on_diagnosis(self, submission_id: str, text: str) -> None:
        """A line of the runner's own log of a job."""
        log = log_of(self.config.data_dir, submission_id, diagnose=True)
        log.append(text.encode() + b"\r\n")
        log.close()

    def on_inactive(self, submission_id: str, seconds: int) -> None:
        """For how long nobody has been connected to a job."""
        with self.database.writing() as session:
            job = records.job_with_run(session, submission_id)
            if job is None or job.status != Status.RUNNING:
                return
            job.inactivity_s = seconds
            limit = job.run.spec["configuration"].get("inactivity_duration")
            if limit is not None and seconds >= limit:
                self._begin_end(session, job, Reason.INACTIVITY_DURATION_EXCEEDED)

    def on_lost(self, vm_id: str, message: str) -> None:
        """The runner of a VM cannot be spoken to any more."""
        with self.database.reading() as session:
            instance = records.instance_of_vm(session, vm_id)
            booted = instance is not None and instance.status != Status.PROVISIONING
        if instance is None:
            return
        if not booted:
            message = f"{message}\n{self._last_lines(vm_id)}".strip()
        reason = Reason.INSTANCE_UNREACHABLE if booted else Reason.CREATING_CONTAINER_ERROR
        with self.database.writing() as session:
            row = session.get_one(Instance, instance.id)
            row.unreachable = booted
            session.flush()
        self._fail(instance.id, reason, message)

    def _last_lines(self, vm_id: str) -> str:
        """The end of what a VM's console showed."""
        try:
            said = "".join(self.vms.log(vm_id, "serial", CONSOLE_LINES))
        except CasemateError:
            return ""
        return "\n".join(last_lines(said))

    def _log(self, submission_id: str) -> Log:
        return self.logs.setdefault(submission_id, log_of(self.config.data_dir, submission_id))


def last_lines(text: str) -> Sequence[str]:
    """The last lines of a console that say something."""
    return [line.rstrip() for line in text.splitlines() if line.strip()][-3:]


def vm_name(instance: Instance) -> str:
    """The name of an instance's VM, by which it is found again."""
    return f"{instance.name[:50]}-{instance.id[:8]}"


def order_of(session: Session, run: Run, job: RunJob, safe: Safe, output_offset: int) -> JobOrder:
    """A job as a runner is told of it."""
    spec = sealing.unseal(job.spec, safe, run.id)
    image = spec["image_name"]
    user, auth = run.spec["configuration"]["user"], spec["registry_auth"]
    keys = [run.spec["ssh_key_pub"], *(keys_of(session, run.user_id) if run.user_id else ())]
    return JobOrder(
        submission_id=job.id,
        run_name=run.name,
        job_name=job.name,
        image="" if image == planner.GUEST else image,
        command=tuple(spec["commands"]),
        entrypoint="",
        env=spec["env"] | environment(run, job),
        user=user or "",
        working_dir=spec["working_dir"] or "",
        home_dir=spec["home_dir"],
        privileged=spec["privileged"],
        ports=(spec["service_port"],) if spec["service_port"] else (),
        authorized_keys=tuple(dict.fromkeys(key.strip() for key in keys if key)),
        registry_auth=(auth["username"], auth["password"]) if auth else None,
        output_offset=output_offset,
    )


def environment(run: Run, job: RunJob) -> dict[str, str]:
    """What every job finds in its environment, under dstack's names; nodes have no network of their own."""
    return {
        "DSTACK_RUN_NAME": run.name,
        "DSTACK_RUN_ID": run.id,
        "DSTACK_JOB_ID": job.id,
        "DSTACK_NODE_RANK": str(job.job_num),
        "DSTACK_NODES_NUM": str(job.spec["jobs_per_replica"]),
        "DSTACK_REPLICA_NUM": str(job.replica_num),
        "DSTACK_GPUS_NUM": "0",
        "DSTACK_GPUS_PER_NODE": "0",
    }


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


def _idle_limit(instance: Instance) -> int:
    """After how many seconds an idle instance ends; -1: never."""
    if instance.idle_duration_s is not None:
        return instance.idle_duration_s
    of_fleet = planner.merged(instance.fleet.spec)["idle_duration"]
    return planner.FLEET_IDLE_S if of_fleet is None else int(of_fleet)
