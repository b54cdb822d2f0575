"""`casemate serve`: gunicorn with the application, and the one background process beside its workers."""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import logging
import os
import signal
import socket
import stat
import sys
import time
from pathlib import Path
from typing import Any

import migrations
import secretvm.duties
from app import create_app
from cli.server import Master, Server
from core import config as configuration
from core import faults, log
from core.config import Config
from core.errors import Conflict, Invalid
from core.proc import end_with_parent
from runs.scheduler import Scheduler
from vmm import discovery, records
from vmm.background import Background, Duty
from vmm.host import Host, tee_platform
from vmm.service import Vms
from vmm.worker import Worker

logger = logging.getLogger(__name__)

# A background process that fails at once must not be started in a tight loop.
RESPAWN_S = 0.9


def run(config_file: Path | None, parent: int | None) -> None:
    """Runs the service until a signal says otherwise (cli/host.py has the command)."""
    if "://" in os.environ.get("CASEMATE_ADDRESS", ""):
        raise Invalid.field("CASEMATE_ADDRESS", "is a URL; to listen give tcp:IP:PORT or unix:PATH")
    os.umask(0o077)
    log.setup()
    config = configuration.load(config_file)
    warn_of_strangers(config)
    faults.arm(os.environ, simulated=config.cvm.simulate, tee=tee_platform(config.cvm.platform))
    passable = bool(config.cvm.user)
    prepare_data_dir(config.data_dir, passable=passable)
    lock = hold(config.data_dir)
    migrations.upgrade(config.database)
    for folder in (config.run_path, config.image.path):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if passable:
            folder.chmod(0o711)
    host = Host.discover(config)
    if config.cvm.simulate:
        prepare_simulated_tee(config)
    announced, master = discovery.announce(config, config_file), os.getpid()
    try:
        Server(settings_of(config), lambda: create_app(config, host), parent, HostMaster).run()
    finally:
        # A worker's end passes here too: gunicorn forks it inside run().
        if announced is not None and os.getpid() == master:
            announced.unlink(missing_ok=True)
        os.close(lock)


def warn_of_strangers(config: Config) -> None:
    """Says what anybody may do who reaches an address that other machines reach."""
    if not is_open(config.address):
        return
    if not config.auth.enabled:
        logger.warning("authentication is off: whoever reaches %s is the operator", config.address)
    if config.secretvm.agents and not config.billing.enabled:
        logger.warning(
            "whoever reaches %s can make VMs with a key of their own making; "
            "set agents = false in [secretvm] if that is not meant",
            config.address,
        )


def is_open(address: str) -> bool:
    """Whether a configured address may be reached from other machines."""
    kind, _, rest = address.partition(":")
    host = rest.rpartition(":")[0].strip("[]")
    try:
        return kind == "tcp" and not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host != "localhost"


def prepare_data_dir(path: Path, *, passable: bool = False) -> None:
    """Makes the data directory, closed to group and others; an open one is tightened.

    `passable` lets another user's QEMU through to what it may open (cvm.user).  Invalid for a directory that
    others use too.
    """
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = path.stat()
    if found.st_mode & stat.S_ISVTX or found.st_uid != os.geteuid():
        raise Invalid.field(
            "data_dir",
            f"{path} is shared or another user's; choose a directory of the service's own",
        )
    path.chmod(0o711 if passable else 0o700)


def hold(data_dir: Path) -> int:
    """Takes the data directory for this process; Conflict says who has it.

    A POSIX record lock belongs to the process alone: forked workers do not keep it, and it is gone the moment
    this process is.
    """
    fd = os.open(data_dir / "serve.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        holder = os.read(fd, 32).decode().strip() or "unknown"
        os.close(fd)
        raise Conflict(f"{data_dir} is in use by another casemate serve (pid {holder})") from None
    os.ftruncate(fd, 0)
    os.pwrite(fd, str(os.getpid()).encode(), 0)
    return fd


def bind_of(address: str) -> str:
    """A configured address as gunicorn's; Conflict when a Unix socket there is alive."""
    kind, _, rest = address.partition(":")
    if kind == "tcp":
        return rest
    path = Path(rest).absolute()
    with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
        probe.connect(str(path))
        raise Conflict(f"another program listens on {path}")
    return f"unix:{path}"


def settings_of(config: Config) -> dict[str, Any]:
    """gunicorn's settings: threads outnumber streams."""
    return {
        "bind": bind_of(config.address),
        "workers": config.server.workers,
        "threads": config.server.threads,
        "worker_class": Worker,
        "umask": 0o007,
        # Who comes over the Unix socket may say that the client spoke TLS; over TCP only whom this names.
        "forwarded_allow_ips": os.environ.get("FORWARDED_ALLOW_IPS", ""),
        "proc_name": "casemate",
    }


class HostMaster(Master):
    """The arbiter of the service, which also keeps the background process alive."""

    def __init__(self, app: Server) -> None:
        self.born_ms = records.now_ms()
        self.background_pid = 0
        self.background_spawned = 0
        self.background_at = -RESPAWN_S
        super().__init__(app)

    def manage_workers(self) -> None:
        """Called once a second and whenever a child ends."""
        super().manage_workers()
        if not self._background_lives() and time.monotonic() - self.background_at > RESPAWN_S:
            self._spawn_background()

    def stop(self, graceful: bool = True) -> None:
        """Ends the workers and the background process."""
        if self.background_pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.background_pid, signal.SIGTERM)
        super().stop(graceful)

    def _background_lives(self) -> bool:
        if not self.background_pid:
            return False
        try:
            # gunicorn reaps all children; one that it has reaped is gone for kill too.
            os.kill(self.background_pid, 0)
        except ProcessLookupError:
            return False
        return True

    def _spawn_background(self) -> None:
        self.background_spawned += 1
        self.background_at = time.monotonic()
        first = self.background_spawned == 1
        parent = os.getpid()
        pid = os.fork()
        if pid:
            self.background_pid = pid
            if not first:
                logger.warning("the background process ended; a new one was started")
            return
        code = 1
        try:
            for number in self.SIGNALS:
                signal.signal(number, signal.SIG_DFL)
            end_with_parent(parent)
            for listener in self.LISTENERS:
                listener.sock.close()  # the descriptor alone: close() would delete a Unix socket
            vms: Vms = self.app.wsgi().extensions["vms"]
            Background(vms, duties(vms), self.born_ms).run(parent, recover=first)
            code = 0
        except BaseException:
            logger.exception("the background process failed")
        finally:
            # Not sys.exit: gunicorn's frames below must not run in this process.
            sys.stderr.flush()
            os._exit(code)


def duties(vms: Vms) -> list[Duty]:
    """What the areas above the VM manager must do once per host."""
    return [*secretvm.duties.of(vms), Scheduler(vms)]


def prepare_simulated_tee(config: Config) -> None:
    """Makes the host's simulated TEE: its seed once, its root and collateral for verifiers."""
    from vmm.simulation import prepare

    prepare(config.tee_dir)
