"""Whether evidence is acceptable and agrees with itself; each check raises one clear error.

Source: attestation.md section 6, steps 1 to 4.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from attest.errors import Mismatch, Refused
from attest.eventlog import RUNTIME_IMR, Event, replay, runtime_digest
from attest.evidence import Attestation, TdxEvidence
from attest.quote import TdReport


def check_state(report: TdReport) -> None:
    """Refuses a TD whose host may look inside, or that no TDX module of the vendor runs."""
    if report.is_debug:
        raise Refused("the TD was started in debug mode: its host can read its memory")
    if any(report.mr_signer_seam):
        raise Refused("the TD runs under a TDX module that the vendor did not sign")


def check_evidence(
    report: TdReport, events: Sequence[Event], report_data: bytes
) -> tuple[int, ...]:
    """Compares a TD report with the log that came with it and the report data (64 bytes) expected in it.

    Returns the registers that were replayed: 3 always, 0 to 2 where the log has their digests (stripped
    logs have none).  Raises Mismatch when the two contradict each other.
    """
    check_report_data(report, report_data)
    check_runtime_events(events)
    replayed = tuple(imr for imr in range(RUNTIME_IMR) if _is_whole(events, imr))
    for imr in (*replayed, RUNTIME_IMR):
        if replay(events, imr) != report.rtmrs[imr]:
            raise Mismatch(f"RTMR{imr} of the quote is not what the event log adds up to")
    return (*replayed, RUNTIME_IMR)


def check_report_data(report: TdReport, expected: bytes) -> None:
    """Refuses (Mismatch) a report made for other data than the 64 bytes expected."""
    if report.report_data != expected:
        raise Mismatch("the report data in the quote is not the expected one")


def check_runtime_events(events: Iterable[Event]) -> None:
    """Refuses (Mismatch) RTMR3 entries that are no runtime events or whose digest is not of their content.

    A name with somebody else's digest would replay and still lie; an empty digest says nothing.
    """
    for event in events:
        if event.imr != RUNTIME_IMR:
            continue
        if not event.is_runtime:
            raise Mismatch(f"the event {event.event[:64]!r} in RTMR3 is not a runtime event")
        expected = runtime_digest(event.event, event.event_payload, event.version)
        if event.digest not in (b"", expected):
            raise Mismatch(
                f"the digest of the event {event.event[:64]!r} is not of its name and payload"
            )


def check_one_log(attestation: Attestation) -> None:
    """Refuses (Mismatch) an attestation that lists other runtime events than its event log holds."""
    if not isinstance(attestation.platform, TdxEvidence):
        return
    logged = [_said(event) for event in attestation.event_log if event.imr == RUNTIME_IMR]
    if logged != [_said(event) for event in attestation.runtime_events]:
        raise Mismatch("the attestation's runtime events are not those of its event log")


def _said(event: Event) -> tuple[str, bytes, int]:
    return event.event, event.event_payload, event.version


def _is_whole(events: Iterable[Event], imr: int) -> bool:
    """Whether a log has what a register adds up to; Mismatch when it has that in part.

    A stripped log keeps of RTMR0 to 2 only the ACPI entries, for whoever computes the rest.  One digest left out
    of a whole log is no such form: all the others would pass for what was measured and never be compared.
    """
    entries = [event for event in events if event.imr == imr]
    if not any(event.digest for event in entries if not event.is_acpi):
        return False
    if not all(event.digest for event in entries):
        raise Mismatch(f"the event log has digests of RTMR{imr} for some of its entries only")
    return True
