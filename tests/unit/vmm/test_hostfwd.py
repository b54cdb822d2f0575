"""Host ports of running VMs, asked of a stand-in that answers in QEMU's words."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from core.errors import Unsupported, Upstream
from tests.common import rows
from tests.unit.vmm.test_service import row, wanted
from vmm import hostfwd
from vmm.network import Port
from vmm.service import Vms


def is_open(port: int) -> bool:
    """Whether somebody listens there."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_a_port_of_a_running_vm_is_opened_and_closed(vms: Vms) -> None:
    vm_id = vms.create(wanted())

    host_port = vms.publish(vm_id, 8000)
    assert is_open(host_port)
    assert vms.published(vm_id) == {8000: Port("tcp", "127.0.0.1", host_port, 8000)}
    vms.withdraw(vm_id, 8000)

    assert not is_open(host_port)
    assert vms.published(vm_id) == {}
    assert row(vms, vm_id).ports == []


def test_both_may_be_repeated(vms: Vms) -> None:
    vm_id = vms.create(wanted())

    assert vms.publish(vm_id, 22) == vms.publish(vm_id, 22)
    vms.withdraw(vm_id, 22)
    vms.withdraw(vm_id, 22)

    assert vms.published(vm_id) == {}


def test_a_port_published_while_stopped_is_there_after_the_start(vms: Vms) -> None:
    vm_id = vms.create(wanted(stopped=True))
    host_port = vms.publish(vm_id, 22)

    vms.start(vm_id)

    assert f"hostfwd=tcp:127.0.0.1:{host_port}-:22" in ",".join(vms.command(vm_id))


def test_qemus_refusal_is_told_and_nothing_stays_leased(vms: Vms) -> None:
    rows.behave(vms.config.run_path, no_forwards=True)
    vm_id = vms.create(wanted())

    with pytest.raises(Upstream, match="could not set up host forwarding rule"):
        vms.publish(vm_id, 22)

    assert vms.published(vm_id) == {}


def test_a_vm_without_a_card_in_mode_user_has_no_such_ports(vms: Vms) -> None:
    vm_id = vms.create(wanted())
    workdir = vms.reconciler.workdir(vm_id)
    workdir.mirror("runtime-networks.json", {"networks": [{"mode": "bridge"}, {"mode": "custom"}]})

    with pytest.raises(Unsupported, match="mode user"):
        vms.publish(vm_id, 22)


def test_forwards_are_read_as_qemu_shows_them(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (
        "Hub -1 (net0):\r\n"
        "  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ\r\n"
        "  TCP[HOST_FORWARD]  12       127.0.0.1 21000       10.0.2.15    22     0     0\r\n"
        "  UDP[HOST_FORWARD]  13               * 21001       10.0.2.15    53     0     0\r\n"
        "  TCP[ESTABLISHED]   14       127.0.0.1 21000       10.0.2.15    22     0     0\r\n"
    )
    monkeypatch.setattr(hostfwd.qmp, "execute", lambda *args: text)

    found = hostfwd.shown(Path("unused"))

    assert found == {
        Port("tcp", "127.0.0.1", 21000, 22),
        Port("udp", "0.0.0.0", 21001, 53),
    }
