"""Calls of contracts: their encoding, and nodes that do not behave (a real one is in tests/peer/test_evm.py)."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator

import pytest

from core import evm
from core.errors import Upstream, UpstreamTimeout
from core.evm import Call, Chain, Reverted
from kms import chain as kms_chain
from tests.unit.kms.test_authz import Service

CALL = Call(bytes(20), b"")


@pytest.fixture
def node() -> Iterator[Service]:
    made = Service()
    threading.Thread(target=made.serve_forever, args=[0.01], daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


def test_selectors_are_the_published_ones() -> None:
    # ERC-20, and apps.md section 4 for the KMS.
    assert evm.selector("transfer(address,uint256)").hex() == "a9059cbb"
    assert evm.selector(kms_chain.IS_APP_ALLOWED).hex() == "1e079198"


def test_arguments_are_encoded_by_the_types_of_the_signature() -> None:
    data = evm.encode("f((address,bytes32),string[],bool)", (bytes(20), bytes(32)), ["a"], True)

    assert data[:4] == evm.selector("f((address,bytes32),string[],bool)")
    assert len(data) % 32 == 4
    assert evm.encode("f()") == evm.selector("f()")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no json",
        b"[]",
        b"5",
        b"[" * 100_000,
        b'{"result": 5}',
        b'{"result": null}',
        b'{"result": "0x1"}',
        b'{"result": "0xzz"}',
        b'{"error": {"code": -32000, "message": "no"}}',
        b'{"error": "no"}',
        b'{"result": "0x' + b"00" * (3 << 20) + b'"}',
    ],
)
def test_an_answer_that_is_none_is_an_upstream_fault(node: Service, body: bytes) -> None:
    node.body = body
    chain = Chain(node.url)

    for ask in (
        lambda: chain.call(CALL),
        lambda: chain.code(bytes(20)),
        lambda: chain.calls([CALL]),
    ):
        with pytest.raises(Upstream):
            ask()
    if b"0x1" not in body:
        with pytest.raises(Upstream):
            chain.chain_id()


@pytest.mark.parametrize(
    "error", [{"code": 3, "message": "x"}, {"code": -32000, "message": "execution reverted: x"}]
)
def test_a_refusal_of_the_contract_is_told_apart(node: Service, error: dict[str, object]) -> None:
    node.body = json.dumps({"id": 1, "error": error}).encode()
    with pytest.raises(Reverted, match="refused the call: .*x"):
        Chain(node.url).call(CALL)

    node.body = json.dumps([{"id": 1, "error": error}, {"id": 2, "result": "0x07"}]).encode()
    refused, answered = Chain(node.url).calls([CALL, CALL])
    assert isinstance(refused, Reverted) and answered == b"\x07"


def test_an_answer_is_found_by_its_number_and_a_missing_one_is_a_fault(node: Service) -> None:
    node.body = json.dumps([{"id": 2, "result": "0x02"}, {"id": 1, "result": "0x01"}, 5]).encode()
    assert Chain(node.url).calls([CALL, CALL]) == [b"\x01", b"\x02"]

    with pytest.raises(Upstream):
        Chain(node.url).calls([CALL] * 3)


@pytest.mark.parametrize("number", [2, None, "1", [1], {}])
def test_an_answer_to_another_question_is_none(node: Service, number: object) -> None:
    node.body = json.dumps({"id": number, "result": "0x01"}).encode()
    with pytest.raises(Upstream, match="another question"):
        Chain(node.url).call(CALL)

    node.body = json.dumps([{"id": number, "result": "0x01"}]).encode()
    with pytest.raises(Upstream):
        Chain(node.url).calls([CALL])


def test_a_slow_node_is_left(node: Service) -> None:
    node.body, node.late_s = b'{"result": "0x01"}', 0.3

    with pytest.raises(UpstreamTimeout, match="the chain did not answer within"):
        Chain(node.url, within_s=0.1).chain_id()


def test_the_address_of_a_node_is_in_no_message() -> None:
    with pytest.raises(Upstream) as refusal:
        Chain("http://127.0.0.1:9/secret-key").chain_id()

    assert "secret-key" not in str(refusal.value)


@pytest.mark.parametrize("data", [b"", bytes(31), b"\xff" * 96])
def test_a_value_of_another_form_is_a_fault(data: bytes) -> None:
    with pytest.raises(Upstream, match="not of the expected form"):
        evm.decode(["bool", "string"], data)
