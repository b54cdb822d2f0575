from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attest import eventlog
from attest.errors import Malformed, Mismatch, VerificationError
from attest.eventlog import ACPI_MARKER, RUNTIME_EVENT_TYPE, Event, runtime_event

Read = Callable[[str], bytes]
DIGEST = bytes(range(48))
FIRMWARE = Event(0, 0x80000008, DIGEST, "", b"firmware payload")
ACPI = Event(0, 10, DIGEST, "acpi-loader", ACPI_MARKER)


def entry(**changed: object) -> dict[str, object]:
    """A legal JSON entry with some fields changed."""
    fields: dict[str, object] = {
        "imr": 3,
        "event_type": RUNTIME_EVENT_TYPE,
        "digest": "",
        "event": "name",
        "event_payload": "00ff",
    }
    return {**fields, **changed}


# Both computed with coreutils' sha384sum over bytes written by printf.
def test_digest_of_version_1_hashes_type_name_and_payload() -> None:
    event = runtime_event("hello", b"world")

    assert event.digest.hex().startswith("b6f909af5d505c51eedc666ff85eb58867e9e0a3f3eacf44")
    assert (event.imr, event.event_type, event.version) == (3, 0x08000001, 1)


def test_digest_of_version_2_hashes_the_canonical_json() -> None:
    event = runtime_event("hello", b"world", version=2)

    assert event.digest.hex().startswith("b0d6c6c9e1f3abec1d8e1a2327e0c50ec4a0499c74a82c0a")
    assert eventlog.preimage("hello", b"world") == (
        b'{"name":"hello","payload":"776f726c64","type":134217729}'
    )


def test_preimage_escapes_as_rfc_8785_does() -> None:
    name = 'quote" back\\ tab\t bell\x07 del\x7f ü \u2028 \U0001f600'

    expected = '"quote\\" back\\\\ tab\\t bell\\u0007 del\x7f ü \u2028 \U0001f600"'
    assert eventlog.preimage(name, b"").decode().startswith(f'{{"name":{expected},')


def test_known_answers_of_both_versions(vector: Read) -> None:
    known = json.loads(vector("known-answers.json"))["events_computed"]

    assert len(known) == 3
    for answer in known:
        payload = bytes.fromhex(answer["payload"])
        assert runtime_event(answer["event"], payload).digest.hex() == answer["digest_v1"]
        assert runtime_event(answer["event"], payload, 2).digest.hex() == answer["digest_v2"]
        assert eventlog.preimage(answer["event"], payload).decode() == answer["preimage_v2"]


def test_digests_of_a_real_guest_are_those_of_its_events(vector: Read) -> None:
    log = json.loads(vector("dstack-getquote-gpu-host.json"))["event_log"]
    runtime = [event for event in eventlog.from_json(log) if event.is_runtime]

    assert len(runtime) == 8
    for event in runtime:
        assert event == runtime_event(event.event, event.event_payload)


@pytest.mark.parametrize(("name", "version"), [("\ud800", 1), ("\ud800", 2), ("fine", 3)])
def test_an_event_that_cannot_be_written_is_refused(name: str, version: int) -> None:
    with pytest.raises(Malformed):
        runtime_event(name, b"", version)


def test_names_are_written_as_they_are_in_every_form() -> None:
    event = runtime_event("grün", b"", version=2)

    assert '"event":"grün"' in eventlog.to_json([event])
    assert '"name":"grün"'.encode() in eventlog.preimage("grün", b"")


def test_replay_extends_from_zero_in_order_and_by_register() -> None:
    first, second = replace(FIRMWARE, digest=b"\1" * 48), replace(FIRMWARE, digest=b"\2" * 48)
    other = replace(FIRMWARE, imr=1)

    step = hashlib.sha384(bytes(48) + b"\1" * 48).digest()
    assert eventlog.replay([first, other, second], 0) == (
        hashlib.sha384(step + b"\2" * 48).digest()
    )
    assert eventlog.replay([first], 2) == bytes(48)


def test_replay_recomputes_runtime_digests_and_believes_no_log() -> None:
    honest = runtime_event("compose-hash", b"a")
    lying = replace(honest, digest=runtime_event("compose-hash", b"b").digest)
    silent = replace(honest, digest=b"")

    assert eventlog.replay([lying], 3) == eventlog.replay([honest], 3)
    assert eventlog.replay([silent], 3) == eventlog.replay([honest], 3)


def test_replay_of_a_firmware_entry_without_digest_is_refused() -> None:
    with pytest.raises(Malformed, match="RTMR0"):
        eventlog.replay([replace(FIRMWARE, digest=b"")], 0)


def test_platform_events_are_not_looked_for_after_system_ready() -> None:
    ready, forged = runtime_event("system-ready", b""), runtime_event("app-id", b"forged")
    real = runtime_event("app-id", b"real")

    assert eventlog.platform_payload([real, ready, forged], "app-id") == b"real"
    assert eventlog.platform_payload([ready, forged], "app-id") is None
    assert eventlog.platform_payload([real, ready], "system-ready") == b""
    assert eventlog.platform_payload([], "app-id") is None


def test_a_platform_event_outside_rtmr3_is_not_one() -> None:
    elsewhere = replace(runtime_event("app-id", b"x"), imr=2)

    assert eventlog.platform_payload([elsewhere], "app-id") is None


def test_boot_time_events_end_with_boot_mr_done() -> None:
    events = [FIRMWARE, *(runtime_event(name, b"") for name in ("a", "boot-mr-done", "b"))]

    assert eventlog.until_boot_done(events) == tuple(events[:3])
    assert eventlog.until_boot_done(events[:2]) == tuple(events[:2])


def test_a_stripped_log_keeps_runtime_payloads_and_acpi_digests() -> None:
    runtime = runtime_event("app-id", b"id")

    assert eventlog.stripped((FIRMWARE, ACPI, runtime)) == (ACPI, replace(runtime, digest=b""))


def test_json_leaves_out_firmware_payloads_and_keeps_the_others() -> None:
    runtime = runtime_event("näme", b"\xff")
    text = eventlog.to_json([FIRMWARE, ACPI, runtime])

    assert " " not in text
    assert json.loads(text) == [
        {
            "imr": 0,
            "event_type": 0x80000008,
            "digest": DIGEST.hex(),
            "event": "",
            "event_payload": "",
        },
        {
            "imr": 0,
            "event_type": 10,
            "digest": DIGEST.hex(),
            "event": "acpi-loader",
            "event_payload": "414350492044415441",
        },
        {
            "imr": 3,
            "event_type": 134217729,
            "digest": runtime.digest.hex(),
            "event": "näme",
            "event_payload": "ff",
        },
    ]


def test_json_of_a_version_2_event_carries_version_and_preimage() -> None:
    event = runtime_event("a", b"\1", version=2)

    [shown] = json.loads(eventlog.to_json([event]))
    assert shown["version"] == 2
    assert bytes.fromhex(shown["preimage"]) == eventlog.preimage("a", b"\1")
    assert eventlog.from_json(eventlog.to_json([event])) == (event,)


def test_json_of_a_real_guest_comes_back_character_by_character(vector: Read) -> None:
    log = json.loads(vector("dstack-getquote-tdx-lite.json"))["event_log"]

    assert eventlog.to_json(eventlog.from_json(log)) == log


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "null",
        "[1]",
        "[[]]",
        "[",
        "[" * 100_000,
        "[" + "9" * 5000 + "]",
        '[{"imr":0}]',
    ],
)
def test_what_is_no_list_of_entries_is_refused(text: str) -> None:
    with pytest.raises(Malformed, match="event log"):
        eventlog.from_json(text)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"imr": 4}, "imr"),
        ({"imr": -1}, "imr"),
        ({"imr": True}, "imr"),
        ({"imr": 3.0}, "imr"),
        ({"imr": None}, "imr"),
        ({"event_type": 2**32}, "event_type"),
        ({"event_type": "1"}, "event_type"),
        ({"digest": "00"}, "digest"),
        ({"digest": "0" * 95}, "digest"),
        ({"digest": "zz" * 48}, "digest"),
        ({"digest": " " + "0" * 95}, "digest"),
        ({"digest": 0}, "digest"),
        ({"event": 7}, "event"),
        ({"event": None}, "event"),
        ({"event": "\ud800"}, "Unicode"),
        ({"event_payload": "0"}, "event_payload"),
        ({"event_payload": ["00"]}, "event_payload"),
        ({"version": 0}, "version"),
        ({"version": 3}, "version"),
        ({"version": "2"}, "version"),
        ({"version": 2}, "preimage"),
        ({"version": 2, "preimage": "00"}, "preimage"),
        ({"version": 2, "preimage": 5}, "preimage"),
        ({"version": 2, "imr": 0, "preimage": "00"}, "RTMR3"),
    ],
)
def test_a_bad_field_is_refused_and_named(changed: dict[str, object], named: str) -> None:
    with pytest.raises(VerificationError, match=named):
        eventlog.from_json(json.dumps([entry(), entry(**changed)]))


def test_a_preimage_with_other_spacing_is_not_canonical() -> None:
    spaced = b'{"name": "name", "payload": "00ff", "type": 134217729}'

    with pytest.raises(Mismatch, match="canonical"):
        eventlog.from_json(json.dumps([entry(version=2, preimage=spaced.hex())]))


def test_unknown_fields_and_upper_case_hex_are_read() -> None:
    [event] = eventlog.from_json(json.dumps([entry(more=1, event_payload="00FF")]))

    assert event == Event(3, RUNTIME_EVENT_TYPE, b"", "name", b"\x00\xff")


def test_the_largest_event_type_is_read() -> None:
    [event] = eventlog.from_json(json.dumps([entry(imr=0, event_type=2**32 - 1)]))

    assert event.event_type == 2**32 - 1


def test_a_log_above_10_mib_is_refused_before_it_is_read() -> None:
    assert eventlog.from_json("[]".rjust(10 * 1024 * 1024)) == ()
    with pytest.raises(Malformed, match="10 MiB"):
        eventlog.from_json(" " * (10 * 1024 * 1024 + 1))


events = st.builds(
    lambda name, payload, version: runtime_event(name, payload, version),
    st.text(st.characters(exclude_categories=["Cs"])),
    st.binary(max_size=40),
    st.sampled_from([1, 2]),
)


@given(st.lists(events, max_size=5))
def test_every_log_of_runtime_events_comes_back(log: list[Event]) -> None:
    assert eventlog.from_json(eventlog.to_json(log)) == tuple(log)


scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.just("00" * 48)
)
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3), max_leaves=4)
names = st.sampled_from(
    ["imr", "event_type", "digest", "event", "event_payload", "version", "preimage", "x"]
)


@given(st.lists(st.dictionaries(names, values), max_size=3), st.booleans())
def test_any_json_is_read_or_refused_as_malformed(log: list[dict[str, Any]], legal: bool) -> None:
    entries = [entry(**fields) if legal else fields for fields in log]
    try:
        read = eventlog.from_json(json.dumps(entries))
    except Malformed:
        return
    assert len(read) == len(log)


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused_as_malformed(text: str) -> None:
    try:
        eventlog.from_json(text)
    except Malformed:
        return
    assert json.loads(text) == []


@pytest.mark.parametrize("text", ["[" + "{}," * 20_000 + "{}]", "[" + "0," * 160_001 + "0]"])
def test_a_log_with_more_entries_than_any_vm_has_is_not_read_in(text: str) -> None:
    with pytest.raises(Malformed, match="more than 20000 entries"):
        eventlog.from_json(text)
