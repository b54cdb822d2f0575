"""Authorisation by a file: a JSON document that is read anew for every decision, and changing it.

Source: kms.md section 5 (dstack's auth-simple, with an empty device list that allows no device).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from attest.boot_info import BootInfo
from core import files
from core.errors import Invalid
from kms.decision import Decision, Policy

logger = logging.getLogger(__name__)

MAX_FILE = 16 * 1024 * 1024
_UP_TO_DATE = ["UpToDate"]
_LISTS = ("osImages", "allowedTcbStatuses", "allowedAdvisoryIds")

Document = dict[str, Any]


def normal(hash_text: str) -> str:
    """A hash or id as it is compared: lower case, without 0x."""
    return hash_text.lower().removeprefix("0x")


def read(path: Path) -> Document:
    """The document; an absent file is an empty one, which allows nothing.  Invalid when it is broken."""
    try:
        given = json.loads(files.read_capped(path, MAX_FILE))
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError):
        raise Invalid(f"{path.name} is not valid JSON") from None
    return _checked(given, path.name)


def _checked(given: object, name: str) -> Document:
    if not isinstance(given, dict):
        raise Invalid(f"{name} must be a JSON object")
    for key in _LISTS:
        _texts(given, key)
    kms = _object(given, "kms")
    _texts(kms, "mrAggregated")
    _texts(kms, "devices")
    for app in _object(given, "apps").values():
        if not isinstance(app, dict):
            raise Invalid.field("apps", "must map app ids to objects")
        _texts(app, "composeHashes")
        _texts(app, "devices")
    return given


def _texts(given: Mapping[str, Any], key: str, absent: list[str] | None = None) -> list[str]:
    value = given.get(key, absent or [])
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise Invalid.field(key, "must be a list of strings")
    return value


def _object(given: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = given.get(key, {})
    if not isinstance(value, dict):
        raise Invalid.field(key, "must be an object")
    return value


class PolicyFile:
    """Decisions by the file at `path`; one that cannot be read allows nothing."""

    is_dev = False

    def __init__(self, path: Path) -> None:
        self._path = path

    def app(self, boot: BootInfo) -> Decision:
        """Whether the file lists the app with this compose hash on this device."""
        return self._decide(lambda document: _platform(document, boot) or _app(document, boot))

    def kms(self, boot: BootInfo) -> Decision:
        """Whether the file lists the measurements of this KMS and its device."""
        return self._decide(lambda document: _platform(document, boot) or _kms(document, boot))

    def policy(self) -> Policy:
        """What the file says beside its lists."""
        document = read(self._path)
        chain_id = document.get("chainId", 0)
        return Policy(
            gateway_app_id=str(document.get("gatewayAppId", "")),
            kms_contract=str(document.get("kmsContractAddr", "")),
            chain_id=chain_id if isinstance(chain_id, int) else 0,
            app_implementation=str(document.get("appImplementation", "")),
        )

    def _decide(self, why_not: Callable[[Document], str]) -> Decision:
        try:
            document = read(self._path)
        except (Invalid, OSError) as error:
            logger.error("the policy file cannot be used, so nothing is allowed: %s", error)
            return Decision(False, "the policy file cannot be read")
        reason = why_not(document)
        return Decision(not reason, reason, str(document.get("gatewayAppId", "")))


def _has(texts: list[str], value: bytes) -> bool:
    return value.hex() in {normal(text) for text in texts}


def _platform(document: Document, boot: BootInfo) -> str:
    """Why the platform is not good enough; empty when it is."""
    statuses = _texts(document, "allowedTcbStatuses", _UP_TO_DATE)
    if boot.tcb_status not in statuses:
        return "TCB status is not allowed"
    if not set(boot.advisory_ids) <= set(_texts(document, "allowedAdvisoryIds")):
        return "advisory ID is not allowed"
    if not _has(_texts(document, "osImages"), boot.os_image_hash):
        return "OS image is not allowed"
    return ""


def _kms(document: Document, boot: BootInfo) -> str:
    kms = _object(document, "kms")
    if not _has(_texts(kms, "mrAggregated"), boot.mr_aggregated):
        return "aggregated MR not allowed"
    if not _on_device(kms, boot):
        return "KMS is not allowed to boot on this device"
    return ""


def _app(document: Document, boot: BootInfo) -> str:
    app = find_app(document, boot.app_id.hex())
    if app is None:
        return "app not registered"
    if not _has(_texts(app, "composeHashes"), boot.compose_hash):
        return "compose hash not allowed"
    if not _on_device(app, boot):
        return "app is not allowed to boot on this device"
    return ""


def _on_device(entry: Mapping[str, Any], boot: BootInfo) -> bool:
    return entry.get("allowAnyDevice") is True or _has(_texts(entry, "devices"), boot.device_id)


def find_app(document: Document, app_id: str) -> dict[str, Any] | None:
    """The entry of an app, however its id is written; None when it has none."""
    for name, entry in _object(document, "apps").items():
        if normal(name) == normal(app_id):
            found: dict[str, Any] = entry
            return found
    return None


def change(path: Path, edit: Callable[[Document], None]) -> Document:
    """Changes the file as one step, kept out of the way of other changes; returns what it holds then."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with files.locked(path.with_name(f".{path.name}.lock")):
        document = read(path)
        edit(document)
        files.write_atomic(path, json.dumps(_checked(document, path.name), indent=2) + "\n")
    return document


def add(texts: list[str], value: str) -> None:
    """Puts a hash into a list of the document once."""
    if normal(value) not in map(normal, texts):
        texts.append(normal(value))


def drop(texts: list[str], value: str) -> bool:
    """Takes a hash out of a list of the document; whether it was there."""
    kept = [text for text in texts if normal(text) != normal(value)]
    found = len(kept) < len(texts)
    texts[:] = kept
    return found
