"""The tiny process beside each QEMU: holds the VM's lock with it, and writes down how it ended.

Run as a program by vmm/process.py with the standard library alone (`python -I -S runner.py WORKDIR`), so
that it is small and outlives the service.  It reads launch.json, starts QEMU with the locked descriptor
of process.lock, writes process.json, waits, and writes exit.json.  The lock is held while either lives.
"""

import contextlib
import fcntl
import json
import os
import resource
import signal
import sys
import time

ALREADY_RUNNING = 75
# A look at the lock by the service holds it for a moment: that must not be mistaken for a running VM.
LOCK_PATIENCE_S = 1.0


def main(workdir: str) -> int:
    """Starts the VM of a work directory; returns once its process is written down."""
    os.chdir(workdir)
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with open("launch.json") as file:
        argv = json.load(file)["argv"]
    lock = os.open("process.lock", os.O_RDWR | os.O_CREAT, 0o600)
    if not take(lock):
        return ALREADY_RUNNING
    for stale in ("exit.json", "process.json"):
        if os.path.exists(stale):
            os.unlink(stale)
    written, done = os.pipe()
    if os.fork() != 0:
        # Gone at once, so that whoever started us has no child to wait for later.
        os.close(done)
        return 0 if os.read(written, 1) else 1
    os.close(written)
    watch(argv, lock, done)
    return 0


def take(lock: int) -> bool:
    """Whether the lock could be had."""
    deadline = time.monotonic() + LOCK_PATIENCE_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)


def watch(argv: list[str], lock: int, done: int) -> None:
    """Starts QEMU, reports it, and stays until it has ended."""
    os.set_inheritable(lock, True)
    environment = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
    pid = os.posix_spawnp(argv[0], argv, environment, setpgroup=0)
    identity = {"pid": pid, "start": start_time(pid), "boot_id": boot_id()}
    point("runner.spawned")
    replace("process.json", identity)
    point("runner.recorded")
    os.write(done, b"+")
    os.close(done)
    _, status = os.waitpid(pid, 0)
    point("runner.ended")
    code = os.waitstatus_to_exitcode(status)
    replace(
        "exit.json",
        identity
        | {
            "code": code if code >= 0 else None,
            "signal": -code if code < 0 else None,
            "at_ms": time.time_ns() // 1_000_000,
        },
    )


def point(name: str) -> None:
    """core/faults.py for this program, which imports nothing of ours: told of an armed point by its parent."""
    if os.environ.get("CASEMATE_FAULT") == name:
        os.write(2, f"fault point {name}\n".encode())
        os.kill(os.getpid(), signal.SIGKILL)


def start_time(pid: int) -> int:
    """Field 22 of /proc/PID/stat: with the pid, the identity of a process."""
    with open(f"/proc/{pid}/stat") as file:
        return int(file.read().rpartition(")")[2].split()[19])


def boot_id() -> str:
    """The id of this boot of the host."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def replace(name: str, value: dict[str, object]) -> None:
    """Writes a JSON file as one step."""
    # Another user may work in this folder (cvm.user) and leave a link under that name.
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name + ".new")
    fd = os.open(name + ".new", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "w") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())
    os.rename(name + ".new", name)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
