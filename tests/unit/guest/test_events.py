"""The event log and RTMR3: together under threads, over processes, and after a crash between the two."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from attest import eventlog, quote
from core.errors import Invalid
from guest.events import EventLog, LogMismatch
from guest.tee import NoTee, Simulated, Tee
from tests.unit.guest.kernel import KernelTdx, kernel_snp


@pytest.fixture
def platform(tmp_path: Path) -> Simulated:
    made = Simulated(os.urandom(32), tmp_path / "registers")
    made.reset()
    return made


def log_on(tmp_path: Path, platform: Tee) -> EventLog:
    """A log as each process has its own of the same file."""
    return EventLog(tmp_path / "log/events.log", tmp_path / "lock", platform)


def replays(log: EventLog, platform: Simulated) -> bool:
    quoted = log.quoted(lambda: platform.quote(bytes(64)))
    rtmrs = quote.parse(quoted.quote).report.rtmrs
    return all(eventlog.replay(quoted.events, imr) == rtmrs[imr] for imr in range(4))


def test_all_four_registers_replay_before_and_after_events(
    tmp_path: Path, platform: Simulated
) -> None:
    log = log_on(tmp_path, platform)
    assert replays(log, platform)

    log.emit("app-id", b"\xde\xad")
    log.emit("ünï", b"", 2)

    assert replays(log, platform)
    assert [event.event for event in log.runtime_events()] == ["app-id", "ünï"]


def test_digests_are_the_published_ones(
    tmp_path: Path, platform: Simulated, known_answers: dict[str, Any]
) -> None:
    log = log_on(tmp_path, platform)
    for answer in known_answers["events_computed"]:
        payload = bytes.fromhex(answer["payload"])
        assert log.emit(answer["event"], payload).digest.hex() == answer["digest_v1"]
        assert log.emit(answer["event"], payload, 2).digest.hex() == answer["digest_v2"]


def test_the_file_is_closed_to_others_and_another_process_reads_it(
    tmp_path: Path, platform: Simulated
) -> None:
    log_on(tmp_path, platform).emit("a", b"1")
    other = log_on(tmp_path, platform)
    other.emit("b", b"2", 2)

    assert (tmp_path / "log/events.log").stat().st_mode & 0o777 == 0o600
    assert [event.version for event in log_on(tmp_path, platform).runtime_events()] == [1, 2]
    assert replays(other, platform)


def test_sixteen_threads_never_see_a_quote_that_disagrees_with_its_log(
    tmp_path: Path, platform: Simulated
) -> None:
    logs = [log_on(tmp_path, platform) for _ in range(4)]

    def work(number: int) -> bool:
        log = logs[number % 4]
        agreed = True
        for turn in range(8):
            log.emit(f"event-{number}-{turn}", os.urandom(turn))
            agreed &= replays(log, platform)
        return agreed

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(work, range(16)))

    names = [event.event for event in logs[0].runtime_events()]
    assert len(names) == len(set(names)) == 128


def test_a_crash_between_append_and_extension_is_made_good(
    tmp_path: Path, platform: Simulated, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = log_on(tmp_path, platform)
    log.emit("before", b"")

    def crash(imr: int, digest: bytes) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(platform, "extend", crash)
        with pytest.raises(KeyboardInterrupt):
            log.emit("cut off", b"")

    survivor = log_on(tmp_path, platform)
    assert replays(survivor, platform)
    survivor.emit("after", b"")
    assert [event.event for event in survivor.runtime_events()] == ["before", "cut off", "after"]
    assert replays(survivor, platform) and replays(log, platform)


@pytest.fixture(params=["tdx", "simulated"])
def registers(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Tee]:
    """Gives each process its own view of one platform with registers."""
    if request.param == "tdx":
        return lambda: KernelTdx(tmp_path / "kernel")
    Simulated(bytes(32), tmp_path / "registers").reset()
    return lambda: Simulated(bytes(32), tmp_path / "registers")


def agrees(log: EventLog, platform: Tee) -> bool:
    """Whether RTMR3 inside a quote is what the log given with it replays to."""
    quoted = log.quoted(lambda: platform.quote(bytes(64)))
    if isinstance(platform, Simulated):
        inside = quote.parse(quoted.quote).report.rtmrs[3]
    else:
        inside = quoted.quote[-48:]
    return inside == quoted.registers[3] == eventlog.replay(quoted.events, 3)


def in_a_process(work: Callable[[], object]) -> int:
    """Runs `work` in a forked process; its exit status, negative for a signal."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_process_killed_around_the_extension_leaves_log_and_register_equal(
    tmp_path: Path, registers: Callable[[], Tee], moment: str
) -> None:
    log_on(tmp_path, registers()).emit("first", b"")

    def killed() -> None:
        platform = registers()
        extend = platform.extend

        def die(imr: int, digest: bytes) -> None:
            if moment == "after":
                extend(imr, digest)
            os.kill(os.getpid(), signal.SIGKILL)

        platform.extend = die  # type: ignore[method-assign]
        log_on(tmp_path, platform).emit("cut off", b"payload")

    assert in_a_process(killed) == -signal.SIGKILL

    platform = registers()
    survivor = log_on(tmp_path, platform)
    assert agrees(survivor, platform)
    survivor.emit("next", b"")
    assert agrees(survivor, platform)
    assert [event.event for event in survivor.runtime_events()] == ["first", "cut off", "next"]


def test_sixteen_callers_on_the_kernels_registers_always_agree(
    tmp_path: Path, registers: Callable[[], Tee]
) -> None:
    views = [(platform := registers(), log_on(tmp_path, platform)) for _ in range(4)]

    def work(number: int) -> bool:
        platform, log = views[number % 4]
        agreed = True
        for turn in range(5):
            log.emit(f"event-{number}-{turn}", os.urandom(turn), 1 + turn % 2)
            agreed &= agrees(log, platform)
        return agreed

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(work, range(16)))
    assert len({event.event for event in views[0][1].runtime_events()}) == 80


def test_on_snp_sixteen_callers_get_one_log_that_only_grows(tmp_path: Path) -> None:
    platform = kernel_snp(tmp_path / "kernel")
    logs = [log_on(tmp_path, platform) for _ in range(4)]

    def work(number: int) -> list[list[str]]:
        log, seen = logs[number % 4], []
        for turn in range(5):
            log.emit(f"event-{number}-{turn}", b"")
            quoted = log.quoted(lambda: platform.quote(bytes(64)))
            assert quoted.quote.startswith(b"report of casemate-") and quoted.registers == ()
            seen.append([event.event for event in quoted.events])
        return seen

    with ThreadPoolExecutor(16) as pool:
        seen = [names for answers in pool.map(work, range(16)) for names in answers]

    whole = [event.event for event in logs[0].runtime_events()]
    assert len(whole) == len(set(whole)) == 80
    assert all(names == whole[: len(names)] for names in seen)


def test_on_snp_a_killed_process_loses_no_event_it_wrote(tmp_path: Path) -> None:
    platform = kernel_snp(tmp_path / "kernel")

    def killed() -> None:
        platform.extend = lambda imr, digest: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign]
        log_on(tmp_path, platform).emit("cut off", b"")

    assert in_a_process(killed) == -signal.SIGKILL

    survivor = log_on(tmp_path, platform)
    survivor.emit("next", b"")
    assert [event.event for event in survivor.runtime_events()] == ["cut off", "next"]


def test_a_line_cut_in_the_middle_is_dropped_because_it_was_never_measured(
    tmp_path: Path, platform: Simulated
) -> None:
    log_on(tmp_path, platform).emit("whole", b"")
    with (tmp_path / "log/events.log").open("ab") as file:
        file.write(b'{"event":"ha')

    survivor = log_on(tmp_path, platform)
    survivor.emit("next", b"")

    assert [event.event for event in survivor.runtime_events()] == ["whole", "next"]
    assert replays(survivor, platform)


def test_a_register_that_somebody_else_extended_is_no_basis_for_a_quote(
    tmp_path: Path, platform: Simulated
) -> None:
    log = log_on(tmp_path, platform)
    log.emit("ours", b"")
    platform.extend(3, bytes(48))

    with pytest.raises(LogMismatch):
        log.quoted(lambda: b"")


def test_a_reboot_starts_over(tmp_path: Path, platform: Simulated) -> None:
    log = log_on(tmp_path, platform)
    log.emit("old", b"")
    (tmp_path / "log/events.log").unlink()
    platform.reset()

    assert log.runtime_events() == ()
    log.emit("new", b"")
    assert replays(log, platform)


def test_events_without_a_name_or_with_too_much_data_are_refused(
    tmp_path: Path, platform: Simulated
) -> None:
    log = log_on(tmp_path, platform)
    for name, payload in (("", b""), ("a", bytes(10 * 1024 * 1024))):
        with pytest.raises(Invalid):
            log.emit(name, payload)
    assert log.runtime_events() == ()


def test_without_registers_events_are_only_logged(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.log", tmp_path / "lock", NoTee())

    log.emit("app-id", b"")

    assert [event.event for event in log.runtime_events()] == ["app-id"]
