"""Values composed of several registers, as boot info and app info carry them.

Source: attestation.md section 4.  Registers have 48 bytes, results 32.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

_NONE = bytes(48)


def key_provider_hash(payload: bytes | None) -> bytes:
    """mr_key_provider: the hash of the key-provider event's payload; zeros when there is no such event."""
    return bytes(32) if payload is None else hashlib.sha256(payload).digest()


def mr_system(mrtd: bytes, rtmrs: Sequence[bytes], key_provider: bytes | None) -> bytes:
    """What was booted and who gave the keys: MRTD, RTMR0 to 2 and the key-provider event's payload.

    For boot-time values `key_provider` is None.
    """
    parts = (mrtd, *rtmrs[:3], key_provider_hash(key_provider))
    return hashlib.sha256(b"".join(parts)).digest()


def mr_aggregated(
    mrtd: bytes,
    rtmrs: Sequence[bytes],
    mr_config_id: bytes = _NONE,
    mr_owner: bytes = _NONE,
    mr_owner_config: bytes = _NONE,
) -> bytes:
    """All measurements of a TD in one; for boot-time values RTMR3 is its value at `boot-mr-done`."""
    given = mr_config_id + mr_owner + mr_owner_config
    tail = given if any(given) else b""
    return hashlib.sha256(b"".join((mrtd, *rtmrs, tail))).digest()


def device_id(ppid: bytes) -> bytes:
    """The machine's public name: the hash of its platform id."""
    return hashlib.sha256(ppid).digest()


def snp_mr_system(measurement: bytes) -> bytes:
    """mr_system of a SEV-SNP VM, which has one measurement."""
    return hashlib.sha256(measurement).digest()


def snp_mr_aggregated(measurement: bytes, host_data: bytes) -> bytes:
    """mr_aggregated of a SEV-SNP VM: its measurement and what the host bound to it at launch."""
    return hashlib.sha256(measurement + host_data).digest()
