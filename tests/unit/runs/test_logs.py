"""Logs of jobs: pages, tokens, times, and what a crash leaves."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import Invalid
from runs import logs
from runs.logs import RECORD_MAX, Log


@pytest.fixture
def log(tmp_path: Path) -> Log:
    """A log with ten entries, one a second."""
    log = Log(tmp_path / "a" / "job.log")
    for number in range(10):
        log.append(b"line %d\r\n" % number, moment_us=number * 1_000_000)
    return log


def said(page: logs.Page) -> list[int]:
    return [int(entry.data.split()[1]) for entry in page.entries]


def test_pages_follow_each_other_by_tokens(log: Log) -> None:
    first = log.page(4)
    second = log.page(4, token=first.token)
    third = log.page(4, token=second.token)

    assert [said(page) for page in (first, second, third)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert third.token is None


def test_a_full_page_at_the_end_has_no_token(log: Log) -> None:
    assert log.page(10).token is None


def test_a_token_stays_valid_while_the_log_grows(log: Log) -> None:
    token = log.page(4).token
    log.append(b"line 10\r\n")

    assert said(log.page(100, token=token)) == [4, 5, 6, 7, 8, 9, 10]


def test_a_token_of_the_end_finds_what_came_since(log: Log) -> None:
    end = str(log.path.stat().st_size)
    assert log.page(10, token=end) == logs.Page([], None)

    log.append(b"line 10\r\n")

    assert said(log.page(10, token=end)) == [10]


@pytest.mark.parametrize("token", ["", "-1", "x", "1", "7", "99999999999", "٣", "1.0"])
def test_another_token_is_refused(log: Log, token: str) -> None:
    with pytest.raises(Invalid, match="next_token"):
        log.page(10, token=token)


def test_both_times_are_exclusive(log: Log) -> None:
    page = log.page(10, after_us=2_000_000, before_us=6_000_000)

    assert said(page) == [3, 4, 5]
    assert page.token is None


def test_backwards_the_last_comes_first(log: Log) -> None:
    first = log.page(3, descending=True)
    second = log.page(3, descending=True, token=first.token, after_us=3_000_000)

    assert said(first) == [9, 8, 7]
    assert said(second) == [6, 5, 4]
    assert second.token is None


def test_no_log_is_an_empty_one(tmp_path: Path) -> None:
    assert Log(tmp_path / "none.log").page(10) == logs.Page([], None)


def test_what_was_cut_off_in_the_middle_is_written_over(log: Log) -> None:
    log.close()
    whole = log.path.read_bytes()
    log.path.write_bytes(whole[:-3])

    again = Log(log.path)
    again.append(b"line 99\r\n")

    assert said(again.page(20)) == [0, 1, 2, 3, 4, 5, 6, 7, 8, 99]
    assert again.length() == 9 * len(b"line 0\r\n") + len(b"line 99\r\n")


def test_a_full_disk_takes_nothing_of_a_piece_and_all_of_it_later(tmp_path: Path) -> None:
    log, data = Log(tmp_path / "log"), os.urandom(logs.INDEX_EVERY * 2)
    log.append(b"before")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        # As on a disk that gets full, the last write takes a part.
        resource.setrlimit(resource.RLIMIT_FSIZE, (logs.INDEX_EVERY + 3 * RECORD_MAX, limits[1]))
        with pytest.raises(OSError):
            log.append(data)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (log.length(), [entry.data for entry in log.page(9).entries]) == (6, [b"before"])

    log.append(data)

    assert b"".join(entry.data for entry in log.page(100).entries) == b"before" + data
    assert Log(tmp_path / "log").length() == 6 + len(data)


def test_the_length_is_that_of_the_output(log: Log) -> None:
    log.close()

    assert Log(log.path).length() == 10 * len(b"line 0\r\n")


def test_the_length_since_a_time_is_known_to_a_step_of_the_index(tmp_path: Path) -> None:
    log = Log(tmp_path / "job.log")
    for number in range(40):
        log.append(bytes(RECORD_MAX), moment_us=number * 1_000_000)
    log.close()

    assert Log(log.path).length_since(-1) == 40 * RECORD_MAX
    late = Log(log.path).length_since(30_000_000)
    assert 10 * RECORD_MAX <= late <= 10 * RECORD_MAX + logs.INDEX_EVERY + RECORD_MAX
    assert Log(tmp_path / "none.log").length_since(0) == 0


@given(st.lists(st.binary(min_size=1, max_size=50), max_size=30))
def test_bytes_come_back_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes]
) -> None:
    log = Log(tmp_path_factory.mktemp("log") / "job.log")
    for piece in pieces:
        log.append(piece)

    assert b"".join(entry.data for entry in log.page(1000).entries) == b"".join(pieces)
    backwards = log.page(1000, descending=True).entries
    assert b"".join(entry.data for entry in reversed(backwards)) == b"".join(pieces)


def test_a_large_log_is_read_from_its_index_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = Log(tmp_path / "job.log")
    for number in range(40):
        log.append(bytes(RECORD_MAX), moment_us=number * 1_000_000)
    log.close()
    read: list[int] = []
    forward = logs._forward
    monkeypatch.setattr(
        logs, "_forward", lambda file, start, size: read.append(start) or forward(file, start, size)
    )

    page = log.page(1, after_us=35_500_000)

    assert page.entries[0].moment_us == 36_000_000
    assert read[0] > 30 * RECORD_MAX
    assert Log(log.path).length() == 40 * RECORD_MAX


def test_a_page_of_large_entries_ends_early(tmp_path: Path) -> None:
    log = Log(tmp_path / "job.log")
    log.append(bytes(logs.PAGE_MAX * 2))

    page = log.page(1000)

    assert sum(len(entry.data) for entry in page.entries) == logs.PAGE_MAX
    assert page.token is not None


def test_a_removed_log_is_gone_with_its_index(tmp_path: Path) -> None:
    log = Log(tmp_path / "job.log")
    log.append(bytes(logs.INDEX_EVERY * 3))

    log.remove()

    assert list(tmp_path.iterdir()) == []
