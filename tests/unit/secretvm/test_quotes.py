from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from attest import collateral
from attest.errors import Malformed, NotGenuine
from core.config import KnownMachine
from core.errors import Invalid
from secretvm import quotes
from secretvm.quotes import Parsed, Quotes, SnpCollateral
from tests.common import evidence
from tests.common.evidence import NOW, TdxVm, platform, processor, snp_attestation
from tests.common.published import secretvm
from verify.service import Verifier

DAY = 86400
CHECKED = 1_750_414_563  # when the published quote's collateral was valid


@pytest.fixture
def own(tmp_path: Path) -> Quotes:
    """A verifier that trusts the simulated roots and has no source of collateral."""
    root = tmp_path / "root.pem"
    root.write_text(platform().root_ca_pem + processor().root_ca_pem)
    machines = [KnownMachine(platform().ppid.hex(), "rack 3")]
    return Quotes(Verifier(root, collateral.nowhere), machines)


@pytest.fixture
def public() -> Quotes:
    """A verifier that trusts the vendors alone."""
    return Quotes(Verifier(Path(), collateral.nowhere))


def tdx(vm: TdxVm = TdxVm()) -> bytes:  # noqa: B008 (a frozen value)
    return vm.attestation().platform.quote  # type: ignore[union-attr]


def sev(**changes: object) -> bytes:
    return snp_attestation(**changes).platform.report  # type: ignore[union-attr, arg-type]


def amd(crl: bytes = b"") -> SnpCollateral:
    return SnpCollateral(processor().vcek.public_bytes(Encoding.DER), processor().chain_pem, crl)


def test_a_genuine_quote_on_an_up_to_date_machine_is_zero(own: Quotes) -> None:
    found = own.parse(tdx(), NOW, evidence.collateral())

    assert (found.result, found.tcb_status, found.message) == ("0", "UpToDate", "")
    assert found.is_genuine and not found.has_expired and not found.is_debug
    assert (found.machine_id, found.is_known_machine, found.origin) == (
        platform().ppid.hex(),
        True,
        "rack 3",
    )
    assert found.report_data == evidence.REPORT_DATA


def test_no_collateral_is_never_zero(own: Quotes) -> None:
    found = own.parse(tdx(), NOW)

    assert (found.result, found.collateral, found.is_genuine) == ("40966", "", False)
    assert "collateral" in found.message


def test_collateral_of_another_time_has_expired(own: Quotes) -> None:
    for moment in (NOW - 30 * DAY, NOW + 30 * DAY):
        found = own.parse(tdx(), moment, evidence.collateral())
        assert (found.result, found.has_expired, found.is_genuine) == ("40966", True, False)


def test_a_given_time_counts_with_given_collateral_alone(own: Quotes) -> None:
    late = NOW + 30 * DAY

    assert own.parse(tdx(), late, evidence.collateral(), NOW).result == "0"
    assert own.parse(tdx(), late, evidence.collateral(), NOW).checked_at == NOW
    assert own.parse(tdx(), late, "", NOW).checked_at == late


def test_a_changed_quote_has_a_bad_signature(own: Quotes) -> None:
    raw = bytearray(tdx())
    raw[200] ^= 1  # in MRTD

    found = own.parse(bytes(raw), NOW, evidence.collateral())
    assert (found.result, found.is_genuine) == ("40964", False)


def test_a_revoked_platform_is_told(own: Quotes) -> None:
    from cryptography import x509

    from attest import quote

    leaf = x509.load_pem_x509_certificates(quote.parse(tdx()).pck_chain_pem)[0]
    text = platform().collateral_json(NOW, revoked=[leaf.serial_number])

    assert own.parse(tdx(), NOW, text).result == "40965"


def test_a_debug_guest_is_never_zero(own: Quotes) -> None:
    vm = TdxVm(options=(("td_attributes", b"\x01" + bytes(7)),))

    found = own.parse(tdx(vm), NOW, evidence.collateral())
    assert (found.result, found.is_debug, found.is_genuine) == ("40966", True, False)


def test_a_simulated_quote_is_nothing_to_others(public: Quotes) -> None:
    found = public.parse(tdx(), NOW, evidence.collateral())

    assert (found.result, found.is_genuine) == ("40966", False)
    assert "trusted root" in found.message


def test_broken_collateral_is_said_to_be_none(own: Quotes) -> None:
    found = own.parse(tdx(), NOW, "{}")

    assert (found.result, found.collateral) == ("40966", "")


def test_the_published_quote_is_up_to_date_under_intels_root(own: Quotes, public: Quotes) -> None:
    raw = bytes.fromhex(secretvm("quotes/phala_tdx_quote.hex").decode())
    text = secretvm("quotes/phala_tdx_quote_collateral.json").decode()

    # The roots that a configuration adds stand beside the vendors' own.
    for verifier in (own, public):
        found = verifier.parse(raw, NOW, text, CHECKED)
        assert (found.result, found.tcb_status) == ("0", "UpToDate")
        assert found.fmspc == "b0c06f000000"
    assert public.parse(raw, NOW, text).result == "40966"


def test_a_quote_of_version_5_is_read(own: Quotes) -> None:
    vm = TdxVm(options=(("version", 5),))

    assert own.parse(tdx(vm), NOW, evidence.collateral()).result == "0"


@pytest.mark.parametrize("raw", [b"", b"\x03\x00" + bytes(2000), b"\x04\x00\x02\x00" + bytes(2000)])
def test_what_is_no_tdx_quote_is_refused(own: Quotes, raw: bytes) -> None:
    with pytest.raises(Malformed):
        own.parse(raw, NOW)


# SEV-SNP


def test_a_report_is_zero_when_all_nine_checks_hold(own: Quotes) -> None:
    found = own.parse_sev(sev(), NOW, given=amd(evidence.revocations()))

    assert found.checks == dict.fromkeys(quotes.CHECKS, True)
    assert (found.result, found.tcb_status, found.is_genuine) == ("0", "UpToDate", True)


def failing(found: Parsed) -> set[str]:
    return {name for name, holds in found.checks.items() if holds is False}


def test_without_the_list_of_revoked_keys_a_report_is_not_zero(own: Quotes) -> None:
    found = own.parse_sev(sev(), NOW, given=amd())

    assert (found.result, found.is_genuine, failing(found)) == ("40966", True, set())
    assert found.checks["crl_check_passed"] is None


def test_without_certificates_nothing_is_said_of_a_report(own: Quotes) -> None:
    found = own.parse_sev(sev(), NOW)

    assert (found.result, found.collateral, failing(found)) == ("40966", "", {"vcek_fetched"})
    half = own.parse_sev(sev(), NOW, given=SnpCollateral(vcek=b"x"))
    assert "cert_chain is missing" in half.message


def test_each_fault_of_a_report_is_told_by_its_check(own: Quotes) -> None:
    changed = bytearray(sev())
    changed[0x60] ^= 1
    cases = [
        (bytes(changed), evidence.revocations(), "report_signature_valid", "40964"),
        (sev(policy=0xB0000), evidence.revocations(), "debug_disabled", "40966"),
        (sev(), evidence.revocations(processor().ask.serial_number), "crl_check_passed", "40965"),
    ]
    for raw, crl, check, result in cases:
        found = own.parse_sev(raw, NOW, given=amd(crl))
        assert (failing(found), found.result) == ({check}, result), check


def test_a_machine_that_runs_older_firmware_is_out_of_date(own: Quotes) -> None:
    newer = bytes((9, 0, 0, 0, 0, 0, 99, 255))

    found = own.parse_sev(sev(running_tcb=newer), NOW, given=amd(evidence.revocations()))
    assert (found.result, found.tcb_status) == ("40962", "OutOfDate")


def test_a_tcb_that_goes_backwards_is_told(own: Quotes) -> None:
    body = bytearray(sev())
    body[0x1E0] += 1  # committed above current
    raw = processor().signed(bytes(body[:0x2A0]))

    found = own.parse_sev(raw, NOW, given=amd(evidence.revocations()))
    assert failing(found) == {"tcb_ordering_valid"}


def test_a_list_that_another_signed_is_told(own: Quotes) -> None:
    from cryptography.hazmat.primitives.asymmetric import rsa

    other = evidence.revocations(key=rsa.generate_private_key(65537, 2048))

    found = own.parse_sev(sev(), NOW, given=amd(other))
    assert (failing(found), found.result) == ({"crl_signature_valid"}, "40964")


def test_the_published_report_is_genuine_but_for_revocation(public: Quotes) -> None:
    raw = base64.b64decode(secretvm("quotes/milan_report_a.b64"))
    given = SnpCollateral(
        secretvm("quotes/milan_vcek_a.der"), secretvm("quotes/milan_ask_ark.pem").decode()
    )

    found = public.parse_sev(raw, 1_763_000_000, "Milan", given)
    assert (found.is_genuine, found.result, failing(found)) == (True, "40966", set())
    assert found.checks["crl_signature_valid"] is None


def test_the_model_a_caller_names_is_whom_the_vendor_is_asked_for() -> None:
    asked = []

    def source(report: object) -> str:
        asked.append((report.version, report.family, report.model))  # type: ignore[attr-defined]
        raise NotGenuine("collateral: none")

    raw = bytearray(sev())
    raw[0] = 2
    raw[0x188:0x18B] = bytes(3)
    found = Quotes(Verifier(Path(), source))
    found.parse_sev(bytes(raw), NOW, "Genoa")
    found.parse_sev(sev(), NOW, "Genoa")

    assert asked == [(3, 0x19, 0x11), (3, 0x19, 0x01)]
    with pytest.raises(Invalid, match="processor_model"):
        found.parse_sev(sev(), NOW, "Rome")


def test_bytes_are_read_in_every_way_they_are_written() -> None:
    for text in ("00ff", "0x00FF", " 00\nff ", "AP8=", "AP8=\n"):
        assert quotes.read_bytes("quote", text) == b"\x00\xff"
    for text in ("zz!", "AP8", "ü", "0x0"):
        with pytest.raises(Invalid, match="quote: must be hex or base64"):
            quotes.read_bytes("quote", text)


def test_collateral_is_shown_as_hex() -> None:
    text = json.dumps({"a": 1})

    assert bytes.fromhex(quotes.hex_of(text)).decode() == text
