"""vmm/rotation.py: nothing is lost but what is older than the last backup."""

from __future__ import annotations

import os
from pathlib import Path

from core.config_cvm import LogConfig
from vmm import rotation


def test_a_small_log_stays(tmp_path: Path) -> None:
    log = tmp_path / "serial.log"
    log.write_bytes(b"x" * 100)

    assert not rotation.rotate_large(log, LogConfig(max_bytes=100))
    assert not rotation.rotate_large(tmp_path / "none.log", LogConfig(max_bytes=1))
    assert not rotation.rotate_large(log, LogConfig(max_bytes=0))
    assert log.read_bytes() == b"x" * 100


def test_a_writer_that_keeps_its_descriptor_goes_on_at_the_new_end(tmp_path: Path) -> None:
    log = tmp_path / "serial.log"
    with open(log, "ab", buffering=0) as writer:
        writer.write(b"first\n" * 10)

        assert rotation.rotate_large(log, LogConfig(max_bytes=10))
        writer.write(b"second\n")

    assert rotation.segment(log, 1).read_bytes() == b"first\n" * 10
    note, rest = log.read_bytes().split(b"\n", 1)
    assert note.startswith(b"===== rotated 60 bytes to serial.log.1 @ ")
    assert rest == b"second\n"


def test_older_segments_move_up_and_the_oldest_goes(tmp_path: Path) -> None:
    log = tmp_path / "serial.log"
    for round_ in range(4):
        with open(log, "ab") as writer:
            writer.write(b"round %d\n" % round_)
        rotation.rotate(log, 2)

    assert b"round 3" in rotation.segment(log, 1).read_bytes()
    assert b"round 2" in rotation.segment(log, 2).read_bytes()
    assert not rotation.segment(log, 3).exists()


def test_without_backups_the_content_is_dropped(tmp_path: Path) -> None:
    log = tmp_path / "serial.log"
    log.write_bytes(b"x" * 50)

    rotation.rotate(log, 0)

    assert not rotation.segment(log, 1).exists()
    assert b"rotated 50 bytes @" in log.read_bytes()


def test_segments_are_closed_to_others(tmp_path: Path) -> None:
    log = tmp_path / "serial.log"
    log.write_bytes(b"x")

    rotation.rotate(log, 1)

    assert os.stat(rotation.segment(log, 1)).st_mode & 0o777 == 0o600
