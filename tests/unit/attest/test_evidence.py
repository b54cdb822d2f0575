from __future__ import annotations

from typing import Any

from attest.eventlog import runtime_event
from attest.evidence import Attestation, SnpEvidence, TdxEvidence


def test_stripping_drops_digests_and_firmware_entries_only(simulated: Any) -> None:
    runtime = tuple(event for event in simulated.events if event.is_runtime)
    platform = TdxEvidence(simulated.quote, simulated.events)
    whole = Attestation(platform, runtime, simulated.report_data, "{}")

    stripped = whole.stripped()

    assert [event.event for event in stripped.event_log] == [
        "acpi-loader",
        "acpi-rsdp",
        "acpi-tables",
        "app-id",
        "key-provider",
        "system-ready",
    ]
    assert [bool(event.digest) for event in stripped.event_log] == [True] * 3 + [False] * 3
    assert stripped.runtime_events == whole.runtime_events
    assert stripped.stripped() == stripped


def test_a_snp_attestation_has_no_event_log_and_nothing_to_strip() -> None:
    runtime = (runtime_event("app-id", b"x"),)
    whole = Attestation(SnpEvidence(b"report", (), ""), runtime, bytes(64), "")

    assert whole.event_log == ()
    assert whole.stripped() is whole
