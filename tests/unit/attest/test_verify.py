from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from attest import quote
from attest.errors import Malformed, NotGenuine, Refused, VerificationError
from attest.verify import verify_tdx
from attest_sim import pki, tdx
from attest_sim.tdx import SIMULATED_MRTD, SimulatedPlatform

Read = Callable[[str], bytes]
DAY = 24 * 3600
FOREIGN = SimulatedPlatform.from_seed(b"a foreign platform of 32 bytes..")


def ours(simulated: Any, raw: bytes | None = None, *, now: int | None = None) -> Any:
    return verify_tdx(
        simulated.quote if raw is None else raw,
        simulated.collateral,
        simulated.now if now is None else now,
        simulated.platform.root_ca_der,
    )


def test_a_simulated_quote_is_genuine_under_its_own_root(simulated: Any) -> None:
    verified = ours(simulated)

    assert verified.root == "simulated"
    assert (verified.tcb_status, verified.advisory_ids) == ("UpToDate", ())
    assert (verified.ppid, verified.fmspc) == (simulated.platform.ppid, b"SIMULA")
    assert verified.quote == quote.parse(simulated.quote)


def test_a_simulated_quote_is_not_genuine_without_naming_its_root(simulated: Any) -> None:
    with pytest.raises(NotGenuine, match="trusted root"):
        verify_tdx(simulated.quote, simulated.collateral, simulated.now)


def test_a_simulated_quote_is_not_genuine_under_a_foreign_root(simulated: Any) -> None:
    with pytest.raises(NotGenuine, match="trusted root"):
        verify_tdx(simulated.quote, simulated.collateral, simulated.now, FOREIGN.root_ca_der)


def test_a_root_planted_in_the_quote_does_not_help(simulated: Any) -> None:
    chain = quote.parse(simulated.quote).pck_chain_pem
    own, foreign = (p.root_ca_pem.encode() for p in (simulated.platform, FOREIGN))
    planted = simulated.quote.replace(chain, chain.replace(own, foreign.ljust(len(own))))

    assert planted != simulated.quote
    with pytest.raises(VerificationError):
        verify_tdx(planted, simulated.collateral, simulated.now, FOREIGN.root_ca_der)


@pytest.mark.parametrize(
    ("name", "collateral", "now", "fmspc"),
    [
        ("tdx-b0c06f.quote.bin", "tdx-b0c06f.collateral.json", 1751624655, "b0c06f000000"),
        (
            "dstack-getquote-gpu-host.json",
            "tdx-90c06f.collateral.json",
            1772707833,
            "90c06f000000",
        ),
    ],
)
def test_a_real_quote_is_genuine_under_intels_root(
    vector: Read, name: str, collateral: str, now: int, fmspc: str
) -> None:
    raw = vector(name)
    if name.endswith(".json"):
        raw = bytes.fromhex(json.loads(raw)["quote"])

    verified = verify_tdx(raw, vector(collateral).decode(), now)

    assert (verified.root, verified.tcb_status) == ("intel", "UpToDate")
    assert verified.fmspc.hex() == fmspc
    assert len(verified.ppid) == 16


def test_naming_intels_root_by_hand_says_intel_too(vector: Read) -> None:
    raw, text = vector("tdx-b0c06f.quote.bin"), vector("tdx-b0c06f.collateral.json").decode()
    chain = quote.parse(raw).pck_chain_pem
    root = x509.load_pem_x509_certificates(chain.rstrip(b"\0"))[-1].public_bytes(Encoding.DER)

    assert verify_tdx(raw, text, 1751624655, root).root == "intel"


def test_a_real_quote_is_not_genuine_under_a_simulated_root(vector: Read) -> None:
    raw, text = vector("tdx-b0c06f.quote.bin"), vector("tdx-b0c06f.collateral.json").decode()

    with pytest.raises(NotGenuine):
        verify_tdx(raw, text, 1751624655, FOREIGN.root_ca_der)


@pytest.mark.parametrize("now", [1751624655 - 365 * DAY, 1795000000])
def test_real_collateral_is_not_valid_at_another_time(vector: Read, now: int) -> None:
    raw, text = vector("tdx-b0c06f.quote.bin"), vector("tdx-b0c06f.collateral.json").decode()

    with pytest.raises(NotGenuine, match="not valid at that time"):
        verify_tdx(raw, text, now)


@pytest.mark.parametrize("days", [-2, 8, 365])
def test_simulated_collateral_is_not_valid_at_another_time(simulated: Any, days: int) -> None:
    with pytest.raises(NotGenuine, match="not valid at that time"):
        ours(simulated, now=simulated.now + days * DAY)


@pytest.mark.parametrize("now", [0, 2**53])
def test_the_ends_of_time_are_times(simulated: Any, now: int) -> None:
    with pytest.raises(NotGenuine, match="not valid at that time"):
        ours(simulated, now=now)


@pytest.mark.parametrize("now", [-1, 2**53 + 1, 2**70])
def test_what_is_no_time_is_refused(simulated: Any, now: int) -> None:
    with pytest.raises(Malformed, match="Unix time"):
        ours(simulated, now=now)


# Header, SVNs, MRTD, RTMR3, report data, signature, key, QE report, its signature, auth data, chain.
PLACES = [0, 2, 8, 12, 30, 48, 184, 376, 567, 568, 631, 640, 720, 780, 1150, 1160, 1230, 1300]


@pytest.mark.parametrize("at", [*PLACES, 2010, 2600, 3000, 3400, 3900])
def test_one_flipped_byte_anywhere_is_refused(simulated: Any, at: int) -> None:
    raw = bytearray(simulated.quote)
    raw[at] ^= 1

    with pytest.raises(VerificationError):
        ours(simulated, bytes(raw))


@given(st.integers(0), st.integers(1, 255))
def test_no_changed_byte_changes_what_is_accepted(simulated: Any, at: int, flip: int) -> None:
    raw = bytearray(simulated.quote)
    raw[at % len(raw)] ^= flip
    try:
        verified = ours(simulated, bytes(raw))
    except VerificationError:
        return
    # Only the line ends and spare bits of the PEM text are free to differ.
    assert verified.quote.signed == quote.parse(simulated.quote).signed
    assert at % len(raw) >= simulated.quote.index(b"-----BEGIN")


def test_collateral_of_another_platform_is_refused(simulated: Any) -> None:
    with pytest.raises(NotGenuine):
        verify_tdx(
            simulated.quote,
            FOREIGN.collateral_json(simulated.now),
            simulated.now,
            simulated.platform.root_ca_der,
        )


def test_a_changed_tcb_info_is_refused(simulated: Any) -> None:
    collateral = json.loads(simulated.collateral)
    collateral["tcb_info"] = collateral["tcb_info"].replace("UpToDate", "OutOfDate")

    with pytest.raises(NotGenuine, match="not genuine"):
        verify_tdx(
            simulated.quote,
            json.dumps(collateral),
            simulated.now,
            simulated.platform.root_ca_der,
        )


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"tcb_info":1}', " " * (2**20 + 1)])
def test_collateral_that_cannot_be_read_is_refused(simulated: Any, text: str) -> None:
    with pytest.raises(Malformed, match="collateral"):
        verify_tdx(simulated.quote, text, simulated.now, simulated.platform.root_ca_der)


def test_a_root_that_is_no_certificate_is_refused(simulated: Any) -> None:
    root = simulated.platform.root_ca_der
    version = bytes.fromhex("a003020102")
    of_version_8 = root.replace(version, version[:-1] + b"\x07", 1)

    for broken in (b"no certificate", of_version_8):
        with pytest.raises(Malformed, match="trusted root"):
            verify_tdx(simulated.quote, simulated.collateral, simulated.now, broken)


def test_a_quote_without_certificates_is_refused(simulated: Any) -> None:
    raw = bytearray(simulated.quote)
    raw[raw.index(b"-----BEGIN") - 6] = 3

    with pytest.raises(Malformed, match="chain"):
        ours(simulated, bytes(raw))


@pytest.mark.parametrize("tud", range(1, 256))
def test_a_correctly_signed_quote_of_a_debug_td_is_refused(simulated: Any, tud: int) -> None:
    attributes = bytes([tud]) + tdx.TD_ATTRIBUTES[1:]
    rtmrs = [bytes(48)] * 4
    raw = simulated.platform.quote(
        bytes(64), mrtd=SIMULATED_MRTD, rtmrs=rtmrs, td_attributes=attributes
    )

    with pytest.raises(Refused, match="debug mode"):
        ours(simulated, raw)


def test_a_signed_version_5_quote_is_genuine(simulated: Any) -> None:
    raw = simulated.platform.quote(bytes(64), mrtd=SIMULATED_MRTD, rtmrs=[bytes(48)] * 4, version=5)

    assert ours(simulated, raw).quote.version == 5


def test_a_root_whose_name_does_not_say_simulated_is_called_custom(
    monkeypatch: pytest.MonkeyPatch, simulated: Any
) -> None:
    monkeypatch.setattr(pki, "ORGANIZATION", "Own Lab")
    real = pki.authority

    def renamed(seed: bytes, name: str, *rest: Any, **kwargs: Any) -> pki.Authority:
        return real(seed, name.replace("Simulated", "Own"), *rest, **kwargs)

    monkeypatch.setattr(pki, "authority", renamed)
    lab = SimulatedPlatform.from_seed(b"a lab of its own, again 32 bytes")
    raw = lab.quote(bytes(64), mrtd=SIMULATED_MRTD, rtmrs=[bytes(48)] * 4)

    verified = verify_tdx(raw, lab.collateral_json(simulated.now), simulated.now, lab.root_ca_der)

    assert verified.root == "custom"


@given(st.binary(max_size=100))
def test_any_bytes_in_place_of_a_quote_are_refused(simulated: Any, raw: bytes) -> None:
    with pytest.raises(Malformed):
        ours(simulated, raw)
