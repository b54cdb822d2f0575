"""The verification calls, which anybody may make: evidence is for everybody (secretvm.md section 8)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flask import current_app, request

from rest.access import public
from rest.blueprint import Blueprint
from secretvm import verify_answers
from secretvm import verify_schemas as schemas
from secretvm.gateway import GATEWAY_PORT
from secretvm.quotes import read_bytes
from secretvm.routes import refuses
from secretvm.verification import Verification

# A compose file, a log of 10 MiB and its document; for JSON a quote with collateral.
MULTIPART_LIMIT = 16 * 1024**2
JSON_LIMIT = 4 * 1024**2
FORM = "multipart/form-data"

blueprint = Blueprint(
    "verification", __name__, url_prefix="/api", description="Checks of VMs, open to everybody"
)


@blueprint.before_request
def limit_body() -> None:
    """Sets how large this request may be; a log is a text field that is longer than others."""
    is_form = request.mimetype == FORM
    request.max_content_length = MULTIPART_LIMIT if is_form else JSON_LIMIT
    request.max_form_memory_size = MULTIPART_LIMIT
    request.max_form_parts = 100


@blueprint.post("/verify-docker")
@blueprint.arguments(schemas.TdxClaimSchema, location="multipart")
@blueprint.response(200, schemas.TdxFindingSchema)
@refuses(400, 413)
@public
def verify_docker(given: Mapping[str, Any]) -> dict[str, object]:
    """Whether a TDX VM measured a compose file."""
    claim = schemas.tdx_claim(given)
    return verify_answers.tdx_answer(claim, _verification().builds.check_tdx(claim))


@blueprint.post("/verify-docker-sev")
@blueprint.arguments(schemas.SevClaimSchema, location="multipart")
@blueprint.response(200, schemas.SevFindingSchema)
@refuses(400, 413)
@public
def verify_docker_sev(given: Mapping[str, Any]) -> dict[str, object]:
    """Whether a SEV-SNP VM was launched with a compose file."""
    claim = schemas.sev_claim(given)
    return verify_answers.sev_answer(claim, _verification().builds.check_sev(claim))


@blueprint.post("/resolve-attestation")
@blueprint.arguments(schemas.RegistersSchema)
@blueprint.response(200, schemas.ResolvedSchema)
@refuses(400, 404)
@public
def resolve_attestation(given: Mapping[str, Any]) -> dict[str, object]:
    """Which builds have these registers."""
    return verify_answers.resolved(_verification().builds.resolve(schemas.registers(given)))


@blueprint.post("/quote-parse")
@blueprint.arguments(schemas.QuoteSchema)
@blueprint.response(200, schemas.ParsedSchema)
@refuses(400, 503)
@public
def quote_parse(given: Mapping[str, Any]) -> dict[str, object]:
    """What a TDX quote says, and whether it is genuine."""
    raw, text = read_bytes("quote", given["quote"]), schemas.collateral(given)
    verification = _verification()
    parsed = verification.quotes.parse(raw, verification.now(), text, given.get("at"))
    return verify_answers.parsed_answer(parsed)


@blueprint.post("/quote-parse-sev")
@blueprint.arguments(schemas.SevQuoteSchema)
@blueprint.response(200, schemas.ParsedSchema)
@refuses(400, 503)
@public
def quote_parse_sev(given: Mapping[str, Any]) -> dict[str, object]:
    """What a SEV-SNP report says, and whether it is genuine."""
    raw, certificates = read_bytes("quote", given["quote"]), schemas.snp_collateral(given)
    verification = _verification()
    model, now = given["processor_model"], verification.now()
    return verify_answers.parsed_answer(
        verification.quotes.parse_sev(raw, now, model, certificates)
    )


@blueprint.get("/gateway-attestation")
@blueprint.arguments(schemas.GatewaySchema, location="query")
@blueprint.response(200, schemas.GatewayCheckSchema)
@refuses(400, 502, 503)
@public
def gateway_attestation(given: Mapping[str, Any]) -> dict[str, Any]:
    """Whether a domain's TLS ends inside of an attested gateway."""
    port = given.get("port", GATEWAY_PORT)
    return _verification().gateways.check(schemas.host(given), port, given["includeCrtSh"])


@blueprint.get("/secretvm-cert-check")
@blueprint.arguments(schemas.HostSchema, location="query")
@blueprint.response(200, schemas.CertificateCheckSchema)
@refuses(400, 502, 503)
@public
def secretvm_cert_check(given: Mapping[str, Any]) -> dict[str, Any]:
    """Whether a VM's TLS key is bound into its quote."""
    return _verification().live.check_certificate(schemas.host(given), given.get("port"))


def _verification() -> Verification:
    found: Verification = current_app.extensions["verification"]
    return found
