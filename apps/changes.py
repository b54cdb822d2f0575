"""Changes of VMs that are there: power, update, removal, one more of an app (apps.md section 5)."""

from __future__ import annotations

import time
import uuid
from dataclasses import asdict, dataclass, replace
from typing import Any

from accounts.roles import Caller
from apps import documents, records
from apps.cvms import Cvm
from apps.deployments import (
    Deployments,
    check_room,
    sealed,
    told_apart,
)
from apps.refusals import IMAGE_NOT_FOUND, coded
from apps.schemas import CvmChange
from apps.service import Apps
from core.errors import CasemateError, Invalid, NotFound, Unavailable
from models.app import CvmProfile, Provision
from vmm.records import Owner
from vmm.revisions import Cause
from vmm.schemas import Change, Configuration

# What a guest has to end by itself before it is ended: clients wait 30 s for an answer.
GRACE_S = 12.0
POLL_S = 0.2


@dataclass(frozen=True)
class Changes:
    """Changes the VMs of callers."""

    apps: Apps

    # Power ---------------------------------------------------------------------------------------

    def start(self, caller: Caller, name: str) -> Cvm:
        """Starts a VM; a running one stays as it is."""
        return self._done(self._start, self.apps.find(caller, name).id)

    def stop(self, caller: Caller, name: str) -> Cvm:
        """Ends a VM by force; a stopped one stays as it is."""
        return self._done(self.apps.vms.stop, self.apps.find(caller, name).id)

    def shutdown(self, caller: Caller, name: str) -> Cvm:
        """Asks a VM to power off; one that does not run is left alone."""
        row = self.apps.find(caller, name)
        if self.apps.status(row) == "running":
            return self._done(self.apps.vms.shutdown, row.id)
        return self.apps.of(row.id)

    def restart(self, caller: Caller, name: str, *, force: bool) -> Cvm:
        """Ends a VM, by force or after some seconds of grace, and starts it."""
        vm_id = self.apps.find(caller, name).id
        self._end(vm_id, grace_s=0 if force else GRACE_S)
        return self._done(self._start, vm_id)

    def remove(self, caller: Caller, name: str) -> None:
        """Marks a VM for removal with all it had."""
        self.apps.vms.remove(self.apps.find(caller, name).id)

    def _done(self, verb: Any, vm_id: str) -> Cvm:
        verb(vm_id)
        return self.apps.of(vm_id)

    def _start(self, vm_id: str) -> None:
        try:
            self.apps.vms.start(vm_id)
        except CasemateError as error:
            raise told_apart(error) from None

    def _end(self, vm_id: str, grace_s: float) -> None:
        deadline = time.monotonic() + grace_s
        if grace_s and self._is_up(vm_id):
            try:
                self.apps.vms.shutdown(vm_id)
            except (Invalid, Unavailable):  # it has ended meanwhile, or nobody in it listens
                deadline = 0
            while self._is_up(vm_id) and time.monotonic() < deadline:
                time.sleep(POLL_S)
        self.apps.vms.stop(vm_id)

    def _is_up(self, vm_id: str) -> bool:
        found = self.apps.vms.info(vm_id)
        return found is not None and found["status"] in ("running", "stopping", "starting")

    # Update --------------------------------------------------------------------------------------

    def update(self, caller: Caller, cvm: Cvm, wanted: CvmChange) -> str:
        """Changes a VM and, when it runs, starts it anew; returns the number of the operation."""
        trace_id = str(uuid.uuid4())
        change = self.prepared(cvm, wanted)
        if not is_empty(change):
            self.apply(cvm, change, Cause(caller.user_id, trace_id))
        return trace_id

    def apply(
        self, cvm: Cvm, change: Change, cause: Cause, promise: Provision | None = None
    ) -> None:
        """Applies a checked change of a VM, around which a running one is ended and started.

        The `promise` that it keeps is taken together with the change of its row.
        """
        was_up = self._is_up(cvm.uuid)
        if was_up:
            self._end(cvm.uuid, GRACE_S)
        try:
            publish = documents.published(change.compose_file) if change.compose_file else None
            has_new_size = bool(change.vcpu or change.memory)
            self.apps.vms.update(
                change,
                publish,
                cause,
                lambda session: records.note_changed(
                    session, cvm.uuid, promise, has_new_size=has_new_size
                ),
            )
        except CasemateError as error:
            raise told_apart(error) from None
        finally:
            if was_up:
                self._start(cvm.uuid)

    def prepared(self, cvm: Cvm, wanted: CvmChange) -> Change:
        """A change in the VM manager's words, checked as far as that can be done beforehand."""
        given = {name: value for name, value in asdict(wanted).items() if value is not None}
        documents.check_compose(wanted.docker_compose_file, wanted.pre_launch_script)
        text = documents.changed(cvm, given)
        if text:
            documents.check(self.apps.vms, cvm.row.name, text)
        check_room(self.apps, wanted.vcpu or 1, wanted.memory or 1)
        return Change(
            id=cvm.uuid,
            compose_file=text,
            encrypted_env=sealed(wanted.encrypted_env),
            user_config=wanted.user_config or "",
            vcpu=wanted.vcpu,
            memory=wanted.memory,
            disk_size=wanted.disk_size,
            image=self._image(wanted.image),
        )

    def _image(self, name: str | None) -> str | None:
        if not name:
            return None
        found = self.apps.catalog.image_named(name)
        if found is None:
            raise coded(NotFound(f"image: this host has no {name[:64]}"), IMAGE_NOT_FOUND)
        return found.name

    # One more ------------------------------------------------------------------------------------

    def replicate(self, caller: Caller, of: Cvm, wanted: CvmChange, name: str | None = None) -> Cvm:
        """Makes one more VM of an app like one that it has, maybe with another text."""
        change = self.prepared(of, wanted)
        row = of.row
        configuration = Configuration(
            name=name or f"{row.name[:50]}-{uuid.uuid4().hex[:6]}",
            image=row.image,
            compose_file=change.compose_file or row.compose_file,
            vcpu=row.vcpu,
            memory=row.memory_mb,
            disk_size=row.disk_gb,
            encrypted_env=change.encrypted_env or row.encrypted_env,
            app_id=row.app_id,
            user_config=row.user_config,
            kms_urls=list(row.options.get("kms_urls") or []),
            gateway_urls=list(row.options.get("gateway_urls") or []),
            no_tee=row.no_tee,
            simulated_tee=row.simulated_tee,
        )
        profile = CvmProfile(
            kms=of.kms.slug,
            instance_type=row.instance_type,
            listed=bool(row.listed),
            deployer=row.deployer,
            env_key=row.env_key,
        )
        owner = Owner(row.project_id, caller.user_id)
        vm_id = Deployments(self.apps).make(owner, configuration, profile, "replicate")
        return self.apps.of(vm_id)


def is_empty(change: Change) -> bool:
    """Whether a change changes nothing."""
    return change == replace(Change(change.id))
