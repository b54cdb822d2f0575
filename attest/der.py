"""The few DER shapes that certificate extensions need: tag, definite length, content.

Source: ITU-T X.690 (DER).  Tags above 30 and lengths above 4 GiB do not occur in these documents.
"""

from __future__ import annotations

from attest.errors import Malformed

BOOLEAN = 0x01
INTEGER = 0x02
BIT_STRING = 0x03
OCTET_STRING = 0x04
OID = 0x06
ENUMERATED = 0x0A
SEQUENCE = 0x30


def element(tag: int, *parts: bytes) -> bytes:
    """One element: its tag, the length of its parts together, the parts."""
    content = b"".join(parts)
    size = len(content)
    if size < 0x80:
        return bytes((tag, size)) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(length))) + length + content


def integer(value: int, tag: int = INTEGER) -> bytes:
    """A non-negative INTEGER (or ENUMERATED)."""
    return element(tag, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def oid(dotted: str) -> bytes:
    """An OBJECT IDENTIFIER from its dotted form."""
    first, second, *rest = (int(arc) for arc in dotted.split("."))
    return element(OID, *(_base128(arc) for arc in (first * 40 + second, *rest)))


def _base128(arc: int) -> bytes:
    digits = [arc & 0x7F]
    while arc := arc >> 7:
        digits.append(0x80 | arc & 0x7F)
    return bytes(reversed(digits))


def elements(data: bytes) -> list[tuple[int, bytes]]:
    """All (tag, content) pairs that `data` consists of; Malformed when it is not whole DER elements."""
    found = []
    at = 0
    while at < len(data):
        tag, start, end = _head(data, at)
        found.append((tag, data[start:end]))
        at = end
    return found


def _head(data: bytes, at: int) -> tuple[int, int, int]:
    if len(data) < at + 2 or data[at] & 0x1F == 0x1F:
        raise Malformed("DER: an element is cut short or has an unknown tag")
    tag, size, start = data[at], data[at + 1], at + 2
    if size >= 0x80:
        count = size & 0x7F
        long = data[start : start + count]
        size, start = int.from_bytes(long, "big"), start + count
        if not 1 <= count <= 4 or len(long) != count or long[0] == 0 or size < 0x80:
            raise Malformed("DER: an element has a length that is not canonical")
    if start + size > len(data):
        raise Malformed("DER: an element is longer than its surroundings")
    return tag, start, start + size


def content(data: bytes, tag: int) -> bytes:
    """The content of the one element with this tag that `data` is; Malformed otherwise."""
    found = elements(data)
    if len(found) != 1 or found[0][0] != tag:
        raise Malformed("DER: the value is not one element of the expected kind")
    return found[0][1]
