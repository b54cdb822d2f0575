"""What the verification calls take and answer: secretvm.md section 8.

Names are the hosted service's, in its mixture of spellings.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from marshmallow import Schema, ValidationError, fields
from marshmallow.validate import Length, OneOf, Range

from attest.artifacts import Registers
from attest.eventlog import MAX_JSON_CHARS
from core.errors import Invalid
from secretvm.builds import SevClaim, TdxClaim, padded_text
from secretvm.document import COMPOSE_LIMIT
from secretvm.quotes import MAX_QUOTE, MODELS, SnpCollateral, read_bytes
from secretvm.schemas import Optional, Request

_HEX = re.compile(r"(?:0[xX])?([0-9a-fA-F]*)")
_QUOTE_CHARS = 3 * MAX_QUOTE


class Hex(fields.Field[bytes]):
    """Bytes of one size, written in hex; empty where they may be left out."""

    def __init__(self, size: int, **kwargs: Any) -> None:
        super().__init__(**kwargs, metadata={"type": "string", "example": "00" * size})
        self._size = size

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> bytes:
        text = value.strip() if isinstance(value, str) else "?"
        match = _HEX.fullmatch(text)
        if not text and not self.required:
            return b""
        if not match or len(match[1]) != 2 * self._size:
            raise ValidationError(f"must be {2 * self._size} hex digits")
        return bytes.fromhex(match[1])


class Upload(fields.Field[bytes]):
    """The bytes of a file, or of a text field in its place."""

    def __init__(self, most: int, **kwargs: Any) -> None:
        super().__init__(**kwargs, metadata={"type": "string", "format": "binary"})
        self._most = most

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> bytes:
        raw: bytes
        if hasattr(value, "read"):
            raw = value.read(self._most + 1)
        else:
            raw = str(value).encode(errors="replace")
        if len(raw) > self._most:
            raise ValidationError(f"must have at most {self._most} bytes")
        if not raw and self.required:
            raise ValidationError("is required")
        return raw


class TextUpload(Upload):
    """The text of a file or field; empty where it may be left out."""

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> Any:
        try:
            return super()._deserialize(value, attr, data, **kwargs).decode()
        except UnicodeDecodeError:
            raise ValidationError("must be UTF-8 text") from None


class ComposeSchema(Request):
    """The compose file that a VM should run, and what came with it."""

    dockercompose = Upload(COMPOSE_LIMIT, required=True)
    dockerFilesSha256 = Hex(32, load_default=bytes)


class RegistersSchema(Request):
    """The registers that a build is known by."""

    MRTD = Hex(48, required=True)
    RTMR0 = Hex(48, required=True)
    RTMR1 = Hex(48, required=True)
    RTMR2 = Hex(48, required=True)


class TdxClaimSchema(ComposeSchema, RegistersSchema):
    """The form of verify-docker; the two last fields tell of a VM that measures as Casemate's guests do.

    `event_log` is the JSON of the guest's GetQuote, `app_compose` the exact document.
    """

    rtmr3 = Hex(48, required=True)
    dstack_app_id = Hex(20, load_default=bytes)
    event_log = TextUpload(MAX_JSON_CHARS, load_default="")
    app_compose = TextUpload(MAX_JSON_CHARS, load_default="")


class SevClaimSchema(ComposeSchema):
    """The form of verify-docker-sev; the names are padded, or in hex, as the report has them."""

    family_id = fields.String(required=True, validate=Length(1, 64))
    image_id = fields.String(required=True, validate=Length(1, 64))
    measurement = Hex(48, required=True)


class AnyQuoteSchema(Request):
    """A quote in one of the forms of secretvm/quotes.py."""

    quote = fields.String(required=True, validate=Length(1, _QUOTE_CHARS))


class QuoteSchema(AnyQuoteSchema):
    """The body of quote-parse."""

    collateral = fields.Dict(metadata={"description": "QuoteCollateralV3 of dcap-qvl"})
    at = fields.Integer(
        strict=True,
        validate=Range(0, 2**53),
        metadata={"description": "Unix time to judge old evidence by; only with collateral"},
    )


class SevQuoteSchema(AnyQuoteSchema):
    """The body of quote-parse-sev."""

    processor_model = fields.String(load_default="", validate=OneOf(["", *MODELS]))
    vcek = Optional(load_default="", metadata={"description": "DER in base64"})
    cert_chain = Optional(load_default="", metadata={"description": "ASK and ARK in PEM"})
    crl = Optional(load_default="", metadata={"description": "DER in base64"})


class HostSchema(Request):
    """Which host is to be asked."""

    domain = Optional(load_default="")
    host = Optional(load_default="")
    port = fields.Integer(validate=Range(1, 65535))


class GatewaySchema(HostSchema):
    """Whether crt.sh is to be asked too."""

    includeCrtSh = fields.Boolean(load_default=False)


# Answers


class FindingSchema(Schema):
    """Whether a VM runs a compose file."""

    status = fields.String(required=True, validate=OneOf(["success", "error"]))
    code = fields.String(metadata={"enum": ["UNKNOWN_IMAGE", "MISMATCH"]})
    message = fields.String(required=True)
    vm_type = fields.String()
    artifacts_ver = fields.String()
    environment = fields.String()
    host_id = fields.String(allow_none=True)


class TdxFindingSchema(FindingSchema):
    """The same by registers."""

    rtmr3 = fields.String()
    expected_rtmr3 = fields.String(allow_none=True)
    dockerFilesSha256Used = fields.String(allow_none=True)
    artifactsLink = fields.String(allow_none=True)


class SevFindingSchema(FindingSchema):
    """The same by launch digest."""

    measurement = fields.String()
    expected_measurement = fields.String()


class BuildSchema(Schema):
    """A build by its names."""

    vm_type = fields.String(required=True)
    artifacts_ver = fields.String(required=True)
    environment = fields.String(required=True)


class ResolvedSchema(BuildSchema):
    """The newest build with some registers, and all of them."""

    status = fields.String(required=True)
    candidates = fields.List(fields.Nested(BuildSchema), required=True)


class ParsedSchema(Schema):
    """A quote with its status."""

    quote = fields.Dict(required=True)
    collateral = fields.Raw(
        required=True, metadata={"description": "hex text, or an object with `error`"}
    )
    status = fields.Dict(required=True)
    proof_of_cloud = fields.Boolean(required=True)
    origin = fields.String(required=True, allow_none=True)
    checked_at = fields.Integer(required=True)


class LiveSchema(Schema):
    """What every check of a live host answers."""

    checks = fields.Dict(
        keys=fields.String(), values=fields.Boolean(allow_none=True), required=True
    )
    certificate = fields.Dict(required=True)
    errors = fields.List(fields.String(), required=True)
    port = fields.Integer(required=True)


class CertificateCheckSchema(LiveSchema):
    """The answer of secretvm-cert-check."""

    ok = fields.Boolean(required=True)
    host = fields.String(required=True)
    binding = fields.String(required=True, allow_none=True)
    cpu_type = fields.String(required=True, allow_none=True)
    quote = fields.String(required=True, allow_none=True)
    workload = fields.String(required=True, allow_none=True)


class GatewayCheckSchema(LiveSchema):
    """The answer of gateway-attestation."""

    domain = fields.String(required=True)
    evidence_type = fields.String(required=True, allow_none=True)
    crtSh = fields.Dict()


# From requests to claims


def registers(given: Mapping[str, Any]) -> Registers:
    """The four registers of a request."""
    return given["MRTD"], given["RTMR0"], given["RTMR1"], given["RTMR2"]


def tdx_claim(given: Mapping[str, Any]) -> TdxClaim:
    """The claim of a verify-docker request."""
    return TdxClaim(
        compose=given["dockercompose"],
        registers=registers(given),
        rtmr3=given["rtmr3"],
        docker_files=given["dockerFilesSha256"],
        app_id=given["dstack_app_id"],
        event_log=given["event_log"],
        app_compose=given["app_compose"],
    )


def sev_claim(given: Mapping[str, Any]) -> SevClaim:
    """The claim of a verify-docker-sev request."""
    return SevClaim(
        compose=given["dockercompose"],
        family_id=padded_text(given["family_id"]),
        image_id=padded_text(given["image_id"]),
        measurement=given["measurement"],
        docker_files=given["dockerFilesSha256"],
    )


def collateral(given: Mapping[str, Any]) -> str:
    """The collateral of a quote-parse request as text, empty without one."""
    return json.dumps(given["collateral"]) if given.get("collateral") else ""


def snp_collateral(given: Mapping[str, Any]) -> SnpCollateral:
    """The certificates of a quote-parse-sev request."""
    return SnpCollateral(
        vcek=read_bytes("vcek", given["vcek"]),
        cert_chain=given["cert_chain"],
        crl=read_bytes("crl", given["crl"]),
    )


def host(given: Mapping[str, Any]) -> str:
    """The host of a request; Invalid when none is named."""
    name: str = given["domain"] or given["host"]
    if not name:
        raise Invalid.field("domain", "is required (or host)")
    return name
