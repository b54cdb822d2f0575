"""The only place that starts a process and waits for it (vmm/process.py starts those that stay)."""

from __future__ import annotations

import ctypes
import fcntl
import logging
import os
import signal
import subprocess
import sys
import termios
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from core.errors import Unavailable

logger = logging.getLogger(__name__)

_PR_SET_PDEATHSIG = 1  # linux/prctl.h

# Children get this environment and nothing else: no secret of ours is inherited.
CLEAN_ENV: Mapping[str, str] = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C.UTF-8",
}


# A program that was started and not waited for.
Started = subprocess.Popen[bytes]


class CommandFailed(Unavailable):
    """A program that was run to its end did not succeed; the message shows its last words."""

    def __init__(self, argv: Sequence[str], code: int | None, output: str) -> None:
        how = "timed out" if code is None else f"exited with {code}"
        tail = output.strip()[-2000:]
        super().__init__(f"{os.path.basename(argv[0])} {how}: {tail or 'no output'}")
        self.argv = list(argv)
        self.code = code
        self.output = output


def run(
    argv: Sequence[str | os.PathLike[str]],
    *,
    input: bytes = b"",
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout_s: float = 600,
    check: bool = True,
) -> subprocess.CompletedProcess[bytes]:
    """Runs a program to its end and returns its code and captured output (bytes).

    Its input is `input`, its environment CLEAN_ENV plus `env`, and no descriptor of ours.
    Raises CommandFailed when it ends with another code than 0 (unless `check` is off), is not
    there, or runs longer than `timeout_s` seconds.
    """
    args = [os.fspath(arg) for arg in argv]
    logger.debug("running %s", args)
    try:
        done = subprocess.run(
            args,
            input=input,
            env={**CLEAN_ENV, **(env or {})},
            cwd=cwd,
            timeout=timeout_s,
            capture_output=True,
            check=False,
        )
    except FileNotFoundError as error:
        raise CommandFailed(args, 127, f"{error.filename} is not installed") from None
    except subprocess.TimeoutExpired as error:
        raise CommandFailed(args, None, (error.stderr or b"").decode(errors="replace")) from None
    if check and done.returncode != 0:
        raise CommandFailed(
            args, done.returncode, (done.stderr or done.stdout).decode(errors="replace")
        )
    return done


def start(
    argv: Sequence[str | os.PathLike[str]], *, env: Mapping[str, str] | None = None, log: Path
) -> Started:
    """Starts a program that serves until it is told to stop; its output is appended to the file `log`.

    It stays in our process session and gets our environment plus `env`: it is a part of ourselves.
    """
    with open(log, "ab") as output:
        return subprocess.Popen(
            [os.fspath(arg) for arg in argv],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, **(env or {})},
            # Ctrl-C at the terminal is ours to handle: we stop the program in order.
            process_group=0,
        )


def start_on_terminal(
    argv: Sequence[str], terminal: int, *, env: Mapping[str, str], enter: Callable[[], None]
) -> Started:
    """Starts a program as the leader of a session of its own, with the terminal of the descriptor as its input,
    output and controlling terminal.

    `enter` runs in the new process before the program, with our rights: it changes root, folder and user, calls the
    system and nothing else.  Raises CommandFailed when there is no such program or `enter` fails.
    """

    def become() -> None:
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        enter()

    try:
        return subprocess.Popen(
            list(argv),
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            env=dict(env),
            preexec_fn=become,  # noqa: PLW1509 - it asks for no lock that another thread may hold
        )
    except (OSError, subprocess.SubprocessError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise CommandFailed(argv, 127, f"cannot be started: {why}") from None


def stop(process: Started, *, patience_s: float) -> None:
    """Ends a program of `start` in order, and by force when it takes longer than `patience_s` seconds."""
    process.terminate()  # nothing happens when it has ended already
    try:
        process.wait(patience_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def end_with_parent(parent: int) -> None:
    """Asks the kernel to kill this process when its parent, process `parent`, ends in whatever way.

    SIGKILL, since a polite signal is noticed up to a second later, and the parent that ends in order has
    stopped us before.  Exits at once when it has ended already.  Source: prctl(2), PR_SET_PDEATHSIG.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(0)
