"""The verbs of the SecretVM interface on VMs, callable by views, by jobs and by clusters alike.

Source: secretvm.md sections 2 to 4.
"""

from __future__ import annotations

import contextlib
import functools
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import ColumnElement, func, select, update
from sqlalchemy.orm import Session

from accounts.roles import Caller, ProjectRole
from accounts.service import Accounts
from attest import compose
from attest.artifacts import version_key
from core.config import Config
from core.errors import (
    CasemateError,
    Conflict,
    Forbidden,
    Invalid,
    NotFound,
    Unavailable,
    Upstream,
    UpstreamTimeout,
)
from core.messages import GuestText
from image import registry
from models.base import Database
from models.job import Job
from models.secretvm import SecretVm
from models.vm import Vm
from secretvm import (
    billing,
    document,
    jobs,
    names,
    registration,
    sizes,
    vm_object,
    vm_records,
    wanted,
)
from secretvm.secrets import Keys
from secretvm.vm_object import Row
from secretvm.wanted import Prepared, Wanted
from vmm.records import Owner
from vmm.revisions import Cause
from vmm.schemas import Change, Configuration
from vmm.service import Vms

# A KMS that does not answer costs a caller this long and no longer (secretvm.md section 3).
KMS_S = 5.0
GUEST_S = 5.0
LOG_LINES = 1000
LOG_LINES_MOST = 10_000


@dataclass(frozen=True)
class SecretVms:
    """The VMs of one data directory as this interface sees them."""

    vms: Vms
    accounts: Accounts

    @property
    def config(self) -> Config:
        """The configuration of the service."""
        return self.vms.config

    @property
    def database(self) -> Database:
        """Where the rows are."""
        return self.vms.database

    @functools.cached_property
    def keys(self) -> Keys:
        """What tenants encrypt their secrets to."""
        return Keys.kept(self.config.data_dir)

    # Verbs ---------------------------------------------------------------------------------------

    def owner_of_new(self, caller: Caller) -> Owner:
        """Whose the caller's new things are."""
        return Owner(self.accounts.home(caller), caller.user_id)

    def create_vm(self, owner: Owner, asked: Wanted) -> str:
        """Makes a VM, starts it unless it should wait, and returns its id; on failure nothing remains."""
        return self.make(owner, self.prepare(owner, asked))

    def prepare(self, owner: Owner, asked: Wanted, *, app_id: str = "") -> Prepared:
        """Everything that a VM is made from, checked and sealed; it draws an app id unless one is given."""
        size = sizes.find(self.config, asked.vm_type)
        with self.database.reading() as session:
            billing.check(session, self.config, owner.project_id, size)
        return wanted.prepare(
            asked,
            self.config,
            host_tee=self.vms.host.tee,
            app_id=lambda: app_id or self.vms.draw_app_id(owner.project_id),
            keys=self.keys,
            key_of=self._key_of,
        )

    def make(
        self,
        owner: Owner,
        prepared: Prepared,
        *,
        name: str = "",
        cluster: tuple[str, str] | None = None,
        publish: Sequence[int] = (),
    ) -> str:
        """A VM of what was prepared; a node has the `cluster` (id and name) and may publish more ports."""
        size = sizes.find(self.config, prepared.vm_type)
        image = self._image(compose.document_of(prepared.app_compose))
        configuration = Configuration(
            name=self._drawn_name(),
            image=image,
            compose_file=prepared.app_compose,
            vcpu=size.cpu,
            memory=size.ram * 1024,
            disk_size=size.disk,
            encrypted_env=prepared.encrypted_env,
            app_id=prepared.app_id,
            user_config=prepared.user_config,
            stopped=not prepared.starts,
        )
        kept = replace(prepared, name=name or prepared.name)
        return self.vms.create(
            configuration,
            owner,
            publish=(*prepared.publish, *publish),
            beside=lambda session, vm_id: vm_records.add(session, vm_id, kept, cluster),
        )

    def changed(self, before: Prepared, asked: Wanted) -> Prepared:
        """What was prepared, with what is asked for now, checked and sealed."""
        return wanted.prepare_change(
            before,
            asked,
            self.config,
            host_tee=self.vms.host.tee,
            keys=self.keys,
            key_of=self._key_of,
        )

    def prepared(self, vm_id: str) -> Prepared:
        """A VM as it is, but for what is sealed or large: empty there means that it stays."""
        return vm_records.prepared(self.row(vm_id))

    def apply(
        self,
        vm_id: str,
        prepared: Prepared,
        by: str | None,
        *,
        publish: Sequence[int] = (),
        before: Prepared | None = None,
        beside: Callable[[Session], None] = lambda session: None,
    ) -> None:
        """Makes a VM boot what was prepared at its next start; `beside` adds to the same transaction.

        Conflict if the VM is not any more what was prepared from, `before`.
        """

        def keep(session: Session) -> None:
            beside(session)
            if before is not None:
                self._check_unchanged(session, vm_id, before)
            vm_records.change(session, vm_id, prepared)

        change = Change(
            id=vm_id,
            compose_file=prepared.app_compose,
            encrypted_env=prepared.encrypted_env,
            user_config=prepared.user_config,
        )
        ports = (*prepared.publish, *publish)
        self.vms.update(change, publish=ports or None, cause=Cause(by), beside=keep)

    def launch(self, caller: Caller, vm_id: str, asked: Wanted) -> None:
        """Starts a created or stopped VM, after changing what was given.

        Invalid when it runs, Conflict when it was changed meanwhile.
        """
        row = self.row(vm_id)
        if row.word not in ("stopped", "exited"):
            raise Invalid(f"vm: is {vm_object.status_of(row)}; stop it before it is launched anew")
        self._check_balance(row)
        if asked != Wanted():
            before = self.prepared(vm_id)
            self.apply(vm_id, self.changed(before, asked), caller.user_id, before=before)
        self.vms.start(vm_id)

    def start(self, vm_id: str) -> None:
        """Starts a VM; a running one stays as it is."""
        self._check_balance(self.row(vm_id))
        self.vms.start(vm_id)

    def stop(self, vm_id: str) -> None:
        """Asks a VM to power off, and ends it by force when it cannot be asked; a stopped one stays as it is."""
        if self.row(vm_id).word == "stopping":  # asked already: another word would end it by force
            return
        try:
            self.vms.shutdown(vm_id)
        except (Invalid, Unavailable):  # it is not up, or nobody in it listens
            self.vms.stop(vm_id)

    def stop_later(self, vm_id: str) -> None:
        """Asks a VM to power off, and leaves it to a job to end it by force when it does not."""
        row = self.row(vm_id)
        self.stop(vm_id)
        with self.database.writing() as session:
            jobs.enqueue(session, "vm.stopped", row.vm.project_id, {"vm_id": vm_id})

    def terminate(self, caller: Caller, row: Row) -> None:
        """Removes a VM with its disk and secrets; Forbidden for a member who may only see it."""
        if not self.may_terminate(caller, row):
            raise Forbidden(
                "a member with role user may terminate what they made themselves; ask a manager"
            )
        self.vms.remove(row.vm.id)

    def may_terminate(self, caller: Caller, row: Row) -> bool:
        """Whether a caller who sees a VM may also remove it."""
        if caller.is_operator or row.vm.user_id == caller.user_id:
            return True
        role = self.accounts.roles(caller).get(row.vm.project_id)
        return role is not None and role.covers(ProjectRole.MANAGER)

    def update_later(self, caller: Caller, row: Row, asked: Wanted) -> str:
        """Changes a VM now and restarts it in a job, if it runs; the job's id.

        Conflict when another update holds it, or has changed it meanwhile.
        """
        vm_id, job_id = str(row.vm.id), str(uuid.uuid4())
        argument = {"vm_id": vm_id, "restart": row.word in ("running", "starting")}

        def hold(session: Session) -> None:
            if vm_id in jobs.held_vms(session, vm_records.UPDATE):
                raise Conflict("vm: another update of this VM is under way")
            jobs.enqueue(session, vm_records.UPDATE, row.vm.project_id, argument, vm_id, job_id)

        before = self.prepared(vm_id)
        after = self.changed(before, asked)
        self.apply(vm_id, after, caller.user_id, before=before, beside=hold)
        return job_id

    def batch(self, caller: Caller, verb: str, ids: Iterable[str]) -> list[dict[str, str]]:
        """One job a VM that the caller may do this to; NotFound when there is none."""
        found: dict[str, tuple[str, Row]] = {}
        for each in ids:
            row = self._seen(caller, each)
            if row and (verb != "delete" or self.may_terminate(caller, row)):
                found.setdefault(row.vm.id, (each, row))  # a VM has two ids
        if not found:
            raise NotFound("ids: none of these VMs is there for you")
        with self.database.writing() as session:
            return [
                {
                    "vmId": each,
                    "vmInstanceId": row.vm.id,
                    "jobId": jobs.enqueue(
                        session, f"vm.{verb}", row.vm.project_id, {"vm_id": row.vm.id}
                    ),
                }
                for each, row in found.values()
            ]

    # Questions -----------------------------------------------------------------------------------

    def row(self, vm_id: str) -> Row:
        """Everything about a VM by its UUID; NotFound when it is gone or on its way out."""
        return self._one(Vm.id == vm_id, vm_id)

    def find(self, caller: Caller, given: str) -> Row:
        """The VM of the caller's projects with this id or short id; NotFound for all others alike."""
        number = given.removeprefix("vm-")
        is_number = given.startswith("vm-") and number.isascii() and number.isdigit()
        is_it = Vm.number == int(number[:18]) if is_number and len(number) < 18 else Vm.id == given
        row = self._one(is_it, given)
        roles = self.accounts.roles(caller)
        if not caller.is_operator and row.vm.project_id not in roles:
            raise _missing(given)
        return replace(row, role=_role(roles, caller, row.vm.project_id))

    def vm_object(self, row: Row) -> dict[str, Any]:
        """The object of a VM."""
        return vm_object.vm_object(row, self.config)

    def instances(self, caller: Caller) -> list[dict[str, Any]]:
        """The objects of all VMs that the caller sees, newest first."""
        roles = self.accounts.roles(caller)
        found = self.rows(None if caller.is_operator else roles.keys())
        return [
            self.vm_object(replace(row, role=_role(roles, caller, row.vm.project_id)))
            for row in found
        ]

    def rows(
        self, project_ids: Collection[str] | None, *, cluster_id: str | None = None
    ) -> list[Row]:
        """The VMs of some projects (None: of all), or of one cluster, newest first."""
        conditions: list[ColumnElement[bool]] = []
        if project_ids is not None:
            conditions.append(Vm.project_id.in_(project_ids))
        if cluster_id is not None:
            conditions.append(SecretVm.cluster_id == cluster_id)
        with self.database.reading() as session:
            return vm_records.read(session, self.vms.word, *conditions)

    def latest_artifacts(self, caller: Caller) -> str:
        """The newest image version among the caller's VMs; NotFound without any."""
        roles = self.accounts.roles(caller)
        asked = select(Vm.image_version).where(Vm.wished != "removed").distinct()
        if not caller.is_operator:
            asked = asked.where(Vm.project_id.in_(roles))
        with self.database.reading() as session:
            versions = session.scalars(asked).all()
        if not versions:
            raise NotFound("there are no VMs")
        return max(versions, key=version_key)

    def logs(self, row: Row, service: str, lines: int) -> str:
        """The merged logs of a VM's containers; while there are none, those of its boot."""
        if row.word == "running":
            with contextlib.suppress(Upstream, UpstreamTimeout, Invalid):
                asked = {"service": service, "lines": lines}
                told = self.vms.ask_guest(row.vm.id, "Logs", GuestText, asked)
                if told["text"] or service:
                    return str(told["text"])
        if service:
            return ""
        return "".join(self.vms.log(row.vm.id, "serial", lines))

    def quote(self, row: Row) -> str:
        """The quote of a running VM: hex for TDX, base64 for SEV.

        Conflict when it does not run, Unavailable when its guest gives none in time.
        """
        if row.word != "running":
            raise Conflict(f"vm: is {vm_object.status_of(row)}, and only a running one has a quote")
        try:
            told = self.vms.ask_guest(row.vm.id, "Quote", GuestText, within_s=GUEST_S)
        except (Upstream, UpstreamTimeout, Invalid) as error:
            raise Unavailable(f"the guest gives no quote: {error.message}") from None
        if not told["text"]:
            raise Unavailable("the guest has no TEE that could give a quote")
        return str(told["text"])

    def unquoted(self) -> list[Row]:
        """The running VMs of this interface whose guest has not given a quote since its start."""
        lately = func.coalesce(SecretVm.quoted_ms, 0)
        conditions = (
            Vm.wished == "running",
            Vm.observed == "alive",
            SecretVm.vm_id.is_not(None),
            lately < Vm.started_ms,
        )
        with self.database.reading() as session:
            return vm_records.read(session, self.vms.word, *conditions)

    def note_quote(self, vm_id: str) -> None:
        """Notes that the guest of a VM has given a quote now."""
        now = time.time_ns() // 1_000_000
        with self.database.writing() as session:
            session.execute(update(SecretVm).where(SecretVm.vm_id == vm_id).values(quoted_ms=now))

    def metadata(self, row: Row) -> dict[str, Any] | None:
        """The EIP-8004 metadata of a VM, or None when its maker gave none."""
        given = row.secret.registration if row.secret else None
        return registration.completed(given, vm_object.domain(row, self.config)) if given else None

    def job(self, caller: Caller, job_id: str) -> dict[str, Any]:
        """A job as the interface shows it; NotFound for one of a project that the caller is not in."""
        projects = None if caller.is_operator else frozenset(self.accounts.roles(caller))
        with self.database.reading() as session:
            return jobs.told(jobs.find(session, job_id, projects))

    def jobs(self, caller: Caller, count: int) -> list[dict[str, Any]]:
        """The newest jobs that the caller sees, with what each is about."""
        asked = select(Job).order_by(Job.created_ms.desc(), Job.id).limit(count)
        if not caller.is_operator:
            asked = asked.where(Job.project_id.in_(self.accounts.roles(caller)))
        with self.database.reading() as session:
            return [{**jobs.told(job), "about": job.argument} for job in session.scalars(asked)]

    # Steps ---------------------------------------------------------------------------------------

    def _seen(self, caller: Caller, given: str) -> Row | None:
        with contextlib.suppress(NotFound):
            return self.find(caller, given)
        return None

    def _one(self, is_it: Any, given: str) -> Row:
        with self.database.reading() as session:
            return self._read(session, is_it, given)

    def _read(self, session: Session, is_it: Any, given: str) -> Row:
        found = vm_records.read(session, self.vms.word, is_it)
        if not found:
            raise _missing(given)
        return found[0]

    def _check_unchanged(self, session: Session, vm_id: str, before: Prepared) -> None:
        if vm_records.prepared(self._read(session, Vm.id == vm_id, vm_id)) != before:
            raise Conflict("vm: was changed meanwhile; look at it and ask again")

    def _check_balance(self, row: Row) -> None:
        if row.word in ("running", "starting"):
            return
        size = vm_object.size_of(row, self.config)
        with self.database.reading() as session:
            billing.check(session, self.config, row.vm.project_id, size)

    def _image(self, app: Mapping[str, Any]) -> str:
        """The image of a new VM; Unavailable when this host has none."""
        measured = document.measured_in(app)
        is_dev = measured is not None and measured.environment == "dev"
        return registry.chosen(self.config.image, dev=is_dev)

    def _drawn_name(self) -> str:
        with self.database.reading() as session:
            return names.draw(frozenset(session.scalars(select(Vm.name))))

    def _key_of(self, app_id: bytes) -> bytes:
        """The key that an app's variables are sealed to; Unavailable when the KMS does not give it in time."""
        try:
            told = self.vms.env_key(app_id, within_s=KMS_S)
        except CasemateError as error:
            raise Unavailable(
                f"secrets need the KMS of this host (kms_url), and it cannot be asked: {error.message}"
            ) from None
        return bytes(told["public_key"])


def _missing(given: str) -> NotFound:
    return NotFound(f"VM {given[:64]} not found")


def _role(roles: Mapping[str, ProjectRole], caller: Caller, project_id: str) -> str | None:
    role = roles.get(project_id)
    return str(role) if role else ("admin" if caller.is_operator else None)
