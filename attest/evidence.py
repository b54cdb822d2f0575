"""The versioned attestation as a value: a quote or report with its events, report data and configuration.

Source: guest-agent.md section 6; attest/envelope.py reads and writes it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from attest import eventlog
from attest.eventlog import Event

REPORT_DATA_SIZE = 64


@dataclass(frozen=True)
class TdxEvidence:
    """A TDX quote and its event log."""

    quote: bytes
    event_log: tuple[Event, ...]


@dataclass(frozen=True)
class SnpEvidence:
    """A SEV-SNP report, its certificates as given, and the document that its host data hashes."""

    report: bytes
    cert_chain: tuple[bytes, ...]
    mr_config: str


@dataclass(frozen=True)
class Attestation:
    """Evidence with what it is to be read with: runtime events, report data (64), the vm_config text.

    `report_data_payload` is set in attestations of kind dstack-pod only, whose report data hashes it.
    """

    platform: TdxEvidence | SnpEvidence
    runtime_events: tuple[Event, ...]
    report_data: bytes
    config: str
    report_data_payload: bytes | None = None

    @property
    def event_log(self) -> tuple[Event, ...]:
        """The platform's event log; empty where the platform has none."""
        return self.platform.event_log if isinstance(self.platform, TdxEvidence) else ()

    def stripped(self) -> Attestation:
        """The form that certificates carry: RTMR3's digests and the firmware's entries left out."""
        if isinstance(self.platform, SnpEvidence):
            return self
        log = eventlog.stripped(self.platform.event_log)
        return replace(self, platform=replace(self.platform, event_log=log))
