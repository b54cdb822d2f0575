"""Whether a quote is genuine: signed, through certificates that were valid then, under a trusted root.

dcap-qvl does the cryptography and the TCB levels; attestation.md section 6, step 1 says what else holds.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from attest import pck, policy, quote
from attest.errors import BadSignature, Malformed, NotGenuine, Revoked, Stale
from attest.quote import TdxQuote
from attest.root import RootName, custom_name

if TYPE_CHECKING:
    import dcap_qvl

# SHA-256 of the DER of "Intel SGX Root CA", the root that dcap-qvl trusts by itself.
INTEL_ROOT_SHA256 = "44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3"
# Collateral of the widest platforms has about 40 kB.
MAX_COLLATERAL_CHARS = 1024 * 1024

_UNIX_TIME_MAX = 2**53
_OUT_OF_DATE = ("expired", "Expired", "issue date is in the future", "NotValidYet")
# Words of dcap-qvl's reasons.
_KINDS = {"Revoked": Revoked, "revoked": Revoked, "ignature": BadSignature}


@dataclass(frozen=True)
class VerifiedTdx:
    """A genuine quote with what its certificates and collateral say of the platform."""

    quote: TdxQuote
    tcb_status: str
    advisory_ids: tuple[str, ...]
    ppid: bytes
    fmspc: bytes
    root: RootName


@dataclass(frozen=True)
class Claim:
    """A quote that says it leads to a root which is trusted; nothing but that was looked at yet."""

    raw: bytes
    quote: TdxQuote
    chain: tuple[x509.Certificate, ...]
    platform: pck.Platform
    root: RootName
    root_ca_der: bytes | None


def verify_tdx(
    raw: bytes, collateral_json: str, now: int, root_ca_der: bytes | None = None
) -> VerifiedTdx:
    """Verifies a TDX quote with its collateral (QuoteCollateralV3 JSON) at the Unix time `now`.

    The root is Intel's unless `root_ca_der` names another; then only that one is trusted.
    Raises Malformed (quote, collateral, root or time unreadable), NotGenuine, or Refused (debug TD).
    """
    return verify_claim(read_claim(raw, root_ca_der), collateral_json, now)


def read_claim(raw: bytes, root_ca_der: bytes | None = None) -> Claim:
    """Reads a quote up to the question of which collateral it needs; raises as verify_tdx."""
    return claim_of(raw, quote.parse(raw), root_ca_der)


def claim_of(raw: bytes, parsed: TdxQuote, root_ca_der: bytes | None = None) -> Claim:
    """The claim of a quote that was parsed already; raises as verify_tdx."""
    chain, platform = _chain(parsed.pck_chain_pem)
    name = _check_root(chain[-1], root_ca_der)
    # Before dcap-qvl, which refuses debug TDs too but calls them not genuine.
    policy.check_state(parsed.report)
    return Claim(raw, parsed, chain, platform, name, root_ca_der)


def platform_of(parsed: TdxQuote) -> pck.Platform:
    """The machine that a quote's own certificates name, believed or not; Malformed when they name none."""
    return _chain(parsed.pck_chain_pem)[1]


# A platform's quotes share their chain, of 64 KiB at most; reading it takes as long as half a verification.
@functools.lru_cache(maxsize=16)
def _chain(pem: bytes) -> tuple[tuple[x509.Certificate, ...], pck.Platform]:
    chain = tuple(pck.certificates(pem))
    return chain, pck.platform(chain[0])


def verify_claim(claim: Claim, collateral_json: str, now: int) -> VerifiedTdx:
    """Verifies a claim that was read; raises as verify_tdx."""
    report = _ask_dcap_qvl(claim.raw, _collateral(collateral_json), now, claim.root_ca_der)
    return VerifiedTdx(
        quote=claim.quote,
        tcb_status=report.status,
        advisory_ids=tuple(report.advisory_ids),
        ppid=report.ppid,
        fmspc=claim.platform.fmspc,
        root=claim.root,
    )


# One root and its digest, compared for every quote of its platforms.
@functools.lru_cache(maxsize=16)
def _check_root(last: x509.Certificate, root_ca_der: bytes | None) -> RootName:
    # dcap-qvl goes from the leaf to the root it was given and leaves the root inside the quote unread;
    # a quote that carries another one there is not the quote that was made.
    root = last if root_ca_der is None else _certificate(root_ca_der)
    is_intel = root.fingerprint(hashes.SHA256()).hex() == INTEL_ROOT_SHA256
    if last != root or (root_ca_der is None and not is_intel):
        raise NotGenuine("quote: its certificate chain does not end in the trusted root")
    return "intel" if is_intel else custom_name(root)


# A verifier's configuration names one or two.
@functools.lru_cache(maxsize=4)
def _certificate(der: bytes) -> x509.Certificate:
    try:
        return x509.load_der_x509_certificate(der)
    except (ValueError, x509.InvalidVersion):
        raise Malformed("the trusted root is not a certificate in DER") from None


# Parsing takes a quarter of the time of verifying, and a platform's quotes share their collateral.
@functools.lru_cache(maxsize=16)
def _collateral(text: str) -> dcap_qvl.QuoteCollateralV3:
    import dcap_qvl

    if len(text) > MAX_COLLATERAL_CHARS:
        raise Malformed("collateral: larger than 1 MiB")
    try:
        return dcap_qvl.QuoteCollateralV3.from_json(text)
    except ValueError as error:
        raise Malformed(f"collateral: cannot be read: {error}") from None


def _ask_dcap_qvl(
    raw: bytes,
    collateral: dcap_qvl.QuoteCollateralV3,
    now: int,
    root_ca_der: bytes | None,
) -> dcap_qvl.VerifiedReport:
    import dcap_qvl

    if not 0 <= now <= _UNIX_TIME_MAX:
        raise Malformed("the time of verification is not a Unix time")
    try:
        if root_ca_der is None:
            return dcap_qvl.verify(raw, collateral, now)
        return dcap_qvl.verify_with_root_ca(raw, collateral, root_ca_der, now)
    except ValueError as error:
        why = " ".join(str(error).removeprefix("Verification failed: ").split())
        if any(word in why for word in _OUT_OF_DATE):
            raise Stale(f"quote: its collateral is not valid at that time ({why})") from None
        kind = next((each for word, each in _KINDS.items() if word in why), NotGenuine)
        raise kind(f"quote: not genuine ({why})") from None
