"""The Host API: what a guest may ask of its host, and what it tells (vmm.md sections 5 and 10).

The caller is the VM whose channel it is.  Everything a guest says is stored as data and acted on only in the
few ways listed here.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable

from core.config import Config
from core.errors import Invalid, NotFound, RateLimited, Unsupported
from core.messages import (
    GetSealingKeyRequest,
    GetSealingKeyResponse,
    HostInfo,
    JobReceipt,
    JobReport,
    Note,
    Notification,
    Report,
)
from core.prpc import Empty, Service
from models.base import Database
from models.vm import Vm
from vmm import key_provider, records
from vmm.lifecycle import Wished
from vmm.version import VERSION
from vmm.workdir import WorkDir

PAYLOAD_LIMIT = 4096
EVENT_LIMIT = 256
# A guest wants its sealing key once a boot; while the provider is asked, the other guests' serial ports wait.
SEALING_PAUSE_S = 10.0

_HEX_ID = re.compile(r"[0-9a-f]{40}|")


# Takes what the runner of a VM reports; answers from which byte on it wants the output.  Unavailable has it told again.
Heard = Callable[[str, Report], int]


class HostApi:
    """The Host API as one VM sees it."""

    def __init__(
        self, vm_id: str, config: Config, database: Database, heard: Heard | None = None
    ) -> None:
        self.vm_id = vm_id
        self.config = config
        self.database = database
        self.sealing_after = 0.0
        self.service = Service("HostApi")
        self.service.method("Info", Empty, HostInfo)(self.info)
        self.service.method("Notify", Notification, Empty)(self.notify)
        self.service.method("GetSealingKey", GetSealingKeyRequest, GetSealingKeyResponse)(
            self.get_sealing_key
        )
        if heard is not None:
            self.service.method("Job", JobReport, JobReceipt)(
                lambda report: {"offset": heard(vm_id, report)}
            )

    def answer(self, method: str, params: object) -> object:
        """Answers one call of the guest; refusals are CasemateErrors."""
        return self.service.find(method).call(params)

    def info(self, _: object) -> dict[str, str]:
        """The host's name and version."""
        return {"name": self.config.node_name or "casemate", "version": VERSION}

    def get_sealing_key(self, given: dict[str, bytes]) -> dict[str, bytes]:
        """Relays a quote to the SGX key provider of this host and returns what it gives for it."""
        settings = self.config.key_provider
        if not settings.enabled:
            raise Unsupported("Key provider is not enabled")
        if time.monotonic() < self.sealing_after:
            pause_s = int(SEALING_PAUSE_S)
            raise RateLimited(f"one sealing key in {pause_s} s; try again", retry_after_s=pause_s)
        self.sealing_after = time.monotonic() + SEALING_PAUSE_S
        return key_provider.sealing_key(given["quote"], settings.address, settings.port)

    def notify(self, note: Note) -> None:
        """Keeps an event of the guest and acts on those with a meaning."""
        if len(note.payload.encode()) > PAYLOAD_LIMIT or not 0 < len(note.event) <= EVENT_LIMIT:
            raise Invalid(
                f"an event needs a name of 1 to {EVENT_LIMIT} characters and at most "
                f"{PAYLOAD_LIMIT} bytes of payload"
            )
        if note.event == "instance.info":
            instance_id = self._keep_instance_info(note.payload)
        with self.database.writing() as session:
            vm = records.get(session, self.vm_id)
            if note.event == "instance.info":
                vm.instance_id = instance_id or None
            else:
                _apply(vm, note)
            # The service's own events cannot be forged by a guest.
            name = f"guest.{note.event}" if note.event.startswith("vmm.") else note.event
            records.add_event(
                session, self.vm_id, name, note.payload, self.config.event_buffer_size
            )

    def _keep_instance_info(self, payload: str) -> str:
        try:
            given = json.loads(payload)
            info = {
                key: str(given.get(key) or "").lower()
                for key in ("app_id", "instance_id", "instance_id_seed")
            }
        except (ValueError, AttributeError, RecursionError):
            raise Invalid("instance.info must be a JSON object") from None
        for key, value in info.items():
            if not _HEX_ID.fullmatch(value):
                raise Invalid.field(key, "must be 40 hex digits or empty")
        try:
            WorkDir(self.config.run_path / self.vm_id).share_json(".instance_info", info)
        except FileNotFoundError:  # the last words of a VM that is removed
            raise NotFound(f"VM {self.vm_id} not found") from None
        return info["instance_id"]


def _apply(vm: Vm, note: Note) -> None:
    match note.event:
        case "boot.progress":
            vm.boot_progress = note.payload
        case "boot.error":
            vm.boot_error = note.payload
        case "shutdown.progress":
            vm.shutdown_progress = note.payload
            if note.payload == "powering off" and vm.wished == Wished.RUNNING:
                # It ends because it wants to: nobody should start it again.
                vm.wished = Wished.SHUTDOWN
