"""Fleets and their instances: VMs that are made, watched while they boot, kept while they are wanted, and removed."""

from __future__ import annotations

import contextlib
from concurrent.futures import Future, ThreadPoolExecutor

from sqlalchemy.orm import Session

from core.errors import CasemateError, Conflict, NotFound
from image import registry
from models.fleet import Fleet, Instance
from runs import placement, planner, records
from runs.desk import Desk
from runs.fleets import fleet_sizes
from runs.lifecycle import Reason, Status
from runs.mishaps import Mishaps
from runs.moments import now_us
from vmm.records import Owner
from vmm.schemas import Configuration

# An instance that could not be made is not made again at once.
BACKOFF_US = 60_000_000
SSH_PORT = 22
# After how long an idle instance ends where nobody said.
FLEET_IDLE_S = 3 * 24 * 3600


class Instances:
    """The VMs of all fleets."""

    def __init__(self, desk: Desk, pool: ThreadPoolExecutor, mishaps: Mishaps) -> None:
        self.desk = desk
        self.pool = pool
        self.mishaps = mishaps
        self.making: dict[str, Future[None]] = {}
        # Those whose VM was asked to go.
        self.forgotten: set[str] = set()
        self.ending = False

    def tend_fleet(self, fleet_id: str) -> None:
        """Keeps as many instances as a fleet has at least, and ends those of a fleet on its way out."""
        with self.desk.database.writing() as session:
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
            fitting = fleet_sizes(fleet.spec, self.desk.sizes)
            rested = now_us() - records.last_failure(session, fleet) > BACKOFF_US
            if fitting and len(live) < least and rested:
                instance = placement.new_instance(session, fleet, fitting[0])
                records.tell_instance(
                    session, "Instance created. Instance status: PENDING", instance, None
                )
                self.desk.wake.set()

    def tend_instance(self, instance_id: str, status: str) -> None:
        if status == Status.PENDING:
            self._make_vm(instance_id)
        elif status == Status.IDLE:
            self._end_idle(instance_id)
        elif status == Status.TERMINATING:
            self._remove_vm(instance_id)
        elif status == Status.PROVISIONING:
            self._time_boot(instance_id)

    def _end_idle(self, instance_id: str) -> None:
        with self.desk.database.writing() as session:
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
        with self.desk.database.writing() as session:
            instance = session.get_one(Instance, instance_id)
            if instance.vm_id is not None and self.desk.executor.is_ready(instance.vm_id):
                is_there(session, instance)
                self.desk.wake.set()
                return
            timeout = self.desk.config.runs.provisioning_timeout * 1_000_000
            has_job = records.unfinished_jobs_on(session, instance_id)
            if not has_job and now_us() - instance.created_us > timeout:
                records.move_instance(
                    session, instance, Status.TERMINATING, reason="provisioning_timeout"
                )

    def _make_vm(self, instance_id: str) -> None:
        running = self.making.get(instance_id)
        if not self.ending and (running is None or running.done()):
            self.making = {key: each for key, each in self.making.items() if not each.done()}
            self.making[instance_id] = self.pool.submit(
                self.mishaps.guarded, self._make, instance_id
            )

    def _make(self, instance_id: str) -> None:
        with self.desk.database.reading() as session:
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
                self.desk.fail(instance_id, Reason.CREATING_CONTAINER_ERROR, error.message)
                return
        self.desk.executor.watch(vm_id)
        with self.desk.database.writing() as session:
            instance = session.get_one(Instance, instance_id)
            instance.vm_id = vm_id
            records.move_instance(session, instance, Status.PROVISIONING)

    def _create_vm(self, instance: Instance, name: str, owner: Owner) -> str:
        ssh = self.desk.config.runs.ssh
        wanted = Configuration(
            name=name,
            image=registry.chosen(self.desk.config.image),
            compose_file=self.desk.executor.prepare(instance.name, ssh=ssh),
            vcpu=instance.size["cpu"],
            memory=instance.size["memory_mib"],
            disk_size=instance.size["disk_gb"],
            app_id=self.desk.vms.draw_app_id(owner.project_id),
        )
        return self.desk.vms.create(wanted, owner, publish=(SSH_PORT,) if ssh else ())

    def _no_room(self, instance_id: str, message: str) -> None:
        """The host is full: an idle instance somewhere makes room, else there is none."""
        with self.desk.database.writing() as session:
            others = records.live_instances(session)
            if any(each.status == Status.TERMINATING for each in others):
                return  # the next round tries again
            for each in others:
                least = each.fleet.spec["configuration"]["nodes"]["min"]
                if each.status == Status.IDLE and len(records.live(each.fleet)) > least:
                    records.move_instance(session, each, Status.TERMINATING, reason="replaced")
                    return
        self.desk.fail(instance_id, Reason.NO_CAPACITY, message)

    def _remove_vm(self, instance_id: str) -> None:
        with self.desk.database.writing() as session:
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
            self.desk.executor.forget(vm_id)
            with contextlib.suppress(NotFound):
                self.desk.vms.remove(vm_id)
            self.forgotten.add(instance_id)


def is_there(session: Session, instance: Instance) -> None:
    """Notes that the runner of an instance answers."""
    has_job = records.unfinished_jobs_on(session, instance.id)
    if instance.status == Status.PROVISIONING:
        records.move_instance(session, instance, Status.BUSY if has_job else Status.IDLE)


def vm_name(instance: Instance) -> str:
    """The name of an instance's VM, by which it is found again."""
    return f"{instance.name[:50]}-{instance.id[:8]}"


def _idle_limit(instance: Instance) -> int:
    """After how many seconds an idle instance ends; -1: never."""
    if instance.idle_duration_s is not None:
        return instance.idle_duration_s
    of_fleet = planner.merged(instance.fleet.spec)["idle_duration"]
    return FLEET_IDLE_S if of_fleet is None else int(of_fleet)
