"""The firmware's event log of a real TDX guest, and what is left of it when bytes are missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from attest.errors import Malformed
from attest.eventlog import Event
from guest import ccel

# attestation.md section 3: digests that are the same on every TDX machine.
FIRMWARE_VOLUME = "344bc51c980ba621aaa00da3ed7436f7d6e549197dfe699515dfa2c6583d95e6412af21c097d473155875ffd561d6790"
BOOT_0000 = "23ada07f5261f12f34a0bd8e46760962d6b4d576a416f1fea1c64bc656b1d28eacf7047ae6e967c58fd2a98bfa74c298"


@pytest.fixture
def table(vectors: Path) -> bytes:
    return (vectors / "ccel.bin").read_bytes()


def test_a_real_log_has_the_shape_of_a_published_quotes_log(table: bytes, vectors: Path) -> None:
    events = ccel.parse(table)
    published = json.loads((vectors / "dstack-getquote-gpu-host.json").read_text())
    shapes = [
        (entry["imr"], entry["event_type"])
        for entry in json.loads(published["event_log"])
        if entry["imr"] < 2
    ]

    assert [(event.imr, event.event_type) for event in events if event.imr < 2] == shapes
    digests = [event.digest.hex() for event in events]
    assert digests[1] == FIRMWARE_VOLUME and BOOT_0000 in digests


def test_the_acpi_entries_are_named_in_order(table: bytes) -> None:
    named: list[Event] = [event for event in ccel.parse(table) if event.event]

    assert [event.event for event in named] == ["acpi-loader", "acpi-rsdp", "acpi-tables"]
    assert all(event.is_acpi for event in named)


def test_a_log_cut_anywhere_is_whole_up_to_there_or_refused(table: bytes) -> None:
    whole = ccel.parse(table)
    used = len(table.rstrip(b"\xff"))
    for end in range(0, used, 7):
        try:
            part = ccel.parse(table[:end])
        except Malformed:
            continue
        assert part == whole[: len(part)]
