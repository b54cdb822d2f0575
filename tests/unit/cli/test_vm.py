from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import Result

from core.errors import Invalid, NotFound
from tests.common import rows
from tests.common.waiting import free_port
from tests.unit.cli.conftest import Wired

Run = Callable[..., Result]


@pytest.fixture
def vm(wired: Wired) -> dict[str, Any]:
    ports = [rows.port(free_port())]
    made = wired.call("prpc/CreateVm", **rows.request(stopped=True, ports=ports))
    return wired.info(made["id"])


def test_vms_are_listed_as_a_table_and_as_json(run: Run, vm: dict[str, Any]) -> None:
    head, line = run("vm", "ls").stdout.splitlines()
    (found,) = json.loads(run("vm", "ls", "--json").stdout)

    assert head.split() == ["ID", "NAME", "STATUS", "UP", "BOOT", "APP"]
    assert line.split() == [vm["id"], "web", "stopped", "never", vm["app_id"]]
    assert found["configuration"]["memory"] == 256
    assert json.loads(run("vm", "ls", "nothing", "--json").stdout) == []


def test_one_vm_is_shown(run: Run, vm: dict[str, Any]) -> None:
    lines = run("vm", "info", vm["id"][:6]).stdout.splitlines()

    assert f"id:        {vm['id']}" in lines
    assert "size:      1 vCPU, 256 MB, 1 GB" in lines
    assert "TEE:       simulated (dstack-tdx)" in lines
    (mapped,) = vm["configuration"]["ports"]
    assert f"port 80/tcp: 127.0.0.1:{mapped['host_port']}" in lines
    assert json.loads(run("vm", "info", "web", "--json").stdout)["id"] == vm["id"]


def test_a_vm_goes_by_id_beginning_or_name(run: Run, wired: Wired, vm: dict[str, Any]) -> None:
    for given in (vm["id"], vm["id"][:8], "web"):
        assert json.loads(run("vm", "info", given, "--json").stdout)["id"] == vm["id"]
    with pytest.raises(NotFound, match="there is no VM we$"):
        run("vm", "info", "we")

    second = wired.call("prpc/CreateVm", **rows.request(stopped=True))["id"]
    with pytest.raises(Invalid, match="web fits 2 VMs") as refused:
        run("vm", "stop", "web")
    assert vm["id"] in refused.value.message
    assert second in refused.value.message


def test_verbs_reach_the_service_and_answer_in_json(
    run: Run, wired: Wired, vm: dict[str, Any]
) -> None:
    assert run("vm", "start", "web", "--no-wait").stdout == ""
    assert wired.info(vm["id"])["status"] == "running"
    assert json.loads(run("vm", "stop", "web", "--json").stdout) == {"id": vm["id"]}
    assert wired.info(vm["id"])["status"] == "stopped"
    with pytest.raises(Exception, match="VM is not running"):
        run("vm", "shutdown", "web")


@pytest.mark.parametrize(("answer", "removed"), [("y\n", True), ("n\n", False)])
def test_removal_on_a_terminal_asks(
    run: Run, wired: Wired, vm: dict[str, Any], monkeypatch: pytest.MonkeyPatch,
    answer: str, removed: bool,
) -> None:  # fmt: skip
    monkeypatch.setattr("cli.vm.sys", Terminal())

    done = run("vm", "remove", "web", input=answer)

    assert f"Remove web ({vm['id']}) and its disk?" in done.output
    assert (wired.info(vm["id"])["status"] == "removing") is removed
    assert (done.exit_code == 0) is removed


class Terminal:
    """sys, with a person before it."""

    class stdin:
        isatty = staticmethod(lambda: True)


def test_removal_asks_nobody_where_there_is_nobody(
    run: Run, wired: Wired, vm: dict[str, Any]
) -> None:
    run("vm", "remove", "web")

    assert wired.info(vm["id"])["status"] == "removing"


def test_a_log_is_printed_with_what_the_options_ask(
    run: Run, wired: Wired, vm: dict[str, Any]
) -> None:
    folder = wired.app.application.extensions["vms"].reconciler.workdir(vm["id"]).path  # type: ignore[union-attr]
    (folder / "serial.log").write_bytes(b"one\n\x1b[31mtwo\x1b[0m\n")
    (folder / "serial.log.1").write_bytes(b"older\n")

    assert run("vm", "logs", "web").stdout == "one\ntwo\n"
    assert run("vm", "logs", "web", "-n", "1", "--ansi").stdout == "\x1b[31mtwo\x1b[0m\n"
    assert run("vm", "logs", "web", "--archived", "1").stdout == "older\n"
    assert run("vm", "logs", "web", "--channel", "stderr").stdout == ""
    assert run("vm", "logs", "web", "-f", "--archived", "1").exit_code == 2


def test_what_a_guest_says_commands_no_terminal(run: Run, wired: Wired, vm: dict[str, Any]) -> None:
    hostile = {**vm, "boot_error": "\x1b]0;owned\x07", "events": [
        {"event": "x\x1b[2J", "body": "y\x9b1m", "timestamp": 0}
    ]}  # fmt: skip
    wired.instead["/prpc/GetInfo"] = {"found": True, "info": hostile}

    shown = run("vm", "info", "web").stdout + run("vm", "info", "web", "--json").stdout

    assert not set(shown) & set("\x1b\x07\x9b")
