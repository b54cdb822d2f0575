"""The business refusals of the apps interface: their codes, statuses and bodies (apps.md section 1, "Errors"; pure)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from core.errors import CasemateError, Invalid

NODE_NOT_FOUND = "ERR-01-001"
COMPOSE_MISSING = "ERR-01-002"
COMPOSE_INVALID = "ERR-01-003"
NAME_TAKEN = "ERR-01-004"
HASH_TO_REGISTER = "ERR-01-005"
HASH_UNKNOWN = "ERR-01-006"
TRANSACTION_NOT_VERIFIED = "ERR-01-007"
HASH_NOT_ALLOWED = "ERR-01-008"
INSTANCE_TYPE_NOT_FOUND = "ERR-02-001"
NO_CAPACITY = "ERR-02-002"
NO_VCPU = "ERR-02-003"
NO_MEMORY = "ERR-02-004"
NO_SLOT = "ERR-02-005"
INVALID_REQUEST = "ERR-02-008"
IMAGE_NOT_FOUND = "ERR-02-010"
KMS_NOT_FOUND = "ERR-02-011"
IMAGE_NOT_FIT = "ERR-02-013"
CVM_NOT_FOUND = "ERR-03-001"
NAME_AMBIGUOUS = "ERR-03-002"
APP_ID_CONFLICT = "ERR-03-007"

# Where the interface wants another status than the class of the error has.
STATUS = {
    COMPOSE_MISSING: 400,
    COMPOSE_INVALID: 400,
    HASH_TO_REGISTER: 465,
    HASH_UNKNOWN: 466,
    TRANSACTION_NOT_VERIFIED: 467,
    HASH_NOT_ALLOWED: 468,
    INVALID_REQUEST: 400,
    IMAGE_NOT_FIT: 400,
}

Error = TypeVar("Error", bound=CasemateError)


def coded(
    error: Error, code: str, *, details: Mapping[str, Any] | None = None, suggestion: str = ""
) -> Error:
    """The refusal with its code; `details` are told one row a field."""
    rows = [
        {"field": name, "value": value, "message": ""} for name, value in (details or {}).items()
    ]
    error.details |= {
        "code": code,
        "details": rows,
        "suggestions": [suggestion] if suggestion else [],
    }
    return error


def body_of(error: Exception, message: str, status: int) -> tuple[dict[str, Any], int]:
    """The body of a refusal, and its status on this interface."""
    code = error.details.get("code") if isinstance(error, CasemateError) else None
    if isinstance(code, str) and isinstance(error, CasemateError):
        return _structured(code, message, error.details), STATUS.get(code, status)
    if isinstance(error, Invalid) and error.fields:
        return {"detail": _rows(error)}, 422
    return {"detail": message}, status


def _structured(code: str, message: str, details: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "error_code": code,
        "message": message,
        "details": details["details"],
        "suggestions": details["suggestions"],
        "links": [],
    }


def _rows(error: Invalid) -> list[dict[str, Any]]:
    place = getattr(error, "place", "body")
    return [
        {
            "loc": [place, *_steps(name)],
            "msg": reason,
            "type": "missing" if reason.startswith("Missing data") else "value_error",
            "input": _given(error, _steps(name)),
        }
        for name, reasons in error.fields.items()
        for reason in reasons
    ]


def _given(error: Invalid, steps: Sequence[str | int]) -> Any:
    """What was sent in a place; None where nothing was, or nothing that JSON can hold."""
    value: Any = getattr(error, "given", None)
    for step in steps:
        if isinstance(value, list) and isinstance(step, int):
            value = value[step] if step < len(value) else None
        else:
            value = value.get(step) if isinstance(value, Mapping) else None
    return value if isinstance(value, str | int | float | list | dict) else None


def _steps(name: str) -> Sequence[str | int]:
    return [int(step) if step.isdigit() else step for step in name.split(".") if step]
