"""Authorisation by a contract: what is never put to one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from attest.boot_info import TDX, BootInfo
from kms.chain import Contract, boot_tuple

BOOT = BootInfo(
    tee_variant=TDX,
    mr_aggregated=bytes(32),
    os_image_hash=b"",
    mr_system=bytes(32),
    app_id=b"\xaa" * 20,
    compose_hash=b"\xbb" * 32,
    instance_id=b"\xcc",
    device_id=b"\xdd" * 32,
    key_provider_info=b"",
    tcb_status="UpToDate",
    advisory_ids=(),
)


@pytest.mark.parametrize("change", [{"instance_id": bytes(21)}, {"device_id": bytes(64)}])
def test_what_does_not_fit_the_struct_is_a_no(change: dict[str, bytes]) -> None:
    contract = Contract("http://127.0.0.1:1", "0x" + "11" * 20)

    for decide in (contract.app, contract.kms):
        assert decide(replace(BOOT, **change)).reason == "the boot info does not fit the contract"  # type: ignore[arg-type] # by name


def test_short_values_have_zeros_on_their_left() -> None:
    members = boot_tuple(BOOT)

    assert members[2] == bytes(19) + b"\xcc"
    assert members[6] == bytes(32)
    assert members[7:] == ("UpToDate", [])
