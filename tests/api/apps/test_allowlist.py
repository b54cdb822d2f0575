"""On-chain answers: the same rows however the chain was asked, an error where it could not be."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from core import evm
from core.evm import encode
from tests.api.apps.conftest import COMPOSE, CONTRACT, Api, Contract

WAYS = ["multicall", "batch", "single"]


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, contract: Contract) -> str:
    contract.has_multicall = request.param == "multicall"
    contract.takes_batches = request.param == "batch"
    return str(request.param)


@pytest.fixture
def vm(ann: Api) -> Any:
    """A VM of an on-chain app."""
    return ann.deploy(kms="ETHEREUM")


def device(ann: Api) -> str:
    return str(ann.get("/teepods/available")["nodes"][0]["device_id"])


def test_rows_are_equal_however_the_chain_is_asked(
    ann: Api, vm: Any, contract: Contract, way: str
) -> None:
    compose_hash = ann.get("/cvms/web-app")["compose_hash"]
    ann.post(f"/apps/{CONTRACT}/instances")
    contract.hashes, contract.devices = {compose_hash}, {device(ann)}

    told = ann.post(f"/apps/{CONTRACT}/cvms/is-allowed")

    assert [told[n] for n in ("is_onchain", "total", "allowed_count", "denied_count", "error_count")] == [
        True, 2, 2, 0, 0,
    ]  # fmt: skip
    assert told["skipped_cvm_ids"] == []
    assert told["results"][0] == {
        "app_contract_address": "0x" + CONTRACT,
        "compose_hash": compose_hash,
        "device_id": device(ann),
        "compose_hash_allowed": True,
        "allow_any_device": False,
        "device_id_allowed": True,
        "is_allowed": True,
        "error": None,
        "cvm_id": vm["id"],
    }
    reads = {"multicall": 2, "batch": 2, "single": 1 + 1 + 5}
    assert len(contract.requests) == reads[way]


@pytest.mark.parametrize(
    ("allowed", "wanted"),
    [
        ({}, (False, False, False, False)),
        ({"hash": True}, (True, False, False, False)),
        ({"hash": True, "device": True}, (True, False, True, True)),
        ({"hash": True, "any": True}, (True, True, False, True)),
        ({"device": True, "any": True}, (False, True, True, False)),
    ],
)
def test_the_rule(
    ann: Api, contract: Contract, allowed: dict[str, bool], wanted: tuple[bool, ...]
) -> None:
    asked = {"compose_hash": "0x" + "AB" * 32, "device_id": "cd" * 32, "chain_id": 31337}
    contract.hashes = {"ab" * 32} if "hash" in allowed else set()
    contract.devices = {"cd" * 32} if "device" in allowed else set()
    contract.any_device = "any" in allowed

    told = ann.post(f"/apps/0x{CONTRACT}/is-allowed", asked)

    names = ("compose_hash_allowed", "allow_any_device", "device_id_allowed", "is_allowed")
    assert tuple(told[name] for name in names) == wanted
    assert (told["error"], told["compose_hash"]) == (None, "ab" * 32)


def test_no_contract_is_an_error_and_no_denial(
    ann: Api, vm: Any, contract: Contract, way: str
) -> None:
    contract.is_there = False

    told = ann.post(f"/apps/{CONTRACT}/cvms/is-allowed")
    devices = ann.get(f"/apps/{CONTRACT}/device-allowlist")

    assert (told["error_count"], told["denied_count"]) == (1, 0)
    assert "no contract" in told["results"][0]["error"]
    assert devices["devices"][0]["status"] == "error"
    assert devices["allow_any_device"] is None


def test_a_revert_is_an_error_of_that_value(
    ann: Api, vm: Any, contract: Contract, way: str
) -> None:
    contract.reverts = {"device"}
    contract.hashes = {ann.get("/cvms/web-app")["compose_hash"]}

    (row,) = ann.post(f"/apps/{CONTRACT}/cvms/is-allowed")["results"]

    assert (row["compose_hash_allowed"], row["device_id_allowed"], row["is_allowed"]) == (
        True,
        None,
        False,
    )
    assert "refused the call" in row["error"]


@pytest.mark.parametrize("chain_s", [1])
def test_a_silent_chain_is_an_error_within_its_time_and_then_at_once(
    ann: Api, vm: Any, contract: Contract, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("apps.chains.FAIL_FAST_S", 60)
    contract.late_s = 30
    began = time.monotonic()
    first = ann.post(f"/apps/{CONTRACT}/cvms/is-allowed")
    after, asked = time.monotonic(), len(contract.requests)
    second = ann.post(f"/apps/{CONTRACT}/cvms/is-allowed")

    assert first == second
    assert first["results"][0]["is_allowed"] is False
    assert first["results"][0]["compose_hash_allowed"] is False
    assert after - began < contract.late_s
    assert len(contract.requests) == asked
    assert contract.url.removeprefix("http://") not in first["results"][0]["error"]


def test_an_unknown_chain_is_an_error(ann: Api) -> None:
    told = ann.post(f"/apps/{CONTRACT}/is-allowed", {"compose_hash": "00" * 32, "chain_id": 8453})

    assert "8453" in told["error"]
    assert told["is_allowed"] is False
    assert told["device_id"] == ""
    assert told["device_id_allowed"] is None


def test_an_app_off_chain_has_nothing_to_allow(ann: Api, contract: Contract) -> None:
    app_id = ann.deploy()["app_id"]

    told = ann.post(f"/apps/{app_id}/is-allowed", {"compose_hash": "00" * 32})

    assert told["error"] and told["app_contract_address"] == "0x" + app_id
    assert ann.post(f"/apps/{app_id}/cvms/is-allowed") == {
        "is_onchain": False, "results": [], "total": 0, "allowed_count": 0, "denied_count": 0,
        "error_count": 0, "skipped_cvm_ids": [],
    }  # fmt: skip
    assert contract.requests == []


def test_the_node_stands_for_its_device(ann: Api, contract: Contract) -> None:
    contract.hashes, contract.devices = {"ab" * 32}, {device(ann)}
    asked = {"compose_hash": "ab" * 32, "device_id": "11" * 32, "node_id": 1}

    assert ann.post(f"/apps/{CONTRACT}/is-allowed", asked)["is_allowed"] is True
    unknown = ann.post(f"/apps/{CONTRACT}/is-allowed", asked | {"node_id": 9}, 404)
    assert unknown["error_code"] == "ERR-01-001"


@pytest.mark.parametrize(
    "body",
    [{}, {"compose_hash": "xyz"}, {"compose_hash": "00"}, {"compose_hash": "00" * 32 + "\n"}],
)
def test_a_hash_must_be_one(ann: Api, body: dict[str, str]) -> None:
    told = ann.post(f"/apps/{CONTRACT}/is-allowed", body, 422)

    assert told["detail"][0]["loc"] == ["body", "compose_hash"]


def test_devices_of_an_app(ann: Api, vm: Any, contract: Contract) -> None:
    before = ann.get(f"/apps/{CONTRACT}/device-allowlist")
    contract.any_device = True
    after = ann.get(f"/apps/{CONTRACT}/device-allowlist")

    assert before == {
        "is_onchain_kms": True,
        "allow_any_device": False,
        "chain_id": 31337,
        "app_contract_address": "0x" + CONTRACT,
        "devices": [
            {"device_id": device(ann), "node_name": "attic", "cvm_ids": [vm["id"]],
             "allowed_onchain": False, "status": "not_allowed"}
        ],
    }  # fmt: skip
    assert after["allow_any_device"] is True
    assert after["devices"][0]["status"] == "allowed"


# Updates that wait for their hash ----------------------------------------------------------------

NEW = {"docker_compose_file": COMPOSE + "# 2\n"}


def details(refused: Any) -> dict[str, Any]:
    return {row["field"]: row["value"] for row in refused["details"]}


def receipt(compose_hash: str, address: str = CONTRACT) -> dict[str, Any]:
    topic = "0x" + evm.event("ComposeHashAdded(bytes32)")
    log = {"address": "0x" + address, "topics": [topic], "data": "0x" + compose_hash}
    return {"status": "0x1", "logs": [log]}


def test_an_update_waits_until_its_hash_is_registered(
    ann: Api, vm: Any, contract: Contract
) -> None:
    refused = ann.patch("/cvms/web-app", NEW, 465)
    told = details(refused)
    assert refused["error_code"] == "ERR-01-005"
    assert (told["app_id"], told["onchain_status"]["is_allowed"]) == (CONTRACT, False)
    proof = {"X-Compose-Hash": "0x" + told["compose_hash"], "X-Transaction-Hash": "0x" + "77" * 32}

    not_yet = ann.patch("/cvms/web-app", {}, 467, headers=proof)
    contract.receipts["0x" + "77" * 32] = receipt("99" * 32)
    of_another = ann.patch("/cvms/web-app", {}, 467, headers=proof)
    contract.receipts["0x" + "77" * 32] = receipt(told["compose_hash"])
    revoked = ann.patch("/cvms/web-app", {}, 468, headers=proof)
    contract.hashes = {told["compose_hash"]}
    done = ann.patch("/cvms/web-app", {}, 202, headers=proof)
    again = ann.patch("/cvms/web-app", {}, 466, headers=proof)

    codes = [each["error_code"] for each in (not_yet, of_another, revoked, again)]
    assert codes == ["ERR-01-007", "ERR-01-007", "ERR-01-008", "ERR-01-006"]
    assert ann.get("/cvms/web-app")["compose_hash"] == told["compose_hash"]
    (newest, _) = ann.get(f"/apps/{CONTRACT}/revisions")["revisions"]
    assert (newest["operation_type"], newest["trace_id"]) == (
        "compose_update",
        done["correlation_id"],
    )


def test_a_prepared_update_is_committed_with_its_token(
    ann: Api, vm: Any, contract: Contract
) -> None:
    first = details(ann.patch("/cvms/web-app", NEW, 465, headers={"X-Prepare-Only": "true"}))
    second = details(ann.patch("/cvms/web-app", NEW, 465, headers={"X-Prepare-Only": "true"}))
    contract.hashes = {second["compose_hash"]}
    path = second["api_commit_url"].partition("/api/v1")[2]

    # One per VM: the first token is worth nothing now.
    ann.post(path, {"token": first["commit_token"]}, 466)
    told = ann.post(
        path, {"token": second["commit_token"], "transaction_hash": "already-registered"}, 202
    )

    assert told["status"] == "in_progress"
    assert ann.get("/cvms/web-app")["compose_hash"] == second["compose_hash"]


def test_an_update_that_is_cut_off_waits_still(
    ann: Api, vm: Any, contract: Contract, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = details(ann.patch("/cvms/web-app", NEW, 465))
    contract.hashes = {told["compose_hash"]}
    path = told["api_commit_url"].partition("/api/v1")[2]
    commit = {"token": told["commit_token"], "transaction_hash": "already-registered"}

    def die(name: str) -> None:
        if name == "update.assigned":
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("core.faults.point", die)
        ann.post(path, commit)
    ann.post(path, commit, 202)

    assert ann.get("/cvms/web-app")["compose_hash"] == told["compose_hash"]


def test_a_registered_hash_needs_no_waiting(ann: Api, vm: Any, contract: Contract) -> None:
    told = details(ann.patch("/cvms/web-app", NEW, 465))
    contract.hashes = {told["compose_hash"]}

    ann.patch("/cvms/web-app", NEW, 202)

    assert ann.get("/cvms/web-app")["compose_hash"] == told["compose_hash"]


def test_the_multicall_is_encoded_as_published() -> None:
    data = encode("aggregate3((address,bool,bytes)[])", [(bytes(20), True, b"")])

    assert data[:4].hex() == "82ad56cb"


@pytest.mark.parametrize("spoil", [lambda said: said | {"id": 99}, lambda said: said | {"id": []}])
def test_an_answer_to_another_question_is_an_error(
    ann: Api,
    vm: Any,
    contract: Contract,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[Any], Any],
) -> None:
    contract.any_device, right = True, contract._one
    monkeypatch.setattr(contract, "_one", lambda asked: spoil(right(asked)))

    (row,) = ann.post(f"/apps/{CONTRACT}/cvms/is-allowed")["results"]

    assert row["error"] and row["is_allowed"] is False


def test_what_a_node_says_of_its_address_is_not_told(
    ann: Api, vm: Any, contract: Contract, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = {"code": -32000, "message": f"no credits left at {contract.url}/v1"}
    monkeypatch.setattr(contract, "_one", lambda asked: {"id": asked["id"], "error": error})

    (row,) = ann.post(f"/apps/{CONTRACT}/cvms/is-allowed")["results"]

    assert "no credits left" in row["error"]
    assert "127.0.0.1" not in row["error"]


def test_an_address_that_is_none_is_named_as_part_of_the_path(ann: Api) -> None:
    told = ann.post("/apps/zz/is-allowed", {"compose_hash": "00" * 32}, 422)

    assert told["detail"][0]["loc"] == ["path", "app_id"]


# The contracts of KMSes --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["anvil", "31337", "ethereum"])
def test_a_kms_contract_is_asked_about_this_hosts_device_and_images(
    ann: Api, contract: Contract, way: str, name: str
) -> None:
    contract.devices = {device(ann)}

    told = ann.get(f"/kms/on-chain/{name}")

    assert (told["chain_name"], told["chain_id"]) == ("anvil", 31337)
    (kms,) = told["contracts"]
    assert kms["contract_address"] == "0x" + "aa" * 20
    assert kms["devices"] == [
        {"device_id": device(ann), "node_name": "attic", "on_chain_allowed": True}
    ]
    (image,) = kms["os_images"]
    assert (image["on_chain_allowed"], kms["error"]) == (False, None)
    contract.hashes = {image["os_image_hash"]}
    (again,) = ann.get(f"/kms/on-chain/{name}")["contracts"]
    assert again["os_images"][0]["on_chain_allowed"] is True


def test_what_a_kms_contract_does_not_tell_is_not_a_no(ann: Api, contract: Contract) -> None:
    contract.reverts = {"image"}
    (kms,) = ann.get("/kms/on-chain/anvil")["contracts"]
    assert kms["devices"][0]["on_chain_allowed"] is False
    assert kms["os_images"][0]["on_chain_allowed"] is None
    assert "refused the call" in kms["error"]

    contract.is_there = False
    (kms,) = ann.get("/kms/on-chain/anvil")["contracts"]
    assert kms["devices"][0]["on_chain_allowed"] is None
    assert "no contract" in kms["error"]


def test_a_chain_without_a_kms_of_this_host_is_not_found(ann: Api) -> None:
    refused = ann.get("/kms/on-chain/base", 404)

    assert refused["error_code"] == "ERR-02-011"
    assert "anvil" in refused["suggestions"][0]
