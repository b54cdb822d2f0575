"""Whether contracts let apps run: rows that are the same however the chain was asked (apps.md sections 3.8 to 4).

A value that cannot be read is never told as a "no": the row has an `error`, and nothing is allowed then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from accounts.roles import Caller
from apps.chains import Answer, Chains
from apps.names import bare_app_id
from apps.refusals import NODE_NOT_FOUND, coded
from apps.schemas import Allowance
from apps.service import App, Apps
from core.errors import CasemateError, NotFound, Upstream
from core.evm import Call, encode
from rest.blueprint import BadArguments

NO_CONTRACT = "there is no contract at this address"


@dataclass(frozen=True)
class Asked:
    """One question: may this text run on this device?  Hex digits without prefix; no device is ""."""

    compose_hash: str
    device_id: str
    row: Any = None  # of the VM that is asked about


@dataclass(frozen=True)
class Verdict:
    """What a contract says to it; None where it could not be read."""

    asked: Asked
    compose_hash: bool = False
    any_device: bool = False
    device: bool | None = None
    error: str | None = None

    @property
    def is_allowed(self) -> bool:
        """The rule of the interface."""
        device = self.any_device or bool(self.device)
        return self.error is None and self.compose_hash and device


@dataclass(frozen=True)
class Allowlist:
    """The contracts of apps."""

    apps: Apps
    chains: Chains

    # The four calls ------------------------------------------------------------------------------

    def of_app(self, caller: Caller, name: str, wanted: Allowance) -> dict[str, Any]:
        """Whether an app that need not be here may run a text on a device."""
        app_id = bare_app_id(name)
        if app_id is None:
            raise BadArguments("path", {"app_id": ["must be 40 hex digits"]})
        rows = self.apps.rows(caller, app_id)
        asked = Asked(digits(wanted.compose_hash), self._device(wanted))
        return answer(app_id, self.verdicts(app_id, self._chain_of(rows, wanted), [asked])[0])

    def of_cvm(self, caller: Caller, name: str, wanted: Allowance) -> tuple[Any, dict[str, Any]]:
        """Whether a CVM's app may run it: the CVM's row, and the answer."""
        cvm = self.apps.cvm(caller, name)
        device = self._device(wanted) or self.apps.catalog.device_id
        asked = Asked(digits(wanted.compose_hash) or cvm.compose_hash, device, cvm.row)
        app_id = cvm.row.app_id
        verdict = self.verdicts(app_id, self._chain_of([cvm.row], wanted), [asked])[0]
        return cvm.row, answer(app_id, verdict)

    def of_cvms(self, app: App) -> list[Verdict] | None:
        """Whether an app's contract lets each of its VMs run; None off chain."""
        chain_id = self._onchain(app.rows)
        if chain_id is None:
            return None
        device = self.apps.catalog.device_id
        asked = [
            Asked(cvm.compose_hash, device, cvm.row)
            for cvm in self.apps.cvms([row.id for row in app.rows])
            if cvm.row.compose_file
        ]
        return self.verdicts(app.id, chain_id, asked) if asked else []

    def devices(self, app: App, write_id: Any) -> dict[str, Any]:
        """The devices that an app runs on, and whether its contract allows each."""
        chain_id = self._onchain(app.rows)
        if chain_id is None:
            return {
                "is_onchain_kms": False,
                "allow_any_device": None,
                "chain_id": None,
                "app_contract_address": None,
                "devices": [],
            }
        device = self.apps.catalog.device_id
        verdict = self.verdicts(app.id, chain_id, [Asked("", device)])[0]
        allowed = verdict.error is None and (verdict.any_device or bool(verdict.device))
        return {
            "is_onchain_kms": True,
            "allow_any_device": None if verdict.error else verdict.any_device,
            "chain_id": chain_id,
            "app_contract_address": f"0x{app.id}",
            "devices": [
                {
                    "device_id": device,
                    "node_name": self.apps.catalog.node_name,
                    "cvm_ids": [write_id(row) for row in app.rows],
                    "allowed_onchain": allowed,
                    "status": "error" if verdict.error else "allowed" if allowed else "not_allowed",
                }
            ],
        }

    # Steps ---------------------------------------------------------------------------------------

    def _onchain(self, rows: Sequence[Any]) -> int | None:
        """The chain that an app's VMs are registered on, or None."""
        ids = (self._kms(row).chain_id for row in rows)
        return next((chain_id for chain_id in ids if chain_id is not None), None)

    def _kms(self, row: Any) -> Any:
        return self.apps.catalog.kms_of(row.kms, row.options.get("kms_urls") or [])

    def _chain_of(self, rows: Sequence[Any], wanted: Allowance) -> int | None:
        """The chain to ask: named, else of the app's VMs, else of the only entry that has one."""
        if wanted.chain_id is not None:
            return wanted.chain_id
        if rows:
            return self._onchain(rows)
        known = {each.chain_id for each in self.apps.catalog.kms if each.is_onchain}
        return known.pop() if len(known) == 1 else None

    def _device(self, wanted: Allowance) -> str:
        if wanted.node_id is None:
            return digits(wanted.device_id)
        if wanted.node_id != self.apps.config.apps.node_id:
            raise coded(NotFound(f"node {wanted.node_id} not found"), NODE_NOT_FOUND)
        return self.apps.catalog.device_id

    def verdicts(self, app_id: str, chain_id: int | None, asked: Sequence[Asked]) -> list[Verdict]:
        """What the contract says to each question; every one has the error when it cannot be asked."""
        if chain_id is None:
            return [
                Verdict(each, error="this app is on no chain that this host knows")
                for each in asked
            ]
        contract = bytes.fromhex(app_id)
        calls = [Call(contract, encode("allowAnyDevice()"))]
        calls += [asking(contract, "allowedComposeHashes", each.compose_hash) for each in asked]
        calls += [asking(contract, "allowedDeviceIds", each.device_id) for each in asked]
        try:
            any_device, *told = self.chains.reader(chain_id).calls(calls)
        except CasemateError as error:
            return [Verdict(each, error=error.message) for each in asked]
        pairs = zip(asked, told[: len(asked)], told[len(asked) :], strict=True)
        return [_verdict(each, any_device, text, device) for each, text, device in pairs]


def asking(contract: bytes, function: str, value: str) -> Call:
    """The question whether a contract's list has a value of 32 bytes (hex); "" is asked as zeros."""
    return Call(contract, encode(f"{function}(bytes32)", bytes.fromhex(value or "00" * 32)))


def _verdict(asked: Asked, any_device: Answer, text: Answer, device: Answer) -> Verdict:
    read: dict[str, Any] = {}
    told_of = {"any_device": any_device}
    # What was not asked about has no answer, whatever the contract made of the zeros in its place.
    told_of |= {"compose_hash": text} if asked.compose_hash else {}
    told_of |= {"device": device} if asked.device_id else {}
    for name, told in told_of.items():
        try:
            read[name] = flag(told)
        except Upstream as error:
            read["error"] = read.get("error") or error.message
    return Verdict(asked, **read)


def flag(told: Answer) -> bool:
    """A bool of a contract: one word, 0 or 1.  Nothing at all means that no contract is there."""
    if isinstance(told, CasemateError):
        raise told
    if not told:
        raise Upstream(NO_CONTRACT)
    if len(told) != 32 or int.from_bytes(told) > 1:
        raise Upstream("the contract's answer is not of the expected form")
    return bool(told[-1])


def answer(app_id: str, verdict: Verdict) -> dict[str, Any]:
    """A verdict as the interface writes it."""
    return {
        "app_contract_address": f"0x{app_id}",
        "compose_hash": verdict.asked.compose_hash,
        "device_id": verdict.asked.device_id,
        "compose_hash_allowed": verdict.compose_hash,
        "allow_any_device": verdict.any_device,
        "device_id_allowed": verdict.device,
        "is_allowed": verdict.is_allowed,
        "error": verdict.error,
    }


def batch(app: App, verdicts: list[Verdict] | None, write_id: Any) -> dict[str, Any]:
    """The verdicts on all VMs of an app as the interface writes them."""
    told = verdicts or []
    checked = {each.asked.row.id for each in told}
    errors = sum(each.error is not None for each in told)
    allowed = sum(each.is_allowed for each in told)
    return {
        "is_onchain": verdicts is not None,
        "results": [{**answer(app.id, each), "cvm_id": write_id(each.asked.row)} for each in told],
        "total": len(told),
        "allowed_count": allowed,
        "denied_count": len(told) - allowed - errors,
        "error_count": errors,
        "skipped_cvm_ids": [write_id(row) for row in app.rows if row.id not in checked]
        if verdicts is not None
        else [],
    }


def digits(text: str | None) -> str:
    """Hex digits, lower case and without prefix."""
    return (text or "").lower().removeprefix("0x")
