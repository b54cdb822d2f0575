"""The arithmetic of QEMU's loader, and Authenticode's ranges on a PE file made by hand.

That the digest of a real, unpatched Debian kernel equals what osslsigncode prints was checked by hand.
"""

from __future__ import annotations

import hashlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attest import kernel
from attest.errors import Malformed

GIB = 1024**3
PE, OPTIONAL = 0x40, 0x58
HEADERS = 0x400
SIZE = 0x3000
CERTIFICATES = 0x100


def bzimage(
    *, magic: int = 0x20B, xload: int = 0x40, certificates: int = CERTIFICATES
) -> bytearray:
    """A bzImage of three pages with an EFI stub of two sections."""
    image = bytearray(i * 7 % 251 for i in range(SIZE))
    image[0:2] = b"MZ"
    struct.pack_into("<I", image, 0x3C, PE)
    image[PE : PE + 4] = b"PE\0\0"
    struct.pack_into("<HH", image, PE + 4, 0x8664, 3)
    struct.pack_into("<H", image, PE + 20, 0xA0)
    struct.pack_into("<H", image, OPTIONAL, magic)
    struct.pack_into("<I", image, OPTIONAL + 60, HEADERS)
    at = OPTIONAL + (144 if magic == 0x20B else 128)
    struct.pack_into("<II", image, at, SIZE - certificates, certificates)
    for i, (size, start) in enumerate(((0x1000, 0x1400), (0x1000, HEADERS), (0, 0))):
        struct.pack_into("<II", image, OPTIONAL + 0xA0 + 40 * i + 16, size, start)
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", image, 0x206, 0x20F)
    image[0x211] = 1
    struct.pack_into("<H", image, 0x236, xload)
    return image


def test_the_boot_header_is_filled_in_as_qemu_does() -> None:
    raw = bytes(bzimage())
    done = kernel.patched(raw, 0x1234, 2 * GIB)

    assert done[0x210] == 0xB0
    assert done[0x211] == 0x81
    assert struct.unpack_from("<II", done, 0x224) == (0xFE00, 0x20000)
    address, size = struct.unpack_from("<II", done, 0x218)
    assert (address, size) == ((2 * GIB - 0x28000 - 1 - 0x1234) & ~0xFFF, 0x1234)
    changed = {at for at in range(SIZE) if done[at] != raw[at]}
    assert changed <= {0x210, 0x211, *range(0x218, 0x220), *range(0x224, 0x22C)}


@pytest.mark.parametrize(
    ("memory", "same_as"), [(4 * GIB, 2 * GIB), (kernel.SPLIT, 2 * GIB), (64 * GIB, 2 * GIB)]
)
def test_two_gib_and_all_sizes_that_are_split_there_are_alike(memory: int, same_as: int) -> None:
    raw = bytes(bzimage())

    assert kernel.patched(raw, 99, memory) == kernel.patched(raw, 99, same_as)
    assert kernel.patched(raw, 99, GIB) != kernel.patched(raw, 99, same_as)


def test_an_old_kernel_gets_its_initrd_below_its_own_limit() -> None:
    done = kernel.patched(bytes(bzimage(xload=0)), 0x1000, 4 * GIB)

    assert struct.unpack_from("<I", done, 0x218)[0] == (0x37FFFFFF - 0x1000) & ~0xFFF


@pytest.mark.parametrize("magic", [0x20B, 0x10B])
def test_authenticode_leaves_out_checksum_certificate_entry_and_certificates(magic: int) -> None:
    raw = bytes(bzimage(magic=magic))
    done = kernel.patched(raw, 99, 2 * GIB)
    entry = OPTIONAL + (144 if magic == 0x20B else 128)
    hashed = (
        done[: OPTIONAL + 64] + done[OPTIONAL + 68 : entry] + done[entry + 8 : SIZE - CERTIFICATES]
    )

    assert kernel.authenticode(raw, 99, 2 * GIB) == hashlib.sha384(hashed).digest()


def test_bytes_that_are_left_out_do_not_count_and_others_do() -> None:
    raw = bzimage()
    before = kernel.authenticode(bytes(raw), 99, 2 * GIB)
    raw[OPTIONAL + 64] ^= 1
    raw[-1] ^= 1
    assert kernel.authenticode(bytes(raw), 99, 2 * GIB) == before

    raw[HEADERS] ^= 1
    assert kernel.authenticode(bytes(raw), 99, 2 * GIB) != before


def broken(at: int, value: bytes) -> bytes:
    image = bzimage()
    image[at : at + len(value)] = value
    return bytes(image)


@pytest.mark.parametrize(
    ("raw", "initrd", "why"),
    [
        (bytes(100), 9, "not a bzImage"),
        (bytes(8192), 9, "not a bzImage"),
        (broken(0x206, b"\x0b\x02"), 9, "older than 2.12"),
        (broken(0x211, b"\0"), 9, "older than 2.12"),
        (bytes(bzimage()), 0, "the initrd is empty"),
        (bytes(bzimage()), 3 * GIB, "larger than the memory"),
        (broken(0, b"XX"), 9, "not a PE file"),
        (broken(PE, b"XX"), 9, "not a PE file"),
        (broken(0x3C, b"\xff\xff\xff\xff"), 9, "not a PE file"),
        (broken(OPTIONAL + 60, b"\xff\xff\xff\xff"), 9, "headers are cut short"),
        (broken(OPTIONAL + 60, b"\0\0\0\0"), 9, "headers are cut short"),
        (broken(PE + 20, b"\xff\xff"), 9, "headers are cut short"),
        (broken(OPTIONAL + 0xA0 + 16, b"\xff\xff\xff\xff"), 9, "outside of the file"),
    ],
)
def test_what_is_no_kernel_with_an_efi_stub_is_refused(raw: bytes, initrd: int, why: str) -> None:
    with pytest.raises(Malformed, match=why):
        kernel.authenticode(raw, initrd, 2 * GIB)


@given(st.integers(0, 0x3FF), st.binary(min_size=1, max_size=8))
def test_any_header_is_hashed_or_refused(at: int, value: bytes) -> None:
    try:
        assert len(kernel.authenticode(broken(at, value), 99, 2 * GIB)) == 48
    except Malformed as error:
        assert "kernel" in error.message
