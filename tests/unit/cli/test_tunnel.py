"""The SSH connection of `casemate attach`: entries, keys, ports, and connections that do not come about."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from cli import attach as attaching
from cli import tunnel
from cli.tunnel import Forward, Wish, host_config
from core.errors import CasemateError, Conflict, Invalid, Unavailable
from tests.common.runs_site import Site
from tests.common.waiting import until

KEY = Path("/home/me/a key%1")
MACHINE = {
    "backend": "remote",
    "hostname": "10.0.0.1",
    "ssh_port": 2200,
    "username": "ubuntu",
    "dockerized": False,
}
SPEC = {"job_num": 0, "replica_num": 0, "user": None}


def submission(runtime: Any = None, **machine: Any) -> Any:
    return {"job_provisioning_data": {**MACHINE, **machine}, "job_runtime_data": runtime}


def settings(text: str) -> dict[str, dict[str, str]]:
    """The settings of an ssh_config by host."""
    hosts: dict[str, dict[str, str]] = {}
    for line in text.splitlines():
        name, _, value = line.strip().partition(" ")
        if name == "Host":
            current = hosts[value] = {}
        else:
            current[name] = value
    return hosts


def test_a_machine_that_is_the_job_is_one_host() -> None:
    (host,) = settings(host_config("web", submission({"username": "me"}), SPEC, KEY)).items()

    assert host[0] == "web"
    wanted = {"HostName": "10.0.0.1", "Port": "2200", "User": "me", "IdentitiesOnly": "yes"}
    assert wanted.items() <= host[1].items()
    assert host[1]["IdentityFile"] == '"/home/me/a key%%1"'


def test_a_container_of_dstacks_is_reached_through_its_machine() -> None:
    hosts = settings(
        host_config("web", submission({"ports": {"10022": 32768}}, dockerized=True), SPEC, KEY)
    )

    assert hosts["web-host"]["User"] == "ubuntu"
    assert hosts["web"]["ProxyJump"] == "web-host"
    assert (hosts["web"]["HostName"], hosts["web"]["Port"]) == ("localhost", "32768")
    assert hosts["web"]["User"] == "root"


@pytest.mark.parametrize(
    "word", ["a b", "x\n    ProxyCommand evil", "-oProxyCommand=evil", "$(evil)", "*", "%h"]
)
def test_a_servers_words_are_no_settings_of_ours(word: str) -> None:
    for host, machine in ((word, {}), ("web", {"hostname": word})):
        with pytest.raises(Invalid, match="names a machine that cannot be one"):
            host_config(host, submission(**machine), SPEC, KEY)


def test_a_run_without_a_machine_is_told() -> None:
    with pytest.raises(Unavailable, match="no machine"):
        host_config("web", {"job_provisioning_data": None}, SPEC, KEY)


def test_a_server_without_ssh_is_told_and_the_host_itself_is_not_tried() -> None:
    with pytest.raises(Unavailable, match="ssh = false"):
        host_config("web", submission(hostname="127.0.0.1", ssh_port=22), SPEC, KEY)


def test_declared_ports_go_where_they_are_wished() -> None:
    spec = {
        "app_specs": [{"port": 8000, "map_to_port": 80}, {"port": 9000, "map_to_port": None}],
        "service_port": 3000,
    }

    assert Wish().forwards(spec) == [Forward(80, 8000), Forward(0, 9000), Forward(0, 3000)]
    moved = Wish.of(("8080:8000", "*:70", "5"), "localhost", None).forwards(spec)
    assert moved == [
        Forward(8080, 8000), Forward(0, 9000), Forward(0, 3000), Forward(0, 70), Forward(5, 5),
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["", "x", "80:", ":80", "0", "80:0", "65536", "1:2:3", "80:70000"])
def test_a_port_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(Invalid, match="must look like"):
        Forward.parse(text)


def test_a_local_port_that_is_taken_is_told_with_another_one() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        wish = Wish.of((f"{port}:8000",), "127.0.0.1", None)

        with pytest.raises(Conflict, match=f"{port} of 127.0.0.1 .* -p {port + 1}:8000"):
            wish.check_free({})


def test_each_attached_process_has_an_entry_of_its_own(tmp_path: Path) -> None:
    config = tmp_path / "config"
    living = "# web 1\nHost web\n    Port 1\n# end\n"
    config.write_text(living + "# web 999999999\nHost web\n    Port 2\n# end\n")

    tunnel._edit(config, "web", "Host web\n    Port 3\n")
    assert config.read_text() == f"# web {os.getpid()}\nHost web\n    Port 3\n# end\n{living}"
    tunnel._edit(config, "web", "")

    assert config.read_text() == living


def test_a_connection_that_does_not_come_about_leaves_nothing_but_the_key(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tunnel, "CONNECT_S", 1.0)
    site.fleet()
    site.submit("long", "sleep 100")
    site.until("long", "running")
    (site.home / ".ssh").mkdir()
    (site.home / "mine").write_bytes(b"Host mine # \xff\n")
    (site.home / ".ssh/config").symlink_to(site.home / "mine")

    with pytest.raises(Unavailable, match="no SSH connection to long: .*refused"):
        site.run("attach", "long")

    folder = site.home / ".casemate/ssh"
    key = folder / hashlib.sha1(site.token.encode()).hexdigest()[:8]
    assert "PRIVATE KEY" in key.read_text()
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert sorted(each.name for each in folder.iterdir()) == sorted(
        [key.name, f"{key.name}.pub", "config", "config.lock"]
    )
    assert (folder / "config").read_text() == ""
    line = f'Include "{folder}/config"\n'.encode()
    assert (site.home / "mine").read_bytes() == line + b"Host mine # \xff\n"
    assert (site.home / ".ssh/config").is_symlink()


def test_without_a_connection_the_output_is_shown_all_the_same(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tunnel, "CONNECT_S", 0.5)
    gate, say = site.home / "gate", attaching.say

    def said(text: str) -> None:
        say(text)
        if text.startswith("not attached"):
            gate.touch()

    monkeypatch.setattr(attaching, "say", said)
    site.fleet()

    script = f"echo one; until test -e {gate}; do sleep 0.05; done; echo two"
    done = site.run("apply", "-y", "-f", site.task("hello", script))

    assert done.stdout_bytes.endswith(b"one\r\ntwo\r\n")
    assert "not attached: no SSH connection to hello" in done.stderr


def test_ssh_that_is_not_there_is_told(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.fleet()
    site.submit("long", "sleep 100")
    site.until("long", "running")
    monkeypatch.setenv("PATH", str(site.home))

    with pytest.raises(CasemateError, match="ssh is not installed"):
        site.run("attach", "long")


# Stands at once, as ssh does when its server is there, and tells its process id.
SSH = """#!/bin/sh
for word; do case "$word" in LocalCommand=*) sh -c "${word#LocalCommand=}";; esac; done
echo $$ > "$HOME/ssh.pid"
exec sleep ${SSH_S:-1000}
"""


@pytest.fixture
def ssh(site: Site, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The place where the pretended ssh, which is found first, writes its process id."""
    program = site.home / "bin/ssh"
    program.parent.mkdir()
    program.write_text(SSH)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return site.home / "ssh.pid"


def test_a_connection_that_is_lost_is_told_unless_the_run_ends(
    site: Site, ssh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSH_S", "1")
    monkeypatch.setattr(attaching, "LOST_S", 60)
    gate = site.home / "gate"
    site.fleet()
    site.submit("short", f"until test -e {gate}; do sleep 0.05; done; exit 4")
    site.until("short", "running")
    ending = threading.Thread(target=touch_after, args=(gate, ssh))
    ending.start()
    assert "short: exited (4)" in site.run("attach", "short", code=4).stderr
    ending.join()

    monkeypatch.setattr(attaching, "LOST_S", 0.5)
    site.submit("long", "sleep 100")
    site.until("long", "running")
    with pytest.raises(Unavailable, match="connection was lost"):
        site.run("attach", "long")


def touch_after(gate: Path, ssh: Path) -> None:
    """Makes a file once the pretended ssh has come and gone."""
    until(lambda: ssh.exists() and ssh.read_text().endswith("\n"), what="ssh")
    until(lambda: not Path("/proc", ssh.read_text().strip()).exists(), what="the end of ssh")
    gate.touch()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_who_is_ended_takes_the_connection_away(
    site: Site, ssh: Path, number: signal.Signals
) -> None:
    site.fleet()
    site.submit("long", "sleep 100")
    site.until("long", "running")
    started = site.start("attach", "long")
    assert started.stderr is not None
    until(lambda: started.stderr.readline() == "Press Ctrl+C to detach.\n", seconds=30)

    started.send_signal(number)
    started.communicate(timeout=60)

    assert started.returncode == 128 + number
    assert not Path("/proc", ssh.read_text().strip()).exists()
    assert (site.home / ".casemate/ssh/config").read_text() == ""
