"""What a quote or report says, and how far it is to be believed: an honest status, never "0" without collateral.

Source: secretvm.md section 8; Intel DCAP Quote Verification Library, sgx_ql_qv_result_t (the status numbers).
"""

from __future__ import annotations

import base64
import binascii
import functools
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cryptography import x509

from attest import collateral, pck, quote, snp, snp_crl, verify
from attest.collateral import Source
from attest.errors import (
    BadSignature,
    Malformed,
    Mismatch,
    NotGenuine,
    Refused,
    Revoked,
    Stale,
    VerificationError,
)
from attest.quote import TdxQuote
from attest.root import RootName
from attest.snp import Chain, Report
from attest.verify import Claim
from core.config import KnownMachine
from core.errors import Invalid
from verify.service import Verifier

MAX_QUOTE = 256 * 1024
UP_TO_DATE, UNSPECIFIED = "0", "40966"
OUT_OF_DATE, BAD_SIGNATURE, REVOKED = "40962", "40964", "40965"
_BY_TCB = {
    "UpToDate": UP_TO_DATE,
    "ConfigurationNeeded": "40961",
    "OutOfDate": OUT_OF_DATE,
    "OutOfDateConfigurationNeeded": "40963",
    "Revoked": REVOKED,
    "SWHardeningNeeded": "40967",
    "ConfigurationAndSWHardeningNeeded": "40968",
}
# Processor models by name: CPUID family and model, as newer reports carry them.
MODELS = {"Milan": (0x19, 0x01), "Genoa": (0x19, 0x11), "Turin": (0x1A, 0x02)}
CHECKS = (
    "report_parsed",
    "vcek_fetched",
    "vcek_matches_report",
    "cert_chain_valid",
    "crl_signature_valid",
    "crl_check_passed",
    "report_signature_valid",
    "debug_disabled",
    "tcb_ordering_valid",
)
_TURIN = 0x1A


@dataclass(frozen=True)
class Parsed:
    """A quote or report with what was found out about it; `collateral` is empty where there was none.

    `result` is one of Intel's verification codes as text, `message` why it is not "0".
    """

    evidence: TdxQuote | Report
    machine_id: str | None
    fmspc: str | None
    result: str
    message: str
    collateral: str
    is_debug: bool
    is_known_machine: bool
    origin: str | None
    checked_at: int
    has_expired: bool = False
    tcb_status: str | None = None
    advisory_ids: tuple[str, ...] = ()
    checks: Mapping[str, bool | None] = field(default_factory=dict)
    root: RootName | None = None

    @property
    def is_genuine(self) -> bool:
        """Whether a vendor's processor made it, of whatever TCB level, and its host cannot look inside."""
        return self.tcb_status is not None and not self.is_debug

    @property
    def report_data(self) -> bytes:
        """The 64 bytes that the VM chose."""
        found = self.evidence
        return found.report_data if isinstance(found, Report) else found.report.report_data


@dataclass(frozen=True)
class SnpCollateral:
    """What a caller has of AMD's certificates: a VCEK (DER), the chain above it (PEM), a list of revoked keys."""

    vcek: bytes = b""
    cert_chain: str = ""
    crl: bytes = b""


class Quotes:
    """Reads quotes and reports and verifies them by the roots and sources of this host's verifier."""

    def __init__(self, verifier: Verifier, machines: Sequence[KnownMachine] = ()) -> None:
        self._verifier = verifier
        self._labels = {machine.id: machine.label for machine in machines}

    def parse(self, raw: bytes, now: int, given: str = "", at: int | None = None) -> Parsed:
        """A TDX quote; Malformed when it is none.

        With `given` collateral (JSON) it may be judged as of the Unix time `at`; else it is as of now.
        """
        moment = at if given and at is not None else now
        read = quote.parse(raw)
        platform = _platform(read)
        machine_id = platform.ppid.hex() if platform else None
        source = collateral.given(given) if given else self._verifier.source
        return Parsed(
            evidence=read,
            machine_id=machine_id,
            fmspc=platform.fmspc.hex() if platform else None,
            is_debug=read.report.is_debug,
            is_known_machine=machine_id in self._labels,
            origin=self._labels.get(machine_id or ""),
            checked_at=moment,
            **self._verdict(raw, read, source, moment),
        )

    def _verdict(self, raw: bytes, read: TdxQuote, source: Source, moment: int) -> dict[str, Any]:
        """The fields of Parsed that verification decides."""
        text = ""
        try:
            claim = self._claim(raw, read)
            text = source(claim)
            found = verify.verify_claim(claim, text, moment)
        except VerificationError as error:
            return {
                "result": _result_of(error),
                "message": error.message,
                "collateral": text if not isinstance(error, Malformed) else "",
                "has_expired": isinstance(error, Stale),
            }
        result = _BY_TCB.get(found.tcb_status, UNSPECIFIED)
        return {
            "result": result,
            "message": "" if result == UP_TO_DATE else f"TCB status {found.tcb_status}",
            "collateral": text,
            "tcb_status": found.tcb_status,
            "advisory_ids": found.advisory_ids,
            "root": found.root,
        }

    def _claim(self, raw: bytes, read: TdxQuote) -> Claim:
        """The claim under the root that this host's configuration adds, else under the vendor's."""
        added = self._verifier.roots().tdx
        if added is not None:
            try:
                return verify.claim_of(raw, read, added)
            except NotGenuine:
                pass
        return verify.claim_of(raw, read)

    def parse_text(self, text: str, now: int) -> Parsed:
        """A quote or, by its size, a report, in hex or base64."""
        raw = read_bytes("quote", text)
        return self.parse_sev(raw, now) if len(raw) == snp.SIZE else self.parse(raw, now)

    def parse_sev(
        self, raw: bytes, now: int, model: str = "", given: SnpCollateral | None = None
    ) -> Parsed:
        """A SEV-SNP report; Malformed when it is none, Invalid when the model is none of MODELS."""
        report = snp.parse(raw)
        machine_id = hashlib.sha256(report.chip_id).hexdigest()[:32]
        steps = _SnpSteps(self._verifier, report, now)
        steps.run(_named(report, model), given or SnpCollateral())
        return Parsed(
            evidence=report,
            machine_id=machine_id,
            fmspc=None,
            result=steps.result,
            message=steps.message,
            collateral=steps.text,
            tcb_status=report.tcb_status if steps.is_genuine else None,
            is_debug=report.is_debug,
            is_known_machine=machine_id in self._labels,
            origin=self._labels.get(machine_id),
            checked_at=now,
            checks=steps.checks,
            root=steps.root,
        )


def _platform(read: TdxQuote) -> pck.Platform | None:
    try:
        return verify.platform_of(read)
    except Malformed:
        # Certification data may name the platform otherwise; the quote is one all the same.
        return None


def _result_of(error: VerificationError) -> str:
    if isinstance(error, Revoked):
        return REVOKED
    return BAD_SIGNATURE if isinstance(error, BadSignature) else UNSPECIFIED


def _named(report: Report, model: str) -> Report:
    """The report as it would name its processor, where only the caller does."""
    if not model:
        return report
    if model not in MODELS:
        raise Invalid.field("processor_model", f"must be one of {', '.join(MODELS)}")
    if report.version >= 3 and report.family:
        return report
    family, number = MODELS[model]
    return replace(report, version=3, family=family, model=number)


class _SnpSteps:
    """The checks of a report, each of which is None until it could be made."""

    def __init__(self, verifier: Verifier, report: Report, now: int) -> None:
        self._verifier = verifier
        self._report = report
        self._now = now
        self._failures: list[VerificationError] = []
        self.text = ""
        self.root: RootName | None = None
        self.checks: dict[str, bool | None] = dict.fromkeys(CHECKS)
        self.checks["report_parsed"] = True
        self.checks["debug_disabled"] = self._holds(lambda: _check_debug(report))
        self.checks["tcb_ordering_valid"] = self._holds(lambda: _check_order(report))

    def run(self, asked: Report, given: SnpCollateral) -> None:
        """Makes every check for which there is what it needs; `asked` is whom collateral is asked for."""
        chain = self._chain(asked, given)
        self.checks["vcek_fetched"] = chain is not None
        if chain is None:
            return
        self.root = chain.root
        report, now = self._report, self._now
        self.checks["vcek_matches_report"] = self._holds(
            lambda: snp.check_processor(report, chain.vcek)
        )
        self.checks["cert_chain_valid"] = self._holds(lambda: snp.check_chain(chain, now))
        self.checks["report_signature_valid"] = self._holds(
            lambda: snp.check_signature(report, chain.vcek)
        )
        self._revocation(asked, given, chain)

    def _chain(self, asked: Report, given: SnpCollateral) -> Chain | None:
        try:
            if given.vcek or given.cert_chain:
                text = _as_pem(given)
            else:
                text = self._verifier.source(asked)
            chain = self._under_a_root(snp.certificates([text.encode(errors="replace")]))
        except VerificationError as error:
            self._failures.append(error)
            return None
        self.text = text
        return chain

    def _under_a_root(self, certificates: Sequence[x509.Certificate]) -> Chain:
        added = self._verifier.roots().snp
        if added is not None:
            try:
                return snp.chain_of(certificates, added)
            except NotGenuine:
                pass
        return snp.chain_of(certificates)

    def _revocation(self, asked: Report, given: SnpCollateral, chain: Chain) -> None:
        try:
            crl = snp_crl.read(given.crl or self._verifier.revocations(asked).encode())
        except VerificationError as error:
            self._failures.append(error)
            return
        self.checks["crl_signature_valid"] = self._holds(
            lambda: snp_crl.check_signature(crl, chain, self._now)
        )
        self.checks["crl_check_passed"] = self._holds(lambda: snp_crl.check_not_listed(crl, chain))

    def _holds(self, check: Callable[[], None]) -> bool:
        try:
            check()
        except VerificationError as error:
            self._failures.append(error)
            return False
        return True

    @property
    def is_genuine(self) -> bool:
        """Whether the processor signed it, as far as its certificates tell."""
        needed = ("vcek_matches_report", "cert_chain_valid", "report_signature_valid")
        return all(self.checks[name] for name in needed)

    @property
    def result(self) -> str:
        """The code; "0" only where every check was made and holds."""
        codes = [_result_of(error) for error in self._failures]
        for code in (REVOKED, BAD_SIGNATURE):
            if code in codes:
                return code
        if codes or not all(self.checks.values()):
            return UNSPECIFIED
        return UP_TO_DATE if self._report.tcb_status == "UpToDate" else OUT_OF_DATE

    @property
    def message(self) -> str:
        """Why it is not "0"."""
        said = [error.message for error in self._failures]
        if not said and self.result != UP_TO_DATE:
            said = [f"TCB status {self._report.tcb_status}"]
        return "; ".join(said)


def _check_debug(report: Report) -> None:
    # Not snp.check_state: guests of this kind ask for their reports at VMPL 1, which the answer shows.
    if report.is_debug:
        raise Refused("report: the debug policy lets the host read the VM's memory")


def _check_order(report: Report) -> None:
    """Refuses (Mismatch) TCB versions that cannot follow from each other, part by part."""
    current, committed, launch = (
        _parts(report, tcb) for tcb in (report.current_tcb, report.committed_tcb, report.launch_tcb)
    )
    for later, earlier, names in (
        (current, committed, "current TCB is below the committed one"),
        (committed, launch, "committed TCB is below that of the launch"),
    ):
        if any(one < other for one, other in zip(later, earlier, strict=True)):
            raise Mismatch(f"report: its {names}")


def _parts(report: Report, tcb: bytes) -> tuple[int, ...]:
    is_turin = report.version >= 3 and report.family == _TURIN
    return tuple(tcb[at] for at in ((0, 1, 2, 3, 7) if is_turin else (0, 1, 6, 7)))


def _as_pem(given: SnpCollateral) -> str:
    if not given.vcek or not given.cert_chain:
        missing = "cert_chain" if given.vcek else "vcek"
        raise NotGenuine(f"collateral: {missing} is missing")
    body = base64.b64encode(given.vcek).decode()
    return f"-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n{given.cert_chain}"


# A platform's quotes share their collateral.
@functools.lru_cache(maxsize=16)
def hex_of(text: str) -> str:
    """Collateral as answers carry it."""
    return text.encode().hex()


_HEX = re.compile(r"(?:0[xX])?((?:[0-9a-fA-F]{2})+)")


def read_bytes(name: str, given: str) -> bytes:
    """Bytes written in hex, with or without 0x and white space, or in base64; Invalid names the field."""
    text = "".join(given.split())
    if match := _HEX.fullmatch(text):
        return bytes.fromhex(match[1])
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Invalid.field(name, "must be hex or base64 text") from None
