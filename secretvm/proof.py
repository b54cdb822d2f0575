"""What a quote, and a compose file beside it, prove of a VM and what they do not, in words for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from attest import snp
from attest.artifacts import SevBuild, TdxBuild
from attest.errors import Malformed
from attest.quote import TdxQuote
from attest.snp import Report
from core.errors import Invalid, NotFound
from secretvm.builds import Finding, SevClaim, TdxClaim, padded_text
from secretvm.document import COMPOSE_LIMIT
from secretvm.quotes import MAX_QUOTE, UP_TO_DATE, Parsed, read_bytes
from secretvm.verification import Verification

REGISTERS = ("MRTD", "RTMR0", "RTMR1", "RTMR2", "RTMR3")
_VENDORS = {"intel": "Intel", "amd": "AMD"}
_ROOT = {
    "simulated": "Its signature leads to a simulated root that this host's operator added: software made it, and it "
    "proves nothing about a processor.",
    "custom": "Its signature leads to a root that this host's operator added, not to the vendor's: it proves as much "
    "as that root is worth to you.",
}
_DEBUG = "The VM was started for debugging: its host can read all of its memory."
_NO_APP = "Which app it runs: give its compose file, too."
_ALWAYS = (
    "That the VM runs now: a quote does not age. Let its report data answer a challenge of yours.",
    "That you speak with this VM: for that, its report data must hold the key of your connection.",
)


@dataclass(frozen=True)
class Asked:
    """What somebody put in; the registers are REGISTERS in hex, for those who have no quote."""

    quote: bytes = b""
    compose: bytes = b""
    registers: Mapping[str, str] = field(default_factory=dict)
    docker_files: str = ""
    app_id: str = ""
    event_log: str = ""
    app_compose: str = ""


@dataclass(frozen=True)
class Proof:
    """The outcome; `facts` are what the evidence says, `checks` those of a SEV-SNP report."""

    is_proven: bool
    proves: tuple[str, ...]
    lacks: tuple[str, ...]
    facts: Mapping[str, str] = field(default_factory=dict)
    checks: Mapping[str, bool | None] = field(default_factory=dict)


@dataclass(frozen=True)
class _Said:
    """One sentence, on the side of what is proven or on the other."""

    text: str
    holds: bool


def examine(verification: Verification, asked: Asked) -> Proof:
    """Judges what was put in; Invalid when it cannot be read, or when there is nothing to judge."""
    if not asked.quote and not any(asked.registers.values()):
        raise Invalid.field("quote", "give a quote, or a compose file with registers")
    if len(asked.compose) > COMPOSE_LIMIT:
        raise Invalid.field("compose", f"must have at most {COMPOSE_LIMIT} bytes")
    parsed = _parsed(verification, asked.quote) if asked.quote else None
    if parsed is None and not asked.compose:
        raise Invalid.field("compose", "give the compose file that the registers are to be of")
    found = _finding(verification, asked, parsed) if asked.compose else None
    said = [*_of_quote(verification, parsed), *_of_compose(found, parsed)]
    return Proof(
        is_proven=_is_proven(parsed) and (found is None or not found.code),
        proves=tuple(each.text for each in said if each.holds),
        lacks=(*(each.text for each in said if not each.holds), *_ALWAYS),
        facts=_facts(parsed.evidence) if parsed else {},
        checks=parsed.checks if parsed else {},
    )


def quote_of(text: str, data: bytes) -> bytes:
    """The bytes of a quote: of a file, as they are or as text, else of what was pasted; Invalid when too long."""
    if data and (b"\0" in data or not data.isascii()):
        return _capped(data)
    text = data.decode() if data else text
    return _capped(read_bytes("quote", text)) if text.strip() else b""


def _capped(raw: bytes) -> bytes:
    if len(raw) > MAX_QUOTE:
        raise Invalid.field("quote", f"must have at most {MAX_QUOTE} bytes")
    return raw


def _parsed(verification: Verification, raw: bytes) -> Parsed:
    try:
        if len(raw) == snp.SIZE:
            return verification.quotes.parse_sev(raw, verification.now())
        return verification.quotes.parse(raw, verification.now())
    except Malformed as error:
        raise Invalid.field(
            "quote", f"is neither a TDX quote nor a SEV-SNP report: {error}"
        ) from None


def _is_vendors(parsed: Parsed | None) -> bool:
    """Whether a real processor made it, and keeps the VM's memory from its host: no other root stands for that."""
    return parsed is not None and parsed.is_genuine and parsed.root in _VENDORS


def _is_proven(parsed: Parsed | None) -> bool:
    return _is_vendors(parsed) and parsed is not None and parsed.result == UP_TO_DATE


# Sentences -----------------------------------------------------------------------------------


def _of_quote(verification: Verification, parsed: Parsed | None) -> Iterator[_Said]:
    if parsed is None:
        yield _Said(
            "That any processor said so: without a quote, registers are only numbers.", False
        )
        return
    kind = "SEV-SNP report" if isinstance(parsed.evidence, Report) else "TDX quote"
    if parsed.tcb_status is None:
        why = parsed.message.removeprefix("quote: ").removeprefix("report: ")
        yield _Said(f"That a processor made this {kind}: {why or 'nothing vouches for it'}.", False)
    else:
        yield from _of_processor(parsed, kind)
    if parsed.is_debug:
        yield _Said(_DEBUG, False)
    elif _is_vendors(parsed):
        yield _Said("Debugging is off: the processor keeps the VM's memory from its host.", True)
    yield from _of_build(verification, parsed)
    if parsed.is_known_machine:
        yield _Said(
            f"The machine is one that this host's operator knows: {parsed.origin}.",
            _is_vendors(parsed),
        )
    else:
        yield _Said(
            "Which machine it is and where it stands: it is on no list of this host.", False
        )


def _of_processor(parsed: Parsed, kind: str) -> Iterator[_Said]:
    vendor = _VENDORS.get(parsed.root or "")
    if vendor is None:
        yield _Said(_ROOT.get(parsed.root or "", _ROOT["custom"]), False)
    else:
        yield _Said(
            f"A processor of {vendor} made this {kind}: its signature leads to {vendor}'s own root.",
            True,
        )
    if parsed.result == UP_TO_DATE:
        yield _Said(
            "The firmware under it is up to date, by the vendor's word.", vendor is not None
        )
    else:
        weak = f" ({', '.join(parsed.advisory_ids)})" if parsed.advisory_ids else ""
        yield _Said(
            f"That the firmware under it is without known flaws: {parsed.message}{weak}.", False
        )


def _of_build(verification: Verification, parsed: Parsed) -> Iterator[_Said]:
    if isinstance(parsed.evidence, Report):
        return  # its one measurement is of the image and the app together
    report = parsed.evidence.report
    try:
        newest = verification.builds.resolve((report.mrtd, *report.rtmrs[:3]))[0]
    except NotFound:
        yield _Said(
            "Which image it booted: its registers are of no build that this host knows.", False
        )
        return
    yield _Said(
        f"It booted build {_named(newest, newest.size)}, by its registers.", _is_vendors(parsed)
    )


def _of_compose(found: Finding | None, parsed: Parsed | None) -> Iterator[_Said]:
    if found is None:
        yield _Said(_NO_APP, False)
        return
    if found.code:
        yield _Said(f"That it runs this compose file: {found.message}.", False)
        return
    build = f", on build {_named(found.build, found.size)}" if found.build else ""
    if _is_vendors(parsed):
        yield _Said(f"The VM measured exactly this compose file{build}.", True)
    else:
        yield _Said(
            f"The compose file fits these registers{build}; that says little, as nothing vouches for them.",
            False,
        )


def _named(build: TdxBuild | SevBuild, size: str) -> str:
    return f"{build.version} ({build.environment}{f', size {size}' if size else ''})"


# The compose file ----------------------------------------------------------------------------


def _finding(verification: Verification, asked: Asked, parsed: Parsed | None) -> Finding:
    docker_files = _hex("docker_files", asked.docker_files, 32)
    if parsed is not None and isinstance(parsed.evidence, Report):
        report = parsed.evidence
        family, image = (_text(each) for each in (report.family_id, report.image_id))
        claim = SevClaim(asked.compose, family, image, report.measurement, docker_files)
        return verification.builds.check_sev(claim)
    mrtd, rtmr0, rtmr1, rtmr2, rtmr3 = _registers(asked, parsed)
    return verification.builds.check_tdx(
        TdxClaim(
            compose=asked.compose,
            registers=(mrtd, rtmr0, rtmr1, rtmr2),
            rtmr3=rtmr3,
            docker_files=docker_files,
            app_id=_hex("app_id", asked.app_id, 20),
            event_log=asked.event_log,
            app_compose=asked.app_compose,
        )
    )


def _registers(asked: Asked, parsed: Parsed | None) -> tuple[bytes, ...]:
    if parsed is not None and isinstance(parsed.evidence, TdxQuote):
        return (parsed.evidence.report.mrtd, *parsed.evidence.report.rtmrs)
    given = [_hex(name, asked.registers.get(name, ""), 48) for name in REGISTERS]
    for name, value in zip(REGISTERS, given, strict=True):
        if not value:
            raise Invalid.field(name, "is needed where there is no quote")
    return tuple(given)


def _hex(name: str, text: str, size: int) -> bytes:
    raw = read_bytes(name, text) if text.strip() else b""
    if raw and len(raw) != size:
        raise Invalid.field(name, f"must be {2 * size} hex digits")
    return raw


def _text(raw: bytes) -> str:
    return padded_text(raw.decode(errors="replace"))


def _facts(evidence: TdxQuote | Report) -> dict[str, str]:
    if isinstance(evidence, Report):
        return {
            "Family": _text(evidence.family_id),
            "Image": _text(evidence.image_id),
            "Measurement": evidence.measurement.hex(),
            "Host data": evidence.host_data.hex(),
            "Report data": evidence.report_data.hex(),
            "Chip": evidence.chip_id.hex(),
        }
    report = evidence.report
    values = (report.mrtd, *report.rtmrs)
    return {
        **{name: value.hex() for name, value in zip(REGISTERS, values, strict=True)},
        "Report data": report.report_data.hex(),
    }
