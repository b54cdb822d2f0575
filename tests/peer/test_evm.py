"""Authorisation on a real local chain: anvil with a contract compiled by solc, both from npm."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import requests

from core import evm, proc
from core.errors import Upstream, UpstreamTimeout
from core.evm import Call, Chain, Reverted
from kms.chain import Contract
from kms.decision import Decision, Policy
from tests.common.waiting import free_port, until
from tests.peer.conftest import HERE, installed
from tests.unit.kms.test_policy import BOOT

SOURCES = HERE / "evm"


@pytest.fixture(scope="session")
def tools() -> Path:
    """A folder whose node_modules has anvil and solc; they come from npm the first time."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed, and anvil and solc come from it (setup.sh dev)")

    def install(folder: Path) -> None:
        for name in ("package.json", "package-lock.json"):
            shutil.copy(SOURCES / name, folder)
        npm = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
        subprocess.run(npm, cwd=folder, check=True)

    return installed("evm", SOURCES / "package-lock.json", install)


@dataclass
class Anvil:
    """A running chain and the contracts on it."""

    url: str
    codes: dict[str, str]
    kms: str = ""

    def ask(self, method: str, *params: Any) -> Any:
        body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        said = requests.post(self.url, json=body, timeout=10).json()
        assert "error" not in said, said
        return said["result"]

    def send(self, to: str | None, data: str) -> dict[str, Any]:
        """A transaction of the first account, which anvil signs."""
        fields = {"from": self.ask("eth_accounts")[0], "data": data}
        done = self.ask("eth_sendTransaction", fields if to is None else {**fields, "to": to})
        receipt: dict[str, Any] = until(
            lambda: self.ask("eth_getTransactionReceipt", done), what="the transaction"
        )
        assert receipt["status"] == "0x1"
        return receipt

    def write(self, to: str, signature: str, *arguments: Any) -> None:
        self.send(to, "0x" + evm.encode(signature, *arguments).hex())


@pytest.fixture(scope="module")
def anvil(tools: Path) -> Iterator[Anvil]:
    compiled = proc.run(["node", SOURCES / "compile.js", tools, SOURCES / "kms.sol"])
    port = free_port()
    program = tools / "node_modules/@foundry-rs/anvil-linux-amd64/bin/anvil"
    chain = subprocess.Popen(
        [program, "--port", str(port), "--chain-id", "31338", "--silent"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    made = Anvil(f"http://127.0.0.1:{port}", json.loads(compiled.stdout))

    def is_up() -> bool:
        try:
            return bool(made.ask("eth_chainId"))
        except requests.ConnectionError:
            return False

    try:
        until(is_up, seconds=30, what="anvil's start")
        made.kms = made.send(None, "0x" + made.codes["Kms"])["contractAddress"]
        yield made
    finally:
        proc.stop(chain, patience_s=5)


@pytest.fixture
def contract(anvil: Anvil) -> Contract:
    return Contract(anvil.url, anvil.kms)


def test_the_contract_decides_step_by_step(anvil: Anvil, contract: Contract) -> None:
    reasons = [contract.app(BOOT).reason]
    anvil.write(anvil.kms, "deployAndRegisterApp(address)", BOOT.app_id)
    reasons.append(contract.app(BOOT).reason)
    anvil.write(anvil.kms, "addOsImageHash(bytes32)", BOOT.os_image_hash)
    reasons.append(contract.app(BOOT).reason)
    app = contract.policy().app_implementation
    anvil.write(app, "addComposeHash(bytes32)", BOOT.compose_hash)
    reasons.append(contract.app(BOOT).reason)
    anvil.write(app, "addDevice(bytes32)", BOOT.device_id)

    assert reasons == [
        "App not registered",
        "OS image is not allowed",
        "Compose hash not allowed",
        "Device not allowed",
    ]
    assert contract.app(BOOT) == Decision(True, gateway_app_id="gateway.example")
    anvil.write(app, "removeComposeHash(bytes32)", BOOT.compose_hash)
    assert contract.app(BOOT) == Decision(False, "Compose hash not allowed")


def test_a_kms_is_decided_on_too(anvil: Anvil, contract: Contract) -> None:
    assert (
        contract.kms(replace(BOOT, tcb_status="OutOfDate")).reason == "TCB status is not up to date"
    )
    assert contract.kms(BOOT).reason == "Aggregated MR not allowed"

    anvil.write(anvil.kms, "addKmsAggregatedMr(bytes32)", BOOT.mr_aggregated)

    assert contract.kms(BOOT).is_allowed


def test_a_contract_that_reverts_says_no(contract: Contract) -> None:
    decision = contract.kms(replace(BOOT, advisory_ids=("INTEL-SA-1",)))

    assert not decision.is_allowed
    assert "advisories are not welcome" in decision.reason


def test_short_values_have_zeros_on_their_left(anvil: Anvil, contract: Contract) -> None:
    anvil.write(anvil.kms, "addOsImageHash(bytes32)", bytes(31) + b"\x07")
    anvil.write(anvil.kms, "deployAndRegisterApp(address)", bytes(19) + b"\x07")
    short = replace(BOOT, app_id=b"\x07", os_image_hash=b"\x07", instance_id=b"")

    assert contract.app(short).reason == "Compose hash not allowed"


def test_a_value_too_long_for_the_contract_is_a_no(contract: Contract) -> None:
    decision = contract.app(replace(BOOT, device_id=bytes(64)))

    assert decision == Decision(False, "the boot info does not fit the contract")


def test_the_policy_names_chain_and_contract(anvil: Anvil, contract: Contract) -> None:
    said = contract.policy()

    assert (said.chain_id, said.kms_contract) == (31338, anvil.kms.lower())
    assert said.gateway_app_id == "gateway.example"
    assert isinstance(said, Policy)


def test_an_address_without_a_contract_allows_nothing(anvil: Anvil) -> None:
    nobody = Contract(anvil.url, "0x" + "77" * 20)

    assert not nobody.app(BOOT).is_allowed
    with pytest.raises(Upstream):
        nobody.policy()


def test_many_questions_are_asked_at_once_and_answered_in_order(anvil: Anvil) -> None:
    chain, kms = Chain(anvil.url), bytes.fromhex(anvil.kms[2:])
    good = Call(kms, evm.selector("gatewayAppId()"))
    bad = Call(kms, evm.selector("nothing()"))

    answers = chain.calls([good, bad, *[good] * 120])

    assert isinstance(answers[1], Reverted)
    texts = [evm.decode(["string"], each) for each in answers if isinstance(each, bytes)]
    assert texts == [("gateway.example",)] * 121
    assert chain.code(kms) and not chain.code(bytes(19) + b"\x99")


def test_a_chain_that_is_not_there_allows_nothing() -> None:
    nobody = Contract(f"http://127.0.0.1:{free_port()}", "0x" + "77" * 20)

    assert nobody.app(BOOT) == Decision(False, "the chain cannot be reached: Connection refused")
    with pytest.raises((Upstream, UpstreamTimeout)):
        nobody.policy()
