"""What verified evidence says of a VM: every step in order, ending at the first that fails.

Source: attestation.md section 6.  Whatever needs a network or a disk is asked of the caller's `Trust`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from attest import eventlog, measure, mr_config, os_image, policy, quote, snp, vm_config
from attest.boot_info import SEV_SNP, TDX, BootInfo
from attest.errors import Malformed, Mismatch, VerificationError
from attest.eventlog import Event
from attest.evidence import Attestation, SnpEvidence, TdxEvidence
from attest.mr_config import Identity, MrConfig
from attest.os_image import KnownImage
from attest.quote import TdReport
from attest.root import RootName
from attest.verify import Claim, VerifiedTdx, read_claim, verify_claim

APP_ID_SIZE = 20
HASH_SIZE = 32


def _no_image(os_image_hash: bytes) -> KnownImage | None:
    return None


@dataclass(frozen=True)
class Trust:
    """What a verifier goes by: the time, its roots (None: the vendor's), collateral, the images it has.

    `collateral` answers a quote's claim with QuoteCollateralV3 JSON and a SEV-SNP report, if the evidence has no
    certificates, with its chain in PEM, or raises a VerificationError.  Roots are in DER.
    """

    now: int
    collateral: Callable[[Claim | snp.Report], str]
    tdx_root: bytes | None = None
    snp_root: bytes | None = None
    image: Callable[[bytes], KnownImage | None] = _no_image
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
    if isinstance(platform, TdxEvidence):
        steps = _tdx_steps(attestation, platform, trust, known)
    else:
        steps = _snp_steps(attestation, platform, trust, known)
    try:
        for step in steps:
            known = step
    except VerificationError as error:
        return replace(known, reason=error.message)
    return known


def _tdx_steps(
    attestation: Attestation, platform: TdxEvidence, trust: Trust, known: Verified
) -> Iterator[Verified]:
    claim = read_claim(platform.quote, trust.tdx_root)
    genuine = verify_claim(claim, trust.collateral(claim), trust.now)
    report, events = genuine.quote.report, platform.event_log
    yield (
        known := replace(
            known,
            quote_verified=True,
            root=genuine.root,
            tcb_status=genuine.tcb_status,
            advisory_ids=genuine.advisory_ids,
        )
    )
    policy.check_report_data(report, attestation.report_data)
    if not events:
        raise Mismatch("event log is required")
    policy.check_evidence(report, events, attestation.report_data)
    policy.check_one_log(attestation)
    yield (known := replace(known, event_log_verified=True))
    config = vm_config.parse(attestation.config)
    app = _tdx_app(genuine, events, config.os_image_hash)
    provider = _key_provider(app.key_provider_info)
    yield (known := replace(known, app_info=app, key_provider=provider))
    identity = Identity(app.app_id, app.compose_hash, app.instance_id)
    if any(report.mr_config_id):
        mr_config.check(
            report.mr_config_id, identity, _document_provider(provider), config.mr_config
        )
    if trust.check_image:
        known = _with_image(known, check_image(attestation, trust))
    yield replace(
        known,
        boot_info=_boot_info(known, app, app.device_id),
        boot_time_info=_boot_info(known, _at_boot(report, app, events), app.device_id),
    )


def _snp_steps(
    attestation: Attestation, platform: SnpEvidence, trust: Trust, known: Verified
) -> Iterator[Verified]:
    report = snp.parse(platform.report)
    given = platform.cert_chain or (trust.collateral(report).encode(errors="replace"),)
    genuine = snp.verify_snp(report, snp.certificates(given), trust.now, trust.snp_root)
    yield (
        known := replace(
            known, quote_verified=True, root=genuine.root, tcb_status=report.tcb_status
        )
    )
    if report.report_data != attestation.report_data:
        raise Mismatch("the report data in the report is not the expected one")
    config = vm_config.parse(attestation.config)
    document = platform.mr_config or config.mr_config
    if mr_config.host_data(document) != report.host_data:
        raise Mismatch("the host data of the report is not the hash of the mr_config document")
    measured = mr_config.parse(document)
    _check_said(attestation.runtime_events, measured.identity)
    app = _snp_app(report, measured, config.os_image_hash)
    provider = _key_provider(app.key_provider_info)
    yield (known := replace(known, event_log_verified=True, app_info=app, key_provider=provider))
    if trust.check_image:
        known = _with_image(known, check_image(attestation, trust))
    # A KMS knows a SEV-SNP machine by its chip id itself (kms.md section 4).
    boot_info = _boot_info(known, app, report.chip_id)
    yield replace(known, boot_info=boot_info, boot_time_info=boot_info)


def check_image(attestation: Attestation, trust: Trust) -> KnownImage | None:
    """The last step by itself: refuses (a VerificationError) what the OS image that the evidence names does not measure.

    For evidence that is genuine and agrees with itself; returns the image where the verifier has it.
    """
    platform, config = attestation.platform, vm_config.parse(attestation.config)
    image = trust.image(config.os_image_hash)
    if isinstance(platform, TdxEvidence):
        report = quote.parse(platform.quote).report
        os_image.check_tdx(report, platform.event_log, config, image)
    else:
        os_image.check_snp(snp.parse(platform.report).measurement, config, image)
    return image


def _with_image(known: Verified, image: KnownImage | None) -> Verified:
    known = replace(known, os_image_hash_verified=True)
    if image is None:
        return known
    return replace(known, os_image_is_dev=image.is_dev, os_image_version=image.version)


def _check_said(events: Sequence[Event], measured: Identity) -> None:
    """SEV-SNP measures no events: what they say of the VM's identity must be what its launch says."""
    for name, value in (
        ("app-id", measured.app_id),
        ("compose-hash", measured.compose_hash),
        ("instance-id", measured.instance_id),
    ):
        # What the document leaves out is not claimed either: an instance's id may come with its first boot.
        if value and eventlog.platform_payload(events, name) not in (None, value):
            raise Mismatch(f"the event {name} is not what the mr_config document says")


def _snp_app(report: snp.Report, measured: MrConfig, os_image_hash: bytes) -> AppInfo:
    identity = measured.identity
    _check_size("app-id", identity.app_id, APP_ID_SIZE)
    _check_size("compose-hash", identity.compose_hash, HASH_SIZE)
    provider = {"name": measured.key_provider, "id": measured.key_provider_id.hex()}
    info = json.dumps(provider, separators=(",", ":")).encode() if measured.key_provider else b""
    return AppInfo(
        app_id=identity.app_id,
        compose_hash=identity.compose_hash,
        instance_id=identity.instance_id,
        device_id=measure.device_id(report.chip_id),
        mrtd=b"",
        rtmrs=(),
        mr_system=measure.snp_mr_system(report.measurement),
        mr_aggregated=measure.snp_mr_aggregated(report.measurement, report.host_data),
        os_image_hash=os_image_hash,
        key_provider_info=info,
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
    _check_size(name, payload, size)
    return payload


def _check_size(name: str, value: bytes, size: int) -> None:
    if len(value) != size:
        raise Malformed(f"the measured {name} has {len(value)} bytes instead of {size}")


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


def _document_provider(provider: KeyProvider | None) -> tuple[str, bytes]:
    """The key provider as MRCONFIGID names it: the guest's event says `local-sgx` for `local`."""
    if provider is None:
        return "none", b""
    try:
        return provider.name.removesuffix("-sgx"), bytes.fromhex(provider.id)
    except ValueError:
        raise Malformed("the id in the event key-provider is not hex text") from None


def _boot_info(known: Verified, app: AppInfo, device_id: bytes) -> BootInfo:
    return BootInfo(
        tee_variant=known.tee_variant,
        mr_aggregated=app.mr_aggregated,
        os_image_hash=app.os_image_hash,
        mr_system=app.mr_system,
        app_id=app.app_id,
        compose_hash=app.compose_hash,
        instance_id=app.instance_id,
        device_id=device_id,
        key_provider_info=app.key_provider_info,
        tcb_status=known.tcb_status,
        advisory_ids=known.advisory_ids,
    )
