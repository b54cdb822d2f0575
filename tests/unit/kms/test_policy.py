"""The policy file: order and words of its refusals, and what it takes for equal."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from attest.boot_info import TDX, BootInfo
from core import policy_file
from kms.policy import PolicyFile

BOOT = BootInfo(
    tee_variant=TDX,
    mr_aggregated=b"\xaa" * 32,
    os_image_hash=b"\xbb" * 32,
    mr_system=b"\xcc" * 32,
    app_id=b"\x11" * 20,
    compose_hash=b"\x22" * 32,
    instance_id=b"\x33" * 20,
    device_id=b"\x44" * 32,
    key_provider_info=b"",
    tcb_status="UpToDate",
)
DOCUMENT: dict[str, Any] = {
    "gatewayAppId": "gateway",
    "kmsContractAddr": "0xabc",
    "chainId": 5,
    "appImplementation": "0xdef",
    "osImages": ["0x" + "BB" * 32],
    "kms": {"mrAggregated": ["AA" * 32], "devices": ["44" * 32]},
    "apps": {"0x" + "11" * 20: {"composeHashes": ["22" * 32], "devices": ["0x" + "44" * 32]}},
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "policy.json"
    made.write_text(json.dumps(DOCUMENT))
    return made


def without(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**DOCUMENT, **changes}))


def test_what_is_listed_is_allowed_however_it_is_written(path: Path) -> None:
    file = PolicyFile(path)

    for decision in (file.app(BOOT), file.kms(BOOT)):
        assert decision.is_allowed and decision.reason == ""
        assert decision.gateway_app_id == "gateway"
    said = file.policy()
    assert (said.kms_contract, said.chain_id, said.app_implementation) == ("0xabc", 5, "0xdef")


def test_refusals_come_in_their_order_with_their_words(path: Path) -> None:
    file = PolicyFile(path)
    bad = replace(
        BOOT,
        tcb_status="OutOfDate",
        advisory_ids=("INTEL-SA-1",),
        os_image_hash=b"",
        app_id=bytes(20),
        compose_hash=b"",
        device_id=b"",
        mr_aggregated=b"",
    )

    app_reasons, kms_reasons = [], []
    steps: list[dict[str, Any]] = [
        {"tcb_status": "UpToDate"},
        {"advisory_ids": ()},
        {"os_image_hash": BOOT.os_image_hash},
    ]
    app, kms = bad, bad
    for step in (*steps, {"app_id": BOOT.app_id}, {"compose_hash": BOOT.compose_hash}):
        app_reasons.append(file.app(app).reason)
        app = replace(app, **step)
    app_reasons.append(file.app(app).reason)
    for step in (*steps, {"mr_aggregated": BOOT.mr_aggregated}):
        kms_reasons.append(file.kms(kms).reason)
        kms = replace(kms, **step)
    kms_reasons.append(file.kms(kms).reason)

    platform = [
        "TCB status is not allowed",
        "advisory ID is not allowed",
        "OS image is not allowed",
    ]
    assert app_reasons == [
        *platform,
        "app not registered",
        "compose hash not allowed",
        "app is not allowed to boot on this device",
    ]
    assert kms_reasons == [
        *platform,
        "aggregated MR not allowed",
        "KMS is not allowed to boot on this device",
    ]
    assert not file.app(app).is_allowed and not file.kms(kms).is_allowed


def test_statuses_and_advisories_can_be_allowed(path: Path) -> None:
    without(path, allowedTcbStatuses=["SWHardeningNeeded"], allowedAdvisoryIds=["A", "B"])
    file = PolicyFile(path)

    assert file.app(replace(BOOT, tcb_status="SWHardeningNeeded", advisory_ids=("B",))).is_allowed
    assert file.app(BOOT).reason == "TCB status is not allowed"


def test_an_empty_device_list_allows_no_device(path: Path) -> None:
    app = {"composeHashes": ["22" * 32], "devices": []}
    without(path, apps={"11" * 20: app})
    assert not PolicyFile(path).app(BOOT).is_allowed

    without(path, apps={"11" * 20: {**app, "allowAnyDevice": True}})
    assert PolicyFile(path).app(BOOT).is_allowed


@pytest.mark.parametrize(
    "text",
    [
        "no json",
        "[]",
        '{"osImages": "x"}',
        '{"osImages": [5]}',
        '{"apps": []}',
        '{"apps": {"a": 5}}',
        '{"apps": {"a": {"composeHashes": {}}}}',
        '{"kms": 5}',
        '{"kms": {"devices": 5}}',
        "[" * 100_000,
    ],
)
def test_a_file_that_cannot_be_read_allows_nothing(path: Path, text: str) -> None:
    path.write_text(text)

    for decision in (PolicyFile(path).app(BOOT), PolicyFile(path).kms(BOOT)):
        assert not decision.is_allowed
        assert decision.reason == "the policy file cannot be read"


def test_no_file_allows_nothing(tmp_path: Path) -> None:
    assert PolicyFile(tmp_path / "none").app(BOOT).reason == "OS image is not allowed"


def test_a_change_counts_at_the_next_decision(path: Path) -> None:
    file = PolicyFile(path)
    assert file.app(BOOT).is_allowed

    policy_file.change(path, lambda document: document["apps"].clear())

    assert file.app(BOOT).reason == "app not registered"
