"""The bodies of `POST /verify`: attestation.md section 6."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, cast

from marshmallow import EXCLUDE, Schema, ValidationError, fields, post_load, pre_load

from attest.verified import AppInfo, Verified
from core.errors import Invalid
from core.prpc import read_json

MAX_BODY = 10 * 1024**2

_HEX = re.compile(r"(?:0x)?([0-9a-fA-F]*)")


@dataclass(frozen=True)
class Request:
    """Evidence to verify: an attestation, or a quote with its log and configuration (texts, may be empty)."""

    attestation: bytes = b""
    quote: bytes = b""
    event_log: str = ""
    vm_config: str = ""
    collateral: str = ""


class _Hex(fields.Field[bytes]):
    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> bytes:
        match = _HEX.fullmatch(value) if isinstance(value, str) else None
        if not match or len(match[1]) % 2:
            raise ValidationError("must be hex text with an even number of digits")
        return bytes.fromhex(match[1])


class _JsonText(fields.Field[str]):
    """A JSON text, or the object itself as its author would have written it."""

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> str:
        if isinstance(value, dict):
            return json.dumps(value)
        if not isinstance(value, str):
            raise ValidationError("must be a JSON text")
        return value


class RequestSchema(Schema):
    """Reads a request; an attestation wins, and quote, event_log and vm_config are then not even looked at."""

    class Meta:
        """Unknown fields are ignored, `debug` among them."""

        unknown = EXCLUDE

    attestation = _Hex()
    quote = _Hex()
    event_log = fields.String()
    vm_config = fields.String()
    collateral = _JsonText()

    @pre_load
    def _only_what_counts(self, given: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        present = {name: value for name, value in given.items() if value not in (None, "")}
        if "attestation" in present:
            return {
                name: present[name] for name in ("attestation", "collateral") if name in present
            }
        return present

    @post_load
    def _made(self, given: dict[str, Any], **kwargs: Any) -> Request:
        return Request(**given)


def read(body: bytes) -> Request:
    """The request in a body; Invalid when it is none."""
    given = read_json(body)
    if not isinstance(given, dict):
        raise Invalid("the request must be a JSON object")
    try:
        request: Request = RequestSchema().load(given)
    except ValidationError as error:
        # A mapping of field names to lists of reasons: this schema has no others.
        messages = cast(dict[str, list[str]], error.messages)
        name, reasons = next(iter(messages.items()))
        raise Invalid.field(name, reasons[0]) from None
    if not request.attestation and not request.quote:
        raise Invalid("either attestation or quote is required")
    return request


def answer(verified: Verified) -> dict[str, object]:
    """The answer as clients read it; bytes as lower-case hex, what was not reached as null."""
    provider = verified.key_provider
    details = {
        "quote_verified": verified.quote_verified,
        "event_log_verified": verified.event_log_verified,
        "os_image_hash_verified": verified.os_image_hash_verified,
        "acpi_tables_verified": verified.acpi_tables_verified,
        "os_image_is_dev": verified.os_image_is_dev,
        "os_image_version": verified.os_image_version,
        "tee_variant": verified.tee_variant,
        "root": verified.root,
        "report_data": verified.report_data.hex(),
        "tcb_status": verified.tcb_status or None,
        "advisory_ids": list(verified.advisory_ids),
        "key_provider": {"name": provider.name, "id": provider.id} if provider else None,
        "app_info": _app_info(verified.app_info) if verified.app_info else None,
        "boot_info": verified.boot_info.to_json() if verified.boot_info else None,
    }
    return {"is_valid": verified.is_valid, "reason": verified.reason, "details": details}


def _app_info(info: AppInfo) -> dict[str, str]:
    registers = {f"rtmr{imr}": value.hex() for imr, value in enumerate(info.rtmrs)}
    return {
        "app_id": info.app_id.hex(),
        "compose_hash": info.compose_hash.hex(),
        "instance_id": info.instance_id.hex(),
        "device_id": info.device_id.hex(),
        "mrtd": info.mrtd.hex(),
        **({f"rtmr{imr}": "" for imr in range(4)} | registers),
        "mr_system": info.mr_system.hex(),
        "mr_aggregated": info.mr_aggregated.hex(),
        "os_image_hash": info.os_image_hash.hex(),
        "key_provider_info": info.key_provider_info.hex(),
    }
