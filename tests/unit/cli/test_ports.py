from __future__ import annotations

import json
import socket
from collections.abc import Callable

import pytest
from click.testing import Result

from cli.ports import parse, without
from core.errors import Invalid, NotFound
from tests.common import rows
from tests.common.waiting import free_port
from tests.unit.cli.conftest import Wired

Run = Callable[..., Result]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8080:80", ("tcp", "", 8080, 80)),
        ("udp:5353:53", ("udp", "", 5353, 53)),
        ("tcp:0.0.0.0:8080:80", ("tcp", "0.0.0.0", 8080, 80)),
        ("127.0.0.1:8080:80", ("tcp", "127.0.0.1", 8080, 80)),
        ("[::1]:8080:80", ("tcp", "::1", 8080, 80)),
    ],
)
def test_a_mapping_is_read(text: str, expected: tuple[str, str, int, int]) -> None:
    found = parse(text)

    names = ("protocol", "host_address", "host_port", "vm_port")
    assert tuple(found[name] for name in names) == expected


@pytest.mark.parametrize(
    "text", ["80", "a:80", "80:", ":80", "8080:80:", "1:²", "-1:80", "1:123456"]
)
def test_what_is_no_mapping_is_refused(text: str) -> None:
    with pytest.raises(Invalid, match="port"):
        parse(text)


def test_a_mapping_is_taken_away_by_its_hosts_side() -> None:
    both = [parse("8080:80"), parse("udp:8080:53")]

    assert without(both, "8080") == [both[1]]
    with pytest.raises(NotFound, match="9999"):
        without(both, "9999")


def test_mappings_are_added_and_removed_in_one_call(run: Run, wired: Wired) -> None:
    old, new = free_port(), free_port(socket.SOCK_DGRAM)
    made = wired.call("prpc/CreateVm", **rows.request(stopped=True, ports=[rows.port(old)]))

    done = run("vm", "ports", "web", "--add", f"udp:{new}:53", "--remove", str(old), "--json")

    (left,) = json.loads(done.stdout)
    assert (left["host_port"], left["protocol"]) == (new, "udp")
    (change,) = wired.said("/prpc/UpdateVm")
    assert (change["id"], change["update_ports"]) == (made["id"], True)


def test_mappings_are_listed_and_cleared(run: Run, wired: Wired) -> None:
    port = free_port()
    wired.call("prpc/CreateVm", **rows.request(stopped=True, ports=[rows.port(port)]))

    shown = run("vm", "ports", "web").stdout.splitlines()[1]
    assert shown.split() == ["tcp", f"127.0.0.1:{port}", "80"]
    assert wired.said("/prpc/UpdateVm") == []
    assert run("vm", "ports", "web", "--clear").stdout.splitlines() == ["PROTOCOL  HOST  VM"]
