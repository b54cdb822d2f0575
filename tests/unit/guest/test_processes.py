"""Processes of the test's own, looked at and ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from guest import processes
from tests.common.waiting import until

ROOT = Path(__file__).parents[3]


@pytest.fixture
def shell() -> Iterator[subprocess.Popen[bytes]]:
    """A shell in a session of its own, with a child and a grandchild."""
    script = "sh -c 'sleep 1000; :' & trap '' TERM; echo up; wait; sleep 1000"
    with subprocess.Popen(["sh", "-c", script], stdout=-1, start_new_session=True) as process:
        assert process.stdout is not None and process.stdout.readline() == b"up\n"
        yield process
        processes.kill(processes.session(process.pid))


def test_descendants_are_found_at_any_depth(shell: subprocess.Popen[bytes]) -> None:
    until(lambda: len(processes.descendants(shell.pid)) == 2)

    assert shell.pid in processes.descendants(os.getpid())
    assert processes.session(shell.pid) == {shell.pid} | processes.descendants(shell.pid)


def test_a_process_that_ignores_sigterm_gets_sighup(shell: subprocess.Popen[bytes]) -> None:
    processes.ask_to_end([shell.pid])

    assert shell.wait(30) == -signal.SIGHUP


def test_any_other_process_gets_sigterm() -> None:
    with subprocess.Popen(["sleep", "1000"]) as process:
        processes.ask_to_end([process.pid])

        assert process.wait(30) == -signal.SIGTERM


# What an interactive shell does about each fork, again and again.
_FORKING = """
import signal
term = {signal.SIGTERM}
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("up", flush=True)
while True:
    signal.pthread_sigmask(signal.SIG_BLOCK, term)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.sigtimedwait({signal.SIGUSR1}, 0.002)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, term)
    signal.sigtimedwait({signal.SIGUSR1}, 0.002)
"""


@pytest.mark.parametrize("turn", range(5))
def test_a_shell_in_the_middle_of_a_fork_is_reached(turn: int) -> None:
    with subprocess.Popen([sys.executable, "-ISc", _FORKING], stdout=-1) as process:
        assert process.stdout is not None and process.stdout.readline() == b"up\n"
        try:
            processes.ask_to_end([process.pid])
            assert process.wait(10) == -signal.SIGHUP
        finally:
            process.kill()


def test_a_process_that_blocks_sigterm_for_good_is_sent_it() -> None:
    program = (
        "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, {15}); print('up', flush=True); "
        "raise SystemExit(signal.sigwait({15}) + 1)"
    )
    with subprocess.Popen([sys.executable, "-ISc", program], stdout=-1) as process:
        assert process.stdout is not None and process.stdout.readline() == b"up\n"

        processes.ask_to_end([process.pid])

        assert process.wait(30) == 16


def test_a_process_that_is_gone_is_no_obstacle() -> None:
    with subprocess.Popen(["true"]) as process:
        process.wait(10)

    processes.ask_to_end([process.pid])
    processes.kill([process.pid])


_BURY = """
import os
import subprocess

from guest import processes
from tests.common.waiting import until

def dead():
    return {each.pid for each in processes.table().values() if each.parent == mine and each.state == "Z"}

mine = os.getpid()
processes.adopt_orphans()
child = subprocess.Popen(["sh", "-c", "exit 7"])
known = subprocess.Popen(["sh", "-c", "exit 8"], start_new_session=True)
subprocess.run(["sh", "-c", "setsid sh -c 'sleep 0.1' & exit"], check=True)
until(lambda: len(dead()) == 3)
processes.bury_orphans({known.pid})
assert dead() == {child.pid, known.pid}
assert child.wait() == 7 and known.wait() == 8
"""


def test_orphans_that_ended_are_collected_and_nobody_elses_children() -> None:
    subprocess.run([sys.executable, "-c", _BURY], check=True, timeout=60, cwd=ROOT)
