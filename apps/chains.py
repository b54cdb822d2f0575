"""The chains of the configuration: reads of contracts with a deadline, many at a time, and never an address in an error.

Source: apps.md section 4.  A chain that does not answer is not asked again for a moment, so that it cannot hold all
threads of the service.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from core.config_apps import ChainConfig
from core.errors import CasemateError, Upstream, UpstreamTimeout
from core.evm import MAX_BATCH, Call, Chain, NoBatch, Reverted, decode, encode

MULTICALL = "0xcA11bde05977b3631167028862bE2a173976CA11"
AGGREGATE = "aggregate3((address,bool,bytes)[])"
# So many calls go into one call of the multicall contract; nodes bound what one may cost.
CALLS_AT_ONCE = 200
FAIL_FAST_S = 2.0
# Keys are no shorter; names of calls and the like are.
SECRET_LEAST = 8

Answer = bytes | CasemateError


@dataclass
class Reader:
    """One chain; what is learnt of it lasts as long as the process."""

    config: ChainConfig
    _failed_at: float = float("-inf")
    _why: str = ""
    _multicall: bytes | None = None  # b"": it has none
    _probing: threading.Lock = field(default_factory=threading.Lock)

    def calls(self, calls: Sequence[Call]) -> list[Answer]:
        """The answers in the order asked, each its bytes or why there are none; Upstream when the chain is silent."""
        if time.monotonic() - self._failed_at < FAIL_FAST_S:
            raise Upstream(self._why)
        try:
            return self._asked(calls)
        except (Upstream, UpstreamTimeout) as error:
            self._why, self._failed_at = self._private(error.message), time.monotonic()
            raise type(error)(self._why) from None

    def receipt(self, number: str) -> dict[str, Any] | None:
        """What came of a transaction, or None while it is in no block."""
        try:
            return self._chain(time.monotonic() + self.config.timeout_s).receipt(number)
        except (Upstream, UpstreamTimeout) as error:
            raise type(error)(self._private(error.message)) from None

    def _private(self, text: str) -> str:
        """A node's words without the parts of its address, some of which may be keys."""
        for part in re.split(r"[/?&=@:]+", self.config.rpc_url):
            text = text.replace(part, "...") if len(part) >= SECRET_LEAST else text
        return text

    def _asked(self, calls: Sequence[Call]) -> list[Answer]:
        deadline = time.monotonic() + self.config.timeout_s
        multicall = self._contract(deadline)
        if multicall:
            return self._aggregated(multicall, calls, deadline)
        try:
            return self._batched(calls, deadline)
        except NoBatch:
            return [self._single(call, deadline) for call in calls]

    def _batched(self, calls: Sequence[Call], deadline: float) -> list[Answer]:
        answers: list[Answer] = []
        for start in range(0, len(calls), MAX_BATCH):
            answers += self._chain(deadline).calls(calls[start : start + MAX_BATCH])
        return answers

    def _single(self, call: Call, deadline: float) -> Answer:
        try:
            return self._chain(deadline).call(call)
        except Reverted as refusal:
            return refusal

    def _aggregated(self, contract: bytes, calls: Sequence[Call], deadline: float) -> list[Answer]:
        answers: list[Answer] = []
        for start in range(0, len(calls), CALLS_AT_ONCE):
            some = calls[start : start + CALLS_AT_ONCE]
            data = encode(AGGREGATE, [(call.to, True, call.data) for call in some])
            said = self._chain(deadline).call(Call(contract, data))
            (rows,) = decode(["(bool,bytes)[]"], said)
            if len(rows) != len(some):
                raise Upstream("the chain answered another number of calls")
            answers += [
                told if is_done else Reverted("the contract refused the call")
                for is_done, told in rows
            ]
        return answers

    def _contract(self, deadline: float) -> bytes:
        """The address of the chain's multicall contract, b"" when it has none; looked for once."""
        if self.config.multicall == "none":
            return b""
        with self._probing:
            if self._multicall is None:
                address = bytes.fromhex((self.config.multicall or MULTICALL)[2:])
                self._multicall = address if self._chain(deadline).code(address) else b""
            return self._multicall

    def _chain(self, deadline: float) -> Chain:
        left = deadline - time.monotonic()
        if left <= 0:
            raise UpstreamTimeout(f"the chain did not answer within {self.config.timeout_s} s")
        return Chain(self.config.rpc_url, left)


@dataclass(frozen=True)
class Chains:
    """The chains that the configuration names, by number."""

    readers: Mapping[int, Reader]

    @classmethod
    def of(cls, chains: Sequence[ChainConfig]) -> Chains:
        """Those of a configuration."""
        return cls({each.chain_id: Reader(each) for each in chains})

    def reader(self, chain_id: int) -> Reader:
        """One chain; Upstream when the configuration does not know it."""
        if chain_id not in self.readers:
            raise Upstream(f"this host knows no chain {chain_id}; see [apps] chains")
        return self.readers[chain_id]
