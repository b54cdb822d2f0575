from __future__ import annotations

import json
import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attest import quote
from attest.errors import Malformed

Read = Callable[[str], bytes]
HEADER, BODY = 48, 584


def version_5(raw: bytes, body_type: int, size: int, body: bytes) -> bytes:
    """A version 4 quote rewritten as version 5 with another body."""
    head = struct.pack("<H", 5) + raw[2:HEADER] + struct.pack("<HI", body_type, size)
    return head + body + raw[HEADER + BODY :]


def test_a_simulated_quote_is_read_field_by_field(simulated: Any) -> None:
    parsed = quote.parse(simulated.quote)

    assert (parsed.version, parsed.key_type, parsed.tee_type) == (4, 2, 0x81)
    assert parsed.qe_vendor_id.hex() == "939a7233f79c4ca9940a0db3957f0607"
    report = parsed.report
    assert report.report_data == simulated.report_data == simulated.quote[568:632]
    assert report.mrtd == simulated.quote[184:232]
    assert report.mr_config_id == report.mr_owner == report.mr_owner_config == bytes(48)
    assert report.rtmrs[0] == simulated.quote[376:424]
    assert report.rtmrs[3] == simulated.quote[520:568]
    assert not report.is_debug
    assert (report.tee_tcb_svn2, report.mr_service_td) == (b"", b"")
    assert parsed.signed == simulated.quote[:632]
    assert parsed.signature == simulated.quote[636:700]
    assert parsed.pck_chain_pem.count(b"BEGIN CERTIFICATE") == 3


@pytest.mark.parametrize(
    ("name", "mrtd"),
    [("tdx-b0c06f.quote.bin", "91eb2b44"), ("tdx-parse-only.quote.hex", "")],
)
def test_real_quotes_are_read_as_dcap_qvl_reads_them(vector: Read, name: str, mrtd: str) -> None:
    import dcap_qvl

    raw = vector(name)
    if name.endswith(".hex"):
        raw = bytes.fromhex(raw.decode().strip().removeprefix("0x"))
    parsed, theirs = quote.parse(raw), dcap_qvl.parse_quote(raw)

    ours, report = parsed.report, theirs.report
    assert ours.mrtd == bytes(report.mr_td)
    assert ours.report_data == bytes(report.report_data)
    assert ours.rtmrs == tuple(
        bytes(rtmr) for rtmr in (report.rt_mr0, report.rt_mr1, report.rt_mr2, report.rt_mr3)
    )
    assert ours.tee_tcb_svn == bytes(report.tee_tcb_svn)
    assert ours.td_attributes == bytes(report.td_attributes)
    assert ours.xfam == bytes(report.xfam)
    assert ours.mr_seam == bytes(report.mr_seam)
    assert ours.mr_signer_seam == bytes(report.mr_signer_seam)
    assert ours.mr_config_id == bytes(report.mr_config_id)
    assert parsed.user_data == bytes(theirs.header.user_data)
    assert ours.mrtd.hex().startswith(mrtd)


@pytest.mark.parametrize("name", ["dstack-getquote-tdx-lite.json", "dstack-getquote-gpu-host.json"])
def test_quotes_of_real_dstack_guests_are_read(vector: Read, name: str) -> None:
    answer = json.loads(vector(name))
    parsed = quote.parse(bytes.fromhex(answer["quote"]))

    assert parsed.report.report_data.hex() == answer["report_data"]


def test_a_real_sgx_quote_is_refused_as_such(vector: Read) -> None:
    with pytest.raises(Malformed, match="not a TDX quote"):
        quote.parse(vector("sgx-00a067.quote.bin"))


def test_zero_padding_is_accepted_and_anything_else_after_the_quote_is_not(simulated: Any) -> None:
    assert quote.parse(simulated.quote + bytes(900)) == quote.parse(simulated.quote)

    with pytest.raises(Malformed, match="padding"):
        quote.parse(simulated.quote + bytes(10) + b"\1")


def test_the_header_is_read_as_dcap_qvl_reads_it(simulated: Any) -> None:
    import dcap_qvl

    raw = bytearray(simulated.quote)
    raw[8:12] = b"\5\0\7\0"
    header = dcap_qvl.parse_quote(bytes(raw)).header
    parsed = quote.parse(bytes(raw))

    assert (parsed.qe_svn, parsed.pce_svn) == (header.qe_svn, header.pce_svn) == (5, 7)
    assert parsed.key_type == header.attestation_key_type
    assert parsed.tee_type == header.tee_type
    assert parsed.user_data == bytes(header.user_data) == simulated.platform.ppid + bytes(4)


@pytest.mark.parametrize("bit", range(8))
def test_any_bit_of_the_first_attribute_byte_means_debug(simulated: Any, bit: int) -> None:
    raw = bytearray(simulated.quote)
    raw[HEADER + 120] |= 1 << bit

    assert quote.parse(bytes(raw)).report.is_debug


def test_version_5_with_a_1_0_body_says_the_same(simulated: Any) -> None:
    raw = simulated.quote
    parsed = quote.parse(version_5(raw, 2, BODY, raw[HEADER : HEADER + BODY]))

    assert parsed.version == 5
    assert parsed.report == quote.parse(raw).report
    assert len(parsed.signed) == 632 + 6


def test_version_5_with_a_1_5_body_has_two_more_fields(simulated: Any) -> None:
    raw = simulated.quote
    body = raw[HEADER : HEADER + BODY] + b"\5" * 16 + b"\6" * 48
    parsed = quote.parse(version_5(raw, 3, 648, body))

    assert parsed.report.tee_tcb_svn2 == b"\5" * 16
    assert parsed.report.mr_service_td == b"\6" * 48
    assert parsed.report.report_data == simulated.report_data


@pytest.mark.parametrize(("body_type", "size"), [(1, 384), (2, 648), (3, 584), (9, 584)])
def test_version_5_with_another_body_is_refused(simulated: Any, body_type: int, size: int) -> None:
    with pytest.raises(Malformed, match="body type"):
        quote.parse(version_5(simulated.quote, body_type, size, bytes(size)))


@pytest.mark.parametrize(
    ("at", "value", "why"),
    [
        (0, 3, "version 4 or 5"),
        (0, 6, "version 4 or 5"),
        (2, 3, "key type 3"),
        (4, 0, "SGX"),
        (4, 0x82, "not a TDX quote"),
        (764, 5, "certification data of type 5"),
    ],
)
def test_a_header_of_another_kind_is_refused(simulated: Any, at: int, value: int, why: str) -> None:
    raw = bytearray(simulated.quote)
    raw[at] = value

    with pytest.raises(Malformed, match=why):
        quote.parse(bytes(raw))


def test_certification_without_a_certificate_chain_is_read(simulated: Any) -> None:
    raw = bytearray(simulated.quote)
    at = raw.index(b"-----BEGIN") - 6
    raw[at] = 3

    assert quote.parse(bytes(raw)).pck_chain_pem == b""


def test_a_quote_cut_anywhere_is_refused(simulated: Any) -> None:
    for size in [*range(800), *range(800, len(simulated.quote), 97)]:
        with pytest.raises(Malformed):
            quote.parse(simulated.quote[:size])


@given(st.binary(max_size=1200))
def test_any_bytes_are_read_or_refused_as_malformed(raw: bytes) -> None:
    with pytest.raises(Malformed):
        quote.parse(raw)


@given(st.lists(st.tuples(st.integers(0, 4058), st.integers(0, 255)), max_size=6), st.data())
def test_a_damaged_quote_is_read_or_refused_as_malformed(
    simulated: Any, damage: list[tuple[int, int]], data: Any
) -> None:
    raw = bytearray(simulated.quote)
    for at, value in damage:
        raw[at % len(raw)] = value
    try:
        quote.parse(bytes(raw))
    except Malformed as refused:
        assert refused.message.startswith("quote")
