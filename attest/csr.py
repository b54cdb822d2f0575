"""What a guest asks its KMS to certify: a key, what the certificate is to say, and an attestation of the key.

Source: kms.md section 3 (SignCert); the encoding is SCALE.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from attest import envelope, eventlog, quote, scale
from attest.cursor import Cursor
from attest.errors import Malformed
from attest.evidence import Attestation, TdxEvidence

CONFIRM = "please sign cert:"
MAX_ALT_NAMES = 256

_T = TypeVar("_T")


@dataclass(frozen=True)
class CertRequest:
    """A request in either version; `spki` is the key's DER, times are Unix seconds or None."""

    spki: bytes
    attestation: Attestation
    subject: str = ""
    org_name: str | None = None
    alt_names: tuple[str, ...] = ()
    server_auth: bool = False
    client_auth: bool = False
    ext_quote: bool = False
    ext_app_info: bool = False
    not_before: int | None = None
    not_after: int | None = None

    def encode(self) -> bytes:
        """The request's bytes in version 2, which the key signs."""
        return b"".join(
            (
                scale.text(CONFIRM),
                scale.octets(self.spki),
                _option(self.org_name, scale.text),
                scale.text(self.subject),
                scale.sequence([scale.text(name) for name in self.alt_names]),
                bytes([self.server_auth, self.client_auth, self.ext_quote, self.ext_app_info]),
                _option(self.not_before, _uint64),
                _option(self.not_after, _uint64),
                envelope.encode(self.attestation),
            )
        )


def decode(raw: bytes, version: int) -> CertRequest:
    """Reads a request of version 1 or 2; a VerificationError when it is no such request."""
    cursor = Cursor(raw, "certificate request")
    if scale.read_text(cursor) != CONFIRM:
        raise Malformed("certificate request: its first words are not the agreed ones")
    spki = scale.read_octets(cursor)
    org_name = _read_option(cursor, scale.read_text)
    subject = scale.read_text(cursor)
    alt_names = _read_alt_names(cursor)
    server_auth, client_auth, ext_quote = (_read_flag(cursor) for _ in range(3))
    is_newer = version == 2
    ext_app_info = is_newer and _read_flag(cursor)
    not_before = _read_option(cursor, _read_uint64) if is_newer else None
    not_after = _read_option(cursor, _read_uint64) if is_newer else None
    attestation = envelope.decode(cursor.rest()) if is_newer else _read_quote(cursor)
    return CertRequest(
        spki=spki,
        attestation=attestation,
        subject=subject,
        org_name=org_name,
        alt_names=alt_names,
        server_auth=server_auth,
        client_auth=client_auth,
        ext_quote=ext_quote,
        ext_app_info=ext_app_info,
        not_before=not_before,
        not_after=not_after,
    )


def _option(value: _T | None, write: Callable[[_T], bytes]) -> bytes:
    return b"\0" if value is None else b"\1" + write(value)


def _read_option(cursor: Cursor, read: Callable[[Cursor], _T]) -> _T | None:
    return read(cursor) if _read_flag(cursor) else None


def _uint64(value: int) -> bytes:
    return value.to_bytes(8, "little")


def _read_uint64(cursor: Cursor) -> int:
    return cursor.uint(8)


def _read_flag(cursor: Cursor) -> bool:
    value = cursor.uint(1)
    if value > 1:
        raise Malformed("certificate request: a flag is neither 0 nor 1")
    return value == 1


def _read_alt_names(cursor: Cursor) -> tuple[str, ...]:
    count = scale.read_compact(cursor)
    if count > MAX_ALT_NAMES:
        raise Malformed(f"certificate request: more than {MAX_ALT_NAMES} alternative names")
    return tuple(scale.read_text(cursor) for _ in range(count))


def _read_quote(cursor: Cursor) -> Attestation:
    """Version 1's evidence: a TDX quote and its event log as JSON, nothing after them."""
    raw, log = scale.read_octets(cursor), scale.read_text(cursor)
    if cursor.left:
        raise Malformed("certificate request: followed by other bytes")
    events = eventlog.from_json(log)
    runtime = tuple(event for event in events if event.is_runtime)
    report_data = quote.parse(raw).report.report_data
    return Attestation(TdxEvidence(raw, events), runtime, report_data, "")
