from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from core import files
from core.errors import Conflict
from tests.common.waiting import until
from vmm import process, runner
from vmm.process import Ending, Process, StartFailed

VM_ID = "vm-1"
# Told apart from anything else that runs: the stand-in for QEMU takes -name VM_ID like QEMU does.
SLEEP = "import time; time.sleep(3600)"


@pytest.fixture
def workdir(data_dir: Path) -> Path:
    path = data_dir / "vm" / VM_ID
    path.mkdir(parents=True)
    return path


def spawn(workdir: Path, program: str = SLEEP) -> Process:
    return process.spawn(workdir, [sys.executable, "-ISc", program, "-name", workdir.name, "-x"])


def runner_of(found: Process) -> int:
    return int(Path(f"/proc/{found.pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_a_started_process_is_found_by_its_folder(workdir: Path) -> None:
    assert process.find(workdir) is None

    found = spawn(workdir)

    assert process.find(workdir) == found
    assert process.is_alive(found)
    assert process.is_locked(workdir)
    assert process.ending(workdir) is None
    assert abs(found.started_ms / 1000 - time.time()) < 30


def test_a_started_process_stands_alone(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CASEMATE_ADMIN_TOKEN", "hunter2")
    with open(tmp_path / "inherited", "w") as inherited:
        os.set_inheritable(inherited.fileno(), True)
        found = spawn(workdir)

    assert os.getsid(found.pid) != os.getsid(0)
    assert os.getpgid(found.pid) == found.pid
    assert os.readlink(f"/proc/{found.pid}/cwd") == str(workdir)
    assert b"hunter2" not in Path(f"/proc/{found.pid}/environ").read_bytes()
    # The interpreter opens files of its own until it has come up.
    inherited_names = {"null", "stdout.log", "stderr.log", "process.lock"}
    assert until(lambda: open_names(found.pid) == inherited_names)
    limits = Path(f"/proc/{found.pid}/limits").read_text()
    assert "Max core file size        0                    0" in limits
    # Nobody waits for it here: it is not our child.
    with pytest.raises(ChildProcessError):
        os.waitpid(found.pid, os.WNOHANG)


def test_files_of_the_runner_are_closed_to_others(workdir: Path) -> None:
    spawn(workdir)

    for name in ("launch.json", "process.json", "process.lock"):
        assert stat.S_IMODE((workdir / name).stat().st_mode) == 0o600


def test_output_goes_to_the_logs_and_is_appended(workdir: Path) -> None:
    (workdir / "stdout.log").write_text("before\n")

    spawn(workdir, "import sys; print('out'); print('err', file=sys.stderr)")
    until(lambda: process.ending(workdir))

    assert (workdir / "stdout.log").read_text() == "before\nout\n"
    assert process.last_line(workdir / "stderr.log") == "err"


@pytest.mark.parametrize(
    ("program", "ending", "text"),
    [
        ("pass", (0, None), "exit code 0"),
        ("import os; os._exit(3)", (3, None), "exit code 3"),
        ("import os; os.kill(os.getpid(), 9)", (None, 9), "killed by SIGKILL"),
        ("import os; os.kill(os.getpid(), 6)", (None, 6), "killed by SIGABRT"),
        ("import os; os.kill(os.getpid(), 40)", (None, 40), "killed by 40"),
    ],
)
def test_how_it_ended_is_written_down(
    workdir: Path, program: str, ending: tuple[int | None, int | None], text: str
) -> None:
    # It may have ended before we look: then it was started all the same.
    spawn(workdir, program)

    ended = until(lambda: process.ending(workdir))

    assert (ended.code, ended.signal) == ending
    assert str(ended) == text
    assert abs(ended.at_ms / 1000 - time.time()) < 30
    until(lambda: not process.is_locked(workdir))
    assert process.find(workdir) is None


def test_an_ending_that_nobody_saw_says_so() -> None:
    assert str(Ending(None, None, 0)) == "exit status unknown"


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "{}", '{"code": 1}'])
def test_an_ending_that_cannot_be_read_is_none(workdir: Path, text: str) -> None:
    (workdir / "exit.json").write_text(text)

    assert process.ending(workdir) is None


def test_a_second_start_is_refused_while_the_first_lives(workdir: Path) -> None:
    first = spawn(workdir)

    with pytest.raises(Conflict, match="running already"):
        spawn(workdir)

    assert process.find(workdir) == first


def test_a_look_at_the_lock_is_no_running_process(workdir: Path) -> None:
    (workdir / "launch.json").write_text('{"argv": ["true"]}')
    with contextlib.ExitStack() as look:
        look.enter_context(files.locked(workdir / "process.lock"))
        starting = subprocess.Popen([sys.executable, "-IS", runner.__file__, workdir])
        until(lambda: "process.lock" in open_names(starting.pid))
        look.close()

        assert starting.wait(30) == 0


def open_names(pid: int) -> set[str]:
    names = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            names.add(Path(os.readlink(entry)).name)
    return names


def test_the_record_of_the_last_run_is_gone_when_the_next_begins(workdir: Path) -> None:
    spawn(workdir, "import os; os._exit(3)")
    until(lambda: process.ending(workdir) and not process.is_locked(workdir))

    spawn(workdir)

    assert process.ending(workdir) is None


def test_a_program_that_is_not_there_is_told_with_its_words(workdir: Path) -> None:
    with pytest.raises(StartFailed, match=r"could not be started: FileNotFoundError.*nowhere"):
        process.spawn(workdir, ["/nowhere/qemu"])

    assert not process.is_locked(workdir)
    assert process.find(workdir) is None


def test_a_pid_that_is_used_again_is_another_process(workdir: Path) -> None:
    found = spawn(workdir)
    record = json.loads((workdir / "process.json").read_text())

    other = Process(os.getpid(), found.start)
    assert not process.is_alive(other)
    assert process.open_pidfd(other) is None
    assert not process.is_alive(Process(found.pid, found.start + 1))
    process.end(workdir, found, grace_s=0)
    (workdir / "process.json").write_text(json.dumps(record | {"pid": os.getpid()}))
    assert process.find(workdir) is None


def test_a_record_of_another_boot_is_of_another_process(workdir: Path) -> None:
    found = spawn(workdir)
    record = json.loads((workdir / "process.json").read_text())
    (workdir / "process.json").write_text(json.dumps(record | {"boot_id": "another"}))

    # The lock is held, so it is looked for by its name.
    assert process.find(workdir) == found


@pytest.mark.parametrize("text", [None, "", "{", "[]", "{}"])
def test_a_process_without_a_record_is_found_by_its_name(workdir: Path, text: str | None) -> None:
    found = spawn(workdir)
    (workdir / "process.json").unlink()
    if text is not None:
        (workdir / "process.json").write_text(text)

    assert process.find(workdir) == found


def test_a_name_that_begins_alike_is_another_name(workdir: Path, data_dir: Path) -> None:
    longer = data_dir / "vm" / f"{VM_ID}0"
    longer.mkdir()
    spawn(longer)

    with files.locked(workdir / "process.lock"):
        assert process.find(workdir) is None


def test_a_zombie_does_not_live(workdir: Path) -> None:
    with subprocess.Popen(["true"]) as child:
        found = Process(child.pid, runner.start_time(child.pid))
        until(lambda: not process.is_alive(found))

        assert Path(f"/proc/{child.pid}").exists()


def test_ending_a_process_is_gentle_first(workdir: Path) -> None:
    gentle = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))\n"
        "print('ready', flush=True)\n"
        "time.sleep(3600)"
    )
    found = spawn(workdir, gentle)
    until(lambda: (workdir / "stdout.log").read_text() == "ready\n")

    assert process.end(workdir, found, grace_s=30)

    ended = process.ending(workdir)
    assert ended is not None
    assert ended.code == 5
    assert not process.is_locked(workdir)


def test_a_process_that_ignores_the_gentle_signal_is_killed_after_its_grace(workdir: Path) -> None:
    stubborn = "import signal, time; signal.signal(15, signal.SIG_IGN); print(1, flush=True); "
    found = spawn(workdir, stubborn + "time.sleep(3600)")
    until(lambda: (workdir / "stdout.log").read_text())

    began = time.monotonic()
    assert process.end(workdir, found, grace_s=0.2)

    assert 0.2 <= time.monotonic() - began < 60
    assert str(process.ending(workdir)) == "killed by SIGKILL"


def test_ending_what_has_ended_is_no_fault(workdir: Path) -> None:
    found = spawn(workdir)

    assert process.end(workdir, found, grace_s=0)
    assert process.end(workdir, found, grace_s=0)


def test_a_stopped_process_is_ended_too(workdir: Path) -> None:
    found = spawn(workdir)
    os.kill(found.pid, signal.SIGSTOP)

    assert process.end(workdir, found, grace_s=0.1)


def test_a_process_outlives_its_runner_and_can_still_be_ended(workdir: Path) -> None:
    found = spawn(workdir)

    os.kill(runner_of(found), signal.SIGKILL)

    assert process.find(workdir) == found
    assert process.is_locked(workdir)
    with pytest.raises(Conflict):
        spawn(workdir)
    assert process.end(workdir, found, grace_s=0)
    assert process.ending(workdir) is None
    assert process.find(workdir) is None


def test_process_and_runner_killed_at_once_leave_a_free_lock_and_no_ending(workdir: Path) -> None:
    found = spawn(workdir)
    watcher = runner_of(found)

    os.kill(watcher, signal.SIGSTOP)
    os.kill(found.pid, signal.SIGKILL)
    os.kill(watcher, signal.SIGKILL)

    until(lambda: not process.is_locked(workdir))
    assert process.find(workdir) is None
    assert process.ending(workdir) is None


def test_a_lock_that_another_holds_keeps_us_waiting_no_longer_than_told(workdir: Path) -> None:
    with files.locked(workdir / "process.lock"):
        assert not process.wait_unlocked(workdir, 0.05)

    assert process.wait_unlocked(workdir, 0)
    assert process.wait_unlocked(workdir / "nothing", 0)


def test_a_descriptor_tells_of_the_end(workdir: Path) -> None:
    found = spawn(workdir)
    pidfd = process.open_pidfd(found)
    assert pidfd is not None
    try:
        assert not process.is_ready(pidfd, 0)
        os.kill(found.pid, signal.SIGKILL)
        assert process.is_ready(pidfd, 10)
    finally:
        os.close(pidfd)
    assert process.open_pidfd(Process(2**22 + 1, 1)) is None


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"", "no message"),
        (b"\n \n", "no message"),
        (b"one\ntwo\n\n", "two"),
        (b"a" * 9000, "a" * 500),
        (b"x\n\xff\n", "\ufffd"),
    ],
)
def test_the_last_words_of_a_log_are_its_last_line_that_says_something(
    tmp_path: Path, content: bytes, line: str
) -> None:
    (tmp_path / "log").write_bytes(content)

    assert process.last_line(tmp_path / "log") == line


def test_a_log_that_is_not_there_has_no_last_words(tmp_path: Path) -> None:
    assert process.last_line(tmp_path / "log") == "no message"


def test_many_descriptors_are_no_limit(workdir: Path) -> None:
    with contextlib.ExitStack() as held:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft < 1200 and hard >= 1200:
            resource.setrlimit(resource.RLIMIT_NOFILE, (1200, hard))
            held.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        for _ in range(1040):
            held.enter_context(open("/dev/null"))
        found = spawn(workdir)

        assert process.end(workdir, found, grace_s=1)
