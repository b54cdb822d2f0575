"""What `casemate attach` writes for ssh, and which ports it asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cli import tunnel
from cli.tunnel import Forward
from core.errors import Conflict, Invalid, Unavailable
from tests.common.waiting import free_port

KEY = Path("/home/me/.casemate/ssh/abc")


def submission(**fields: Any) -> dict[str, Any]:
    data = {"hostname": "127.0.0.1", "ssh_port": 21022, "username": "root", "dockerized": False}
    return {"job_provisioning_data": {**data, **fields}, "job_runtime_data": {"username": "root"}}


def test_a_job_in_a_vm_is_one_host() -> None:
    text = tunnel.host_config("web", submission(), {}, KEY)

    assert text.startswith(
        "Host web\n    HostName 127.0.0.1\n    Port 21022\n    User root\n"
        f'    IdentityFile "{KEY}"\n    IdentitiesOnly yes\n'
    )
    assert text.count("Host ") == 1


def test_a_container_of_dstacks_is_reached_through_its_machine() -> None:
    of_dstack = submission(hostname="192.0.2.1", ssh_port=22, username="ubuntu", dockerized=True)
    of_dstack["job_runtime_data"] = {"username": None, "ports": {"10022": 32000}}

    text = tunnel.host_config("web", of_dstack, {"user": {"username": "me"}}, KEY)

    assert "Host web-host\n    HostName 192.0.2.1\n    Port 22\n    User ubuntu\n" in text
    assert "Host web\n    HostName localhost\n    Port 32000\n    User me\n" in text
    assert "    ProxyJump web-host\n" in text


@pytest.mark.parametrize("name", ["x\n    ProxyCommand sh", "a b", "", "x;y", '"'])
def test_a_servers_words_cannot_command_ssh(name: str) -> None:
    with pytest.raises((Invalid, Unavailable)):
        tunnel.host_config("web", submission(hostname=name), {}, KEY)


def test_a_job_without_a_machine_cannot_be_attached_to() -> None:
    with pytest.raises(Unavailable, match="no machine"):
        tunnel.host_config("web", {"job_provisioning_data": None}, {}, KEY)


def test_declared_ports_are_forwarded_and_can_be_moved() -> None:
    job = {"app_specs": [{"port": 8000, "map_to_port": 80}, {"port": 9000, "map_to_port": None}]}

    assert tunnel.forwards(job, []) == [Forward(80, 8000), Forward(9000, 9000)]
    assert tunnel.forwards(job, ["8080:8000", "*:7000"]) == [
        Forward(8080, 8000),
        Forward(9000, 9000),
        Forward(0, 7000),
    ]


@pytest.mark.parametrize("text", ["", "x", "0", "70000", "1:2:3", "-1"])
def test_what_is_no_port_is_refused(text: str) -> None:
    with pytest.raises(Invalid, match="port"):
        Forward.parse(text)


def test_a_taken_port_is_named_with_the_way_round() -> None:
    import socket

    with socket.create_server(("localhost", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(Conflict, match=f"port {port} .* -p LOCAL:{port}"):
            tunnel._check_free("localhost", port)
    tunnel._check_free("localhost", free_port())


def test_hosts_come_and_go_without_a_trace(tmp_path: Path) -> None:
    config = tmp_path / "config"
    tunnel._edit(config, "a", "Host a\n    Port 1\n")
    tunnel._edit(config, "b", "Host b\n    Port 2\n")
    tunnel._edit(config, "a", "Host a\n    Port 3\n")
    text = config.read_text()

    assert text.count("Host a\n") == 1 and "Port 3" in text and "Port 2" in text
    tunnel._edit(config, "a", "")
    tunnel._edit(config, "b", "")
    assert config.read_text() == ""


def test_the_configuration_is_included_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh/config").write_text("Host mine\n")

    tunnel._include(tmp_path / "x")
    tunnel._include(tmp_path / "x")

    assert (tmp_path / ".ssh/config").read_text() == f"Include {tmp_path / 'x'}\nHost mine\n"
