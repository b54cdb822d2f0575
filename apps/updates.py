"""Updates of VMs, and how those of on-chain apps wait for their compose hash to be registered (apps.md section 5)."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import uuid
from dataclasses import asdict, dataclass, replace
from typing import Any

from accounts.roles import Caller
from apps import records
from apps.allowlist import Allowlist, Asked, Verdict, digits
from apps.changes import Changes, is_empty
from apps.cvms import Cvm
from apps.links import Links
from apps.refusals import (
    HASH_NOT_ALLOWED,
    HASH_TO_REGISTER,
    HASH_UNKNOWN,
    INVALID_REQUEST,
    TRANSACTION_NOT_VERIFIED,
    coded,
)
from apps.schemas import CvmChange
from apps.service import App, Apps
from apps.versions import kms_info
from attest import compose
from core.errors import CasemateError, Conflict, Forbidden, Invalid, NotFound
from core.evm import event
from models.app import Provision
from vmm.revisions import Cause
from vmm.schemas import Change

# What a client sends instead of a transaction that is long past.
ALREADY = "already-registered"
HASH_ADDED = "ComposeHashAdded(bytes32)"
_TRANSACTION = re.compile(r"0x[0-9a-fA-F]{64}")
Json = dict[str, Any]


@dataclass(frozen=True)
class Updates:
    """Updates VMs of callers; `links` tells where a prepared one is committed."""

    apps: Apps
    allowlist: Allowlist
    links: Links

    @property
    def changes(self) -> Changes:
        """What applies a change."""
        return Changes(self.apps)

    def patch(
        self,
        caller: Caller,
        cvm: Cvm,
        wanted: CvmChange,
        *,
        prepare_only: str = "",
        compose_hash: str = "",
        transaction_hash: str = "",
    ) -> Json:
        """Applies a change, or the prepared one whose hash was registered meanwhile; its operation's number."""
        if compose_hash:
            return self.commit(caller, cvm, None, compose_hash, transaction_hash)
        change = self.changes.prepared(cvm, wanted)
        only = prepare_only.lower() in ("true", "1")
        if only and not (cvm.kms.is_onchain and change.compose_file):
            raise coded(
                Invalid("only a new compose text of an on-chain app can be prepared"),
                INVALID_REQUEST,
            )
        if change.compose_file and cvm.kms.is_onchain:
            self._check_registered(cvm, change, only)
        return self._apply(caller, cvm, change)

    def commit(
        self, caller: Caller, cvm: Cvm, token: str | None, compose_hash: str, transaction_hash: str
    ) -> Json:
        """Applies the update that waits for a VM, once the chain shows its hash; `token` None: it is not asked."""
        waiting = self._waiting(cvm, token, compose_hash)
        self._check_transaction(cvm, waiting.compose_hash, transaction_hash)
        verdict = self._verdict(cvm, waiting.compose_hash)
        if not verdict.compose_hash:
            raise coded(
                Forbidden(verdict.error or "the contract does not allow this compose hash"),
                HASH_NOT_ALLOWED,
            )
        return self._apply_waiting(caller, cvm, waiting)

    def prepare(self, cvm: Cvm, wanted: CvmChange) -> Json:
        """Checks and keeps another text for a VM, whoever gives the keys; what the client is to commit."""
        change = self.changes.prepared(cvm, wanted)
        text = change.compose_file or cvm.row.compose_file
        compose_hash = compose.compose_hash(text.encode()).hex()
        self._keep(cvm, replace(change, compose_file=text), compose_hash)
        is_onchain = cvm.kms.is_onchain
        return {
            "app_id": cvm.row.app_id,
            "device_id": self.apps.catalog.device_id,
            "compose_hash": compose_hash,
            "kms_info": kms_info(cvm.kms),
            "compose_hash_registered": is_onchain and self._verdict(cvm, compose_hash).compose_hash,
        }

    def commit_prepared(
        self, caller: Caller, cvm: Cvm, compose_hash: str, encrypted_env: str | None
    ) -> Json:
        """Applies what `prepare` kept, with other sealed variables if given; on chain once it is registered."""
        if cvm.kms.is_onchain:
            self.commit(caller, cvm, None, compose_hash, ALREADY)
        else:
            self._apply_waiting(caller, cvm, self._waiting(cvm, None, compose_hash))
        return self.patch(caller, cvm, CvmChange(encrypted_env=encrypted_env))

    def add_instance(self, caller: Caller, app: App, wanted: Json) -> Cvm:
        """Makes one more VM of an app like its oldest one, maybe with another text."""
        of = self.apps.of(app.rows[0].id)
        names = ("docker_compose_file", "pre_launch_script", "encrypted_env")
        change = CvmChange(**{name: wanted[name] for name in names})
        text = self.changes.prepared(of, change).compose_file
        if text and of.kms.is_onchain:
            verdict = self._verdict(of, compose.compose_hash(text.encode()).hex())
            if not verdict.compose_hash:
                raise coded(
                    Forbidden(verdict.error or "the contract does not allow this compose hash"),
                    HASH_NOT_ALLOWED,
                )
        return self.changes.replicate(caller, of, change, wanted["name"])

    def redeploy(self, caller: Caller, app: App, key: str) -> Json:
        """Gives the VM of a revision what it booted then; Conflict when that VM is gone."""
        revision = self.apps.revision(app, key)
        found = self.apps.cvms([revision.vm_id])
        if not found:
            raise coded(Conflict("the CVM of this revision is gone"), INVALID_REQUEST)
        change = Change(
            id=revision.vm_id,
            compose_file=revision.compose_file,
            encrypted_env=revision.encrypted_env,
            user_config=revision.user_config,
        )
        trace_id = str(uuid.uuid4())
        self.changes.apply(found[0], change, Cause(caller.user_id, trace_id, "redeploy"))
        return _accepted(trace_id)

    # Steps ---------------------------------------------------------------------------------------

    def _waiting(self, cvm: Cvm, token: str | None, compose_hash: str) -> Provision:
        with self.apps.database.reading() as session:
            waiting = records.prepared(session, cvm.uuid)
        if waiting is None or not _is_meant(waiting, token, digits(compose_hash)):
            raise _no_update()
        return waiting

    def _apply_waiting(self, caller: Caller, cvm: Cvm, waiting: Provision) -> Json:
        """Applies a kept update, which waits no more from the moment that the VM has it."""
        trace_id = str(uuid.uuid4())
        cause = Cause(caller.user_id, trace_id)
        self.changes.apply(cvm, _change_of(cvm, waiting), cause, waiting)
        return _accepted(trace_id)

    def _apply(self, caller: Caller, cvm: Cvm, change: Change) -> Json:
        trace_id = str(uuid.uuid4())
        if not is_empty(change):
            self.changes.apply(cvm, change, Cause(caller.user_id, trace_id))
        return _accepted(trace_id)

    def _check_registered(self, cvm: Cvm, change: Change, prepare_only: bool) -> None:
        compose_hash = compose.compose_hash(change.compose_file.encode()).hex()
        verdict = self._verdict(cvm, compose_hash)
        if verdict.compose_hash and not prepare_only:
            return
        token = self._keep(cvm, change, compose_hash)
        commit = f"{self.links.base}/cvms/{cvm.uuid}/commit-update"
        raise coded(
            Conflict("the compose hash must be registered on chain before this update is made"),
            HASH_TO_REGISTER,
            details={
                "compose_hash": compose_hash,
                "app_id": cvm.row.app_id,
                "device_id": self.apps.catalog.device_id,
                "kms_info": kms_info(cvm.kms),
                "commit_token": token,
                "commit_url": commit,
                "api_commit_url": commit,
                "onchain_status": _status(verdict),
            },
            suggestion="register the hash with addComposeHash, then commit the update",
        )

    def _keep(self, cvm: Cvm, change: Change, compose_hash: str) -> str:
        """Keeps an update instead of the one that waited for the VM before; the token to commit it with."""
        token = secrets.token_urlsafe(32)
        kept = asdict(change) | {"encrypted_env": change.encrypted_env.hex(), "compose_file": ""}
        provision = Provision(
            project_id=cvm.row.project_id,
            vm_id=cvm.uuid,
            token=hashlib.sha256(token.encode()).digest(),
            app_id=cvm.row.app_id,
            compose_hash=compose_hash,
            compose_file=change.compose_file,
            wanted=kept,
            created_ms=records.now_ms(),
        )
        with self.apps.database.writing() as session:
            records.add_provision(session, provision)
        return token

    def _verdict(self, cvm: Cvm, compose_hash: str) -> Verdict:
        asked = Asked(compose_hash, self.apps.catalog.device_id)
        return self.allowlist.verdicts(cvm.row.app_id, cvm.kms.chain_id, [asked])[0]

    def _check_transaction(self, cvm: Cvm, compose_hash: str, transaction: str) -> None:
        """Refuses a transaction that did not register the hash with the app's contract."""
        if transaction in ("", ALREADY):  # then the contract's state alone decides
            return
        if not _TRANSACTION.fullmatch(transaction):
            raise _not_verified("transaction_hash: must be 0x and 64 hex digits")
        try:
            reader = self.allowlist.chains.reader(cvm.kms.chain_id or 0)
            receipt = reader.receipt(transaction)
        except CasemateError as error:
            raise _not_verified(error.message) from None
        if receipt is None or receipt.get("status") != "0x1":
            raise _not_verified("the transaction is in no block, or failed")
        if not event_of(receipt, cvm.row.app_id, compose_hash):
            raise _not_verified("the transaction did not register this compose hash for this app")


def event_of(receipt: Json, app_id: str, compose_hash: str) -> bool:
    """Whether a receipt has the event by which an app's contract tells of a new compose hash."""
    topic, logs = event(HASH_ADDED), receipt.get("logs")
    for log in logs if isinstance(logs, list) else []:
        if not isinstance(log, dict) or digits(str(log.get("address"))) != app_id:
            continue
        topics = [digits(str(each)) for each in log.get("topics") or ()]
        # The argument is in the data, or among the topics where the contract's author indexed it.
        if topics[:1] == [topic] and compose_hash in (*topics[1:], digits(str(log.get("data")))):
            return True
    return False


def _is_meant(waiting: Provision, token: str | None, compose_hash: str) -> bool:
    given = hashlib.sha256((token or "").encode()).digest()
    is_named = token is None or hmac.compare_digest(given, waiting.token or b"")
    return is_named and compose_hash in ("", waiting.compose_hash)


def _change_of(cvm: Cvm, waiting: Provision) -> Change:
    kept = dict(waiting.wanted)
    return Change(
        **{
            **kept,
            "id": cvm.uuid,
            "compose_file": waiting.compose_file,
            "encrypted_env": bytes.fromhex(kept["encrypted_env"]),
        }
    )


def _status(verdict: Verdict) -> Json:
    return {
        "compose_hash_allowed": verdict.compose_hash,
        "device_id_allowed": verdict.any_device or bool(verdict.device),
        "is_allowed": verdict.is_allowed,
    }


def _accepted(trace_id: str) -> Json:
    return {
        "status": "in_progress",
        "message": "the change is made; a running CVM was started anew",
        "correlation_id": trace_id,
    }


def _no_update() -> NotFound:
    return coded(
        NotFound("compose_hash: no update waits under this hash or token, or not any more"),
        HASH_UNKNOWN,
        suggestion="prepare the update again",
    )


def _not_verified(reason: str) -> Conflict:
    return coded(Conflict(reason), TRANSACTION_NOT_VERIFIED)
