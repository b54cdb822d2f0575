"""A seed kept in the VM's TPM, for apps whose keys come from there.

Four commands of TPM 2.0 over the kernel's device; no other program is needed.  Source: TCG TPM 2.0 Library, Part 3
(NV_DefineSpace, NV_Write, NV_Read) and Part 2 (structures); big-endian throughout.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable
from pathlib import Path

from core.errors import Invalid, Unavailable
from core.proc import run

SEED_SIZE = 32
WAIT_S = 5.0
DEVICES = ("dev/tpmrm0", "dev/tpm0")
# Part 2, 7.1: of the range that owners assign; "casemate" has no registered part of it.
INDEX = 0x01C0CA5E

_SESSIONS = 0x8002
_NV_DEFINE_SPACE, _NV_WRITE, _NV_READ = 0x12A, 0x137, 0x14E
_OWNER, _PASSWORD = 0x40000001, 0x40000009
_SHA256 = 0x000B
# Part 2, 13.4: read and written with the index's own (empty) password, outside of the lock-out.
_AUTHWRITE, _AUTHREAD, _NO_DA = 1 << 2, 1 << 18, 1 << 25
# Part 2, 6.6.3: no such index; an index that nothing was written to.
_NO_SUCH_HANDLE, _UNINITIALIZED = 0x18B, 0x14A
_MAX_ANSWER = 4096
# An empty password: session handle, no nonce, no attributes, no secret.
_EMPTY = struct.pack(">IIHBH", 9, _PASSWORD, 0, 0, 0)

Send = Callable[[bytes], bytes]


def find(root: Path = Path("/")) -> Path | None:
    """The TPM's device; None when this VM has no TPM."""
    return next((root / name for name in DEVICES if (root / name).exists()), None)


def wait_for(root: Path = Path("/")) -> Path:
    """The TPM's device, its driver loaded; Invalid when this VM has none."""
    if find(root) is None:
        run(["modprobe", "-q", "tpm_tis"], check=False)
    deadline = time.monotonic() + WAIT_S
    while (device := find(root)) is None:
        if time.monotonic() >= deadline:
            raise Invalid("this app wants keys from a TPM, but this VM has none")
        time.sleep(0.02)
    return device


def over(device: Path) -> Send:
    """Sends commands to a device, one at a time."""

    def send(command: bytes) -> bytes:
        fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
        try:
            os.write(fd, command)
            return os.read(fd, _MAX_ANSWER)
        finally:
            os.close(fd)

    return send


def seed(send: Send) -> bytes:
    """The 32 bytes kept in the TPM, drawn and written the first time; Unavailable when it does not keep them."""
    code, answer = _ask(send, _NV_READ, (INDEX, INDEX), struct.pack(">HH", SEED_SIZE, 0))
    if code == _NO_SUCH_HANDLE:
        _must(*_ask(send, _NV_DEFINE_SPACE, (_OWNER,), _public()), "keeps no room for a seed")
    elif code != _UNINITIALIZED:
        return _read(_must(code, answer, "does not give the seed back"))
    fresh = os.urandom(SEED_SIZE)
    data = struct.pack(">H", SEED_SIZE) + fresh + struct.pack(">H", 0)
    _must(*_ask(send, _NV_WRITE, (INDEX, INDEX), data), "does not take a seed")
    return fresh


def _public() -> bytes:
    attributes = _AUTHWRITE | _AUTHREAD | _NO_DA
    public = struct.pack(">IHIHH", INDEX, _SHA256, attributes, 0, SEED_SIZE)
    return struct.pack(">HH", 0, len(public)) + public


def _read(answer: bytes) -> bytes:
    """The data of an NV_Read answer: size of the parameters, then the data with its length."""
    if len(answer) < 6 + SEED_SIZE or struct.unpack_from(">H", answer, 4)[0] != SEED_SIZE:
        raise Unavailable("the TPM gave a seed of another size")
    return answer[6 : 6 + SEED_SIZE]


def _ask(send: Send, code: int, handles: tuple[int, ...], parameters: bytes) -> tuple[int, bytes]:
    body = b"".join(struct.pack(">I", handle) for handle in handles) + _EMPTY + parameters
    answer = send(struct.pack(">HII", _SESSIONS, 10 + len(body), code) + body)
    if len(answer) < 10 or struct.unpack_from(">I", answer, 2)[0] != len(answer):
        raise Unavailable("the TPM did not answer with a whole message")
    return struct.unpack_from(">I", answer, 6)[0], answer[10:]


def _must(code: int, answer: bytes, what: str) -> bytes:
    if code:
        raise Unavailable(f"the TPM {what} (error {code:#x})")
    return answer
