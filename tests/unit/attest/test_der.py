from __future__ import annotations

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from attest import der
from attest.errors import Malformed


@pytest.mark.parametrize("size", [0, 1, 0x7F, 0x80, 0xFF, 0x100, 0xFFFF, 0x10000])
def test_an_element_of_any_length_comes_back(size: int) -> None:
    data = bytes(size)

    assert der.content(der.element(der.OCTET_STRING, data), der.OCTET_STRING) == data


@pytest.mark.parametrize(
    ("value", "encoded"),
    [(0, "020100"), (1, "020101"), (127, "02017f"), (128, "02020080"), (256, "02020100")],
)
def test_integers_are_the_shortest_non_negative_form(value: int, encoded: str) -> None:
    assert der.integer(value).hex() == encoded


@pytest.mark.parametrize(
    ("dotted", "encoded"),
    [
        # X.690 section 8.19.5, and Microsoft's and RSA's much-printed arcs.
        ("2.999.3", "0603883703"),
        ("1.2.840.113549", "06062a864886f70d"),
        ("1.3.6.1.4.1.311.21.20", "06092b0601040182371514"),
    ],
)
def test_object_identifiers_match_published_encodings(dotted: str, encoded: str) -> None:
    assert der.oid(dotted).hex() == encoded


def test_object_identifiers_match_the_cryptography_library() -> None:
    dotted = "1.2.840.113741.1.13.1.2.17"
    usage = x509.ExtendedKeyUsage([x509.ObjectIdentifier(dotted)])

    assert der.element(der.SEQUENCE, der.oid(dotted)) == usage.public_bytes()


@pytest.mark.parametrize(
    "broken",
    [
        "04",  # no length
        "0402aa",  # content cut short
        "0480",  # indefinite length
        "048100",  # long form of a short length
        "04817f" + "00" * 127,  # the same
        "0482007f" + "00" * 127,  # a leading zero in the length
        "0485000000000100",  # five length bytes
        "0482",  # length bytes missing
        "0480" + "00" * 128,  # the same with enough bytes behind it
        "1f8101aa",  # a tag in several bytes
        "1f00",
        "3f00",
        "9f00",
    ],
)
def test_what_is_not_der_is_refused(broken: str) -> None:
    with pytest.raises(Malformed):
        der.elements(bytes.fromhex(broken))


@pytest.mark.parametrize("data", ["", "0400" * 2, "0500"])
def test_content_wants_exactly_one_element_of_the_kind(data: str) -> None:
    with pytest.raises(Malformed):
        der.content(bytes.fromhex(data), der.OCTET_STRING)


@given(st.binary(max_size=64))
def test_any_bytes_are_read_back_exactly_or_refused(data: bytes) -> None:
    try:
        found = der.elements(data)
    except Malformed:
        return
    assert b"".join(der.element(tag, content) for tag, content in found) == data
