"""What the host may hand to whoever verifies: evidence of a debug TD, and small bytes that want to become large."""

from __future__ import annotations

import gzip
import struct
import tracemalloc
from dataclasses import replace
from typing import Any

import pytest

from attest import envelope, policy, quote, ratls
from attest.errors import Malformed, Refused
from attest.ratls import GZIP_PREFIX

MOST_BYTES = 16 * 1024 * 1024


def test_each_of_the_255_debug_attributes_is_refused(simulated: Any) -> None:
    report = quote.parse(simulated.quote).report

    for value in range(1, 256):
        attributes = bytes([value]) + report.td_attributes[1:]
        with pytest.raises(Refused, match="debug mode"):
            policy.check_state(replace(report, td_attributes=attributes))


def bomb(size: int) -> bytes:
    """Zeros that gzip packs a thousandfold."""
    return GZIP_PREFIX + gzip.compress(bytes(size))


SCALE_LENGTH = struct.pack("<BBI", 0, 0, (2**30 - 1) << 2 | 2)
SMALL = [
    bomb(200 * 1024 * 1024),
    # A length that nothing follows: SCALE bytes and lists, msgpack text, bytes, array and map.
    SCALE_LENGTH,
    SCALE_LENGTH[:2] + b"\x04x" + SCALE_LENGTH[2:],
    *(b"\x81" + kind + b"\xff\xff\xff\xff" for kind in (b"\xdb", b"\xc6", b"\xdd", b"\xdf")),
    b"\xdf\xff\xff\xff\xff",
    b"\x91" * 100_000,
    b"\x81\xa1a" * 100_000,
]


@pytest.mark.parametrize("small", SMALL, ids=lambda data: f"{len(data)} bytes")
def test_small_evidence_never_becomes_large(small: bytes) -> None:
    read = ratls.inflated if small.startswith(GZIP_PREFIX) else envelope.decode
    tracemalloc.start()
    try:
        with pytest.raises(Malformed):
            read(small)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert peak < MOST_BYTES
