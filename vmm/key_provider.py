"""The SGX key provider of this host, which turns a guest's quote into a sealing key (vmm.md section 10).

Protocol as dstack's client speaks it: a big-endian u32 length and that many bytes of JSON, once each way;
`{"quote": [...]}` there, `{"encrypted_key": [...], "provider_quote": [...]}` back, bytes as lists of numbers.
Never tried against real SGX hardware.
"""

from __future__ import annotations

import json
import socket
import time

from core import prpc
from core.errors import CasemateError, Invalid, Upstream, UpstreamTimeout
from core.prpc import Message, Repeated, UInt32, read_json

QUOTE_LIMIT = 64 * 1024
ANSWER_LIMIT = 256 * 1024
# The background process asks on behalf of one guest while others wait.
DEADLINE_S = 3.0


class _Answer(Message):
    encrypted_key = Repeated(1, UInt32(0), most=QUOTE_LIMIT)
    provider_quote = Repeated(2, UInt32(0), most=QUOTE_LIMIT)


def sealing_key(quote: bytes, address: str, port: int) -> dict[str, bytes]:
    """The `encrypted_key` and `provider_quote` for a quote.

    Raises Invalid for a quote that is none, Upstream and UpstreamTimeout.
    """
    if not 0 < len(quote) <= QUOTE_LIMIT:
        raise Invalid.field("quote", f"must have 1 to {QUOTE_LIMIT} bytes")
    deadline = time.monotonic() + DEADLINE_S
    try:
        with socket.create_connection((address, port), timeout=DEADLINE_S) as connection:
            body = json.dumps({"quote": list(quote)}).encode()
            _in_time(connection, deadline).sendall(len(body).to_bytes(4, "big") + body)
            size = int.from_bytes(_receive(connection, 4, deadline), "big")
            if size > ANSWER_LIMIT:
                raise Upstream(f"the key provider answered with more than {ANSWER_LIMIT} bytes")
            answer = _receive(connection, size, deadline)
    except TimeoutError:
        raise UpstreamTimeout("the key provider did not answer in time") from None
    except OSError as error:
        raise Upstream(f"the key provider cannot be reached: {error.strerror or error}") from None
    return _keys(answer)


def _in_time(connection: socket.socket, deadline: float) -> socket.socket:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    connection.settimeout(left)
    return connection


def _receive(connection: socket.socket, size: int, deadline: float) -> bytes:
    received = bytearray()
    while len(received) < size:
        data = _in_time(connection, deadline).recv(size - len(received))
        if not data:
            raise Upstream("the key provider ended the connection before its answer")
        received += data
    return bytes(received)


def _keys(answer: bytes) -> dict[str, bytes]:
    try:
        told = prpc.load(_Answer, read_json(answer))
        return {name: bytes(numbers) for name, numbers in told.items()}
    except (CasemateError, ValueError):
        raise Upstream("the key provider gave an answer that is none") from None
