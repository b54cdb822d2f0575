"""Reading contracts of an Ethereum-like chain: plain JSON-RPC, one or many calls a request.

Sources: the public Ethereum JSON-RPC specification (eth_call, eth_chainId, eth_getCode) and the contract ABI.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from core import http, k256
from core.errors import Upstream

CALL_S = 10.0
MAX_ANSWER = 4 * 1024 * 1024
# Nodes refuse longer batches; a hundred is below every known limit.
MAX_BATCH = 100

_HEX = re.compile(r"0x([0-9a-fA-F]{2})*")
_QUANTITY = re.compile(r"0x[0-9a-fA-F]{1,64}")


class NoBatch(Upstream):
    """The node does not take several questions in one request."""


class Reverted(Upstream):
    """The contract refused the call; the message is the node's."""


@dataclass(frozen=True)
class Call:
    """A read of a contract: its address (20 bytes), and the selector with its encoded arguments."""

    to: bytes
    data: bytes


def selector(signature: str) -> bytes:
    """The first four bytes of the hash of a function's signature, such as `owner()`."""
    return k256.keccak256(signature.encode())[:4]


def event(signature: str) -> str:
    """The first topic of an event's log entries, in hex without prefix."""
    return k256.keccak256(signature.encode()).hex()


def encode(signature: str, *arguments: Any) -> bytes:
    """The data of a call: selector and arguments, whose types stand in the signature's parentheses."""
    import eth_abi.abi

    types = _split(signature[signature.index("(") + 1 : -1])
    return selector(signature) + eth_abi.abi.encode(types, arguments)


def decode(types: Sequence[str], data: bytes) -> tuple[Any, ...]:
    """The values of an answer; Upstream when it holds no such values, as where no contract is."""
    import eth_abi.abi
    from eth_abi.exceptions import DecodingError

    try:
        return tuple(eth_abi.abi.decode(types, data))
    except (DecodingError, UnicodeDecodeError, OverflowError):
        raise Upstream("the contract's answer is not of the expected form") from None


def _split(types: str) -> list[str]:
    """The argument types at the top level: `(a,b),c` are two."""
    depth, parts = 0, [""]
    for char in types:
        depth += {"(": 1, ")": -1}.get(char, 0)
        if char == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += char
    return [part for part in parts if part]


class Chain:
    """A chain behind one JSON-RPC address; every question has a deadline, no answer is kept."""

    def __init__(self, url: str, within_s: float = CALL_S) -> None:
        self.url, self.within_s = url, within_s
        self._numbers = itertools.count(1)

    def chain_id(self) -> int:
        """The chain's number."""
        value = self._one("eth_chainId", [])
        if not isinstance(value, str) or not _QUANTITY.fullmatch(value):
            raise Upstream("the chain's answer is not a number")
        return int(value, 16)

    def code(self, address: bytes) -> bytes:
        """The code at an address; empty where no contract is."""
        return _octets(self._one("eth_getCode", ["0x" + address.hex(), "latest"]))

    def call(self, call: Call) -> bytes:
        """What a contract answers; Reverted when it refuses, Upstream or UpstreamTimeout otherwise."""
        return _octets(self._one("eth_call", _params(call)))

    def receipt(self, transaction: str) -> dict[str, Any] | None:
        """What came of a transaction (0x and 64 digits); None while it is in no block."""
        value = self._one("eth_getTransactionReceipt", [transaction])
        if value is not None and not isinstance(value, dict):
            raise Upstream("the chain's answer is no receipt")
        return value

    def calls(self, calls: Sequence[Call]) -> list[bytes | Reverted]:
        """What contracts answer, in the order asked; a refusal stands in the place of its answer."""
        answers: list[bytes | Reverted] = []
        for start in range(0, len(calls), MAX_BATCH):
            answers += self._batch(calls[start : start + MAX_BATCH])
        return answers

    def _batch(self, calls: Sequence[Call]) -> list[bytes | Reverted]:
        questions = [self._question("eth_call", _params(call)) for call in calls]
        said = self._post(questions)
        if not isinstance(said, list):
            raise NoBatch("the chain does not answer several questions at once")
        by_id = {_number(entry): entry for entry in said}
        return [_octets_or_refusal(by_id.get(question["id"])) for question in questions]

    def _one(self, method: str, params: list[Any]) -> object:
        question = self._question(method, params)
        said = self._post(question)
        result = _result(said)
        if _number(said) != question["id"]:
            raise Upstream("the chain answered another question")
        return result

    def _question(self, method: str, params: list[Any]) -> dict[str, Any]:
        return {"jsonrpc": "2.0", "id": next(self._numbers), "method": method, "params": params}

    def _post(self, body: object) -> object:
        said = http.Peer(self.url, "the chain").ask(
            "POST",
            json.dumps(body).encode(),
            within_s=self.within_s,
            headers={"Content-Type": "application/json"},
            limit=MAX_ANSWER,
        )
        try:
            return json.loads(said.body)
        except (ValueError, RecursionError):
            raise Upstream("the chain did not answer with JSON") from None


def _params(call: Call) -> list[Any]:
    return [{"to": "0x" + call.to.hex(), "data": "0x" + call.data.hex()}, "latest"]


def _number(said: object) -> int | None:
    """The number of the question that an answer says it is to."""
    number = said.get("id") if isinstance(said, dict) else None
    return number if isinstance(number, int) else None


def _result(said: object) -> object:
    if not isinstance(said, dict):
        raise Upstream("the chain's answer is not of the expected form")
    error = said.get("error")
    if error is not None:
        message = error.get("message") if isinstance(error, dict) else error
        text = str(message)[:500]
        # EIP-1474: code 3 is a call that the contract reverted; older nodes say it in words.
        reverted = isinstance(error, dict) and error.get("code") == 3
        if reverted or "revert" in text.lower():
            raise Reverted(f"the contract refused the call: {text}")
        raise Upstream(f"the chain refused the question: {text}")
    return said.get("result")


def _octets(value: object) -> bytes:
    if not isinstance(value, str) or not _HEX.fullmatch(value):
        raise Upstream("the chain's answer is not hex text")
    return bytes.fromhex(value[2:])


def _octets_or_refusal(said: object) -> bytes | Reverted:
    try:
        return _octets(_result(said))
    except Reverted as refusal:
        return refusal
