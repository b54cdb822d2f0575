"""How the commands of runs show things, on a terminal and elsewhere."""

from __future__ import annotations

import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from fcntl import ioctl
from pathlib import Path
from typing import Any

import pytest

from cli import runs_view
from cli.plan import differences, needed
from core.errors import Invalid
from tests.common.runs_site import Site
from tests.common.waiting import press_ctrl_c

GPU = {"name": None, "count": {"min": 0, "max": None}}


@contextmanager
def on_terminal(columns: int, *words: str) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """A command line on a terminal of so many columns; what it prints is read from the descriptor."""
    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    # Variables would win over the terminal's own size.
    env = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
    env["PYTHONPATH"] = str(Path(__file__).parents[3])
    process = subprocess.Popen(
        [sys.executable, "-m", "cli.main", *words],
        stdin=theirs, stdout=theirs, stderr=theirs, env=env, start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    try:
        yield ours, process
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def read_all(terminal: int) -> str:
    said = b""
    while True:
        try:
            piece = os.read(terminal, 65536)
        except OSError:  # the other side is closed
            return said.decode()
        if not piece:
            return said.decode()
        said += piece


def test_a_table_is_no_wider_than_the_terminal(site: Site) -> None:
    site.fleet("a-fleet-with-a-rather-long-name-of-its")
    site.submit("hello-with-a-rather-long-name-of-its", "true")
    site.until("hello-with-a-rather-long-name-of-its", "done")

    for command in ("ps", "fleet", "offer"):
        with on_terminal(60, command) as (terminal, process):
            lines = read_all(terminal).splitlines()
            assert process.wait(30) == 0

        assert len(lines) >= 2
        assert max(map(len, lines)) <= 60, lines
    assert "hello-with-a-rather-long-name-of-its" in site.run("ps", "-a").stdout


def test_output_does_not_command_a_terminal(site: Site) -> None:
    site.fleet()
    site.submit("evil", r"printf 'a\033]0;title\007b\033[31mred\033[0m\033[2Jc\n'")
    site.until("evil", "done")

    with on_terminal(80, "logs", "evil") as (terminal, _):
        said = read_all(terminal)
    assert "\x1b[31mred\x1b[0m" in said
    assert "\x1b" not in re.sub(r"\x1b\[[0-9;]*m", "", said)
    assert "\x07" not in said
    assert b"\x1b]0;title\x07" in site.run("logs", "evil").stdout_bytes


def test_output_without_a_last_newline_does_not_swallow_what_is_said_next(site: Site) -> None:
    site.fleet()
    site.submit("short", "printf word")
    site.until("short", "done")

    with on_terminal(80, "logs", "short") as (terminal, _):
        assert read_all(terminal) == "word\r\n"
    assert site.run("logs", "short").stdout_bytes == b"word"


def test_no_color_takes_colours_away(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    site.fleet()
    site.submit("red", r"printf '\033[31mred\033[0m\n'")
    site.until("red", "done")

    with on_terminal(80, "logs", "red") as (terminal, _):
        assert "\x1b" not in read_all(terminal)


def test_on_a_terminal_the_state_shares_one_line(site: Site) -> None:
    site.fleet()

    with on_terminal(80, "apply", "-y", "-f", str(site.task("hello", "echo hi"))) as (tty, process):
        said = read_all(tty)
        assert process.wait(30) == 0

    assert "\r\x1b[Khello: " in said
    assert said.endswith("hello: exited (0)\r\n")


def test_a_watch_goes_on_until_it_is_interrupted(site: Site) -> None:
    site.fleet()

    for words in (("ps", "-w"), ("fleet", "-w"), ("event", "-w")):
        with on_terminal(80, *words) as (terminal, process):
            assert os.read(terminal, 10)
            press_ctrl_c(process)
            assert process.returncode == 130
            assert "Traceback" not in read_all(terminal)


def test_an_answer_is_yes_or_no_and_nothing_else(site: Site) -> None:
    site.fleet()
    site.submit("long", "sleep 100")
    site.until("long", "running")

    done = site.run("stop", "long", input="perhaps\n\nYES\n")

    assert done.stderr.count("[y/n]") == 3
    assert "Stopped" in done.stderr
    with pytest.raises(Invalid):
        site.run("delete", "-f", site.home / "long.dstack.yml")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "now"), (5, "5 sec ago"), (61, "1 min ago"), (7300, "2 hours ago"), (90_000, "1 day ago")],
)
def test_times_are_told_as_people_do(seconds: int, text: str) -> None:
    moment = datetime.now(UTC) - timedelta(seconds=seconds)

    assert runs_view.ago(moment.isoformat()) == text
    assert runs_view.ago(None) == ""


def test_a_time_is_that_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    monkeypatch.setenv("TZ", "UTC-5")
    time.tzset()
    try:
        assert runs_view.here("2026-01-02T23:30:00.123456Z") == "2026-01-03 04:30:00"
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "off"), (-1, "off"), ("off", "off"), (3600, "1h"), (90, "90s"), (172_800, "2d"), (120, "2m")],
)  # fmt: skip
def test_durations_are_short(value: Any, text: str) -> None:
    assert runs_view.duration(value) == text


def test_needs_are_told_as_one_writes_them() -> None:
    wanted = {
        "cpu": {"count": {"min": 2, "max": None}},
        "memory": {"min": 8.0, "max": 16.0},
        "disk": {"size": {"min": 100.0, "max": 100.0}},
        "gpu": GPU,
    }

    assert needed(wanted) == "cpu=2.. mem=8GB..16GB disk=100GB"
    gpu = {"name": ["H100", "A100"], "count": {"min": 1, "max": 2}}
    assert needed({**wanted, "disk": None, "gpu": gpu}).endswith("gpu=H100,A100:1..2")


def test_differences_name_fields_and_no_secret() -> None:
    old = {"configuration": {"env": {"A": "1"}, "image": None, "ports": [1]}, "same": 1}
    new = {"configuration": {"env": {"A": "2", "B": "3"}, "image": "x", "ports": [1]}, "same": 1}

    assert differences(old, new) == [
        "configuration.env.A", "configuration.env.B", "configuration.image: none -> x",
    ]  # fmt: skip
    assert differences(old, old) == []
    assert len(differences({"a": "x" * 1000}, {"a": "y"})[0]) < 80


def test_the_jobs_of_a_run_are_listed_below_it(site: Site) -> None:
    site.fleet(nodes="0..2")
    site.submit("pair", "exit $DSTACK_NODE_RANK", nodes=2)
    site.until("pair", "failed")

    rows = site.run("ps").stdout.splitlines()

    assert [row.split("  ")[0].strip() or row.split()[0] for row in rows][1] == "pair"
    assert "exited (1)" in rows[1]
    assert "replica=0 job=0" in rows[2]
    assert "replica=0 job=1" in rows[3]
    assert "exited (1)" in rows[3]
