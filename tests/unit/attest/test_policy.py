from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from attest import envelope, eventlog, policy, quote
from attest.envelope import Attestation, SnpEvidence, TdxEvidence
from attest.errors import Mismatch, Refused
from attest.eventlog import Event, runtime_event

Read = Callable[[str], bytes]


@pytest.fixture(scope="module")
def report(simulated: Any) -> quote.TdReport:
    return quote.parse(simulated.quote).report


def test_a_normal_td_is_acceptable(report: quote.TdReport) -> None:
    policy.check_state(report)


def test_a_debug_td_is_refused(report: quote.TdReport) -> None:
    for bit in range(8):
        attributes = bytes([1 << bit]) + report.td_attributes[1:]
        with pytest.raises(Refused, match="debug mode"):
            policy.check_state(replace(report, td_attributes=attributes))


def test_a_module_that_the_vendor_did_not_sign_is_refused(report: quote.TdReport) -> None:
    with pytest.raises(Refused, match="did not sign"):
        policy.check_state(replace(report, mr_signer_seam=bytes(47) + b"\1"))


def test_whole_evidence_replays_all_four_registers(simulated: Any, report: quote.TdReport) -> None:
    assert policy.check_evidence(report, simulated.events, simulated.report_data) == (0, 1, 2, 3)


@pytest.mark.parametrize("name", ["dstack-getquote-tdx-lite.json", "dstack-getquote-gpu-host.json"])
def test_evidence_of_real_guests_replays_all_four_registers(vector: Read, name: str) -> None:
    answer = json.loads(vector(name))
    real = quote.parse(bytes.fromhex(answer["quote"])).report
    log = eventlog.from_json(answer["event_log"])

    replayed = policy.check_evidence(real, log, bytes.fromhex(answer["report_data"]))

    assert replayed == (0, 1, 2, 3)


def test_the_public_simulators_attestation_agrees_with_itself(vector: Read) -> None:
    attestation = envelope.decode(vector("simulator-attestation.bin"))
    assert isinstance(attestation.platform, TdxEvidence)
    real = quote.parse(attestation.platform.quote).report

    policy.check_one_log(attestation)
    replayed = policy.check_evidence(real, attestation.event_log, attestation.report_data)

    assert replayed == (0, 1, 2, 3)


def test_a_stripped_log_replays_rtmr3_only(simulated: Any, report: quote.TdReport) -> None:
    stripped = eventlog.stripped(simulated.events)

    assert policy.check_evidence(report, stripped, simulated.report_data) == (3,)


@pytest.mark.parametrize("imr", [0, 1, 2])
def test_a_register_with_digests_of_some_entries_is_refused(
    simulated: Any, report: quote.TdReport, imr: int
) -> None:
    events = list(simulated.events)
    for at in [i for i, event in enumerate(events) if event.imr == imr]:
        log = [*events[:at], replace(events[at], digest=b""), *events[at + 1 :]]
        with pytest.raises(Mismatch, match=f"digests of RTMR{imr} for some"):
            policy.check_evidence(report, log, simulated.report_data)


def test_a_register_without_any_digest_is_not_replayed(
    simulated: Any, report: quote.TdReport
) -> None:
    blank = [replace(each, digest=b"") if each.imr == 1 else each for each in simulated.events]

    assert policy.check_evidence(report, blank, simulated.report_data) == (0, 2, 3)


def test_other_report_data_is_refused(simulated: Any, report: quote.TdReport) -> None:
    with pytest.raises(Mismatch, match="report data"):
        policy.check_evidence(report, simulated.events, bytes(64))


@pytest.mark.parametrize("imr", [0, 1, 2])
def test_a_changed_firmware_digest_is_refused(
    simulated: Any, report: quote.TdReport, imr: int
) -> None:
    events = list(simulated.events)
    at = next(i for i, event in enumerate(events) if event.imr == imr)
    events[at] = replace(events[at], digest=bytes(48))

    with pytest.raises(Mismatch, match=f"RTMR{imr} of the quote"):
        policy.check_evidence(report, events, simulated.report_data)


def at_app_id(events: tuple[Event, ...], change: Callable[[Event], Event]) -> list[Event]:
    return [change(event) if event.event == "app-id" else event for event in events]


def test_a_changed_payload_is_refused_although_its_digest_replays(
    simulated: Any, report: quote.TdReport
) -> None:
    events = at_app_id(simulated.events, lambda event: replace(event, event_payload=b"\x22" * 20))

    with pytest.raises(Mismatch, match="digest of the event 'app-id'"):
        policy.check_evidence(report, events, simulated.report_data)


def test_a_changed_payload_with_a_fitting_or_empty_digest_is_refused(
    simulated: Any, report: quote.TdReport
) -> None:
    forged = runtime_event("app-id", b"\x22" * 20)

    for event in (forged, replace(forged, digest=b"")):
        events = at_app_id(simulated.events, lambda _, event=event: event)
        with pytest.raises(Mismatch, match="RTMR3 of the quote"):
            policy.check_evidence(report, events, simulated.report_data)


def test_another_kind_of_event_in_rtmr3_is_refused(simulated: Any, report: quote.TdReport) -> None:
    events = at_app_id(simulated.events, lambda event: replace(event, event_type=6))

    with pytest.raises(Mismatch, match="'app-id' in RTMR3 is not a runtime event"):
        policy.check_evidence(report, events, simulated.report_data)


@pytest.mark.parametrize("change", ["dropped", "doubled", "swapped"])
def test_runtime_events_in_another_order_or_number_are_refused(
    simulated: Any, report: quote.TdReport, change: str
) -> None:
    *head, last = simulated.events
    changed = {
        "dropped": head,
        "doubled": [*head, last, last],
        "swapped": [*head[:-1], last, head[-1]],
    }

    with pytest.raises(Mismatch, match="RTMR3 of the quote"):
        policy.check_evidence(report, changed[change], simulated.report_data)


def test_parts_of_two_valid_evidences_do_not_fit_together(simulated: Any) -> None:
    other_events = (*simulated.events, runtime_event("app", b""))
    rtmrs = [eventlog.replay(other_events, imr) for imr in range(4)]
    raw = simulated.platform.quote(bytes(64), mrtd=bytes(48), rtmrs=rtmrs)
    other = quote.parse(raw).report

    assert policy.check_evidence(other, other_events, bytes(64)) == (0, 1, 2, 3)
    with pytest.raises(Mismatch):
        policy.check_evidence(other, simulated.events, bytes(64))
    with pytest.raises(Mismatch):
        policy.check_evidence(other, other_events, simulated.report_data)


def test_an_attestation_may_not_tell_two_stories(simulated: Any) -> None:
    runtime = tuple(event for event in simulated.events if event.is_runtime)
    platform = TdxEvidence(simulated.quote, simulated.events)
    honest = Attestation(platform, runtime, simulated.report_data, "")

    policy.check_one_log(honest)
    policy.check_one_log(honest.stripped())
    for told in (runtime[:-1], (), (runtime_event("app-id", b"other"), *runtime[1:])):
        with pytest.raises(Mismatch, match="runtime events"):
            policy.check_one_log(replace(honest, runtime_events=told))


def test_a_platform_without_event_log_has_the_runtime_events_alone() -> None:
    events = (runtime_event("app-id", b"x"),)

    policy.check_one_log(Attestation(SnpEvidence(b"", (), ""), events, bytes(64), ""))
