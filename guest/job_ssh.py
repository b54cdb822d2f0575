"""The SSH server of a run's VM: started for a job, with the keys of that job, and ended before the next one.

Only a VM whose measured app-compose says `"runner_ssh": true` has one.  It takes keys alone; its own key is drawn in
this VM at this boot.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from core import files, proc
from guest import processes
from guest.job_room import SFTP, Account

PROGRAM = "/usr/sbin/sshd"
# sshd(8): where it works before it knows who is calling; root's alone.
PRIVILEGE_SEPARATION = Path("/run/sshd")
# Below the agent's state, which is closed to all but root.
FOLDER = "ssh"
STOP_S = 1.0


@dataclass(frozen=True)
class Landing:
    """Where a login ends up: `prefix` before a command (podman exec), or a root, folder and account of the guest."""

    env: Mapping[str, str]
    prefix: Sequence[str] = ()
    root: str = ""
    folder: str = "/"
    account: Account | None = None


class Sshd:
    """The server, with its files below the agent's state folder."""

    def __init__(self, state: Path) -> None:
        self._folder = state / FOLDER
        self._process: proc.Started | None = None

    @property
    def pids(self) -> set[int]:
        """Its process, if there is one."""
        return {self._process.pid} if self._process else set()

    def start(self, keys: Sequence[str], landing: Landing) -> None:
        """Lets these keys in, in place of all others, and leads them to a landing."""
        self.stop()
        self._folder.mkdir(mode=0o700, exist_ok=True)
        PRIVILEGE_SEPARATION.mkdir(mode=0o755, exist_ok=True)
        lines = "".join(f"{key.strip()}\n" for key in keys if "\n" not in key.strip())
        files.write_atomic(self._folder / "authorized_keys", lines)
        files.write_atomic(landing_file(self._folder), json.dumps(asdict(landing)))
        self.make_key()
        files.write_atomic(self._folder / "config", configuration(self._folder))
        argv = [PROGRAM, "-D", "-e", "-f", str(self._folder / "config")]
        self._process = proc.start(argv, log=self._folder / "log")

    def make_key(self) -> None:
        """Draws the server's own key, unless there is one."""
        path = self._folder / "host_key"
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists():
            files.write_once(path, new_key())

    def stop(self) -> None:
        """Ends the server and every login."""
        if self._process is not None:
            logins = processes.descendants(self._process.pid)
            proc.stop(self._process, patience_s=STOP_S)
            processes.kill(logins)
            self._process = None

    def logins(self) -> int:
        """How many connections there are now."""
        if self._process is None:
            return 0
        pid = self._process.pid
        return sum(each.parent == pid and each.state != "Z" for each in processes.table().values())


def landing_file(folder: Path) -> Path:
    """Where guest/job_shell.py reads of the landing."""
    return folder / "landing.json"


def configuration(folder: Path) -> str:
    """sshd_config(5): keys alone, and every login in the job's environment."""
    shell = f"/usr/bin/python3 -S -P -m guest.job_shell {landing_file(folder)}"
    lines = {
        "Port": "22",
        "HostKey": folder / "host_key",
        "AuthorizedKeysFile": folder / "authorized_keys",
        "AuthenticationMethods": "publickey",
        "PermitRootLogin": "prohibit-password",
        "PasswordAuthentication": "no",
        "KbdInteractiveAuthentication": "no",
        "UsePAM": "no",
        "PermitUserRC": "no",
        "PermitUserEnvironment": "no",
        "X11Forwarding": "no",
        "PrintMotd": "no",
        "PrintLastLog": "no",
        "PidFile": "none",
        # Log lines count lost clients; a dev environment's inactivity is measured by its connections.
        "ClientAliveInterval": "15",
        "Subsystem": f"sftp {SFTP}",
        "SetEnv": "PYTHONPATH=/usr/lib/python3/dist-packages",
        "ForceCommand": f"exec {shell}",
    }
    return "".join(f"{name} {value}\n" for name, value in lines.items())


def new_key() -> bytes:
    """A new host key as OpenSSH's file."""
    # Read in here: only VMs of runs need it, and under emulation it costs half a second.
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )
