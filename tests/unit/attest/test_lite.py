from __future__ import annotations

import base64
import contextlib
import json
import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attest import eventlog, kernel, lite, quote
from attest.errors import Malformed, VerificationError
from attest.tdvf import Accepted
from attest_sim.tdx import boot_events
from tests.common.evidence import MEASURED
from tests.unit.attest.test_kernel import bzimage
from tests.unit.attest.test_tdvf import BFV, HOB, TEMP, made

GIB = 1024**3
ACPI = [b"\x0a" * 48, b"\x0b" * 48, b"\x0c" * 48]


@pytest.fixture
def real(vector: Callable[[str], bytes]) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(vector("dstack-getquote-tdx-lite.json"))
    return answer


def test_the_registers_of_a_real_quote_come_out(real: dict[str, Any]) -> None:
    config = json.loads(real["vm_config"])
    raw = base64.b64decode(config["tdx_measurement"]["measurement"])
    report = quote.parse(bytes.fromhex(real["quote"])).report

    measured = lite.decode(raw)
    registers = lite.registers(
        measured,
        config["memory_size"],
        lite.acpi_digests(eventlog.from_json(real["event_log"])),
        single_pass=False,
    )

    assert registers.mrtd == report.mrtd
    assert registers.rtmrs == report.rtmrs[:3]
    assert lite.encode(measured) == raw


def test_the_log_is_the_real_one(real: dict[str, Any]) -> None:
    config = json.loads(real["vm_config"])
    measured = lite.decode(base64.b64decode(config["tdx_measurement"]["measurement"]))
    events = eventlog.from_json(real["event_log"])

    ours = lite.logs(measured, config["memory_size"], lite.acpi_digests(events))

    for imr, digests in enumerate(ours):
        assert digests == tuple(event.digest for event in events if event.imr == imr)


def test_an_image_is_measured_from_its_files() -> None:
    image, firmware = bytes(bzimage()), made(BFV, HOB, TEMP)

    measured = lite.measure(image, b"initrd", "quiet", firmware)

    assert measured.kernel == kernel.authenticode(image, 6, 4 * GIB)
    assert measured.mrtd(single_pass=True) == measured.mrtd_single_pass
    assert measured.mrtd(single_pass=False) == measured.mrtd_two_pass
    assert measured.accepted == Accepted(0x809000, ((0x800000, 0x1000), (0x809000, 0x2000)))
    assert lite.decode(lite.encode(measured)) == measured


def test_the_hand_off_block_says_what_is_accepted_and_what_is_not() -> None:
    accepted = Accepted(0x809000, ((0, 0x1000), (0x809000, 0x2000)))
    block = lite.td_hob(accepted, GIB)
    resources = [struct.unpack_from("<HHI16sIIQQ", block, at) for at in range(56, len(block), 48)]

    assert struct.unpack_from("<Q", block, 48) == (0x809000 + len(block) + 8,)
    assert [(entry[4], entry[6], entry[7]) for entry in resources] == [
        (0, 0, 0x1000),
        (7, 0x1000, 0x808000),
        (0, 0x809000, 0x2000),
        (7, 0x80B000, GIB - 0x80B000),
    ]


def test_memory_above_the_split_continues_at_4_gib() -> None:
    accepted = Accepted(0, ((0, 0x1000),))
    block = lite.td_hob(accepted, 8 * GIB)
    resources = [struct.unpack_from("<QQ", block, at + 32) for at in range(56, len(block), 48)]

    assert resources[-2:] == [(0x1000, 2 * GIB - 0x1000), (4 * GIB, 6 * GIB)]


@pytest.mark.parametrize(
    ("ranges", "memory", "why"),
    [
        (((0x2000, 0x2000), (0x1000, 0x1000)), GIB, "overlap"),
        (((0, 0x2000), (0x1000, 0x2000)), GIB, "overlap"),
        (((0, 2 * GIB),), GIB, "outside"),
        (((0, 3 * GIB),), 8 * GIB, "above 2 GiB"),
    ],
)
def test_ranges_that_no_machine_has_are_refused(
    ranges: tuple[tuple[int, int], ...], memory: int, why: str
) -> None:
    measured = replace(MEASURED, accepted=Accepted(0, ranges))

    with pytest.raises(Malformed, match=why):
        lite.registers(measured, memory, ACPI, single_pass=True)


def test_the_acpi_digests_are_found_by_name() -> None:
    assert len(lite.acpi_digests(boot_events())) == 3
    # A stripped log keeps them.
    assert lite.acpi_digests(eventlog.stripped(boot_events())) == lite.acpi_digests(boot_events())


def test_a_log_without_them_is_refused() -> None:
    events = boot_events()
    acpi = [event for event in events if event.is_acpi]

    with pytest.raises(Malformed, match="no entries acpi-loader"):
        lite.acpi_digests([event for event in events if not event.is_acpi])
    with pytest.raises(Malformed, match="no entries acpi-loader"):
        lite.acpi_digests([*acpi, acpi[0]])
    with pytest.raises(Malformed, match="no digest"):
        lite.acpi_digests([replace(event, digest=b"") for event in acpi])


def encoded(path: tuple[str, ...], value: object) -> bytes:
    fields = cbor2.loads(lite.encode(MEASURED))
    inner = fields
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    return cbor2.dumps(fields)


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"", "not one CBOR map"),
        (b"\xff", "not one CBOR map"),
        (cbor2.dumps([1]), "not one CBOR map"),
        (lite.encode(MEASURED) + b"\0", "not one CBOR map"),
        (b"\x81" * 5000, "not one CBOR map"),
        (b"\xbb\xff\xff\xff\xff\xff\xff\xff\xff", "not one CBOR map"),
        (bytes(65537), "larger than 64 KiB"),
        (encoded(("version",), 2), "version is not 3"),
        (encoded(("tdvf", "ovmf"), "stable202505"), "'stable202505' is unknown"),
        (encoded(("image",), []), "image must be a map"),
        (encoded(("tdvf",), None), "tdvf must be a map"),
        (encoded(("tdvf", "mrtd"), None), "mrtd must be a map"),
        (encoded(("image", "initrd_sha384"), b"short"), "initrd_sha384 must be 48 bytes"),
        (encoded(("image", "initrd_sha384"), "text"), "initrd_sha384 must be bytes"),
        (encoded(("tdvf", "td_hob"), 5), "td_hob must be bytes"),
        (encoded(("tdvf", "td_hob"), b""), "cut short"),
        (encoded(("tdvf", "td_hob"), b"\0\0\x41"), "more than 64 ranges"),
        (encoded(("tdvf", "td_hob"), b"\0\0\0\0"), "followed by other bytes"),
        (encoded(("tdvf", "td_hob"), b"\xff" * 9), "number that is too large"),
    ],
)
def test_a_broken_measurement_file_is_refused(raw: bytes, why: str) -> None:
    with pytest.raises(Malformed, match=why):
        lite.decode(raw)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(raw: bytes) -> None:
    with contextlib.suppress(VerificationError):
        lite.decode(raw)


@given(st.integers(0, len(lite.encode(MEASURED)) - 1), st.integers(1, 255))
def test_any_flipped_byte_is_read_or_refused(at: int, bits: int) -> None:
    raw = bytearray(lite.encode(MEASURED))
    raw[at] ^= bits
    with contextlib.suppress(VerificationError):
        lite.registers(lite.decode(bytes(raw)), 2 * GIB, ACPI, single_pass=True)
