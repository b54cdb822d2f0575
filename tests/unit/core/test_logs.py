from __future__ import annotations

import os
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core import logs
from core.logs import AnsiStripper, Decoder
from tests.common.waiting import until

# Where cuts and repetitions hurt: the parts of sequences, their ends, and what aborts them.
pieces = st.sampled_from(
    [
        "\x1b",
        "\x1b[",
        "\x1b]",
        "\x1bP",
        "\x1bX",
        "\x1b\\",
        "\x1b(",
        "\x9b",
        "\x9d",
        "\x90",
        "\x9c",
        "\x85",
        "[",
        "]",
        ";",
        "31",
        "m",
        "\x07",
        "\n",
        "é",
        "a",
        "b",
    ]
)
texts = st.lists(pieces, max_size=12).map("".join) | st.text(max_size=30)


def strip(*parts: str) -> str:
    stripper = AnsiStripper()
    return "".join(stripper.feed(part) for part in parts) + stripper.feed("", final=True)


@pytest.mark.parametrize(
    ("text", "stripped"),
    [
        ("plain ä\t\n", "plain ä\t\n"),
        ("a\x1b[31mb\x1b[0mc", "abc"),
        ("a\x1b[?2004hb", "ab"),
        ("a\x1b[38;5;196mb", "ab"),
        ("a\x1b]0;title\x07b", "ab"),
        ("a\x1b]8;;https://x\x1b\\b", "ab"),
        ("a\x1bPq#0~\x1b\\b", "ab"),
        ("a\x1b^private\x1b\\b", "ab"),
        ("a\x1b7b\x1b8c\x1bMd", "abcd"),
        ("a\x1b(Bb", "ab"),
        ("a\x9b31mb", "ab"),
        ("a\x9dtitle\x9cb", "ab"),
        ("a\x85b", "ab"),
        ("\x1b\x1b[31m[2Jx", "[2Jx"),
        ("a\x1b", "a"),
        ("a\x1b[31", "a31"),
        ("a\x1b\nb", "a\nb"),
    ],
)
def test_escape_sequences_are_taken_out(text: str, stripped: str) -> None:
    assert strip(text) == stripped


def test_the_text_of_a_string_that_never_ends_is_shown() -> None:
    text = "\x1b]0;" + "a" * 5000 + "\nnext line\n"

    assert strip(text) == text[2:]


@given(texts)
def test_no_escape_is_left(text: str) -> None:
    assert not re.search(r"[\x1b\x80-\x9f]", strip(text))


@given(texts)
def test_a_text_cut_anywhere_gives_the_same_as_the_whole(text: str) -> None:
    whole = strip(text)

    for at in range(len(text) + 1):
        assert strip(text[:at], text[at:]) == whole
    assert strip(*text) == whole


@given(st.text(st.characters(exclude_characters="\x1b", exclude_categories=["Cc", "Cs"])))
def test_text_without_controls_is_left_as_it_is(text: str) -> None:
    assert strip(text) == text


@pytest.mark.parametrize(
    "unit", ["\x1b]", "\x9d", "\x1b[1;", "\x1b[", "\x1bP", "\x1b ", "\x1b[" + "1" * 300]
)
def test_a_hostile_log_is_stripped_in_linear_time_and_little_memory(unit: str) -> None:
    stripper = AnsiStripper()
    block = unit * (logs.BLOCK // len(unit))

    for _ in range(8):
        stripper.feed(block)

    assert len(stripper._held) < 10_000


@given(st.binary(max_size=40), st.integers(0, 40))
def test_bytes_cut_inside_a_character_decode_like_the_whole(data: bytes, at: int) -> None:
    decoder = Decoder(keep_ansi=True)

    text = decoder.feed(data[:at]) + decoder.feed(data[at:], final=True)

    assert text == data.decode(errors="replace")


def naive_tail(data: bytes, lines: int) -> bytes:
    return b"".join(data.splitlines(keepends=True)[-lines:]) if lines else b""


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.sampled_from([b"\n", b"a", b"bb", b"ccccccc\n", b"\n\n"]), max_size=30),
    st.integers(0, 12),
    st.integers(1, 9),
)
def test_the_last_lines_are_those_a_naive_reader_finds(
    tmp_path: Path, parts: list[bytes], lines: int, block: int
) -> None:
    data = b"".join(parts)
    path = tmp_path / "log"
    path.write_bytes(data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logs, "BLOCK", block)
        found = "".join(logs.tail(path, lines))

    assert found.encode() == naive_tail(data, lines)


def test_a_log_that_is_not_there_is_empty(tmp_path: Path) -> None:
    assert list(logs.tail(tmp_path / "nothing", 10)) == []


def test_broken_bytes_are_replaced_and_sequences_stripped(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"old\n\xff\x1b[1mnew\xc3")

    assert "".join(logs.tail(tmp_path / "log", 1, keep_ansi=False)) == "\ufffdnew\ufffd"
    assert "".join(logs.tail(tmp_path / "log", 1)) == "\ufffd\x1b[1mnew\ufffd"


def test_a_tail_of_a_large_log_reads_only_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "log").write_bytes(b"x" * 99 + b"\n" + b"y\n" * 3_000_000)
    read = []
    monkeypatch.setattr(
        logs.os,
        "pread",
        lambda fd, size, at, real=os.pread: read.append(size) or real(fd, size, at),
    )

    assert "".join(logs.tail(tmp_path / "log", 5)) == "y\n" * 5

    assert sum(read) < 200_000


class Follower:
    """Follows a log in a thread and collects what it gives."""

    def __init__(self, path: Path, lines: int = 100, **options: object) -> None:
        self.text = ""
        self.over = False
        self.stream: Iterator[str] = logs.follow(
            path,
            lines,
            ended=lambda: self.over,
            **options,  # type: ignore[arg-type]
        )
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        for piece in self.stream:
            self.text += piece

    def sees(self, text: str) -> None:
        until(lambda: self.text == text)

    def end(self) -> str:
        self.over = True
        self.thread.join(10)
        assert not self.thread.is_alive()
        return self.text


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(logs, "POLL_S", 0.005)
    return tmp_path / "log"


def append(path: Path, text: str) -> None:
    with open(path, "a") as file:
        file.write(text)


def test_following_gives_the_last_lines_and_then_what_comes(log: Path) -> None:
    log.write_text("one\ntwo\n")

    follower = Follower(log, 1)
    follower.sees("two\n")
    append(log, "thr")
    follower.sees("two\nthr")
    append(log, "ee\n")
    follower.sees("two\nthree\n")

    assert follower.end() == "two\nthree\n"


def test_following_with_no_lines_gives_only_what_comes(log: Path) -> None:
    log.write_text("one\n")
    looks: list[int] = []
    written = threading.Event()
    stream = logs.follow(log, 0, ended=lambda: looks.append(1) or written.is_set())

    def write() -> None:
        until(lambda: len(looks) > 2)
        append(log, "two\n")
        written.set()

    writer = threading.Thread(target=write)
    writer.start()
    text = "".join(stream)
    writer.join()

    assert text == "two\n"


def open_files() -> list[str]:
    return os.listdir("/proc/self/fd")


def test_a_log_that_is_not_there_yet_is_waited_for_and_given_from_its_beginning(log: Path) -> None:
    polls = []
    follower = Follower(log, 0)
    until(lambda: polls.append(1) or len(polls) > 5)

    staged = log.with_name("staged")
    staged.write_text("one\ntwo\n")
    staged.rename(log)

    follower.sees("one\ntwo\n")
    follower.end()


def test_following_survives_truncation(log: Path) -> None:
    log.write_text("a long first line\n")
    follower = Follower(log)
    follower.sees("a long first line\n")

    os.truncate(log, 0)
    append(log, "new\n")

    follower.sees("a long first line\nnew\n")
    follower.end()


def test_following_survives_rotation_by_copy(log: Path) -> None:
    log.write_text("before\n")
    follower = Follower(log)
    follower.sees("before\n")

    shutil.copy(log, f"{log}.1")
    log.write_text("=\n")

    follower.sees("before\n=\n")
    follower.end()


def test_following_survives_replacement(log: Path) -> None:
    log.write_text("before\n")
    follower = Follower(log, 1)
    follower.sees("before\n")

    staged = log.with_name("staged")
    staged.write_text("a\nb\nc\n")
    staged.rename(log)

    follower.sees("before\na\nb\nc\n")
    follower.end()


def test_what_was_written_before_the_end_is_still_given(log: Path) -> None:
    log.write_text("one\n\x1b[3")

    text = "".join(logs.follow(log, 10, keep_ansi=False, ended=lambda: True))

    assert text == "one\n3"


def test_a_log_that_disappears_does_not_break_the_stream(log: Path) -> None:
    log.write_text("one\n")
    follower = Follower(log)
    follower.sees("one\n")

    log.unlink()
    append(log, "two\n")

    follower.sees("one\ntwo\n")
    follower.end()


def test_silence_is_broken_by_the_heartbeat(log: Path) -> None:
    stream = logs.follow(log, 1, heartbeat="beat\n", heartbeat_s=0.02)

    # The empty piece lets a server send its headers although the log is silent.
    assert [next(stream), next(stream), next(stream)] == ["", "beat\n", "beat\n"]

    stream.close()


def test_a_reader_that_leaves_closes_the_file(log: Path) -> None:
    log.write_text("one\n")
    before = len(open_files())
    stream = logs.follow(log, 1)
    next(stream)

    stream.close()

    assert len(open_files()) == before
