"""Every way in which evidence can fail, each refused for its own reason, on both platforms."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from attest import eventlog, mr_config, verified
from attest.boot_info import SEV_SNP, TDX
from attest.errors import NotGenuine
from attest.eventlog import Event, runtime_event
from attest.evidence import Attestation, SnpEvidence, TdxEvidence
from attest.os_image import KnownImage
from attest.quote import parse
from attest.verified import KeyProvider, Trust, verify_evidence
from attest_sim.tdx import SimulatedPlatform
from tests.common import evidence
from tests.common.evidence import (
    APP_ID,
    COMPOSE_HASH,
    DOCUMENT,
    INSTANCE_ID,
    KEY_PROVIDER,
    NOW,
    REPORT_DATA,
    TdxVm,
    platform,
    snp_attestation,
    trust,
    vm_config,
)

Read = Callable[[str], bytes]
Attest = Callable[[], Attestation]
DAY = 24 * 3600
FOREIGN = SimulatedPlatform.from_seed(b"a foreign platform of 32 bytes..")
pytestmark = pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")


def tdx(attestation: Attestation) -> TdxEvidence:
    assert isinstance(attestation.platform, TdxEvidence)
    return attestation.platform


def with_quote(change: Callable[[bytes], bytes]) -> Attestation:
    made = TdxVm().attestation()
    return replace(made, platform=replace(tdx(made), quote=change(tdx(made).quote)))


def flipped(at: int) -> Callable[[bytes], bytes]:
    return lambda raw: raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]


def with_log(change: Callable[[tuple[Event, ...]], tuple[Event, ...]]) -> Attestation:
    made = TdxVm().attestation()
    events = change(tdx(made).event_log)
    runtime = tuple(event for event in events if event.is_runtime)
    return replace(made, platform=replace(tdx(made), event_log=events), runtime_events=runtime)


def measured(*events: tuple[str, bytes], **options: Any) -> Attestation:
    return TdxVm(tuple(runtime_event(name, data) for name, data in events), **options).attestation()


def forged(events: tuple[Event, ...]) -> tuple[Event, ...]:
    """The digests of the real events under other payloads."""
    return tuple(
        replace(event, event_payload=b"\xee" * 20) if event.event == "app-id" else event
        for event in events
    )


def without(name: str) -> Attest:
    return lambda: measured(*[entry for entry in evidence.IDENTITY if entry[0] != name])


def changed(**events: bytes) -> Attest:
    given = {name.replace("_", "-"): data for name, data in events.items()}
    return lambda: measured(*[(name, given.get(name, data)) for name, data in evidence.IDENTITY])


def test_evidence_in_which_everything_agrees_is_valid() -> None:
    found = verify_evidence(TdxVm().attestation(), trust())

    assert found.reason is None
    assert found.is_valid
    assert (found.quote_verified, found.event_log_verified) == (True, True)
    assert (found.os_image_hash_verified, found.acpi_tables_verified) == (True, False)
    assert (found.root, found.tcb_status, found.tee_variant) == ("simulated", "UpToDate", TDX)
    assert found.report_data == REPORT_DATA
    assert found.key_provider == KeyProvider("local-sgx", "0102")
    app = found.app_info
    assert app is not None
    assert (app.app_id, app.compose_hash, app.instance_id) == (APP_ID, COMPOSE_HASH, INSTANCE_ID)
    assert app.key_provider_info == KEY_PROVIDER
    boot = found.boot_info
    assert boot is not None
    assert (boot.app_id, boot.mr_system, boot.device_id) == (
        APP_ID,
        app.mr_system,
        app.device_id,
    )


def test_boot_time_values_end_before_keys_were_given() -> None:
    found = verify_evidence(TdxVm().attestation(), trust())
    assert found.boot_info is not None
    assert found.boot_time_info is not None

    assert found.boot_time_info.key_provider_info == b""
    assert found.boot_time_info.mr_aggregated != found.boot_info.mr_aggregated
    assert found.boot_time_info.mr_system != found.boot_info.mr_system
    assert found.boot_time_info.app_id == found.boot_info.app_id


def test_the_stripped_form_of_certificates_is_as_good() -> None:
    attestation = TdxVm().attestation()

    assert verify_evidence(attestation.stripped(), trust()) == verify_evidence(attestation, trust())


def test_what_the_application_measures_changes_nothing_of_who_it_is() -> None:
    late = (*evidence.IDENTITY, ("app-id", b"forged"), ("key-provider", b"{}"))
    found = verify_evidence(measured(*late), trust())

    assert found.is_valid
    assert found.app_info is not None
    assert found.app_info.app_id == APP_ID


def test_the_verifiers_own_image_says_what_it_is() -> None:
    own = KnownImage("0.5.4", True)
    found = verify_evidence(TdxVm().attestation(), trust(image=lambda os_image_hash: own))

    assert (found.os_image_version, found.os_image_is_dev) == ("0.5.4", True)


def test_an_image_that_is_not_asked_for_is_not_said_to_be_verified() -> None:
    found = verify_evidence(
        TdxVm(config=vm_config(tdx_measurement=None)).attestation(), trust(check_image=False)
    )

    assert found.is_valid
    assert not found.os_image_hash_verified


@pytest.mark.parametrize("version", [1, 2, 3])
def test_an_mrconfigid_that_binds_the_measured_app_is_valid(version: int) -> None:
    document = evidence.DOCUMENT
    mr_config_id = {
        1: mr_config.version_1(COMPOSE_HASH),
        2: mr_config.version_2(COMPOSE_HASH, APP_ID, "local", b"\1\2"),
        3: mr_config.version_3(document),
    }[version]

    found = verify_evidence(
        TdxVm(config=vm_config(mr_config=document), mr_config_id=mr_config_id).attestation(),
        trust(),
    )
    assert found.reason is None


BAD: dict[str, tuple[Attest, dict[str, Any], str]] = {
    # name: what is handed in, what the verifier is given instead, why it refuses
    "flipped byte in a register": (lambda: with_quote(flipped(200)), {}, "not genuine"),
    "flipped byte in the report data": (lambda: with_quote(flipped(600)), {}, "not genuine"),
    "flipped byte in the signature": (lambda: with_quote(flipped(640)), {}, "not genuine"),
    "flipped byte in the QE report": (lambda: with_quote(flipped(800)), {}, "not genuine"),
    "bytes after the quote": (lambda: with_quote(lambda raw: raw + b"\1"), {}, "not padding"),
    "quote cut short": (lambda: with_quote(lambda raw: raw[:900]), {}, "cut short"),
    "debug TD": (
        lambda: TdxVm(options=(("td_attributes", b"\1" + bytes(7)),)).attestation(),
        {},
        "debug mode",
    ),
    "vendor's root only": (lambda: TdxVm().attestation(), {"tdx_root": None}, "trusted root"),
    "wrong root": (
        lambda: TdxVm().attestation(),
        {"tdx_root": FOREIGN.root_ca_der},
        "trusted root",
    ),
    "root that is no certificate": (
        lambda: TdxVm().attestation(),
        {"tdx_root": b"\x30"},
        "not a certificate",
    ),
    "collateral of another platform": (
        lambda: TdxVm().attestation(),
        {"collateral": lambda asked: FOREIGN.collateral_json(NOW)},
        "not genuine",
    ),
    "expired collateral": (
        lambda: TdxVm().attestation(),
        {"now": NOW + 8 * DAY},
        "not valid at that time",
    ),
    "collateral of the future": (
        lambda: TdxVm().attestation(),
        {"now": NOW - 2 * DAY},
        "not valid at that time",
    ),
    "unreadable collateral": (
        lambda: TdxVm().attestation(),
        {"collateral": lambda asked: "{}"},
        "collateral: cannot be read",
    ),
    "huge collateral": (
        lambda: TdxVm().attestation(),
        {"collateral": lambda asked: " " * 2**20 + "{}"},
        "larger than 1 MiB",
    ),
    "other report data": (
        lambda: replace(TdxVm().attestation(), report_data=bytes(64)),
        {},
        "report data in the quote is not",
    ),
    "no event log": (
        lambda: replace(
            TdxVm().attestation(),
            platform=replace(tdx(TdxVm().attestation()), event_log=()),
            runtime_events=(),
        ),
        {},
        "event log is required",
    ),
    "event log of another VM": (
        lambda: with_log(lambda events: tdx(changed(app_id=b"\xbb" * 20)()).event_log),
        {},
        "RTMR3 of the quote",
    ),
    "forged digest": (lambda: with_log(forged), {}, "not of its name and payload"),
    "swapped events": (
        lambda: with_log(lambda events: (*events[:-2], events[-1], events[-2])),
        {},
        "RTMR3 of the quote",
    ),
    "event left out": (lambda: with_log(lambda events: events[:-1]), {}, "RTMR3 of the quote"),
    "firmware entry changed": (
        lambda: with_log(lambda events: (replace(events[0], digest=bytes(48)), *events[1:])),
        {},
        "RTMR0 of the quote",
    ),
    "two lists of runtime events": (
        lambda: replace(TdxVm().attestation(), runtime_events=()),
        {},
        "not those of its event log",
    ),
    "no app id": (without("app-id"), {}, "no app-id before system-ready"),
    "no compose hash": (without("compose-hash"), {}, "no compose-hash before system-ready"),
    "short app id": (changed(app_id=b"short"), {}, "app-id has 5 bytes instead of 20"),
    "long compose hash": (changed(compose_hash=bytes(33)), {}, "compose-hash has 33 bytes"),
    "key provider that is no JSON": (changed(key_provider=b"{"), {}, "key-provider is not"),
    "key provider without id": (
        changed(key_provider=b'{"name":"kms"}'),
        {},
        "key-provider is not",
    ),
    "key provider with a number": (
        changed(key_provider=b'{"name":"kms","id":5}'),
        {},
        "key-provider is not",
    ),
    "MRCONFIGID of another app": (
        lambda: TdxVm(mr_config_id=mr_config.version_1(bytes(32))).attestation(),
        {},
        "binds another app",
    ),
    "MRCONFIGID beside a key provider that is no hex": (
        lambda: replace_provider(b'{"name":"kms","id":"xyz"}'),
        {},
        "not hex text",
    ),
    "vm_config that is no JSON": (
        lambda: replace(TdxVm().attestation(), config="{"),
        {},
        "vm_config: must be",
    ),
    "wrong memory size": (
        lambda: replace(TdxVm().attestation(), config=vm_config(memory_size=2**33)),
        {},
        "RTMR0 of the quote is not that of the os image",
    ),
    "wrong image hash": (
        lambda: replace(TdxVm().attestation(), config=vm_config(os_image_hash="00" * 32)),
        {},
        "not the one that os_image_hash names",
    ),
    "unknown image": (
        lambda: TdxVm(config=vm_config(tdx_measurement=None)).attestation(),
        {},
        "does not have the image",
    ),
    "SNP: debug policy": (lambda: snp_attestation(policy=0xB0000), {}, "debug policy"),
    "SNP: other VMPL": (lambda: snp_attestation(vmpl=2), {}, "VMPL 2"),
    "SNP: vendor's root only": (lambda: snp_attestation(), {"snp_root": None}, "trusted root"),
    "SNP: report cut short": (
        lambda: replace(snp_attestation(), platform=SnpEvidence(b"", (), "")),
        {},
        "0 bytes instead of 1184",
    ),
    "SNP: expired": (
        lambda: snp_attestation(),
        {"now": NOW + 40 * 365 * DAY},
        "not valid at that time",
    ),
    "SNP: other report data": (
        lambda: replace(snp_attestation(), report_data=bytes(64)),
        {},
        "report data in the report",
    ),
    "SNP: other document": (
        lambda: snp_attestation(host_data=bytes(32)),
        {},
        "host data of the report",
    ),
    "SNP: document that is none": (lambda: snp_attestation("{}"), {}, "not a version 3"),
    "SNP: document without an app": (
        lambda: replace(snp_attestation('{"version":3}'), runtime_events=()),
        {},
        "app-id has 0 bytes",
    ),
    "SNP: document without a compose hash": (
        lambda: replace(
            snp_attestation(json.dumps({"version": 3, "app_id": APP_ID.hex()})), runtime_events=()
        ),
        {},
        "compose-hash has 0 bytes",
    ),
    "SNP: events of another app": (
        lambda: replace(snp_attestation(), runtime_events=(runtime_event("app-id", b"\xbb" * 20),)),
        {},
        "app-id is not what the mr_config document says",
    ),
    "SNP: other measurement": (
        lambda: snp_attestation(measurement=bytes(48)),
        {},
        "measurement of the report is not",
    ),
    "SNP: chain that nobody has": (
        lambda: snp_attestation(chain=False),
        {"collateral": lambda asked: ""},
        "cannot be read",
    ),
}


def replace_provider(payload: bytes) -> Attestation:
    events = [(n, payload if n == "key-provider" else data) for n, data in evidence.IDENTITY]
    return measured(*events, mr_config_id=mr_config.version_1(COMPOSE_HASH))


@pytest.mark.parametrize("name", BAD)
def test_bad_evidence_is_refused_for_its_own_reason(name: str) -> None:
    attest, changes, why = BAD[name]
    found = verify_evidence(attest(), trust(**changes))

    assert not found.is_valid
    assert found.reason is not None
    assert why in found.reason
    assert found.boot_info is None
    assert found.boot_time_info is None


def test_a_revoked_pck_certificate_is_refused() -> None:
    from attest import pck

    attestation = TdxVm().attestation()
    leaf = pck.certificates(parse(tdx(attestation).quote).pck_chain_pem)[0]
    text = platform().collateral_json(NOW, revoked=[leaf.serial_number])

    found = verify_evidence(attestation, trust(collateral=lambda asked: text))

    assert found.reason is not None
    assert "revoked" in found.reason.lower()


def test_a_source_that_fails_is_a_reason() -> None:
    def fail(asked: object) -> str:
        raise NotGenuine("the PCCS does not answer")

    found = verify_evidence(TdxVm().attestation(), trust(collateral=fail))

    assert found.reason == "the PCCS does not answer"


def test_nobody_is_asked_for_collateral_of_a_root_that_is_not_trusted() -> None:
    asked = []
    verify_evidence(
        TdxVm().attestation(), trust(tdx_root=None, collateral=lambda claim: asked.append(claim))
    )

    assert asked == []


def test_what_was_found_out_before_a_refusal_is_told() -> None:
    found = verify_evidence(TdxVm(config=vm_config(tdx_measurement=None)).attestation(), trust())

    assert (found.quote_verified, found.event_log_verified) == (True, True)
    assert not found.os_image_hash_verified
    assert found.app_info is not None


def test_a_vm_without_instance_id_and_key_provider_is_valid() -> None:
    named = [e for e in evidence.IDENTITY if e[0] not in ("instance-id", "key-provider")]
    found = verify_evidence(
        measured(*named, mr_config_id=mr_config.version_1(COMPOSE_HASH)), trust()
    )

    assert found.is_valid
    assert found.key_provider is None
    assert found.app_info is not None
    assert found.app_info.instance_id == b""


def test_snp_evidence_in_which_everything_agrees_is_valid() -> None:
    found = verify_evidence(snp_attestation(), trust())

    assert found.reason is None
    assert (found.tee_variant, found.root, found.tcb_status) == (SEV_SNP, "simulated", "UpToDate")
    assert found.os_image_hash_verified
    assert found.key_provider == KeyProvider("kms", "0102")
    assert found.boot_info == found.boot_time_info
    assert found.boot_info is not None
    assert found.boot_info.device_id == evidence.processor().chip_id
    assert found.app_info is not None
    assert found.app_info.app_id == APP_ID
    assert (found.app_info.mrtd, found.app_info.rtmrs) == (b"", ())


def test_snp_certificates_may_come_from_elsewhere() -> None:
    chain = evidence.processor().chain_pem
    found = verify_evidence(
        snp_attestation(chain=False), trust(collateral=lambda asked: chain, check_image=False)
    )

    assert found.is_valid


def test_an_snp_document_may_stand_in_vm_config_alone_and_name_no_key_provider() -> None:
    document = json.dumps(
        {"version": 3, "app_id": APP_ID.hex(), "compose_hash": COMPOSE_HASH.hex()}
    )
    made = snp_attestation(document, evidence.snp_config(mr_config=document))
    assert isinstance(made.platform, SnpEvidence)
    moved = replace(made, platform=replace(made.platform, mr_config=""), runtime_events=())
    found = verify_evidence(moved, trust())

    assert found.reason is None
    assert found.key_provider is None


def real_tdx(vector: Read, name: str) -> Attestation:
    answer = json.loads(vector(name))
    events = eventlog.from_json(answer["event_log"])
    return Attestation(
        TdxEvidence(bytes.fromhex(answer["quote"]), events),
        tuple(event for event in events if event.is_runtime),
        bytes.fromhex(answer["report_data"]),
        answer["vm_config"],
    )


def test_a_real_vm_is_verified_up_to_its_image_which_nobody_has(vector: Read) -> None:
    attestation = real_tdx(vector, "dstack-getquote-gpu-host.json")
    text = vector("tdx-90c06f.collateral.json").decode()

    found = verify_evidence(attestation, Trust(1772707833, lambda asked: text))

    assert (found.quote_verified, found.event_log_verified, found.root) == (True, True, "intel")
    assert found.reason is not None
    assert "does not have the image" in found.reason
    assert found.app_info is not None
    assert found.app_info.app_id.hex() == "3763bc34552cf3a27ff71ad5f7a90471562a1a2d"


def test_the_image_of_a_real_vm_is_verified_by_the_measurement_that_it_carries(
    vector: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    attestation = real_tdx(vector, "dstack-getquote-tdx-lite.json")

    # Its collateral was never published: everything behind the signature is checked.
    def believed(claim: Any, text: str, now: int) -> Any:
        return verified.VerifiedTdx(claim.quote, "UpToDate", (), claim.platform.ppid, b"", "intel")

    monkeypatch.setattr(verified, "verify_claim", believed)
    found = verify_evidence(attestation, Trust(1772707833, lambda asked: ""))

    assert found.reason is None
    assert found.os_image_hash_verified


def test_a_real_snp_vm_is_genuine_and_says_who_it_is(vector: Read) -> None:
    import time

    from attest import envelope

    attestation = envelope.decode(vector("snp-milan.attestation.bin"))
    names = ("amd-ark-milan.pem", "snp-milan.vcek.pem", "snp-milan.ask.pem")
    chain = "".join(vector(name).decode() for name in names)
    found = verify_evidence(
        attestation, Trust(int(time.time()), lambda asked: chain, check_image=False)
    )

    assert (found.is_valid, found.root, found.tcb_status) == (True, "amd", "OutOfDate")
    assert found.app_info is not None
    # The event says the same of the key provider, byte for byte.
    payload = eventlog.platform_payload(attestation.runtime_events, "key-provider")
    assert found.app_info.key_provider_info == payload


def test_a_sev_snp_vm_whose_host_did_not_bind_its_instance_id_has_none() -> None:
    document = json.dumps({**json.loads(DOCUMENT), "instance_id": ""})

    known = verify_evidence(snp_attestation(document), trust())

    assert known.is_valid and known.app_info is not None
    assert known.app_info.instance_id == b""
