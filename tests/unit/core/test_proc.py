from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from core import proc
from core.proc import CommandFailed
from tests.common.waiting import until


def test_a_programs_output_and_code_come_back() -> None:
    done = proc.run(["sh", "-c", "cat; echo no >&2; exit 3"], input=b"in", check=False)

    assert (done.returncode, done.stdout, done.stderr) == (3, b"in", b"no\n")


def test_a_failure_says_program_code_and_last_words() -> None:
    with pytest.raises(CommandFailed, match="sh exited with 3: no") as failed:
        proc.run(["sh", "-c", "echo no >&2; exit 3"])

    assert (failed.value.code, failed.value.argv[0]) == (3, "sh")


def test_a_failure_without_words_says_so() -> None:
    with pytest.raises(CommandFailed, match="false exited with 1: no output"):
        proc.run(["false"])


def test_a_program_that_is_not_there_is_a_failure() -> None:
    with pytest.raises(CommandFailed, match="no-such-program is not installed"):
        proc.run(["no-such-program"], check=False)


def test_a_program_that_takes_too_long_is_ended() -> None:
    began = time.monotonic()

    with pytest.raises(CommandFailed, match="sleep timed out"):
        proc.run(["sleep", "60"], timeout_s=0.1)

    assert time.monotonic() - began < 10


def test_a_program_inherits_no_variable_and_no_descriptor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CASEMATE_ADMIN_TOKEN", "hunter2")
    script = "import os; print(sorted(os.environ)); print(os.listdir('/proc/self/fd'))"

    with open(tmp_path / "open", "w") as file:
        os.set_inheritable(file.fileno(), True)
        lines = proc.run([sys.executable, "-ISc", script], env={"A": "b"}).stdout.splitlines()

    assert lines[0] == b"['A', 'LC_ALL', 'PATH']"
    assert len(eval(lines[1])) == 4  # 0, 1, 2 and the folder that is being listed


def test_a_started_program_writes_to_its_log_and_knows_our_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INHERITED", "yes")
    (tmp_path / "log").write_text("before\n")

    started = proc.start(
        ["sh", "-c", "echo $INHERITED $OWN; echo no >&2"], env={"OWN": "too"}, log=tmp_path / "log"
    )

    assert started.wait(30) == 0
    assert (tmp_path / "log").read_text() == "before\nyes too\nno\n"


@pytest.mark.parametrize("stubborn", [False, True])
def test_a_program_that_serves_is_stopped_in_order_or_by_force(
    tmp_path: Path, stubborn: bool
) -> None:
    ignore = "trap '' TERM; " if stubborn else ""
    started = proc.start(
        ["sh", "-c", f"{ignore}echo ready; while :; do sleep 0.05; done"], log=tmp_path / "log"
    )
    until(lambda: "ready" in (tmp_path / "log").read_text())

    patience_s = 0.5 if stubborn else 60
    proc.stop(started, patience_s=patience_s)
    proc.stop(started, patience_s=patience_s)  # nothing more happens

    assert started.returncode == (-9 if stubborn else -15)
