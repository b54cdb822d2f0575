"""Which accelerator really works, found by running code in it (guest-image.md section 4).

/dev/kvm may open, QEMU may even start with it, and guests hang all the same.  So the probe boots a
64 KiB ROM that walks from real mode to 64-bit mode, computes, and reports through isa-debug-exit.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import struct
import time
from dataclasses import dataclass
from pathlib import Path

from core.errors import Unavailable
from core.files import write_atomic
from core.proc import CommandFailed, run

logger = logging.getLogger(__name__)

PROBE_TIMEOUT_S = 1.0
# A failure may have been the moment's, or be mended: it counts while the parts of one service come up.
FAILURE_S = 60.0
# isa-debug-exit ends QEMU with (value << 1) | 1; the ROM writes 0x11.
PROBE_EXIT = 0x11 << 1 | 1

_ROM_SIZE = 0x10000
_LOW_ALIAS = 0xF0000  # where a 64 KiB firmware is seen below 1 MiB
_GDT, _GDTR, _PROTECTED, _LONG = 0x100, 0x120, 0x200, 0x300


@dataclass(frozen=True)
class Accelerator:
    """What VMs run on: `kvm` or `tcg`, the CPU model that goes with it, and why."""

    name: str
    cpu: str
    why: str


def probe_rom() -> bytes:
    """The ROM: real mode, protected mode, paging, long mode, 64-bit arithmetic, out 0x501."""
    rom = bytearray(_ROM_SIZE)

    def put(at: int, code: bytes) -> None:
        rom[at : at + len(code)] = code

    put(0xFFF0, b"\xe9\x0d\x00")  # reset vector: jmp to offset 0
    put(
        0,
        b"\xfa"  # cli
        + b"\x66\x2e\x0f\x01\x16"  # lgdt cs:[_GDTR]
        + struct.pack("<H", _GDTR)
        + b"\x0f\x20\xc0\x0c\x01\x0f\x22\xc0"  # cr0 |= PE
        + b"\x66\xea"  # jmp 0x08:_PROTECTED
        + struct.pack("<IH", _LOW_ALIAS + _PROTECTED, 0x08),
    )
    descriptors = (0, 0x00CF9A000000FFFF, 0x00CF92000000FFFF, 0x00AF9A000000FFFF)
    put(_GDT, struct.pack("<4Q", *descriptors))
    put(_GDTR, struct.pack("<HI", 4 * 8 - 1, _LOW_ALIAS + _GDT))
    # One 2 MiB page maps the ROM's low alias and the tables themselves.
    tables = ((0x1000, 0x2003), (0x2000, 0x3003), (0x3000, 0x83))
    put(
        _PROTECTED,
        b"\x66\xb8\x10\x00\x8e\xd8"  # ds = flat data
        + b"".join(b"\xc7\x05" + struct.pack("<II", at, entry) for at, entry in tables)
        + b"\x0f\x20\xe0\x83\xc8\x20\x0f\x22\xe0"  # cr4 |= PAE
        + b"\xb8\x00\x10\x00\x00\x0f\x22\xd8"  # cr3 = 0x1000
        + b"\xb9\x80\x00\x00\xc0\x0f\x32\x0d\x00\x01\x00\x00\x0f\x30"  # EFER |= LME
        + b"\x0f\x20\xc0\x0d\x00\x00\x00\x80\x0f\x22\xc0"  # cr0 |= PG
        + b"\xea"  # jmp 0x18:_LONG
        + struct.pack("<IH", _LOW_ALIAS + _LONG, 0x18),
    )
    put(
        _LONG,
        b"\x48\xb8"
        + struct.pack("<Q", 0x1122334455667788)
        + b"\x48\xbb"
        + struct.pack("<Q", 0x1122334455667777)
        + b"\x48\x29\xd8"  # rax - rbx = 0x11
        + b"\x66\xba\x01\x05\xee\xf4",  # out 0x501, al; hlt
    )
    return bytes(rom)


def runs_code(qemu: str, accel: str, cpu: str, directory: Path) -> bool:
    """Whether a guest on this accelerator executes the ROM to its end within a second."""
    rom = directory / "probe.rom"  # absolute: QEMU looks relative names up in its own folder
    write_atomic(rom, probe_rom())
    argv: list[str | os.PathLike[str]] = [
        *(qemu, "-accel", accel, "-cpu", cpu, "-M", "q35", "-m", "16"),
        *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-bios", rom, "-device", "isa-debug-exit"),
    ]
    try:
        return run(argv, timeout_s=PROBE_TIMEOUT_S, check=False).returncode == PROBE_EXIT
    except CommandFailed:
        return False


def choose(wanted: str, qemu: str, data_dir: Path) -> Accelerator:
    """The accelerator for `cvm.accel` = auto, kvm or tcg; Unavailable when kvm was demanded in vain."""
    if wanted != "tcg" and _kvm_works(qemu, data_dir):
        return Accelerator("kvm", "host", "KVM ran the probe")
    if wanted == "kvm":
        raise Unavailable("cvm.accel is kvm, but KVM on this host does not run code (probe failed)")
    why = "cvm.accel is tcg" if wanted == "tcg" else "KVM did not run the probe"
    # QEMU before 10 corrupts flags after CMPXCHG16B under load (guest-image.md section 3).
    cpu = "max,cx16=off" if version(qemu) < (10,) else "max"
    return Accelerator("tcg", cpu, why)


def version(qemu: str) -> tuple[int, ...]:
    """QEMU's version as numbers, from its own word."""
    found = re.search(
        rb"version (\d+)\.(\d+)\.(\d+)", run([qemu, "--version"], timeout_s=10).stdout
    )
    if found is None:
        raise Unavailable(f"{qemu} does not say its version")
    return tuple(int(part) for part in found.groups())


def _kvm_works(qemu: str, data_dir: Path) -> bool:
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return False
    # Remembered per kernel, QEMU binary and boot: none of them changes under a running host.
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    facts = f"{os.uname().release} {qemu} {os.stat(qemu).st_mtime_ns} {boot_id}"
    key = hashlib.sha256(facts.encode()).hexdigest()
    memory = data_dir / "kvm-probe.json"
    try:
        known = json.loads(memory.read_bytes())
        if known["key"] == key and (known["works"] or _is_young(memory)):
            return bool(known["works"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    works = runs_code(qemu, "kvm", "host", data_dir)
    logger.info("KVM probe: %s", "works" if works else "does not run code; VMs are emulated")
    write_atomic(memory, json.dumps({"key": key, "works": works}))
    return works


def _is_young(memory: Path) -> bool:
    return time.time() - memory.stat().st_mtime < FAILURE_S
