"""Jobs as real processes on real terminals, in the test's own files instead of a room."""

from __future__ import annotations

import resource
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from core.messages import Order
from guest import processes
from guest.job import EXITED, FAILED, MARK_S, PULLING, RUNNING, Job, Step
from tests.common.waiting import until

Begin = Callable[..., Job]


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Begin]:
    """Starts jobs; none outlives its test."""
    begun: list[Job] = []

    def start(*command: str, **fields: Any) -> Job:
        order = Order("j", command=command, **{"home_dir": str(tmp_path), **fields})
        job = Job(order, tmp_path / "files", None, threading.Condition())
        begun.append(job)
        threading.Thread(target=job.run, args=(lambda: None,), daemon=True).start()
        return job

    yield start
    for job in begun:
        job.stop(0)
        until(lambda job=job: job.is_over, what="the job's end")


def end_of(job: Job) -> Step:
    """The last step of a job."""
    until(lambda: job.is_over, what="the job's end")
    return job.steps[-1]


def output(job: Job) -> bytes:
    """What it has printed."""
    return job.output.read_bytes() if job.output.exists() else b""


def bash(script: str) -> tuple[str, ...]:
    """The command that clients of dstack send for a script."""
    return ("/bin/bash", "-i", "-c", script)


def test_a_job_has_a_terminal_its_variables_and_its_folder(begin: Begin, tmp_path: Path) -> None:
    env = [{"name": "GREETING", "value": "good day"}]
    folder = tmp_path / "made" / "for it"
    job = begin(*bash('tty; echo "$GREETING"; pwd'), env=env, working_dir=str(folder))

    assert end_of(job) == Step(EXITED, 0)
    terminal, *rest = output(job).split(b"\r\n")
    assert terminal.startswith(b"/dev/pts/")
    assert rest == [b"good day", str(folder).encode(), b""]
    assert [step.stage for step in job.steps] == [PULLING, RUNNING, EXITED]


@pytest.mark.parametrize(
    ("script", "status"), [("exit 7", 7), ("kill -SEGV $$", 128 + 11), ("true", 0)]
)
def test_the_exit_status_or_the_signal_is_told(begin: Begin, script: str, status: int) -> None:
    assert end_of(begin(*bash(script))) == Step(EXITED, status)


def test_a_megabyte_of_output_comes_byte_for_byte(begin: Begin, tmp_path: Path) -> None:
    wanted = bytes(range(32, 127)) * 11_000
    (tmp_path / "text").write_bytes(wanted)

    job = begin("cat", str(tmp_path / "text"))

    assert end_of(job) == Step(EXITED, 0)
    assert output(job) == wanted
    assert job.size == len(wanted)


@pytest.mark.parametrize("shell", [("/bin/bash", "-i", "-c"), ("/bin/sh", "-c")])
def test_a_program_that_lets_go_of_its_terminal_runs_to_its_own_end(
    begin: Begin, shell: tuple[str, ...]
) -> None:
    program = "import time; time.sleep(0.3); raise SystemExit(5)"

    job = begin(*shell, f"exec python3 -c '{program}' >/dev/null 2>&1 </dev/null")

    assert end_of(job) == Step(EXITED, 5)


def test_a_full_disk_ends_the_job_and_counts_what_is_in_the_file(
    begin: Begin,
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        # As on a disk that gets full, the last write takes a part.
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_001, limits[1]))
        job = begin("head", "-c", "1000000", "/dev/zero")
        end = end_of(job)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    assert end.stage == FAILED and end.message.startswith("executor_error: ")
    assert job.size == len(output(job)) == 100_001


def test_bytes_that_are_no_text_are_kept(begin: Begin) -> None:
    job = begin("printf", r"\377\000\302")

    assert end_of(job) == Step(EXITED, 0)
    assert output(job) == b"\xff\0\xc2"


def test_a_stop_lets_the_job_say_goodbye(begin: Begin) -> None:
    job = begin(*bash("trap 'echo bye; exit 3' TERM; echo up; while :; do sleep 0.05; done"))
    until(lambda: b"up" in output(job))

    job.stop(30)

    assert end_of(job).exit_status == 3
    assert output(job).endswith(b"bye\r\n")


def test_a_stop_reaches_an_interactive_shell_and_what_it_waits_for(begin: Begin) -> None:
    job = begin(*bash("echo up; sleep 1000; echo never"))
    until(lambda: b"up" in output(job))
    began = time.monotonic()

    job.stop(30)

    assert end_of(job).exit_status in (128 + 1, 128 + 15)
    assert time.monotonic() - began < 10
    assert b"never" not in output(job)


def test_a_deaf_job_is_killed_when_its_grace_is_over(begin: Begin) -> None:
    job = begin(*bash("trap '' TERM HUP; echo up; sleep 1000"))
    until(lambda: b"up" in output(job))

    job.stop(0.3)

    assert end_of(job) == Step(EXITED, 128 + 9)


def test_an_abort_during_the_grace_ends_the_job_at_once(begin: Begin) -> None:
    job = begin(*bash("trap '' TERM HUP; echo up; sleep 1000"))
    until(lambda: b"up" in output(job))
    began = time.monotonic()

    job.stop(1000)
    job.stop(0)

    assert end_of(job) == Step(EXITED, 128 + 9)
    assert time.monotonic() - began < 10


def test_what_a_job_leaves_in_the_background_ends_with_it(begin: Begin) -> None:
    job = begin(*bash("nohup sleep 1000 & disown; echo left $!"))

    assert end_of(job) == Step(EXITED, 0)
    left = int(output(job).split(b"left ")[1].split()[0])
    until(lambda: (found := processes.table().get(left)) is None or found.state == "Z")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"command": ("/no/such/program",)}, "creating_container_error: program"),
        ({"command": ()}, "creating_container_error: commands"),
        ({"user": "nobody-here"}, "creating_container_error: user"),
        ({"working_dir": "here"}, "creating_container_error: working_dir"),
        ({"env": [{"name": "A=B", "value": ""}]}, "creating_container_error: env"),
    ],
)
def test_a_job_that_cannot_begin_says_why(
    begin: Begin, fields: dict[str, Any], reason: str
) -> None:
    fields = {"command": ("true",), **fields}
    end = end_of(begin(*fields.pop("command"), **fields))

    assert end.stage == FAILED
    assert end.message.startswith(reason)


def test_a_job_runs_as_its_user(begin: Begin) -> None:
    job = begin("id", "-u", "-n", user="nobody", working_dir="/")

    assert end_of(job) == Step(EXITED, 0)
    assert output(job).strip() == b"nobody"


def test_a_time_is_found_in_the_output(begin: Begin, tmp_path: Path) -> None:
    job = begin(*bash(f"echo first; until [ -e {tmp_path}/go ]; do sleep 0.05; done; echo second"))
    began, _ = until(lambda: job._marks)[0]
    until(lambda: time.time() > began + MARK_S)
    (tmp_path / "go").touch()
    end_of(job)

    assert job.offset_at(began - 1) == 0
    assert job.offset_at(began + MARK_S / 2) == output(job).index(b"second")
    assert job.offset_at(began + 1000) == job.size


def test_after_the_end_nothing_more_is_told(begin: Begin) -> None:
    job = begin("true")
    end = end_of(job)

    job.say("too late")

    assert job.steps[-1] == end


# podman as far as it is asked for an image.
PULL = """#!/bin/sh
[ "$1" = pull ] || exit 1
echo "Error: initializing source: $*: manifest unknown" >&2
exec sleep "${PULL_S:-0}"
"""


@pytest.fixture
def podman(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    program = tmp_path / "podman"
    program.write_text(PULL)
    program.chmod(0o755)
    monkeypatch.setattr("guest.job.PODMAN", str(program))
    return program


def test_a_stop_ends_the_pull_of_an_image(
    begin: Begin, podman: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PULL_S", "1000")
    job = begin(image="10.0.0.1/tool:1")
    until(lambda: (job.folder / "pull").exists(), what="the pull")

    job.stop(300)

    assert end_of(job) == Step(EXITED, 143)
    assert RUNNING not in [step.stage for step in job.steps]


def test_an_image_that_was_not_pulled_is_told_with_its_reason(begin: Begin, podman: Path) -> None:
    podman.write_text(PULL.replace("exec sleep", "exit 125 #"))

    end = end_of(
        begin(image="10.0.0.1/tool:1", registry_username="joe", registry_password="geheim")
    )

    assert end.stage == FAILED
    assert end.message.startswith("creating_container_error: 10.0.0.1/tool:1 was not pulled: ")
    assert end.message.endswith("manifest unknown")
    assert "geheim" not in end.message
