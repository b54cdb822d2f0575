from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.config import Config
from core.errors import CasemateError, Invalid, NotFound
from core.messages import Report
from models.base import Database
from models.vm import Vm
from tests.common import rows
from vmm.hostapi import HostApi
from vmm.lifecycle import Observed, Wished
from vmm.version import VERSION
from vmm.workdir import WorkDir

VM_ID = "vm-1"
IDS = {"app_id": "AB" * 20, "instance_id": "cd" * 20, "instance_id_seed": "ef" * 20}


@pytest.fixture
def api(config: Config, database: Database) -> HostApi:
    with database.writing() as session:
        session.add(rows.vm(id=VM_ID, wished=Wished.RUNNING, observed=Observed.ALIVE))
        session.add(rows.vm(id="vm-2"))
    WorkDir(config.run_path / VM_ID).make()
    return HostApi(VM_ID, config, database)


def notify(api: HostApi, event: str, payload: str = "") -> None:
    api.answer("Notify", {"event": event, "payload": payload})


def row(api: HostApi, vm_id: str = VM_ID) -> Vm:
    with api.database.reading() as session:
        return session.get_one(Vm, vm_id)


def events(api: HostApi, vm_id: str = VM_ID) -> list[tuple[str, str]]:
    return [(each.event, each.body) for each in row(api, vm_id).events]


def test_a_guest_learns_the_hosts_name_and_version(api: HostApi) -> None:
    assert api.answer("Info", {}) == {"name": "casemate", "version": VERSION}
    assert api.answer("HostApi.Info", {}) == {"name": "casemate", "version": VERSION}


@pytest.mark.parametrize("method", ["", "Nope", "RemoveVm", "Teepod.RemoveVm", "notify"])
def test_any_other_call_is_unknown(api: HostApi, method: str) -> None:
    with pytest.raises(NotFound, match="unknown method"):
        api.answer(method, {})


@pytest.mark.parametrize(
    ("event", "column"),
    [
        ("boot.progress", "boot_progress"),
        ("boot.error", "boot_error"),
        ("shutdown.progress", "shutdown_progress"),
    ],
)
def test_progress_is_shown_and_kept(api: HostApi, event: str, column: str) -> None:
    notify(api, event, "mounting data disk")

    assert getattr(row(api), column) == "mounting data disk"
    assert events(api) == [(event, "mounting data disk")]


def test_a_guest_that_powers_off_wants_to_stay_off(api: HostApi) -> None:
    notify(api, "shutdown.progress", "stopping containers")
    assert row(api).wished == Wished.RUNNING

    notify(api, "shutdown.progress", "powering off")

    assert row(api).wished == Wished.SHUTDOWN


@pytest.mark.parametrize("wished", [Wished.STOPPED, Wished.REMOVED])
def test_powering_off_does_not_weaken_a_stronger_wish(api: HostApi, wished: Wished) -> None:
    with api.database.writing() as session:
        session.get_one(Vm, VM_ID).wished = wished

    notify(api, "shutdown.progress", "powering off")

    assert row(api).wished == wished


def test_another_event_is_kept_and_does_nothing(api: HostApi) -> None:
    before = row(api)

    notify(api, "app.ready", '{"a": 1}')

    after = row(api)
    assert events(api) == [("app.ready", '{"a": 1}')]
    for column in ("wished", "observed", "boot_progress", "boot_error", "instance_id"):
        assert getattr(after, column) == getattr(before, column)


@pytest.mark.parametrize("name", ["vmm.exit", "vmm.", "vmm.auto_restart.exhausted"])
def test_the_services_own_events_cannot_be_forged(api: HostApi, name: str) -> None:
    notify(api, name, "exit code 0")

    assert events(api) == [(f"guest.{name}", "exit code 0")]


def test_the_caller_is_the_channel_and_never_a_field(api: HostApi) -> None:
    forged = {"event": "boot.error", "payload": "x", "id": "vm-2", "vm_id": "vm-2", "cid": 3}

    api.answer("Notify", forged)

    assert row(api).boot_error == "x"
    assert events(api, "vm-2") == []


@pytest.mark.parametrize(
    ("event", "payload"),
    [
        ("", "x"),
        ("a" * 257, ""),
        ("boot.progress", "a" * 4097),
        ("boot.progress", "ä" * 2049),
        ("boot.progress", "a" * 1_000_000),
        ("a\0b", ""),
        ("boot.error", "a\0b"),
    ],
)
def test_an_event_beyond_its_limits_is_refused_and_not_kept(
    api: HostApi, event: str, payload: str
) -> None:
    with pytest.raises(Invalid):
        notify(api, event, payload)

    assert events(api) == []
    assert row(api).boot_progress == row(api).boot_error == ""


def test_an_event_at_its_limits_is_kept(api: HostApi) -> None:
    notify(api, "a" * 256, "ä" * 2048)

    assert events(api) == [("a" * 256, "ä" * 2048)]


@pytest.mark.parametrize(
    "params", ["x", [1], 3, {"event": 3}, {"event": "a", "payload": {}}, {"payload": "x"}]
)
def test_what_is_no_notification_is_refused(api: HostApi, params: object) -> None:
    with pytest.raises(Invalid):
        api.answer("Notify", params)

    assert events(api) == []


def test_the_newest_events_are_kept(api: HostApi) -> None:
    for number in range(30):
        notify(api, "tick", str(number))

    assert [body for _, body in events(api)] == [str(number) for number in range(10, 30)]


def test_a_guest_tells_what_instance_it_is(api: HostApi) -> None:
    notify(api, "instance.info", json.dumps(IDS | {"extra": "dropped"}))

    assert row(api).instance_id == "cd" * 20
    kept = json.loads((api.config.run_path / VM_ID / "shared/.instance_info").read_text())
    assert kept == {key: value.lower() for key, value in IDS.items()}


def test_an_instance_without_an_id_has_none(api: HostApi) -> None:
    notify(api, "instance.info", json.dumps(IDS))
    notify(api, "instance.info", json.dumps({"app_id": "ab" * 20, "instance_id": None}))

    assert row(api).instance_id is None


@pytest.mark.parametrize(
    "payload",
    [
        "",
        "x",
        "3",
        "[]",
        "null",
        "[" * 4000,
        json.dumps(IDS | {"instance_id": "cd"}),
        json.dumps(IDS | {"app_id": "../../../etc/passwd"}),
        json.dumps(IDS | {"instance_id_seed": "g" * 40}),
        json.dumps(IDS | {"instance_id": "cd" * 20 + "\n"}),
        json.dumps(IDS | {"instance_id": ["cd" * 20]}),
        json.dumps(IDS | {"app_id": "\ud800"}),
    ],
)
def test_an_instance_that_is_none_changes_nothing(api: HostApi, payload: str) -> None:
    notify(api, "instance.info", json.dumps(IDS))
    before = (api.config.run_path / VM_ID / "shared/.instance_info").read_bytes()

    with pytest.raises(Invalid):
        notify(api, "instance.info", payload)

    assert row(api).instance_id == "cd" * 20
    assert (api.config.run_path / VM_ID / "shared/.instance_info").read_bytes() == before
    assert len(events(api)) == 1


def test_an_instance_cannot_write_anywhere_but_into_its_file(api: HostApi) -> None:
    for payload in (IDS, IDS | {"../x": "y"}):
        notify(api, "instance.info", json.dumps(payload))

    folder = api.config.run_path / VM_ID
    assert [path.name for path in folder.rglob("*") if path.is_file()] == [".instance_info"]


def test_a_vm_that_was_removed_is_not_found(api: HostApi) -> None:
    gone = HostApi("vm-3", api.config, api.database)

    for event, payload in (("boot.error", "x"), ("instance.info", json.dumps(IDS))):
        with pytest.raises(NotFound):
            notify(gone, event, payload)

    assert not (api.config.run_path / "vm-3").exists()


def test_a_vm_whose_folder_is_gone_is_not_found(api: HostApi, tmp_path: Path) -> None:
    (api.config.run_path / VM_ID).rename(tmp_path / "gone")

    with pytest.raises(NotFound):
        notify(api, "instance.info", json.dumps(IDS))


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)
names = st.sampled_from(
    ["boot.progress", "boot.error", "shutdown.progress", "instance.info", "vmm.exit"]
) | st.text(string.printable + "\0\x1b")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(
    st.sampled_from(["Info", "Notify", "GetSealingKey"]) | st.text(),
    anything
    | st.builds(
        lambda event, payload: {"event": event, "payload": payload},
        names,
        st.text() | anything.map(json.dumps) | anything,
    ),
)
def test_every_call_is_answered_or_refused_and_never_breaks(
    api: HostApi, method: str, params: Any
) -> None:
    try:
        api.answer(method, params)
    except CasemateError as refusal:
        assert refusal.message

    assert len(events(api)) <= 20
    assert events(api, "vm-2") == []
    assert not [name for name, _ in events(api) if name.startswith("vmm.")]


def test_a_runners_report_goes_to_whoever_hears_it(api: HostApi) -> None:
    heard: list[tuple[str, Report]] = []

    def hear(vm_id: str, report: Report) -> int:
        heard.append((vm_id, report))
        return report.offset + len(report.data)

    listening = HostApi(VM_ID, api.config, api.database, hear)
    said = {"id": "job", "offset": 4, "data": b"out".hex(), "vm_id": "vm-2"}

    assert listening.answer("Job", said) == {"offset": 7}
    assert heard == [(VM_ID, Report("job", offset=4, data=b"out"))]


@pytest.mark.parametrize("bad", [{"data": "0"}, {"offset": -1}, {"stage": 1}, {"exit_status": "0"}])
def test_a_malformed_report_is_refused(api: HostApi, bad: dict[str, Any]) -> None:
    listening = HostApi(VM_ID, api.config, api.database, lambda vm_id, report: 0)

    with pytest.raises(Invalid):
        listening.answer("Job", {"id": "job", **bad})


def test_where_nobody_hears_reports_there_is_no_such_call(api: HostApi) -> None:
    with pytest.raises(NotFound, match="unknown method"):
        api.answer("Job", {"id": "job"})
