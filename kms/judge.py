"""Whether evidence that is shown to this KMS is good.

What a caller's evidence says is kept for the rest of the second in which it was found out, since it comes with each
call of his connection.  That is safe, because verifying is a function: the same evidence, by the same roots and the
same collateral, at the same second, cannot come out differently.  So nothing is kept beyond the end of a certificate
or of collateral: the next second asks anew.  Only what is valid is kept, and whether the caller may have anything is
no part of it.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from attest import ratls
from attest.errors import VerificationError
from attest.evidence import Attestation
from attest.snp import Report
from attest.verified import Trust, Verified, check_image, verify_evidence
from attest.verify import Claim
from core import certs
from core.errors import Invalid

# A certificate has at most 100 kB and a vm_config 1 MiB, and whoever has a genuine VM may send them.
MAX_KEPT = 16


@dataclass(frozen=True)
class Outcome:
    """What valid evidence says, and all that this was found by: the rules, and the collateral they gave."""

    verified: Verified
    trust: Trust
    collateral: tuple[tuple[Claim | Report, str], ...]

    def holds(self, trust: Trust) -> bool:
        """Whether the rules are the same, the second among them, and give the same collateral."""
        try:
            return self.trust == trust and all(
                trust.collateral(asked) == text for asked, text in self.collateral
            )
        except VerificationError:
            return False  # the collateral is gone: verifying anew says so


class Judge:
    """Judges evidence by the rules of the moment, which `now` gives."""

    def __init__(self, now: Callable[[], Trust]) -> None:
        self._now = now
        self._guard = threading.Lock()
        self._kept: dict[Attestation, Outcome] = {}

    def verified(self, evidence: Attestation) -> Verified:
        """What it says; Invalid when it is no good.

        Everything but the OS image, which may have to be fetched: not for whom nobody allows anything.
        """
        return _judged(evidence, self._rules()).verified

    def verified_of_caller(self, evidence: Attestation) -> Verified:
        """The same for what the caller's certificate shows, at most once a second."""
        trust = self._rules()
        outcome = self._kept.get(evidence)
        if outcome is None or not outcome.holds(trust):
            outcome = _judged(evidence, trust)
            self._keep(evidence, outcome)
        return outcome.verified

    def check_image(self, evidence: Attestation) -> None:
        """Refuses (Invalid) valid evidence of a VM that does not run the OS image it names."""
        trust = self._now()
        try:
            if trust.check_image:
                check_image(evidence, trust)
        except VerificationError as error:
            raise Invalid(f"invalid quote: {error.message}") from None

    def _rules(self) -> Trust:
        return replace(self._now(), check_image=False)

    def _keep(self, evidence: Attestation, outcome: Outcome) -> None:
        with self._guard:
            self._kept.pop(evidence, None)
            self._kept[evidence] = outcome
            if len(self._kept) > MAX_KEPT:
                del self._kept[next(iter(self._kept))]


def _judged(evidence: Attestation, trust: Trust) -> Outcome:
    given: list[tuple[Claim | Report, str]] = []

    def noted(asked: Claim | Report) -> str:
        given.append((asked, trust.collateral(asked)))
        return given[-1][1]

    verified = valid(verify_evidence(evidence, replace(trust, collateral=noted)))
    return Outcome(verified, trust, tuple(given))


def valid(verified: Verified) -> Verified:
    """The outcome itself; Invalid with its reason when a step failed."""
    if not verified.is_valid:
        raise Invalid(f"invalid quote: {verified.reason}")
    return verified


# A connection has its certificate with every call, and its bytes say the same each time.
@functools.lru_cache(maxsize=MAX_KEPT)
def shown(certificate_der: bytes) -> Attestation | None:
    """The evidence in a client certificate, for its key; None without any, Invalid when it cannot be read."""
    try:
        certificate = x509.load_der_x509_certificate(certificate_der)
        evidence = ratls.read(certificate).evidence()
    except (VerificationError, ValueError, x509.InvalidVersion) as error:
        raise Invalid(f"invalid quote: {error}") from None
    if evidence is None:
        return None
    public_key = certificate.public_key()
    if not isinstance(public_key, ec.EllipticCurvePublicKey):
        raise Invalid("invalid quote: the certificate's key is not an elliptic curve key")
    check_bound(evidence, certs.spki_der(public_key))
    return evidence


def check_bound(evidence: Attestation, spki: bytes) -> None:
    """Refuses (Invalid) evidence that was made for another key than this one."""
    if evidence.report_data != ratls.report_data_for_key(spki):
        raise Invalid("invalid quote: it was not made for the key of this certificate")
