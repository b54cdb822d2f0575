"""UpdateVm and ResizeVm: all or nothing, on the stand-in for QEMU."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from core import prpc
from core.errors import Conflict, Invalid
from core.proc import run
from tests.common import rows
from tests.common.waiting import free_port
from vmm import disk
from vmm.schemas import Change, Configuration, PortMap, VmConfiguration
from vmm.service import Vms


def configuration(**fields: Any) -> Configuration:
    wanted: Configuration = prpc.load(VmConfiguration, rows.request(**fields))
    return wanted


@pytest.fixture
def stopped(vms: Vms) -> str:
    """The id of a stopped VM with one port."""
    return vms.create(configuration(stopped=True, ports=[rows.port(free_port())]))


def seen(vms: Vms, vm_id: str) -> dict[str, object]:
    info = vms.info(vm_id)
    assert info is not None
    found: dict[str, object] = info["configuration"]
    return found


def test_every_given_field_changes_and_the_rest_stays(vms: Vms, stopped: str) -> None:
    before = seen(vms, stopped)
    text, more = json.dumps({"name": "second"}), free_port()
    (kept,) = [each["host_port"] for each in before["ports"]]

    app_id = vms.update(
        Change(
            id=stopped,
            compose_file=text,
            encrypted_env=b"\1\2",
            update_ports=True,
            ports=[PortMap("tcp", kept, 81, ""), PortMap("tcp", more, 82, "")],
            vcpu=2,
            disk_size=3,
        )
    )

    after = seen(vms, stopped)
    assert after["compose_file"] == text
    assert after["encrypted_env"] == b"\1\2"
    assert [(p["host_port"], p["vm_port"]) for p in after["ports"]] == [(kept, 81), (more, 82)]
    assert (after["vcpu"], after["disk_size"]) == (2, 3)
    assert after["memory"] == before["memory"]
    assert after["app_id"] == before["app_id"] != app_id
    assert len(app_id) == 40


def test_no_compose_text_answers_no_app_id(vms: Vms, stopped: str) -> None:
    assert vms.update(Change(id=stopped, user_config="x")) == ""


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (Change(id="", vcpu=0), "vcpu"),
        (Change(id="", disk_size=0), "disk_size"),
        (Change(id="", image="nope"), "image"),
        (Change(id="", compose_file="[]"), "compose_file"),
        (Change(id="", update_ports=True, ports=[PortMap("tcp", 1, 80, "")]), "ports[0].host_port"),
    ],
)
def test_a_refused_update_changes_nothing(
    vms: Vms, stopped: str, change: Change, field: str
) -> None:
    before = seen(vms, stopped)

    with pytest.raises(Invalid) as refused:
        vms.update(replace(change, id=stopped, user_config="new", encrypted_env=b"new"))

    assert list(refused.value.fields) == [field]
    assert seen(vms, stopped) == before


def test_a_port_of_another_vm_is_refused_and_nothing_changes(vms: Vms, stopped: str) -> None:
    port = free_port()
    vms.create(configuration(stopped=True, ports=[rows.port(port)]))
    before = seen(vms, stopped)

    with pytest.raises(Conflict, match=str(port)):
        vms.update(
            Change(id=stopped, update_ports=True, ports=[PortMap("tcp", port, 80, "")], vcpu=2)
        )

    assert seen(vms, stopped) == before


def test_resources_of_a_running_vm_stay_and_its_texts_may_change(vms: Vms) -> None:
    vm_id = vms.create(configuration())

    with pytest.raises(Invalid, match="stopped"):
        vms.update(Change(id=vm_id, vcpu=2, user_config="new"))
    assert seen(vms, vm_id)["user_config"] == ""
    vms.update(Change(id=vm_id, user_config="new"))

    assert seen(vms, vm_id)["user_config"] == "new"


def test_the_disk_grows_with_its_record_and_never_shrinks(vms: Vms) -> None:
    vm_id = vms.create(configuration(disk_size=1))
    vms.stop(vm_id)

    vms.resize(Change(id=vm_id, disk_size=2))

    assert disk_gib(vms, vm_id) == 2
    with pytest.raises(Invalid, match="grow"):
        vms.resize(Change(id=vm_id, disk_size=1))


def disk_gib(vms: Vms, vm_id: str) -> int:
    path = vms.reconciler.workdir(vm_id).data_disk
    shown = json.loads(run(["qemu-img", "info", "--output=json", path]).stdout)
    return int(shown["virtual-size"]) // 1024**3


def test_an_update_refused_for_its_ports_leaves_the_disk_alone(vms: Vms) -> None:
    host_port = free_port()
    vms.create(configuration(stopped=True, ports=[rows.port(host_port)]))
    vm_id = vms.create(configuration(disk_size=1))
    vms.stop(vm_id)
    taken = [PortMap("tcp", host_port, 80, "")]

    with pytest.raises(Conflict, match=str(host_port)):
        vms.update(Change(id=vm_id, disk_size=3, update_ports=True, ports=taken))

    assert disk_gib(vms, vm_id) == 1


def test_a_disk_that_an_update_cut_short_left_larger_is_no_obstacle(vms: Vms) -> None:
    vm_id = vms.create(configuration(disk_size=1))
    vms.stop(vm_id)
    disk.grow_data_disk(vms.reconciler.workdir(vm_id).data_disk, 4)

    vms.resize(Change(id=vm_id, disk_size=2))

    assert (seen(vms, vm_id)["disk_size"], disk_gib(vms, vm_id)) == (2, 4)


def test_resize_wants_something_to_do(vms: Vms, stopped: str) -> None:
    with pytest.raises(Invalid, match="at least one"):
        vms.resize(Change(id=stopped))
