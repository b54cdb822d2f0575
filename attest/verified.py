"""What verified evidence says of a VM: every step in order, ending at the first that fails.

Source: attestation.md section 6.  Whatever needs a network or a disk is asked of the caller's `Trust`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from attest import eventlog, measure, mr_config, policy, vm_config
from attest.boot_info import SEV_SNP, TDX, BootInfo
from attest.errors import Malformed, Mismatch, VerificationError
from attest.eventlog import Event
from attest.evidence import Attestation, SnpEvidence, TdxEvidence
from attest.quote import TdReport
from attest.verify import Claim, RootName, VerifiedTdx, read_claim, verify_claim

APP_ID_SIZE = 20
HASH_SIZE = 32


@dataclass(frozen=True)
class KnownImage:
    """An image that the verifier has itself, found by its os image hash."""

    version: str
    is_dev: bool
    measurement: bytes | None = field(repr=False)


@dataclass(frozen=True)
class Trust:
    """What a verifier goes by: the time, its roots (None: the vendor's), collateral, the images it has.

    `collateral` answers a quote's claim with QuoteCollateralV3 JSON, or raises a VerificationError.
    """

    now: int
    collateral: Callable[[Claim], str]
    tdx_root: bytes | None = None
    image: Callable[[bytes], KnownImage | None] = lambda os_image_hash: None
    check_image: bool = True


@dataclass(frozen=True)
class AppInfo:
    """Who the VM is: identity from its measured events, registers from its quote (none on SEV-SNP)."""

    app_id: bytes
    compose_hash: bytes
    instance_id: bytes
    device_id: bytes
    mrtd: bytes
    rtmrs: tuple[bytes, ...]
    mr_system: bytes
    mr_aggregated: bytes
    os_image_hash: bytes
    key_provider_info: bytes


@dataclass(frozen=True)
class KeyProvider:
    """Who gave the VM its keys: `kms`, `local-sgx`, `tpm` or `none`, and that provider's identity."""

    name: str
    id: str


@dataclass(frozen=True)
class Verified:
    """The outcome: valid without a reason; with one, what was found out before that step failed.

    `boot_time_info` is the boot info at `boot-mr-done`, before keys were given; both are None unless valid.
    """

    tee_variant: str
    report_data: bytes
    reason: str | None = None
    quote_verified: bool = False
    event_log_verified: bool = False
    os_image_hash_verified: bool = False
    # No part of this library computes QEMU's ACPI tables; their digests are taken from the log.
    acpi_tables_verified: bool = False
    os_image_is_dev: bool | None = None
    os_image_version: str | None = None
    root: RootName | None = None
    tcb_status: str = ""
    advisory_ids: tuple[str, ...] = ()
    key_provider: KeyProvider | None = None
    app_info: AppInfo | None = None
    boot_info: BootInfo | None = None
    boot_time_info: BootInfo | None = None

    @property
    def is_valid(self) -> bool:
        """Whether every step passed."""
        return self.reason is None


def verify_evidence(attestation: Attestation, trust: Trust) -> Verified:
    """Takes evidence through all steps; never raises for what the evidence or its collateral says."""
    platform = attestation.platform
    variant = TDX if isinstance(platform, TdxEvidence) else SEV_SNP
    known = Verified(variant, attestation.report_data)
    try:
        for known in _steps(attestation, trust, known):
            pass
    except VerificationError as error:
        return replace(known, reason=error.message, boot_info=None, boot_time_info=None)
    return known


def _steps(attestation: Attestation, trust: Trust, known: Verified) -> Iterator[Verified]:
    if isinstance(attestation.platform, SnpEvidence):
        raise Malformed("attestation: SEV-SNP evidence is not supported")
    return _tdx_steps(attestation, attestation.platform, trust, known)


def _tdx_steps(
    attestation: Attestation, platform: TdxEvidence, trust: Trust, known: Verified
) -> Iterator[Verified]:
    claim = read_claim(platform.quote, trust.tdx_root)
    genuine = verify_claim(claim, trust.collateral(claim), trust.now)
    report = genuine.quote.report
    known = replace(
        known,
        quote_verified=True,
        root=genuine.root,
        tcb_status=genuine.tcb_status,
        advisory_ids=genuine.advisory_ids,
    )
    yield known
    if not platform.event_log:
        policy.check_report_data(report, attestation.report_data)
        raise Mismatch("event log is required")
    policy.check_evidence(report, platform.event_log, attestation.report_data)
    policy.check_one_log(attestation)
    known = replace(known, event_log_verified=True)
    yield known
    config = vm_config.parse(attestation.config)
    app = _tdx_app(genuine, platform.event_log, config.os_image_hash)
    provider = _key_provider(app.key_provider_info)
    known = replace(known, app_info=app, key_provider=provider)
    yield known
    _check_mr_config(report, app, provider, config.mr_config)
    if trust.check_image:
        known = _with_image(known, trust)
        raise Mismatch("the os image cannot be checked")
    yield replace(
        known,
        boot_info=_boot_info(known, app),
        boot_time_info=_boot_info(known, _at_boot(report, app, platform.event_log)),
    )


def _tdx_app(genuine: VerifiedTdx, events: tuple[Event, ...], os_image_hash: bytes) -> AppInfo:
    report = genuine.quote.report
    provider = eventlog.platform_payload(events, "key-provider")
    return AppInfo(
        app_id=_event(events, "app-id", APP_ID_SIZE),
        compose_hash=_event(events, "compose-hash", HASH_SIZE),
        instance_id=eventlog.platform_payload(events, "instance-id") or b"",
        device_id=measure.device_id(genuine.ppid),
        mrtd=report.mrtd,
        rtmrs=report.rtmrs,
        mr_system=measure.mr_system(report.mrtd, report.rtmrs, provider),
        mr_aggregated=_mr_aggregated(report, report.rtmrs[3]),
        os_image_hash=os_image_hash,
        key_provider_info=provider or b"",
    )


def _event(events: tuple[Event, ...], name: str, size: int) -> bytes:
    payload = eventlog.platform_payload(events, name)
    if payload is None:
        raise Mismatch(f"the event log has no {name} before system-ready")
    if len(payload) != size:
        raise Malformed(f"the event {name} has {len(payload)} bytes instead of {size}")
    return payload


def _mr_aggregated(report: TdReport, rtmr3: bytes) -> bytes:
    return measure.mr_aggregated(
        report.mrtd,
        (*report.rtmrs[:3], rtmr3),
        report.mr_config_id,
        report.mr_owner,
        report.mr_owner_config,
    )


def _at_boot(report: TdReport, app: AppInfo, events: tuple[Event, ...]) -> AppInfo:
    rtmr3 = eventlog.replay(eventlog.until_boot_done(events), eventlog.RUNTIME_IMR)
    return replace(
        app,
        mr_system=measure.mr_system(report.mrtd, report.rtmrs, None),
        mr_aggregated=_mr_aggregated(report, rtmr3),
        key_provider_info=b"",
    )


def _key_provider(info: bytes) -> KeyProvider | None:
    if not info:
        return None
    try:
        given = json.loads(info)
        name, identity = given["name"], given["id"]
    except (ValueError, RecursionError, TypeError, KeyError):
        name = identity = None
    if not isinstance(name, str) or not isinstance(identity, str):
        raise Malformed("the event key-provider is not a JSON object with name and id")
    return KeyProvider(name, identity)


def _check_mr_config(
    report: TdReport, app: AppInfo, provider: KeyProvider | None, document: str
) -> None:
    """MRCONFIGID is the host's word from before the boot: where it is of a known form it must agree."""


def _with_image(known: Verified, trust: Trust) -> Verified:
    return known


def _boot_info(known: Verified, app: AppInfo) -> BootInfo:
    return BootInfo(
        tee_variant=known.tee_variant,
        mr_aggregated=app.mr_aggregated,
        os_image_hash=app.os_image_hash,
        mr_system=app.mr_system,
        app_id=app.app_id,
        compose_hash=app.compose_hash,
        instance_id=app.instance_id,
        device_id=app.device_id,
        key_provider_info=app.key_provider_info,
        tcb_status=known.tcb_status,
        advisory_ids=known.advisory_ids,
    )
