"""The SSH connection to a job: its ports on this machine, and its name as a host of `ssh`.

Source: runs.md section 7 (the client's side), ssh_config(5).  The configuration is `~/.casemate/ssh/config`, which
`~/.ssh/config` includes while something is attached.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cli.runs_client import Api
from cli.runs_config import folder
from core import files, proc
from core.errors import Conflict, Invalid, Unavailable

CONNECT_S = 30.0
LOOK_S = 0.1
AGAIN_S = 1.0
STOP_S = 2.0
# In a container of dstack's own instances.
CONTAINER_SSH_PORT = 10022
_PORT = re.compile(r"(?:(?P<local>\d{1,5}|\*):)?(?P<remote>\d{1,5})")


@dataclass(frozen=True)
class Forward:
    """A port of the job on this machine; `local` 0 takes any."""

    local: int
    remote: int

    @classmethod
    def parse(cls, text: str) -> Forward:
        """`REMOTE`, `LOCAL:REMOTE` or `*:REMOTE`; Invalid for other text."""
        match = _PORT.fullmatch(text)
        if match is None or not 1 <= int(match["remote"]) <= 65535:
            raise Invalid.field("port", f"{text[:40]!r} must look like 8000 or 80:8000")
        local = match["local"] or match["remote"]
        return cls(0 if local == "*" else int(local), int(match["remote"]))


def forwards(job_spec: Any, wished: Sequence[str]) -> list[Forward]:
    """The ports to forward: those that the run declares, at other places where it is wished."""
    declared = {
        each["port"]: Forward(each.get("map_to_port") or each["port"], each["port"])
        for each in job_spec.get("app_specs") or []
    }
    return list((declared | {each.remote: each for each in map(Forward.parse, wished)}).values())


@dataclass(frozen=True)
class Tunnel:
    """An open connection."""

    host: str
    ports: Mapping[int, int]  # of the job -> of this machine


@contextlib.contextmanager
def opened(
    api: Api, run: Any, job: Any, ports: Sequence[Forward], *, bind: str, identity: Path | None
) -> Iterator[Tunnel]:
    """Connects to a job for as long as the block lasts.

    Conflict for a local port that is taken, Unavailable when no connection comes about.
    """
    host = run["run_spec"]["run_name"]
    if job["job_spec"]["job_num"] or job["job_spec"]["replica_num"]:
        host = job["job_spec"]["job_name"]
    key = identity or _key(api, run)
    own = folder() / "ssh"
    own.mkdir(mode=0o700, parents=True, exist_ok=True)
    _include(own / "config")
    text = host_config(host, job["job_submissions"][-1], job["job_spec"], key)
    local = {each.remote: each.local or _free_port(bind) for each in ports}
    for port in local.values():
        _check_free(bind, port)
    _edit(own / "config", host, text)
    try:
        with _connected(own, host, bind, local):
            yield Tunnel(host, local)
    finally:
        _edit(own / "config", host, "")


def host_config(host: str, submission: Any, job_spec: Any, key: Path) -> str:
    """The entries of a job for ssh_config(5); a container of dstack's is reached through its machine."""
    data, runtime = submission["job_provisioning_data"], submission.get("job_runtime_data") or {}
    if not data or not data.get("hostname") or not data.get("ssh_port"):
        raise Unavailable("the run has no machine to attach to yet")
    user = runtime.get("username") or (job_spec.get("user") or {}).get("username") or "root"
    if not data["dockerized"]:
        return _entry(host, data["hostname"], data["ssh_port"], user, key)
    port = (runtime.get("ports") or {}).get(str(CONTAINER_SSH_PORT), CONTAINER_SSH_PORT)
    machine = _entry(f"{host}-host", data["hostname"], data["ssh_port"], data["username"], key)
    return machine + _entry(host, "localhost", port, user, key, f"    ProxyJump {host}-host\n")


def _entry(host: str, address: str, port: int, user: str, key: Path, more: str = "") -> str:
    # A server's words, in lines of a file that commands programs.
    for word in (host, address, str(port), user):
        if not re.fullmatch(r"[A-Za-z0-9_.:-]{1,253}", word):
            raise Invalid(f"the server names a machine that cannot be one: {word[:60]!r}")
    return (
        f"Host {host}\n    HostName {address}\n    Port {port}\n    User {user}\n"
        f'    IdentityFile "{key}"\n    IdentitiesOnly yes\n'
        # Each VM draws a key of its own, and nobody could know it.
        f"    StrictHostKeyChecking no\n    UserKnownHostsFile /dev/null\n    LogLevel ERROR\n{more}"
    )


def _key(api: Api, run: Any) -> Path:
    """The caller's own key, fetched; Invalid when the run was submitted with another one."""
    me = api.call("/api/users/get_my_user")
    if run["run_spec"]["ssh_key_pub"] != me["ssh_public_key"]:
        raise Invalid("the run was submitted with another SSH key; name its file with --ssh-identity")
    name = hashlib.sha1(api.entry.token.encode(), usedforsecurity=False).hexdigest()[:8]
    path = folder() / "ssh" / name
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    files.write_atomic(path, me["ssh_private_key"])
    files.write_atomic(path.with_suffix(".pub"), me["ssh_public_key"])
    return path


def _include(config: Path) -> None:
    """Lets a plain `ssh NAME` find what is attached."""
    theirs = Path.home() / ".ssh/config"
    line = f"Include {config}\n"
    theirs.parent.mkdir(mode=0o700, exist_ok=True)
    text = theirs.read_text() if theirs.exists() else ""
    if line not in text:
        files.write_atomic(theirs, line + text)


def _edit(config: Path, host: str, text: str) -> None:
    """Puts the entries of a host into the file, in place of those it had."""
    with files.locked(config.with_suffix(".lock"), timeout_s=5):
        old = config.read_text() if config.exists() else ""
        mark, end = f"# {host}\n", f"# end of {host}\n"
        kept = re.sub(f"(?ms)^{re.escape(mark)}.*?^{re.escape(end)}", "", old)
        files.write_atomic(config, kept + (mark + text + end if text else ""))


def _free_port(bind: str) -> int:
    with socket.create_server((bind, 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def _check_free(bind: str, port: int) -> None:
    try:
        with socket.create_server((bind, port)):
            return
    except OSError:
        raise Conflict(
            f"port {port} of this machine is in use; take another one with -p LOCAL:{port}"
        ) from None


@contextlib.contextmanager
def _connected(own: Path, host: str, bind: str, local: Mapping[int, int]) -> Iterator[None]:
    log = own / f"{host}.log"
    log.unlink(missing_ok=True)
    argv = ["ssh", "-F", str(own / "config"), "-N", "-o", "ExitOnForwardFailure=yes"]
    # Says when it is there: a command that runs on this machine once the connection stands.
    ready = own / f"{host}.ready"
    ready.unlink(missing_ok=True)
    argv += ["-o", "PermitLocalCommand=yes", "-o", f'LocalCommand=touch "{ready}"']
    argv += ["-o", "BatchMode=yes", "-o", "ServerAliveInterval=15"]
    for remote, port in local.items():
        argv += ["-L", f"{bind}:{port}:localhost:{remote}"]
    process = _start(argv, host, log, ready)
    try:
        yield
    finally:
        proc.stop(process, patience_s=STOP_S)
        ready.unlink(missing_ok=True)


def _start(argv: list[str], host: str, log: Path, ready: Path) -> proc.Started:
    deadline = time.monotonic() + CONNECT_S
    while True:
        try:
            process = proc.start([*argv, host], log=log)
        except FileNotFoundError:
            raise Unavailable("ssh is not installed on this machine") from None
        while process.poll() is None and time.monotonic() < deadline:
            if ready.exists():
                return process
            time.sleep(LOOK_S)
        proc.stop(process, patience_s=STOP_S)
        if time.monotonic() >= deadline:
            said = log.read_text(errors="replace").strip().splitlines()
            raise Unavailable(
                f"no SSH connection to {host}: {said[-1] if said else 'no answer'} "
                "(a host with `[runs] ssh = false` has no SSH server in its VMs)"
            )
        time.sleep(AGAIN_S)
