from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from app import create_app
from cli import serve
from cli.server import Server
from core.config import AuthConfig, Config
from core.config_secretvm import BillingConfig, SecretVmConfig
from core.errors import Conflict, Invalid
from vmm.host import Host

ROOT = Path(__file__).parents[3]


CLOSED = ("unix:./a", "tcp:127.0.0.1:1", "tcp:[::1]:1", "tcp:localhost:1")
OPEN = ("tcp:0.0.0.0:1", "tcp:[::]:1", "tcp:192.0.2.1:1")


def warnings(caplog: pytest.LogCaptureFixture, config: Config) -> tuple[bool, bool]:
    """Whether it is said that everybody is the operator, and that strangers may be tenants."""
    serve.warn_of_strangers(config)
    said = [record.getMessage() for record in caplog.records]
    return (
        any("authentication is off" in each for each in said),
        any("agents = false" in each for each in said),
    )


@pytest.mark.parametrize("address", CLOSED)
def test_who_reaches_a_closed_address_is_trusted_without_a_word(
    config: Config, caplog: pytest.LogCaptureFixture, address: str
) -> None:
    assert warnings(caplog, replace(config, address=address)) == (False, False)


@pytest.mark.parametrize("address", OPEN)
@pytest.mark.parametrize("auth", [True, False])
@pytest.mark.parametrize(
    ("agents", "billing", "warned"),
    [(True, False, True), (True, True, False), (False, False, False)],
)
def test_what_strangers_may_do_at_an_open_address_is_warned_of(
    config: Config,
    caplog: pytest.LogCaptureFixture,
    address: str,
    auth: bool,
    agents: bool,
    billing: bool,
    warned: bool,
) -> None:
    given = replace(
        config,
        address=address,
        auth=AuthConfig(enabled=auth),
        secretvm=SecretVmConfig(agents=agents),
        billing=BillingConfig(enabled=billing),
    )

    assert warnings(caplog, given) == (not auth, warned)


def test_a_data_directory_is_held_by_one_process(data_dir: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from cli.serve import hold\n"
        "fd = hold(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, data_dir], stdout=subprocess.PIPE, cwd=ROOT
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"

        with pytest.raises(
            Conflict, match=rf"in use by another casemate serve \(pid {holder.pid}\)"
        ):
            serve.hold(data_dir)

        holder.kill()
    os.close(serve.hold(data_dir))


def test_an_open_data_directory_is_tightened(data_dir: Path) -> None:
    data_dir.chmod(0o755)

    serve.prepare_data_dir(data_dir)
    serve.prepare_data_dir(data_dir / "deep/er")

    for path in (data_dir, data_dir / "deep/er"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_another_users_qemu_may_pass_through_the_data_directory(data_dir: Path) -> None:
    serve.prepare_data_dir(data_dir, passable=True)

    assert stat.S_IMODE(data_dir.stat().st_mode) == 0o711


def test_a_directory_that_others_use_too_is_refused_and_left_as_it_is(data_dir: Path) -> None:
    shared = data_dir / "tmp"
    shared.mkdir()
    shared.chmod(0o1777)

    with pytest.raises(Invalid, match="data_dir: .* choose a directory of the service's own"):
        serve.prepare_data_dir(shared)

    assert stat.S_IMODE(shared.stat().st_mode) == 0o1777


def test_a_directory_of_another_user_is_refused(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: data_dir.stat().st_uid + 1)

    with pytest.raises(Invalid, match="data_dir"):
        serve.prepare_data_dir(data_dir)


def test_an_address_is_bound_as_written(data_dir: Path) -> None:
    assert serve.bind_of("tcp:127.0.0.1:80") == "127.0.0.1:80"
    assert serve.bind_of("tcp:[::1]:80") == "[::1]:80"
    assert serve.bind_of(f"unix:{data_dir}/a") == f"unix:{data_dir}/a"
    assert serve.bind_of("unix:./a") == f"unix:{Path.cwd()}/a"


def test_a_url_in_the_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CASEMATE_ADDRESS", "https://casemate.example.org")

    with pytest.raises(Invalid, match="CASEMATE_ADDRESS: is a URL"):
        serve.run(None, None)


def test_a_stale_socket_is_taken_over_and_a_live_one_is_not(data_dir: Path) -> None:
    path = data_dir / "http.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with pytest.raises(Conflict, match=f"another program listens on {path}"):
            serve.bind_of(f"unix:{path}")

    assert path.exists()
    assert serve.bind_of(f"unix:{path}") == f"unix:{path}"


@pytest.mark.parametrize("setting", ["", "192.0.2.7"])
def test_a_proxy_over_tcp_is_believed_only_where_it_is_named(
    config: Config, host: Host, monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", setting)

    settings = Server(serve.settings_of(config), lambda: create_app(config, host), None).cfg

    assert settings.forwarded_allow_ips == ([setting] if setting else [])
