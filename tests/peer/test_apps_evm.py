"""Allow-lists on a real local chain, with and without a multicall contract: anvil and solc from npm."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from apps.allowlist import Allowlist, Asked, Verdict
from apps.chains import MULTICALL, Chains, Reader
from apps.updates import event_of
from core import evm, proc
from core.config_apps import ChainConfig
from core.evm import Call
from tests.common.waiting import free_port, until
from tests.peer.test_evm import SOURCES, Anvil, tools  # noqa: F401 - the fixture

CHAIN = 31337
HASH, OTHER, DEVICE = b"\xab" * 32, b"\xcd" * 32, b"\xef" * 32


@pytest.fixture(scope="module")
def anvil(tools: Path) -> Iterator[Anvil]:  # noqa: F811
    compiled = proc.run(["node", SOURCES / "compile.js", tools, SOURCES / "app.sol"])
    port = free_port()
    program = tools / "node_modules/@foundry-rs/anvil-linux-amd64/bin/anvil"
    chain = subprocess.Popen(
        [program, "--port", str(port), "--silent"],
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
        yield made
    finally:
        proc.stop(chain, patience_s=5)


@pytest.fixture
def app(anvil: Anvil) -> str:
    """The address of a new app's contract, 40 digits."""
    found: str = anvil.send(None, "0x" + anvil.codes["App"])["contractAddress"]
    return found[2:].lower()


@pytest.fixture(params=["multicall", "batch"])
def chains(request: pytest.FixtureRequest, anvil: Anvil) -> Chains:
    """The chain, which has the multicall contract at its usual address or has it not."""
    code = "0x"
    if request.param == "multicall":
        made = anvil.send(None, "0x" + anvil.codes["Multicall"])["contractAddress"]
        code = anvil.ask("eth_getCode", made, "latest")
    anvil.ask("anvil_setCode", MULTICALL, code)
    return Chains({CHAIN: Reader(ChainConfig(CHAIN, "anvil", anvil.url))})


def verdicts(chains: Chains, app: str, *hashes: bytes) -> list[Verdict]:
    asked = [Asked(each.hex(), DEVICE.hex()) for each in hashes]
    # It asks nothing else of the service.
    return Allowlist(None, chains).verdicts(app, CHAIN, asked)  # type: ignore[arg-type]


def test_the_contract_decides_step_by_step(anvil: Anvil, app: str, chains: Chains) -> None:
    address = "0x" + app

    seen = [verdicts(chains, app, HASH, OTHER)]
    anvil.write(address, "addComposeHash(bytes32)", HASH)
    seen.append(verdicts(chains, app, HASH, OTHER))
    anvil.write(address, "addDevice(bytes32)", DEVICE)
    seen.append(verdicts(chains, app, HASH, OTHER))
    anvil.write(address, "removeComposeHash(bytes32)", HASH)
    anvil.write(address, "setAllowAnyDevice(bool)", True)
    seen.append(verdicts(chains, app, HASH, OTHER))

    told = [[(v.compose_hash, v.any_device, v.device, v.is_allowed) for v in each] for each in seen]
    assert told == [
        [(False, False, False, False), (False, False, False, False)],
        [(True, False, False, False), (False, False, False, False)],
        [(True, False, True, True), (False, False, True, False)],
        [(False, True, True, False), (False, True, True, False)],
    ]
    assert {v.error for each in seen for v in each} == {None}


def test_an_address_without_a_contract_is_an_error(chains: Chains) -> None:
    (verdict,) = verdicts(chains, "77" * 20, HASH)

    assert verdict.error is not None and "no contract" in verdict.error
    assert not verdict.is_allowed


def test_a_contract_of_another_kind_is_an_error(anvil: Anvil, chains: Chains) -> None:
    other = anvil.send(None, "0x" + anvil.codes["Multicall"])["contractAddress"]

    (verdict,) = verdicts(chains, other[2:].lower(), HASH)

    assert verdict.error is not None and "refused the call" in verdict.error


def test_many_are_asked_in_few_requests(anvil: Anvil, app: str, chains: Chains) -> None:
    hashes = [index.to_bytes(32) for index in range(150)]
    anvil.write("0x" + app, "addComposeHash(bytes32)", hashes[70])
    anvil.write("0x" + app, "setAllowAnyDevice(bool)", True)

    told = verdicts(chains, app, *hashes)

    assert [index for index, each in enumerate(told) if each.is_allowed] == [70]


def test_a_transaction_proves_the_hash_that_it_registered(anvil: Anvil, app: str) -> None:
    reader = Reader(ChainConfig(CHAIN, "anvil", anvil.url))
    data = "0x" + evm.encode("addComposeHash(bytes32)", HASH).hex()
    done = anvil.send("0x" + app, data)["transactionHash"]

    receipt = reader.receipt(done)

    assert receipt is not None and receipt["status"] == "0x1"
    assert event_of(receipt, app, HASH.hex())
    assert not event_of(receipt, app, OTHER.hex())
    assert not event_of(receipt, "77" * 20, HASH.hex())
    assert reader.receipt("0x" + "00" * 32) is None


def test_single_calls_give_the_same(anvil: Anvil, app: str) -> None:
    anvil.ask("anvil_setCode", MULTICALL, "0x")
    reader = Reader(ChainConfig(CHAIN, "anvil", anvil.url, multicall="none"))
    calls = [Call(bytes.fromhex(app), evm.encode("allowAnyDevice()"))] * 3

    assert reader.calls(calls) == [bytes(32)] * 3
