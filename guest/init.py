"""PID 1 of a real guest: reaps, keeps agent and engine running, boots, and ends the machine in order.

/sbin/init (image/rootfs) has mounted the kernel's file systems, loaded modules and started the network, and
then becomes this.  Children are forked from here without a new interpreter: what they need is imported once.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import struct
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from core.errors import CasemateError
from core.proc import CLEAN_ENV, run
from guest.console import say, say_failed
from guest.settings import GUEST, GUEST_SOCKET

SOCKET_FOLDERS = (Path("/var/run"), Path("/var/run/dstack"))
SOCKET_NAMES = ("dstack.sock", "tappd.sock")
PUBLIC_ADDRESS = ("0.0.0.0", 8090)
PAGES_ADDRESS = ("0.0.0.0", 29343)
ENGINE_SOCKET = Path(GUEST.docker_host.removeprefix("unix://"))
# Where programs look that were not told (guest-agent.md section 1).
DOCKER_SOCKET = Path("/var/run/docker.sock")
ENGINE = ("podman", "system", "service", "--time", "0")
ENGINE_SOCKET_S = 10.0
BACKLOG = 128
ENGINE_LOG = Path("/run/log/engine.log")

# An app gets this long to stop before it is killed.
STOP_APP_S = 8.0
CONTAINER_GRACE_S = 5
KILL_AFTER_S = 1.0
# A service that dies sooner than this after its start is not restarted at once.
TOO_SOON_S = 5.0
RESTART_DELAY_S = 1.0
LOOK_FOR_BUTTON_S = 2.0

# linux/input-event-codes.h; struct input_event of a 64-bit kernel.
_EV_KEY, _KEY_POWER, _PRESSED = 1, 116, 1
_INPUT_EVENT = struct.Struct("llHHi")
_POWER_OFF_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
# sd_listen_fds(3): the first descriptor of sockets that a supervisor hands over.
_LISTEN_FDS_START = 3
# What boot writes to us: the data disk is ready for the engine; the app wants the pages of port 29343.
_START_ENGINE = b"e"
_START_PAGES = b"p"


@dataclass
class Service:
    """A child that is started again when it ends."""

    name: str
    run: Callable[[], None]
    pid: int = 0
    started: float = 0.0
    due: float = 0.0


@dataclass
class Init:
    """What PID 1 has running and is waiting for."""

    services: list[Service] = field(default_factory=list)
    buttons: dict[int, str] = field(default_factory=dict)
    boot: int = 0
    ending: bool = False
    stopper: int = 0
    stop_by: float = 0.0


def fork(child: Callable[[], None]) -> int:
    """Runs `child` in a process of its own session and returns its pid."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, *_POWER_OFF_SIGNALS):
            signal.signal(number, signal.SIG_DFL)
        os.setsid()
        child()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:  # noqa: BLE001 - all that can be done with it here is to show it
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def agent_service(sockets: list[socket.socket]) -> Service:
    """The guest agent on sockets that outlive it."""

    def serve() -> None:
        from guest import listeners

        os.environ.update(hand_over([sock.fileno() for sock in sockets]))
        listeners.serve_guest(GUEST, lambda: os.kill(1, signal.SIGTERM))

    return Service("agent", serve)


def hand_over(fds: list[int]) -> dict[str, str]:
    """Places listening sockets where sd_listen_fds(3) says and returns the environment that says so."""
    # Out of the way first: a descriptor may stand where another is to go.
    first_free = _LISTEN_FDS_START + len(fds) + 64
    away = [os.dup2(fd, first_free + i) for i, fd in enumerate(fds)]
    for place, fd in enumerate(away, _LISTEN_FDS_START):
        os.dup2(fd, place)
        os.close(fd)
    return {"LISTEN_FDS": str(len(fds)), "LISTEN_PID": str(os.getpid())}


def engine_service() -> Service:
    """The container engine's API, which compose and the agent use.

    Its socket is made here, so that compose starts while the engine does and finds it when it needs it.
    """
    ENGINE_SOCKET.parent.mkdir(parents=True, exist_ok=True)
    listening = unix_socket(ENGINE_SOCKET, 0o600)
    DOCKER_SOCKET.unlink(missing_ok=True)
    DOCKER_SOCKET.symlink_to(ENGINE_SOCKET)

    def serve() -> None:
        log = os.open(ENGINE_LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(log, 1)
        os.dup2(log, 2)
        handed = hand_over([listening.fileno()])
        os.execvpe(ENGINE[0], ENGINE, {**CLEAN_ENV, **handed, "HOME": "/root"})

    return Service("engine", serve)


def pages_service() -> Service:
    """The pages of a SecretVM, in a process of their own: strangers who keep it busy keep nothing else busy."""
    listening = socket.create_server(PAGES_ADDRESS, backlog=BACKLOG)

    def serve() -> None:
        from guest import listeners

        os.environ.update(hand_over([listening.fileno()]))
        listeners.serve_pages(GUEST)

    return Service("pages", serve)


def stop_app() -> None:
    """Stops every running container, all at once, so that each can end in order."""
    from threading import Thread

    from guest.containers import Engine

    engine = Engine(GUEST.docker_host)

    def stop(container_id: str) -> None:
        with contextlib.suppress(CasemateError):
            engine.stop(container_id, CONTAINER_GRACE_S)

    try:
        running = [found.id for found in engine.list() if found.state == "running"]
    except CasemateError:
        # No engine, no app.
        return
    stopping = [Thread(target=stop, args=(container_id,)) for container_id in running]
    for thread in stopping:
        thread.start()
    for thread in stopping:
        thread.join()


def keep_running(init: Init) -> None:
    """Starts each service that is due."""
    now = time.monotonic()
    for service in init.services:
        if not service.pid and not init.ending and service.due <= now:
            service.pid = fork(service.run)
            service.started = now


def reap(init: Init) -> None:
    """Collects every child that ended, ours and those that lost their parent."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        code = os.waitstatus_to_exitcode(status)
        if pid == init.stopper:
            init.stop_by = 0.0
        if pid == init.boot and code:
            _boot_died(code)
        for service in init.services:
            if pid == service.pid:
                _ended(service, code)


def _ended(service: Service, code: int) -> None:
    now = time.monotonic()
    soon = now - service.started < TOO_SOON_S
    service.pid, service.due = 0, now + RESTART_DELAY_S if soon else now
    say(f"{service.name} ended with {code}")


def _boot_died(code: int) -> None:
    from guest import boot

    # It tells its own failures; this is for the one that could not: it waits for the host, so not here.
    fork(lambda: boot.fail(GUEST, f"the boot process ended with {code}"))


def find_buttons(init: Init, poller: select.poll, root: Path = Path("/")) -> None:
    """Watches every power button that has appeared."""
    for entry in (root / "sys/class/input").glob("event*"):
        known = entry.name in init.buttons.values()
        if not known and (entry / "device/name").read_text().strip() == "Power Button":
            fd = os.open(
                root / "dev/input" / entry.name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
            )
            init.buttons[fd] = entry.name
            poller.register(fd, select.POLLIN)


def is_pressed(fd: int) -> bool:
    """Whether the events waiting on an input device include a press of the power key."""
    try:
        data = os.read(fd, 64 * _INPUT_EVENT.size)
    except OSError:
        return False
    whole = data[: len(data) - len(data) % _INPUT_EVENT.size]
    return any(
        event[2:] == (_EV_KEY, _KEY_POWER, _PRESSED) for event in _INPUT_EVENT.iter_unpack(whole)
    )


def power_off() -> None:
    """Ends every process, puts the disk away and switches the machine off; does not return."""
    from guest import disk

    say("powering off")
    for number, grace_s in ((signal.SIGTERM, KILL_AFTER_S), (signal.SIGKILL, KILL_AFTER_S)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(-1, number)
        _wait_for_all(grace_s)
    disk.close(Path("/proc/mounts").read_text())
    os.sync()
    run(["poweroff", "-f"], check=False, timeout_s=10)


def _wait_for_all(timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                time.sleep(0.01)
        except ChildProcessError:
            return


def main() -> None:
    """The life of the machine."""
    if os.getpid() != 1:
        raise SystemExit("guest.init is PID 1 of a guest and nothing else")
    os.umask(0o022)
    # The image leaves OpenSSL's provider of outdated algorithms out; cryptography asks for it otherwise.
    os.environ["CRYPTOGRAPHY_OPENSSL_NO_LEGACY"] = "1"
    wake, woken = socket.socketpair()
    for end in (wake, woken):
        end.setblocking(False)
    asked: list[int] = []
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    for number in _POWER_OFF_SIGNALS:
        signal.signal(number, lambda number, frame: asked.append(number))
    signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)

    init = Init()
    boot_pipe = start(init)
    poller = select.poll()
    poller.register(woken, select.POLLIN)
    poller.register(boot_pipe, select.POLLIN)
    look_again = 0.0
    while True:
        reap(init)
        keep_running(init)
        if asked and not init.ending:
            begin_end(init)
        if init.ending and time.monotonic() >= init.stop_by:
            power_off()
        if time.monotonic() >= look_again:
            find_buttons(init, poller)
            look_again = time.monotonic() + (3600 if init.buttons else LOOK_FOR_BUTTON_S)
        for fd, _ in poller.poll(_pause_ms(init, look_again)):
            if fd == woken.fileno():
                woken.recv(4096)
            elif fd in init.buttons:
                asked += [signal.SIGTERM] if is_pressed(fd) else []
            elif not start_service(init, os.read(fd, 1)):
                poller.unregister(fd)


def start(init: Init) -> int:
    """Makes the sockets, starts boot and agent; returns the pipe on which boot asks for more."""
    GUEST.state.mkdir(mode=0o700, parents=True, exist_ok=True)
    Path("/run/log").mkdir(exist_ok=True)
    # Read once for both children.  The rest is read by each for itself, so that PID 1 always reacts.
    from guest import boot

    reading, writing = os.pipe()
    init.boot = fork(
        lambda: boot.main(
            GUEST, lambda: _ask_for_engine(writing), lambda: _ask(writing, _START_PAGES)
        )
    )
    os.close(writing)
    init.services.append(agent_service(make_sockets()))
    return reading


def start_service(init: Init, asked: bytes) -> bool:
    """Starts what boot asks for; False when it asks no more."""
    if asked == _START_ENGINE:
        init.services.append(engine_service())
    elif asked == _START_PAGES:
        init.services.append(pages_service())
    return bool(asked)


def make_sockets() -> list[socket.socket]:
    """The agent's sockets, made once: a container that mapped the file keeps its inode."""
    made = []
    for folder in SOCKET_FOLDERS:
        folder.mkdir(parents=True, exist_ok=True)
        for name in SOCKET_NAMES:
            # Containers with any user map them in (guest-agent.md section 1).
            made.append(unix_socket(folder / name, 0o666))
    # For the host where it speaks vsock; nobody else gets to it.
    made.append(unix_socket(GUEST.state / GUEST_SOCKET, 0o600))
    made.append(socket.create_server(PUBLIC_ADDRESS, backlog=BACKLOG))
    return made


def unix_socket(path: Path, mode: int) -> socket.socket:
    """A listening socket at `path`, in place of whatever stood there."""
    path.unlink(missing_ok=True)
    made = socket.socket(socket.AF_UNIX)
    made.bind(os.fspath(path))
    path.chmod(mode)
    made.listen(BACKLOG)
    return made


def _ask(pipe: int, what: bytes) -> None:
    os.write(pipe, what)


def _ask_for_engine(pipe: int) -> None:
    _ask(pipe, _START_ENGINE)
    deadline = time.monotonic() + ENGINE_SOCKET_S
    while not ENGINE_SOCKET.exists() and time.monotonic() < deadline:
        time.sleep(0.01)


def begin_end(init: Init) -> None:
    """Begins the orderly end: the app first, while the agent still answers."""
    say("stopping the app")
    init.ending = True
    init.stop_by = time.monotonic() + STOP_APP_S
    init.stopper = fork(stop_app)


def _pause_ms(init: Init, look_again: float) -> int:
    waiting = [service.due for service in init.services if not service.pid]
    times = [look_again, init.stop_by] if init.ending else [look_again, *waiting]
    return max(0, round(1000 * (min(times) - time.monotonic()))) + 1


def run_machine() -> None:
    """main(), and an orderly end instead of a kernel panic when it fails."""
    try:
        main()
    except Exception as error:  # noqa: BLE001 - PID 1 has nobody above it to tell
        traceback.print_exc()
        say_failed(f"internal error: {type(error).__name__}: {error}")
        power_off()


if __name__ == "__main__":
    run_machine()
