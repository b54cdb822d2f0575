"""What this VM can prove: quotes with their log, attestations, and the measurements in them.

Source: guest-agent.md sections 5 and 6, attestation.md sections 1, 4 and 5.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from attest import evidence, measure, pck, quote, ratls
from attest.eventlog import Event
from core import certs
from core.errors import Invalid
from guest.events import EventLog, Quoted
from guest.tee import REPORT_DATA_SIZE, SEV_SNP, TDX, SevSnp, SimulatedSnp, Tee

# attestation.md section 5: offsets in an SEV-SNP report.
_SNP_MEASUREMENT = slice(0x90, 0xC0)
_SNP_HOST_DATA = slice(0xC0, 0xE0)
_SNP_CHIP_ID = slice(0x1A0, 0x1E0)


@dataclass(frozen=True)
class Measurements:
    """What the platform measured; all empty without a TEE, registers empty on SEV-SNP."""

    mrtd: bytes = b""
    rtmrs: tuple[bytes, ...] = ()
    mr_system: bytes = b""
    mr_aggregated: bytes = b""
    device_id: bytes = b""
    events: tuple[Event, ...] = field(default=(), repr=False)


def padded(report_data: bytes) -> bytes:
    """Report data of up to 64 bytes with zeros to its right; Invalid when longer."""
    if len(report_data) > REPORT_DATA_SIZE:
        raise Invalid("Report data is too long")
    return report_data.ljust(REPORT_DATA_SIZE, b"\0")


class Evidence:
    """A platform with its event log; `mr_config` is the host's document, given on to SEV-SNP verifiers."""

    def __init__(self, tee: Tee, log: EventLog, vm_config: str, mr_config: str) -> None:
        self.tee = tee
        self.log = log
        self._vm_config = vm_config
        self._mr_config = mr_config
        self._measuring = threading.Lock()
        self._quote: bytes | None = None

    def quote(self, report_data: bytes) -> Quoted:
        """A quote or report over exactly 64 bytes, with the log it belongs to."""
        return self.log.quoted(lambda: self.tee.quote(report_data))

    def attestation(self, report_data: bytes) -> evidence.Attestation:
        """The versioned attestation over exactly 64 bytes."""
        quoted = self.quote(report_data)
        platform: evidence.TdxEvidence | evidence.SnpEvidence
        if isinstance(self.tee, SevSnp | SimulatedSnp):
            chain = self.tee.certificates(report_data)
            platform = evidence.SnpEvidence(quoted.quote, chain, self._mr_config)
        else:
            platform = evidence.TdxEvidence(quoted.quote, quoted.events)
        return evidence.Attestation(
            platform=platform,
            runtime_events=tuple(event for event in quoted.events if event.is_runtime),
            report_data=report_data,
            config=self._vm_config,
        )

    def ra_tls_extension(self, key: ec.EllipticCurvePublicKey) -> x509.UnrecognizedExtension:
        """The certificate extension that attests a key: evidence over it, with the log stripped."""
        report_data = ratls.report_data_for_key(certs.spki_der(key))
        return ratls.attestation_extension(self.attestation(report_data))

    def measurements(self, key_provider: str = "") -> Measurements:
        """The measurements now; `key_provider` is the key-provider event's payload, if there was one."""
        if self.tee.variant not in (TDX, SEV_SNP):
            return Measurements(events=self.log.runtime_events())
        quoted = self.log.quoted(self._any_quote)
        if self.tee.variant == SEV_SNP:
            return _of_snp(quoted.quote, quoted.events)
        report, device_id = _read_tdx(quoted.quote)
        payload = key_provider.encode() if key_provider else None
        return Measurements(
            mrtd=report.mrtd,
            rtmrs=quoted.registers,
            mr_system=measure.mr_system(report.mrtd, quoted.registers, payload),
            mr_aggregated=measure.mr_aggregated(
                report.mrtd,
                quoted.registers,
                report.mr_config_id,
                report.mr_owner,
                report.mr_owner_config,
            ),
            device_id=device_id,
            events=quoted.events,
        )

    def _any_quote(self) -> bytes:
        # Everything read from it but RTMR3, which the registers tell, is the same in every quote of a boot.
        with self._measuring:
            if self._quote is None:
                self._quote = self.tee.quote(bytes(REPORT_DATA_SIZE))
            return self._quote


def _read_tdx(raw: bytes) -> tuple[quote.TdReport, bytes]:
    parsed = quote.parse(raw)
    leaf = pck.certificates(parsed.pck_chain_pem)[0]
    return parsed.report, measure.device_id(pck.platform(leaf).ppid)


def _of_snp(report: bytes, events: tuple[Event, ...]) -> Measurements:
    measurement = report[_SNP_MEASUREMENT]
    return Measurements(
        mr_system=measure.snp_mr_system(measurement),
        mr_aggregated=measure.snp_mr_aggregated(measurement, report[_SNP_HOST_DATA]),
        device_id=measure.device_id(report[_SNP_CHIP_ID]),
        events=events,
    )
