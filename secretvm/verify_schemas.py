"""What the verification calls take and answer: secretvm.md section 8.

Names are the hosted service's, in its mixture of spellings.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from marshmallow import EXCLUDE, Schema, ValidationError, fields
from marshmallow.validate import Length, OneOf, Range

from attest.artifacts import Registers, SevBuild, TdxBuild
from attest.eventlog import MAX_JSON_CHARS
from attest.quote import TdxQuote
from attest.snp import Report
from core.errors import Invalid
from secretvm.builds import Finding, SevClaim, TdxClaim, padded_text
from secretvm.document import COMPOSE_LIMIT
from secretvm.quotes import MAX_QUOTE, MODELS, Parsed, SnpCollateral, hex_of, read_bytes

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


class Text(fields.String):
    """A text that can be written as UTF-8; absent and empty are one."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(load_default="", **kwargs)

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> str:
        text = str(super()._deserialize(value, attr, data, **kwargs))
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValidationError("must be valid Unicode") from None
        return text


class Known(Schema):
    """Clients are newer than this service, or older."""

    class Meta:
        """Other fields are ignored."""

        unknown = EXCLUDE


class RegistersSchema(Known):
    """The registers that a build is known by."""

    MRTD = Hex(48, required=True)
    RTMR0 = Hex(48, required=True)
    RTMR1 = Hex(48, required=True)
    RTMR2 = Hex(48, required=True)


class TdxClaimSchema(RegistersSchema):
    """The form of verify-docker; the two last fields tell of a VM that measures as Casemate's guests do.

    `event_log` is the JSON of the guest's GetQuote, `app_compose` the exact document.
    """

    rtmr3 = Hex(48, required=True)
    dockercompose = Upload(COMPOSE_LIMIT, required=True)
    dockerFilesSha256 = Hex(32, load_default=bytes)
    dstack_app_id = Hex(20, load_default=bytes)
    event_log = TextUpload(MAX_JSON_CHARS, load_default="")
    app_compose = TextUpload(MAX_JSON_CHARS, load_default="")


class SevClaimSchema(Known):
    """The form of verify-docker-sev; the names are padded, or in hex, as the report has them."""

    dockercompose = Upload(COMPOSE_LIMIT, required=True)
    family_id = fields.String(required=True, validate=Length(1, 64))
    image_id = fields.String(required=True, validate=Length(1, 64))
    measurement = Hex(48, required=True)
    dockerFilesSha256 = Hex(32, load_default=bytes)


class QuoteSchema(Known):
    """The body of quote-parse."""

    quote = fields.String(required=True, validate=Length(1, _QUOTE_CHARS))
    collateral = fields.Dict(metadata={"description": "QuoteCollateralV3 of dcap-qvl"})
    at = fields.Integer(
        strict=True,
        validate=Range(0, 2**53),
        metadata={"description": "Unix time to judge old evidence by; only with collateral"},
    )


class SevQuoteSchema(Known):
    """The body of quote-parse-sev."""

    quote = fields.String(required=True, validate=Length(1, _QUOTE_CHARS))
    processor_model = fields.String(load_default="", validate=OneOf(["", *MODELS]))
    vcek = Text(metadata={"description": "DER in base64"})
    cert_chain = Text(metadata={"description": "ASK and ARK in PEM"})
    crl = Text(metadata={"description": "DER in base64"})


class HostSchema(Known):
    """Which host is to be asked."""

    domain = Text()
    host = Text()
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


# From outcomes to answers


def tdx_answer(claim: TdxClaim, found: Finding) -> dict[str, object]:
    """What verify-docker says of an outcome."""
    said: dict[str, object] = {**_finding(found), "rtmr3": claim.rtmr3.hex()}
    if isinstance(found.build, TdxBuild):
        said["host_id"] = found.build.host_id.hex() or None
    if found.code:
        said["expected_rtmr3"] = found.expected.hex() if found.expected else None
    else:
        # There is no list of where builds lie.
        said |= {"dockerFilesSha256Used": found.docker_files.hex() or None, "artifactsLink": None}
    return said


def sev_answer(claim: SevClaim, found: Finding) -> dict[str, object]:
    """What verify-docker-sev says of an outcome; the registry has no host ids for it."""
    said: dict[str, object] = {**_finding(found), "measurement": claim.measurement.hex()}
    if found.expected:
        said["expected_measurement"] = found.expected.hex()
    return {**said, "host_id": None}


def _finding(found: Finding) -> dict[str, object]:
    status = {"status": "error", "code": found.code} if found.code else {"status": "success"}
    build = found.build
    names: dict[str, object] = {}
    if isinstance(build, (TdxBuild, SevBuild)):
        names = {
            "vm_type": found.size,
            "artifacts_ver": build.version,
            "environment": build.environment,
        }
    return {**status, "message": found.message, **names}


def resolved(builds: tuple[TdxBuild, ...]) -> dict[str, object]:
    """What resolve-attestation says of builds, newest first."""
    named = [
        {
            "vm_type": each.size,
            "artifacts_ver": each.version,
            "environment": each.environment,
        }
        for each in builds
    ]
    return {"status": "success", **named[0], "candidates": named}


def parsed_answer(parsed: Parsed) -> dict[str, object]:
    """What quote-parse and quote-parse-sev say of a quote."""
    found = parsed.evidence
    has_collateral = bool(parsed.collateral)
    status: dict[str, object] = {
        "attestation_type": "sev" if isinstance(found, Report) else "tdx",
        "result": parsed.result,
        "exp_status": str(int(parsed.has_expired)),
        "tcb_status": parsed.tcb_status,
        "advisory_ids": list(parsed.advisory_ids),
        "debug": parsed.is_debug,
        "message": parsed.message or None,
    }
    if isinstance(found, Report):
        status["checks"] = dict(parsed.checks)
    shown = _report(found) if isinstance(found, Report) else _quote(found)
    # Anybody can write a machine's id into a quote that nothing vouches for.
    is_there = parsed.is_known_machine and parsed.is_genuine
    return {
        "quote": {**shown, "machine_id": parsed.machine_id, "fmspc": parsed.fmspc},
        "collateral": hex_of(parsed.collateral) if has_collateral else {"error": parsed.message},
        "status": status,
        "proof_of_cloud": is_there,
        "origin": parsed.origin if is_there else None,
        "checked_at": parsed.checked_at,
    }


def _quote(quote: TdxQuote) -> dict[str, object]:
    report = quote.report
    said: dict[str, object] = {
        "version": quote.version,
        "tee_type": quote.tee_type,
        "att_key_type": quote.key_type,
        "qe_svn": quote.qe_svn,
        "pce_svn": quote.pce_svn,
        "qe_vendor_id": quote.qe_vendor_id.hex(),
        "user_data": quote.user_data.hex(),
        "tcb_svn": report.tee_tcb_svn.hex(),
        "mr_seam": report.mr_seam.hex(),
        "mr_signer_seam": report.mr_signer_seam.hex(),
        "seam_attributes": report.seam_attributes.hex(),
        "td_attributes": report.td_attributes.hex(),
        "xfam": report.xfam.hex(),
        "mr_td": report.mrtd.hex(),
        "mr_config_id": report.mr_config_id.hex(),
        "mr_owner": report.mr_owner.hex(),
        "mr_owner_config": report.mr_owner_config.hex(),
        **{f"rtmr{number}": value.hex() for number, value in enumerate(report.rtmrs)},
        "report_data": report.report_data.hex(),
    }
    if report.mr_service_td:
        said["tcb_svn2"] = report.tee_tcb_svn2.hex()
        said["mr_service_td"] = report.mr_service_td.hex()
    return said


def _report(report: Report) -> dict[str, object]:
    return {
        "version": report.version,
        "guest_svn": report.guest_svn,
        "policy": f"0x{report.policy:016x}",
        "family_id": report.family_id.hex(),
        "family": padded_text(report.family_id.decode(errors="replace")),
        "image_id": report.image_id.hex(),
        "image": padded_text(report.image_id.decode(errors="replace")),
        "vmpl": report.vmpl,
        "signature_algo": report.signature_algorithm,
        "platform_info": report.platform_info,
        "key_flags": report.key_flags,
        "report_data": report.report_data.hex(),
        "measurement": report.measurement.hex(),
        "host_data": report.host_data.hex(),
        "id_key_digest": report.id_key_digest.hex(),
        "author_key_digest": report.author_key_digest.hex(),
        "report_id": report.report_id.hex(),
        "report_id_ma": report.report_id_ma.hex(),
        "chip_id": report.chip_id.hex(),
        "current_tcb": report.current_tcb.hex(),
        "reported_tcb": report.reported_tcb.hex(),
        "committed_tcb": report.committed_tcb.hex(),
        "launch_tcb": report.launch_tcb.hex(),
        "cpuid_family": report.family,
        "cpuid_model": report.model,
        "cpuid_stepping": report.stepping,
    }
