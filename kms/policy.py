"""Authorisation by a file: a JSON document that is read anew for every decision.

Source: kms.md section 5 (dstack's auth-simple, with an empty device list that allows no device).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from attest.boot_info import BootInfo
from core.errors import Invalid
from core.policy_file import Document, entries, find_app, normal, read, texts
from kms.decision import Decision, Policy

logger = logging.getLogger(__name__)

_UP_TO_DATE = ["UpToDate"]


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
            gateway_app_id=str(document.get("gatewayAppId") or ""),
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
        return Decision(not reason, reason, str(document.get("gatewayAppId") or ""))


def _has(listed: list[str], value: bytes) -> bool:
    return value.hex() in {normal(text) for text in listed}


def _platform(document: Document, boot: BootInfo) -> str:
    """Why the platform is not good enough; empty when it is."""
    statuses = texts(document, "allowedTcbStatuses", _UP_TO_DATE)
    if boot.tcb_status not in statuses:
        return "TCB status is not allowed"
    if not set(boot.advisory_ids) <= set(texts(document, "allowedAdvisoryIds")):
        return "advisory ID is not allowed"
    if not _has(texts(document, "osImages"), boot.os_image_hash):
        return "OS image is not allowed"
    return ""


def _kms(document: Document, boot: BootInfo) -> str:
    kms = entries(document, "kms")
    if not _has(texts(kms, "mrAggregated"), boot.mr_aggregated):
        return "aggregated MR not allowed"
    if not _on_device(kms, boot):
        return "KMS is not allowed to boot on this device"
    return ""


def _app(document: Document, boot: BootInfo) -> str:
    app = find_app(document, boot.app_id.hex())
    if app is None:
        return "app not registered"
    if not _has(texts(app, "composeHashes"), boot.compose_hash):
        return "compose hash not allowed"
    if not _on_device(app, boot):
        return "app is not allowed to boot on this device"
    return ""


def _on_device(entry: Mapping[str, Any], boot: BootInfo) -> bool:
    return entry.get("allowAnyDevice") is True or _has(texts(entry, "devices"), boot.device_id)
