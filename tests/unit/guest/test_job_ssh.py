"""The SSH server's files and where its logins end up; the server itself runs in tests/system/test_runs_vm.py."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from cryptography.hazmat.primitives.serialization import load_ssh_private_key

from guest import job_room, job_shell, job_ssh
from guest.job_room import Account
from guest.job_ssh import Landing, Sshd

ROOT = Account("root", 0, 0, (0,), "/root")


def test_the_server_takes_keys_and_nothing_else(tmp_path: Path) -> None:
    lines = dict(line.split(" ", 1) for line in job_ssh.configuration(tmp_path).splitlines())

    assert lines["AuthenticationMethods"] == "publickey"
    assert lines["PermitRootLogin"] == "prohibit-password"
    assert lines["PasswordAuthentication"] == lines["KbdInteractiveAuthentication"] == "no"
    assert lines["UsePAM"] == lines["PermitUserEnvironment"] == lines["PermitUserRC"] == "no"
    assert lines["ForceCommand"].endswith(f"guest.job_shell {tmp_path}/landing.json")


def test_each_vm_draws_a_host_key_once(tmp_path: Path) -> None:
    first, second = Sshd(tmp_path / "one"), Sshd(tmp_path / "two")
    for each in (first, first, second):
        each.make_key()

    keys = [(tmp_path / name / "ssh/host_key") for name in ("one", "two")]
    assert all(load_ssh_private_key(key.read_bytes(), None) for key in keys)
    assert keys[0].read_bytes() != keys[1].read_bytes()
    assert all(key.stat().st_mode & 0o777 == 0o600 for key in keys)


def test_a_login_without_a_command_is_a_shell_in_the_jobs_environment() -> None:
    landing = asdict(Landing({"FOO": "bar"}, root="/data/room/root", folder="/work", account=ROOT))

    argv, env = job_shell.plan(json.loads(json.dumps(landing)), None, on_terminal=True)

    assert argv == ["/bin/bash", "-l"]
    assert env == {"FOO": "bar"}


def test_a_command_is_run_by_a_shell_and_sftp_by_its_own_program() -> None:
    landing = asdict(Landing({}, account=ROOT))

    for command in ("echo 'a b' | wc", job_room.SFTP):
        argv, _ = job_shell.plan(landing, command, on_terminal=False)
        assert argv == ["/bin/bash", "-c", command]


def test_a_login_of_a_job_with_an_image_enters_its_container() -> None:
    landing = asdict(Landing({}, ("/usr/bin/podman", "exec", "job")))

    with_terminal, _ = job_shell.plan(landing, None, on_terminal=True)
    assert with_terminal[:6] == ["/usr/bin/podman", "exec", "--interactive", "--tty", "job", "sh"]
    command, _ = job_shell.plan(landing, "id -u", on_terminal=False)
    assert command == ["/usr/bin/podman", "exec", "--interactive", "job", "sh", "-c", "id -u"]


def test_files_are_copied_into_a_container_by_the_guests_own_program() -> None:
    landing = asdict(Landing({}, ("/usr/bin/podman", "exec", "job")))

    argv, _ = job_shell.plan(landing, job_room.SFTP, on_terminal=False)

    assert argv[:4] == ["/usr/bin/podman", "exec", "--interactive", "job"]
    assert all(each.startswith(job_room.LENT) for each in (argv[4], argv[6], argv[7]))
    assert argv[7].endswith("/openssh/sftp-server")
