"""The SSH connection to a job: its ports on this machine, and its name as a host of `ssh`.

Source: runs.md section 7 (the client's side), ssh_config(5).  The configuration is `~/.casemate/ssh/config`, which
`~/.ssh/config` includes while something is attached.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from cli.runs_client import Api
from cli.runs_config import folder
from core import files, proc
from core.errors import Conflict, Invalid, Unavailable

CONNECT_S = 30.0
LOOK_S = 0.2
STOP_S = 2.0
OURS = "remote"  # the backend that Casemate's VMs are shown as
# In a container of dstack's own instances.
CONTAINER_SSH_PORT = 10022
# Each attached process has entries of its own: of two for one host the newer comes first, and counts.
_ENTRY = re.compile(r"(?ms)^# (?P<host>\S+) (?P<pid>\d+)\n.*?^# end\n")
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


@dataclass(frozen=True)
class Wish:
    """How somebody wants to be connected: ports at other places than declared, the address, the key."""

    ports: Sequence[Forward] = ()
    bind: str = "localhost"
    identity: Path | None = None

    @classmethod
    def of(cls, ports: Sequence[str], bind: str, identity: Path | None) -> Wish:
        """What a command line says."""
        return cls(tuple(map(Forward.parse, ports)), bind, identity)

    def forwards(self, job_spec: Any) -> list[Forward]:
        """The ports to forward: those that a job declares, at other places where it is wished."""
        declared = [
            Forward(each.get("map_to_port") or 0, each["port"])
            for each in job_spec.get("app_specs") or []
        ]
        if port := job_spec.get("service_port"):
            declared.append(Forward(0, port))
        return list({each.remote: each for each in (*declared, *self.ports)}.values())

    def check_free(self, job_spec: Any) -> None:
        """Conflict when a port that a job would have here is taken."""
        for each in self.forwards(job_spec):
            if each.local:
                _check_free(self.bind, each)


@dataclass(frozen=True)
class Tunnel:
    """An open connection."""

    host: str
    bind: str
    ports: Mapping[int, int]  # of the job -> of this machine
    process: proc.Started

    def is_open(self) -> bool:
        """Whether it still stands."""
        return self.process.poll() is None


def never() -> bool:
    """Nobody gives up before the time is over."""
    return False


@contextlib.contextmanager
def ending_in_order() -> Iterator[None]:
    """Lets SIGTERM, and the end of the terminal, take a connection away before they end us."""

    def end(number: int, _: FrameType | None) -> None:
        sys.exit(128 + number)

    ours = [each for each in (signal.SIGTERM, signal.SIGHUP) if _is_default(each)]
    for each in ours:
        signal.signal(each, end)
    try:
        yield
    finally:
        for each in ours:
            signal.signal(each, signal.SIG_DFL)


def _is_default(number: signal.Signals) -> bool:
    # nohup(1) ignores one of them, and means it.
    return signal.getsignal(number) is signal.SIG_DFL


@contextlib.contextmanager
def opened(
    api: Api, run: Any, job: Any, wish: Wish, *, is_given_up: Callable[[], bool] = never
) -> Iterator[Tunnel]:
    """Connects to a job for as long as the block lasts.

    Conflict for a local port that is taken, Unavailable when no connection comes about.
    """
    host = run["run_spec"]["run_name"]
    if job["job_spec"]["job_num"] or job["job_spec"]["replica_num"]:
        host = job["job_spec"]["job_name"]
    key = (wish.identity or _key(api, run)).absolute()
    own = folder() / "ssh"
    own.mkdir(mode=0o700, parents=True, exist_ok=True)
    text = host_config(host, job["job_submissions"][-1], job["job_spec"], key)
    wish.check_free(job["job_spec"])
    wanted = wish.forwards(job["job_spec"])
    local = {each.remote: each.local or _free_port(wish.bind) for each in wanted}
    _include(own / "config")
    _edit(own / "config", host, text)
    try:
        process = _connected(own, host, _forwarding(wish.bind, local), is_given_up)
        try:
            yield Tunnel(host, wish.bind, local, process)
        finally:
            proc.stop(process, patience_s=STOP_S)
    finally:
        _edit(own / "config", host, "")


def host_config(host: str, submission: Any, job_spec: Any, key: Path) -> str:
    """The entries of a job for ssh_config(5); a container of dstack's is reached through its machine."""
    data, runtime = submission["job_provisioning_data"], submission.get("job_runtime_data") or {}
    if not data or not data.get("hostname") or not data.get("ssh_port"):
        raise Unavailable("the run has no machine to attach to yet")
    if (data["backend"], data["ssh_port"], data["dockerized"]) == (OURS, 22, False):
        # Casemate forwards another port to its VMs; this one would be the host's own.
        raise Unavailable("the server's VMs have no SSH server (`[runs] ssh = false`)")
    user = runtime.get("username") or (job_spec.get("user") or {}).get("username") or "root"
    if not data["dockerized"]:
        return _entry(host, data["hostname"], data["ssh_port"], user, key)
    port = (runtime.get("ports") or {}).get(str(CONTAINER_SSH_PORT), CONTAINER_SSH_PORT)
    machine = _entry(f"{host}-host", data["hostname"], data["ssh_port"], data["username"], key)
    return machine + _entry(host, "localhost", port, user, key, f"    ProxyJump {host}-host\n")


def _entry(host: str, address: str, port: int, user: str, key: Path, more: str = "") -> str:
    # A server's words, in lines of a file that commands programs.
    for word in (host, address, str(port), user):
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,252}", word):
            raise Invalid(f"the server names a machine that cannot be one: {word[:60]!r}")
    return (
        f"Host {host}\n    HostName {address}\n    Port {port}\n    User {user}\n"
        f"    IdentityFile {_quoted(key)}\n    IdentitiesOnly yes\n"
        # Each VM draws a key of its own, and nobody could know it.
        f"    StrictHostKeyChecking no\n    UserKnownHostsFile /dev/null\n    LogLevel ERROR\n{more}"
    )


def _quoted(path: Path) -> str:
    # ssh_config(5): a percent sign begins a token.
    return '"' + str(path).replace("%", "%%") + '"'


def _key(api: Api, run: Any) -> Path:
    """The caller's own key, fetched; Invalid when the run was submitted with another one."""
    me = api.call("/api/users/get_my_user")
    if run["run_spec"]["ssh_key_pub"] != me["ssh_public_key"]:
        raise Invalid(
            "the run was submitted with another SSH key; name its file with --ssh-identity"
        )
    name = hashlib.sha1(api.entry.token.encode(), usedforsecurity=False).hexdigest()[:8]
    path = folder() / "ssh" / name
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    files.write_atomic(path, me["ssh_private_key"])
    files.write_atomic(path.with_suffix(".pub"), me["ssh_public_key"])
    return path


def _include(config: Path) -> None:
    """Lets a plain `ssh NAME` find what is attached."""
    # Resolved: people link it into folders of theirs.
    theirs = (Path.home() / ".ssh/config").resolve()
    line = f'Include "{config}"\n'.encode()
    theirs.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    text = theirs.read_bytes() if theirs.exists() else b""
    if line not in text:
        files.write_atomic(theirs, line + text)


def _edit(config: Path, host: str, text: str) -> None:
    """Puts our entries for a host before those of others, or takes them out; what dead processes left goes too."""
    with files.locked(config.with_suffix(".lock"), timeout_s=5):
        old = config.read_text() if config.exists() else ""
        kept = "".join(
            found[0]
            for found in _ENTRY.finditer(old)
            if (found["host"], int(found["pid"])) != (host, os.getpid())
            and Path("/proc", found["pid"]).exists()
        )
        ours = f"# {host} {os.getpid()}\n{text}# end\n" if text else ""
        files.write_atomic(config, ours + kept)


def _free_port(bind: str) -> int:
    with _listening(bind, 0) as probe:
        port: int = probe.getsockname()[1]
        return port


def _check_free(bind: str, wanted: Forward) -> None:
    try:
        with _listening(bind, wanted.local):
            return
    except OSError as error:
        raise Conflict(
            f"port {wanted.local} of {bind} cannot be had ({error.strerror}); "
            f"choose another one, as in -p {wanted.local % 65535 + 1}:{wanted.remote}"
        ) from None


def _listening(bind: str, port: int) -> socket.socket:
    family, _, _, _, address = socket.getaddrinfo(bind, port, type=socket.SOCK_STREAM)[0]
    return socket.create_server(address[:2], family=family)


def _forwarding(bind: str, local: Mapping[int, int]) -> list[str]:
    address = f"[{bind}]" if ":" in bind else bind
    return [
        word
        for remote, port in local.items()
        for word in ("-L", f"{address}:{port}:localhost:{remote}")
    ]


def _connected(
    own: Path, host: str, forwarding: Sequence[str], is_given_up: Callable[[], bool]
) -> proc.Started:
    """The program that holds a connection, as soon as it stands; it is tried again until time is over."""
    # Says when it is there: a command of this machine that ssh runs once all stands.
    ready, log = own / f"{host}.{os.getpid()}.ready", own / f"{host}.{os.getpid()}.log"
    options = {
        "BatchMode": "yes", "ExitOnForwardFailure": "yes", "ServerAliveInterval": "15",
        "PermitLocalCommand": "yes", "LocalCommand": f"touch {_quoted(ready)}",
    }  # fmt: skip
    words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    argv = ["ssh", "-F", str(own / "config"), "-N", *words, *forwarding, host]
    deadline = time.monotonic() + CONNECT_S
    try:
        while True:
            try:
                process = proc.start(argv, log=log)
            except FileNotFoundError:
                raise Unavailable("ssh is not installed on this machine") from None
            if _stands(process, ready, lambda: time.monotonic() > deadline or is_given_up()):
                return process
            proc.stop(process, patience_s=STOP_S)
            if time.monotonic() > deadline or is_given_up():
                said = log.read_text(errors="replace").strip().splitlines()
                raise Unavailable(
                    f"no SSH connection to {host}: {said[-1] if said else 'no answer'}"
                )
            time.sleep(LOOK_S)
    finally:
        for path in (ready, log):
            path.unlink(missing_ok=True)


def _stands(process: proc.Started, ready: Path, is_over: Callable[[], bool]) -> bool:
    while process.poll() is None and not is_over():
        if ready.exists():
            return True
        time.sleep(LOOK_S)
    return False
