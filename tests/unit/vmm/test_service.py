from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from core import prpc
from core.config import Config
from core.errors import (
    CasemateError,
    Conflict,
    Invalid,
    NotFound,
    Unavailable,
    Upstream,
    UpstreamTimeout,
)
from core.messages import GuestInfo
from image.registry import Image
from models.base import Database
from models.port import PortLease
from models.vm import Vm
from tests.common import rows
from tests.common.waiting import free_port, until
from vmm import process, qmp
from vmm.host import Host
from vmm.lifecycle import Observed, Wished
from vmm.schemas import Configuration, StatusQuery, VmConfiguration
from vmm.service import Vms


def wanted(**fields: Any) -> Configuration:
    loaded: Configuration = prpc.load(VmConfiguration, rows.request(**fields))
    return loaded


def row(vms: Vms, vm_id: str) -> Vm:
    with vms.database.reading() as session:
        return session.get_one(Vm, vm_id)


def processes(vms: Vms) -> list[str]:
    """The ids of the VMs that the processes of this data directory run."""
    mark = str(vms.config.run_path).encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"-name" in words and any(mark in word for word in words):
                found.append(words[words.index(b"-name") + 1].decode())
    return found


def folders(vms: Vms) -> set[str]:
    """The ids of the VMs that have a folder; what is no folder must be a lock of one that has."""
    found = {path.name for path in vms.config.run_path.iterdir()}
    locks = {name for name in found if name.startswith(".")}
    assert locks <= {f".{name}.lock" for name in found}
    return found - locks


def outcomes(count: int, work: Callable[[int], object]) -> list[object]:
    """What many calls at once returned or were refused with; anything but a refusal is raised."""

    def one(number: int) -> object:
        try:
            return work(number)
        except CasemateError as refusal:
            return refusal

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


# Several at once ---------------------------------------------------------------------------------


def test_of_many_creations_with_one_host_port_one_succeeds(vms: Vms) -> None:
    port = free_port()

    answers = outcomes(50, lambda _: vms.create(wanted(ports=[rows.port(port)])))

    made = [answer for answer in answers if isinstance(answer, str)]
    refused = [answer for answer in answers if isinstance(answer, Conflict)]
    assert (len(made), len(refused)) == (1, 49)
    assert all(f"tcp 127.0.0.1:{port} is already used" in each.message for each in refused)
    assert folders(vms) == set(made)
    assert processes(vms) == made
    with vms.database.reading() as session:
        assert session.scalars(select(Vm.id)).all() == made
        assert session.scalars(select(PortLease.vm_id)).all() == made


def test_many_starts_of_one_vm_make_one_process(vms: Vms) -> None:
    vm_id = vms.create(wanted(stopped=True))

    answers = outcomes(50, lambda _: vms.start(vm_id))

    assert answers == [None] * 50
    assert processes(vms) == [vm_id]
    assert [each.event for each in row(vms, vm_id).events] == ["vmm.start"]


def test_the_capacity_of_the_host_is_never_exceeded(
    config: Config, database: Database, host: Host, image: Image
) -> None:
    small = replace(config, cvm=replace(config.cvm, max_allocable_vcpu=3))
    vms = Vms(small, database, host)
    stopped = [vms.create(wanted(stopped=True)) for _ in range(8)]

    answers = outcomes(
        20,
        lambda number: vms.start(stopped[number]) if number < 8 else vms.create(wanted()),
    )

    refused = [answer for answer in answers if isinstance(answer, CasemateError)]
    assert all(
        isinstance(each, Conflict) and "vcpu: this host allows 3" in each.message
        for each in refused
    )
    assert len(answers) - len(refused) == 3
    assert len(processes(vms)) == 3
    with database.reading() as session:
        rest = session.scalars(select(Vm).where(Vm.observed == Observed.ABSENT)).all()
        assert {vm.id for vm in rest} <= set(stopped)
        assert {vm.wished for vm in rest} == {Wished.STOPPED}


def test_memory_is_counted_too(
    config: Config, database: Database, host: Host, image: Image
) -> None:
    vms = Vms(
        replace(config, cvm=replace(config.cvm, max_allocable_memory_in_mb=600)), database, host
    )
    first = vms.create(wanted(memory=400))

    with pytest.raises(Conflict, match="memory: this host allows 600 .* 400 are in use and 256"):
        vms.create(wanted())

    vms.stop(first)
    vms.create(wanted())


def harass(vms: Vms, ids: list[str], seed: int) -> None:
    """Starts, stops and removes VMs at random; refusals are fine, faults are not."""
    chance = random.Random(seed)
    for _ in range(12):
        verb = chance.choices(("start", "stop", "remove", "create"), (8, 8, 2, 1))[0]
        with contextlib.suppress(CasemateError):
            if verb == "create":
                vms.create(wanted())
                continue
            vm_id = chance.choice(ids)
            getattr(vms, verb)(vm_id)
            if verb == "remove":
                vms.reconciler.one(vm_id)


def test_random_calls_from_several_processes_leave_everything_in_order(vms: Vms) -> None:
    ids = [vms.create(wanted(stopped=True)) for _ in range(4)]
    fork = multiprocessing.get_context("fork")
    children = [fork.Process(target=harass, args=(vms, ids, seed)) for seed in range(4)]

    for child in children:
        child.start()
    for child in children:
        child.join(400)
    assert [child.exitcode for child in children] == [0, 0, 0, 0]

    with vms.database.reading() as session:
        found = {vm.id: vm for vm in session.scalars(select(Vm))}
    for vm_id, vm in found.items():
        vms.reconciler.one(vm_id)
        assert vm.wished != Wished.REMOVED or vms.info(vm_id) is None
    with vms.database.reading() as session:
        settled = list(session.scalars(select(Vm)))
    assert sorted(processes(vms)) == sorted(
        vm.id for vm in settled if vm.observed == Observed.ALIVE
    )
    assert {vm.id for vm in settled} == folders(vms)
    for vm in settled:
        assert (vm.wished == Wished.RUNNING) == (vm.observed == Observed.ALIVE)


# Wishes ------------------------------------------------------------------------------------------


def test_a_refused_start_is_no_standing_wish(vms: Vms) -> None:
    vm_id = vms.create(wanted(stopped=True))
    rows.behave(vms.config.run_path, fail="no")

    with pytest.raises(Unavailable):
        vms.start(vm_id)

    assert row(vms, vm_id).wished == Wished.STOPPED


def test_a_start_or_stop_by_hand_forgets_the_tries(vms: Vms) -> None:
    vm_id = vms.create(wanted(stopped=True))
    for verb in (vms.start, vms.stop):
        with vms.database.writing() as session:
            vm = session.get_one(Vm, vm_id)
            vm.restarts, vm.next_restart_ms = 4, 5

        verb(vm_id)

        assert (row(vms, vm_id).restarts, row(vms, vm_id).next_restart_ms) == (0, None)


def test_a_shutdown_is_asked_of_the_agent_first(vms: Vms, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("the power button was pressed")

    vm_id = vms.create(wanted())
    monkeypatch.setattr(qmp, "execute", never)

    vms.shutdown(vm_id)

    assert row(vms, vm_id).wished == Wished.SHUTDOWN
    until(lambda: not process.find(vms.reconciler.workdir(vm_id).path))
    vms.reconciler.one(vm_id)
    assert (row(vms, vm_id).observed, row(vms, vm_id).events[-1].body) == ("absent", "exit code 0")


@pytest.mark.parametrize("guest", ["hang", "garbage"])
def test_the_power_button_is_pressed_when_the_agent_does_not_answer(
    vms: Vms, monkeypatch: pytest.MonkeyPatch, guest: str
) -> None:
    monkeypatch.setattr("vmm.service.AGENT_SHUTDOWN_S", 0.2)
    rows.behave(vms.config.run_path, guest=guest)
    vm_id = vms.create(wanted())

    vms.shutdown(vm_id)

    assert row(vms, vm_id).wished == Wished.SHUTDOWN
    until(lambda: not process.find(vms.reconciler.workdir(vm_id).path))


def test_a_vm_that_takes_no_request_is_told(vms: Vms, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmm.service.AGENT_SHUTDOWN_S", 0.1)
    monkeypatch.setattr(qmp.execute, "__kwdefaults__", {"deadline_s": 0.2})
    rows.behave(vms.config.run_path, guest="hang")
    vm_id = vms.create(wanted())
    found = process.find(vms.reconciler.workdir(vm_id).path)
    assert found is not None
    os.kill(found.pid, signal.SIGSTOP)

    with pytest.raises(Unavailable, match="neither the guest agent nor QEMU took the request"):
        vms.shutdown(vm_id)

    assert row(vms, vm_id).wished == Wished.RUNNING
    os.kill(found.pid, signal.SIGCONT)


def test_a_vm_that_died_unseen_is_told_so_by_shutdown(vms: Vms) -> None:
    vm_id = vms.create(wanted())
    workdir = vms.reconciler.workdir(vm_id).path
    found = process.find(workdir)
    assert found is not None
    process.end(workdir, found, grace_s=0)

    with pytest.raises(Unavailable, match="neither the guest agent nor QEMU"):
        vms.shutdown(vm_id)


# Questions -----------------------------------------------------------------------------------------


def test_the_agents_answer_is_checked_and_completed(vms: Vms) -> None:
    told = {"version": "1", "app_id": "AB" * 20, "more": 1, "tcb_info": None}
    rows.behave(vms.config.run_path, guest={"Info": {"result": told}})
    vm_id = vms.create(wanted())

    answer = vms.ask_guest(vm_id, "Info", GuestInfo)

    assert answer == {
        "version": "1",
        "app_id": bytes.fromhex("ab" * 20),
        "instance_id": b"",
        "app_cert": "",
        "tcb_info": "",
        "device_id": b"",
    }


@pytest.mark.parametrize("result", ["x", [1], {"app_id": "xyz"}, {"version": 1}, 3, True])
def test_an_answer_of_another_form_is_the_guests_fault(vms: Vms, result: object) -> None:
    rows.behave(vms.config.run_path, guest={"Info": {"result": result}})
    vm_id = vms.create(wanted())

    with pytest.raises(Upstream, match="guest agent: malformed answer"):
        vms.ask_guest(vm_id, "Info", GuestInfo)


def test_a_hanging_agent_holds_nobody_for_long(vms: Vms) -> None:
    rows.behave(vms.config.run_path, guest="hang")
    vm_id = vms.create(wanted())

    began = time.monotonic()
    answers = outcomes(5, lambda _: vms.ask_guest(vm_id, "Info", GuestInfo, within_s=0.5))

    assert all(isinstance(answer, UpstreamTimeout) for answer in answers)
    assert time.monotonic() - began < 20


def test_a_vm_that_does_not_run_is_not_asked(vms: Vms) -> None:
    vm_id = vms.create(wanted(stopped=True))

    with pytest.raises(Invalid, match=r"VM is not running \(it is stopped\)"):
        vms.ask_guest(vm_id, "Info", GuestInfo)
    with pytest.raises(NotFound):
        vms.ask_guest("nobody", "Info", GuestInfo)


def add(vms: Vms, *names: str, **fields: Any) -> list[str]:
    """Rows in order of creation."""
    added = [rows.vm(name=name, created_ms=number, **fields) for number, name in enumerate(names)]
    with vms.database.writing() as session:
        session.add_all(added)
    return [vm.id for vm in added]


def names(vms: Vms, **query: Any) -> tuple[list[str], int]:
    listed = vms.status(StatusQuery(**query))
    return [vm["name"] for vm in listed["vms"]], listed["total"]


def test_vms_are_listed_oldest_first_in_pages_that_begin_with_0(vms: Vms) -> None:
    add(vms, "a", "b", "c", "d", "e")

    assert names(vms) == (["a", "b", "c", "d", "e"], 5)
    assert names(vms, page_size=2) == (["a", "b"], 5)
    assert names(vms, page=1, page_size=2) == (["c", "d"], 5)
    assert names(vms, page=2, page_size=2) == (["e"], 5)
    assert names(vms, page=3, page_size=2) == ([], 5)
    assert names(vms, page=7) == (["a", "b", "c", "d", "e"], 5)
    assert names(vms, page=2**32 - 1, page_size=2**32 - 1) == ([], 5)


def test_vms_are_found_by_a_part_of_name_id_app_or_image(vms: Vms) -> None:
    ids = add(vms, "web", "worker", "100%_done")
    add(vms, "other", app_id="cd" * 20, image="casemate-dev-0.6.0")

    assert names(vms, keyword="w") == (["web", "worker"], 2)
    assert names(vms, keyword="ork") == (["worker"], 1)
    assert names(vms, keyword="WEB") == (["web"], 1)
    assert names(vms, keyword=ids[1]) == (["worker"], 1)
    assert names(vms, keyword="cd" * 20) == (["other"], 1)
    assert names(vms, keyword="casemate-dev") == (["other"], 1)
    assert names(vms, keyword="%") == (["100%_done"], 1)
    assert names(vms, keyword="_d") == (["100%_done"], 1)
    assert names(vms, keyword="w", page_size=1) == (["web"], 2)
    assert names(vms, keyword="'; DROP TABLE vms; --") == ([], 0)
    assert names(vms, keyword="w" * 100_000) == ([], 0)


def test_vms_are_found_by_their_ids(vms: Vms) -> None:
    ids = add(vms, "a", "b", "c")

    assert names(vms, ids=[ids[2], ids[0], "nobody"]) == (["a", "c"], 2)
    assert names(vms, ids=[ids[0]], keyword="zz") == ([], 0)
    assert names(vms, ids=[ids[0]] * 10_000) == (["a"], 1)


def test_a_brief_list_leaves_the_configuration_out_and_nothing_else(vms: Vms) -> None:
    add(vms, "a")

    (brief,) = vms.status(StatusQuery(brief=True))["vms"]
    (whole,) = vms.status(StatusQuery())["vms"]

    assert brief["configuration"] is None
    assert whole["configuration"]["compose_file"] == rows.COMPOSE
    assert {**brief, "configuration": None} == {**whole, "configuration": None}


def test_the_compose_hash_is_of_the_exact_bytes(vms: Vms) -> None:
    assert vms.compose_hash("web", "{}") == (
        "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    )
    with pytest.raises(Invalid, match="name: "):
        vms.compose_hash("", "{}")
    with pytest.raises(Invalid, match="compose_file: "):
        vms.compose_hash("web", "services:")


def test_a_broken_image_is_left_out_of_the_list(vms: Vms, image: Image) -> None:
    (vms.config.image.path / "broken-0.5.4").mkdir()

    (listed,) = vms.images()

    assert (listed["name"], listed["version"], listed["is_dev"]) == (rows.IMAGE, "0.5.4", False)
    assert listed["description"] == (image.directory / "metadata.json").read_text()


def document(text: str, **fields: Any) -> str:
    return json.dumps({"docker_compose_file": f"services: {{a: {{image: '{text}'}}}}", **fields})


def test_an_image_that_can_change_under_its_tag_is_warned_of(vms: Vms) -> None:
    warned = vms.create(wanted(stopped=True, compose_file=document("nginx:latest")))
    pinned = document("nginx@sha256:" + "ab" * 32)
    silent = vms.create(wanted(stopped=True, compose_file=pinned))

    (event,) = row(vms, warned).events
    assert (event.event, "nginx:latest" in event.body) == ("vmm.warning", True)
    assert row(vms, silent).events == []


def test_an_image_that_can_change_is_refused_where_the_app_requires_digests(vms: Vms) -> None:
    required = {"requirements": {"require_digest": True}}

    with pytest.raises(Invalid, match=r"nginx:latest can change: name each image as image@sha256"):
        vms.create(wanted(compose_file=document("nginx:latest", **required)))

    pinned = document("nginx@sha256:" + "ab" * 32, **required)
    assert vms.create(wanted(stopped=True, compose_file=pinned))
