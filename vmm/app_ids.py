"""App ids that the service draws for tenants (apps.md section 2): two with the same text never share keys.

They are made as Ethereum makes the addresses of contracts, from a project's address and a number that only grows.
"""

from __future__ import annotations

from Crypto.Hash import keccak


def drawn(address: bytes, nonce: int) -> str:
    """The app id of a project's 20-byte address and a nonce: 40 hex digits."""
    digest = keccak.new(digest_bits=256)
    digest.update(_list(_text(address) + _text(_number(nonce))))
    return digest.digest()[-20:].hex()


def _number(value: int) -> bytes:
    return value.to_bytes((value.bit_length() + 7) // 8, "big")


# RLP of Ethereum's yellow paper, appendix B, for payloads below 56 bytes.
def _text(value: bytes) -> bytes:
    if len(value) == 1 and value[0] < 0x80:
        return value
    return bytes([0x80 + len(value)]) + value


def _list(payload: bytes) -> bytes:
    return bytes([0xC0 + len(payload)]) + payload
