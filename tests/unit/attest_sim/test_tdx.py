from __future__ import annotations

import ast
import hashlib
import json
import time
from pathlib import Path

import dcap_qvl
import pytest
from cryptography import x509

import attest
import attest_sim
from attest import eventlog, pck, policy, quote
from attest.eventlog import ACPI_MARKER, Event, runtime_event
from attest_sim.tdx import FMSPC, SIMULATED_MRTD, SimulatedPlatform, boot_events
from core.errors import Invalid

SEED = bytes(range(32))
NOW = 1_800_000_000
HOUR = 3600
PLATFORM = SimulatedPlatform.from_seed(SEED)


def quoted(events: tuple[Event, ...], report_data: bytes = bytes(64)) -> bytes:
    rtmrs = [eventlog.replay(events, imr) for imr in range(4)]
    return PLATFORM.quote(report_data, mrtd=SIMULATED_MRTD, rtmrs=rtmrs)


def collateral(made: int = NOW) -> dcap_qvl.QuoteCollateralV3:
    return dcap_qvl.QuoteCollateralV3.from_json(PLATFORM.collateral_json(made))


def test_the_same_seed_gives_the_same_root_on_every_machine_and_library() -> None:
    # Computed once with cryptography 43 on Python 3.13 (the guest) and 50 on 3.11 (the host).
    digest = "e7be458ba27b11536074f61f502d4342f20328548c24236e36ad1d757a08e291"

    platform = SimulatedPlatform.from_seed(bytes(32))
    assert hashlib.sha256(platform.root_ca_der).hexdigest() == digest
    assert platform.root_ca_pem == SimulatedPlatform.from_seed(bytes(32)).root_ca_pem
    assert SimulatedPlatform.from_seed(SEED).root_ca_der == PLATFORM.root_ca_der
    assert PLATFORM.root_ca_der != platform.root_ca_der
    assert PLATFORM.ppid != platform.ppid


@pytest.mark.parametrize("size", [0, 31, 33])
def test_a_seed_of_another_length_is_refused(size: int) -> None:
    with pytest.raises(Invalid, match="32 bytes"):
        SimulatedPlatform.from_seed(bytes(size))


def test_dcap_qvl_accepts_a_quote_under_its_own_root() -> None:
    report = dcap_qvl.verify_with_root_ca(
        quoted(boot_events()), collateral(), PLATFORM.root_ca_der, NOW
    )

    assert (report.status, list(report.advisory_ids)) == ("UpToDate", [])
    assert bytes(report.ppid) == PLATFORM.ppid


def test_dcap_qvls_strict_policy_accepts_it_too() -> None:
    verifier = dcap_qvl.QuoteVerifier(PLATFORM.root_ca_der)
    policy = dcap_qvl.QuotePolicy.strict(NOW)

    claims = verifier.verify_with_policy(quoted(boot_events()), collateral(), NOW, policy)

    assert json.loads(claims.to_json())["tcb"]["status"] == "UpToDate"


def test_a_host_verifies_what_its_guest_quoted() -> None:
    # Host and guest share the seed and nothing else.
    host = SimulatedPlatform.from_seed(SEED)
    theirs = dcap_qvl.QuoteCollateralV3.from_json(host.collateral_json(NOW))

    dcap_qvl.verify_with_root_ca(quoted(boot_events()), theirs, host.root_ca_der, NOW)


def test_dcap_qvl_refuses_it_under_intels_root_and_under_a_foreign_one() -> None:
    raw = quoted(boot_events())

    with pytest.raises(ValueError, match="Verification failed"):
        dcap_qvl.verify(raw, collateral(), NOW)
    foreign = SimulatedPlatform.from_seed(bytes(32)).root_ca_der
    with pytest.raises(ValueError, match="Verification failed"):
        dcap_qvl.verify_with_root_ca(raw, collateral(), foreign, NOW)


@pytest.mark.parametrize("at", [0, 48, 184, 376, 520, 568, 631, 640, 720, 800, 1200, 1400, 2200])
def test_dcap_qvl_refuses_it_with_one_flipped_byte(at: int) -> None:
    raw = bytearray(quoted(boot_events()))
    raw[at] ^= 1

    with pytest.raises(ValueError, match="Verification failed"):
        dcap_qvl.verify_with_root_ca(bytes(raw), collateral(), PLATFORM.root_ca_der, NOW)


@pytest.mark.parametrize("hours", [-23, 0, 47, 49, 167])
def test_collateral_is_valid_from_before_it_was_made_for_a_week(hours: int) -> None:
    raw, at = quoted(boot_events()), NOW + hours * HOUR

    assert dcap_qvl.verify_with_root_ca(raw, collateral(), PLATFORM.root_ca_der, at)


@pytest.mark.parametrize("hours", [-25, 169, 24 * 365])
def test_collateral_is_not_valid_outside_of_that(hours: int) -> None:
    raw, at = quoted(boot_events()), NOW + hours * HOUR

    with pytest.raises(ValueError, match="Verification failed"):
        dcap_qvl.verify_with_root_ca(raw, collateral(), PLATFORM.root_ca_der, at)


def test_collateral_has_the_nine_fields() -> None:
    fields = json.loads(PLATFORM.collateral_json(NOW))

    assert set(fields) == {
        "pck_crl_issuer_chain",
        "root_ca_crl",
        "pck_crl",
        "tcb_info_issuer_chain",
        "tcb_info",
        "tcb_info_signature",
        "qe_identity_issuer_chain",
        "qe_identity",
        "qe_identity_signature",
    }
    assert json.loads(fields["tcb_info"])["fmspc"] == "53494D554C41"


def test_every_certificate_says_that_it_is_simulated() -> None:
    fields = json.loads(PLATFORM.collateral_json(NOW))
    pem = (
        quote.parse(quoted(boot_events())).pck_chain_pem
        + "".join(fields[name] for name in fields if name.endswith("chain")).encode()
    )

    certificates = x509.load_pem_x509_certificates(pem)

    assert len(certificates) == 9
    for certificate in certificates:
        for name in (certificate.subject, certificate.issuer):
            [common] = name.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
            assert str(common.value).startswith("Simulated ")


def test_the_quote_carries_what_it_was_given() -> None:
    registers = [bytes([i]) * 48 for i in range(5)]
    raw = PLATFORM.quote(
        b"\7" * 64, mrtd=registers[4], rtmrs=registers[:4], mr_config_id=b"\x08" * 48
    )
    report = quote.parse(raw).report

    assert (report.mrtd, report.rtmrs) == (registers[4], tuple(registers[:4]))
    assert (report.report_data, report.mr_config_id) == (b"\7" * 64, b"\x08" * 48)
    policy.check_state(report)
    leaf = pck.certificates(quote.parse(raw).pck_chain_pem)[0]
    assert pck.platform(leaf) == pck.Platform(PLATFORM.ppid, bytes(2), FMSPC)


@pytest.mark.parametrize(
    ("report_data", "mrtd", "registers"), [(63, 48, 4), (64, 47, 4), (64, 48, 3), (64, 48, 5)]
)
def test_values_of_another_size_are_refused(report_data: int, mrtd: int, registers: int) -> None:
    with pytest.raises(Invalid, match="TD report"):
        PLATFORM.quote(bytes(report_data), mrtd=bytes(mrtd), rtmrs=[bytes(48)] * registers)


def test_boot_events_come_in_the_order_of_real_firmware() -> None:
    events = boot_events()

    assert events == boot_events()
    assert [event.imr for event in events] == [0] * 11 + [1, 0, 0, 1, 1, 2, 2, 1, 1]
    acpi = [event for event in events if event.event_type == 10]
    assert [event.event for event in acpi] == ["acpi-loader", "acpi-rsdp", "acpi-tables"]
    assert {event.event_payload for event in acpi} == {ACPI_MARKER}
    assert all(len(event.digest) == 48 for event in events)


def test_digests_that_firmware_computes_from_constants_are_the_real_ones() -> None:
    # From the event log of a real guest (attestation.md section 3): SecureBoot, separator, action.
    digests = [event.digest.hex() for event in boot_events()]

    assert digests[2].startswith("9dc3a1f80bcec915391dcda5ffbb15e7419f77eab462bbf7")
    assert digests[7].startswith("394341b7182cd227c5c6b07ef8000cdfd86136c4292b8e57")
    assert digests[14].startswith("77a0dab2312b4e1e57a84d865a21e5b2ee8d677a21012ada")


def test_boot_events_are_those_of_a_real_guest_but_for_what_its_image_decides() -> None:
    folder = Path(__file__).parents[4] / "shared" / "data" / "attestation"
    if not folder.is_dir():
        pytest.skip("the folder of real vectors is not beside this checkout")
    answer = json.loads((folder / "dstack-getquote-tdx-lite.json").read_text())
    real = [event for event in eventlog.from_json(answer["event_log"]) if event.imr < 3]
    ours = boot_events()

    assert [(e.imr, e.event_type, e.event) for e in ours] == [
        (e.imr, e.event_type, e.event) for e in real
    ]
    differing = [i for i, event in enumerate(ours) if event.digest != real[i].digest]
    # TD HOB, firmware volume, ACPI data, kernel, boot option, command line, initrd.
    assert differing == [0, 1, 8, 9, 10, 11, 13, 16, 17]


def test_all_four_registers_of_a_quote_replay_from_its_events() -> None:
    events = (*boot_events(), runtime_event("app-id", b"\1" * 20), runtime_event("x", b""))
    report = quote.parse(quoted(events)).report

    log = eventlog.from_json(eventlog.to_json(events))

    assert policy.check_evidence(report, log, bytes(64)) == (0, 1, 2, 3)


def test_a_quote_takes_less_than_5_ms() -> None:
    rtmrs = [bytes(48)] * 4
    took = []
    for _ in range(20):
        start = time.thread_time()
        PLATFORM.quote(bytes(64), mrtd=SIMULATED_MRTD, rtmrs=rtmrs)
        took.append(time.thread_time() - start)

    assert min(took) < 0.005


def imported(package: str) -> set[str]:
    """The top-level names that a package's files import, at any depth of the code."""
    names = set()
    for path in Path(package).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add((node.module or "").split(".")[0])
    return names


def test_the_simulated_tee_needs_no_verifier_and_the_library_no_simulation() -> None:
    assert "dcap_qvl" not in imported(str(attest_sim.__file__))
    assert "attest_sim" not in imported(str(attest.__file__))
