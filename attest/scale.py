"""SCALE, the compact binary form of attestations: little-endian, lengths as compact integers.

Source: guest-agent.md section 6.
"""

from __future__ import annotations

from attest.cursor import Cursor
from attest.errors import Malformed

_MAX_COMPACT = 2**30 - 1


def uint32(value: int) -> bytes:
    """A fixed 32-bit number."""
    return value.to_bytes(4, "little")


def compact(value: int) -> bytes:
    """A number below 2^30 in one, two or four bytes; the low two bits say which."""
    if value < 2**6:
        return (value << 2).to_bytes(1, "little")
    if value < 2**14:
        return (value << 2 | 1).to_bytes(2, "little")
    if value <= _MAX_COMPACT:
        return (value << 2 | 2).to_bytes(4, "little")
    raise Malformed("attestation: a part is too long to be written")


def octets(value: bytes) -> bytes:
    """Bytes with their length before them."""
    return compact(len(value)) + value


def text(value: str) -> bytes:
    """A string as its UTF-8 bytes with their length before them."""
    return octets(value.encode())


def sequence(items: list[bytes]) -> bytes:
    """Encoded items with their count before them."""
    return compact(len(items)) + b"".join(items)


def read_compact(cursor: Cursor) -> int:
    """The next compact integer; Malformed when it is 2^30 or more, or not in its shortest form."""
    first = cursor.take(1)
    size = {0: 1, 1: 2, 2: 4}.get(first[0] & 3)
    if size is None:
        raise Malformed(f"{cursor.what}: a length is too large")
    value = int.from_bytes(first + cursor.take(size - 1), "little") >> 2
    if len(compact(value)) != size:
        raise Malformed(f"{cursor.what}: a length is not in its shortest form")
    return value


def read_octets(cursor: Cursor) -> bytes:
    """The next bytes with their length before them."""
    return cursor.take(read_compact(cursor))


def read_text(cursor: Cursor) -> str:
    """The next string; Malformed when it is not UTF-8."""
    try:
        return read_octets(cursor).decode()
    except UnicodeDecodeError:
        raise Malformed(f"{cursor.what}: a text is not UTF-8") from None
