"""The kernel as OVMF measures it into RTMR1: patched by QEMU's loader, then hashed as a PE file.

Sources: attestation.md section 3; Linux Documentation/arch/x86/boot; QEMU hw/i386/x86-common.c; Microsoft's
"Windows Authenticode Portable Executable Signature Format" for the ranges that are left out.
"""

from __future__ import annotations

import hashlib
import struct

from attest.errors import Malformed

# attestation.md section 3: with this much RAM, QEMU puts the lower part's end at 2 GiB.
SPLIT = 0xB0000000
LOW_2_GIB = 0x80000000

_MIN_SIZE = 0x1000
_MIN_PROTOCOL = 0x20C
_LOADED_HIGH, _CAN_USE_HEAP = 0x01, 0x80
_LOADER_QEMU = 0xB0
_REAL_MODE, _COMMAND_LINE = 0x10000, 0x20000
_ABOVE_4G = 0x40
_INITRD_MAX = 0x37FFFFFF
# QEMU keeps this much below the end of low memory for ACPI tables.
_ACPI_DATA = 0x28000


def authenticode(kernel: bytes, initrd_size: int, memory_size: int) -> bytes:
    """SHA-384 of the kernel as it is loaded beside an initrd of that size; Malformed when it is no bzImage."""
    return _pe_digest(patched(kernel, initrd_size, memory_size))


def patched(kernel: bytes, initrd_size: int, memory_size: int) -> bytes:
    """The kernel with the boot header filled in as QEMU does."""
    if len(kernel) < _MIN_SIZE or kernel[0x202:0x206] != b"HdrS":
        raise Malformed("kernel: not a bzImage")
    protocol, load_flags = _u16(kernel, 0x206), kernel[0x211]
    if protocol < _MIN_PROTOCOL or not load_flags & _LOADED_HIGH:
        raise Malformed("kernel: its boot protocol is older than 2.12")
    image = bytearray(kernel)
    image[0x210] = _LOADER_QEMU
    image[0x211] = load_flags | _CAN_USE_HEAP
    struct.pack_into("<II", image, 0x224, _COMMAND_LINE - _REAL_MODE - 0x200, _COMMAND_LINE)
    address = _initrd_address(_u16(kernel, 0x236), initrd_size, memory_size)
    struct.pack_into("<II", image, 0x218, address, initrd_size)
    return bytes(image)


def _initrd_address(xload_flags: int, size: int, memory_size: int) -> int:
    highest = 0xFFFFFFFF if xload_flags & _ABOVE_4G else _INITRD_MAX
    low = LOW_2_GIB if memory_size >= SPLIT else memory_size
    highest = min(highest, low - _ACPI_DATA - 1)
    if not 0 < size < highest:
        raise Malformed("kernel: the initrd is empty or larger than the memory for it")
    return (highest - size) & ~0xFFF


def _pe_digest(image: bytes) -> bytes:
    """Authenticode's ranges: all but the checksum, the certificate table's entry, and the certificates."""
    pe = _u32(image, 0x3C)
    if image[:2] != b"MZ" or image[pe : pe + 4] != b"PE\0\0":
        raise Malformed("kernel: not a PE file (no EFI stub)")
    optional = pe + 24
    is_64 = _u16(image, optional) == 0x20B
    entry = optional + (144 if is_64 else 128)
    headers_end = _u32(image, optional + 60)
    if not entry + 8 <= headers_end <= len(image):
        raise Malformed("kernel: its PE headers are cut short")
    digest = hashlib.sha384(image[: optional + 64])
    digest.update(image[optional + 68 : entry])
    digest.update(image[entry + 8 : headers_end])
    done = headers_end
    for start, size in sorted(_pe_sections(image, pe, optional)):
        digest.update(image[start : start + size])
        done += size
    certificates = _u32(image, entry + 4)
    digest.update(image[done : max(done, len(image) - certificates)])
    return digest.digest()


def _pe_sections(image: bytes, pe: int, optional: int) -> list[tuple[int, int]]:
    """(offset, size) of the bytes of every section that has any."""
    count, start = _u16(image, pe + 6), optional + _u16(image, pe + 20)
    heads = (start + 40 * i for i in range(count))
    ranges = [(_u32(image, head + 20), _u32(image, head + 16)) for head in heads]
    if any(offset + size > len(image) for offset, size in ranges):
        raise Malformed("kernel: a PE section lies outside of the file")
    return [(offset, size) for offset, size in ranges if size]


def _u16(data: bytes, at: int) -> int:
    return int.from_bytes(_slice(data, at, 2), "little")


def _u32(data: bytes, at: int) -> int:
    return int.from_bytes(_slice(data, at, 4), "little")


def _slice(data: bytes, at: int, size: int) -> bytes:
    if at + size > len(data):
        raise Malformed("kernel: its headers are cut short")
    return data[at : at + size]
