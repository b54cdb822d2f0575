from __future__ import annotations

import hashlib

from attest import measure

MRTD = b"\0" * 48
RTMRS = [bytes([register]) * 48 for register in range(1, 5)]


def test_mr_system_covers_the_boot_registers_and_the_key_provider() -> None:
    boot = MRTD + RTMRS[0] + RTMRS[1] + RTMRS[2]
    provider = hashlib.sha256(b'{"name":"kms","id":"00"}').digest()

    assert measure.mr_system(MRTD, RTMRS, b'{"name":"kms","id":"00"}') == (
        hashlib.sha256(boot + provider).digest()
    )
    assert measure.mr_system(MRTD, RTMRS, None) == hashlib.sha256(boot + bytes(32)).digest()


def test_an_empty_key_provider_event_is_not_an_absent_one() -> None:
    assert measure.key_provider_hash(b"") == hashlib.sha256(b"").digest()
    assert measure.key_provider_hash(None) == bytes(32)


def test_mr_aggregated_names_the_configuration_only_when_there_is_one() -> None:
    registers = MRTD + b"".join(RTMRS)
    config, owner = b"\7" * 48, b"\x08" * 48

    assert measure.mr_aggregated(MRTD, RTMRS) == hashlib.sha256(registers).digest()
    assert measure.mr_aggregated(MRTD, RTMRS, config) == (
        hashlib.sha256(registers + config + bytes(96)).digest()
    )
    assert measure.mr_aggregated(MRTD, RTMRS, mr_owner_config=owner) == (
        hashlib.sha256(registers + bytes(96) + owner).digest()
    )


def test_device_id_is_the_hash_of_the_platform_id() -> None:
    assert measure.device_id(b"\1" * 16) == hashlib.sha256(b"\1" * 16).digest()
