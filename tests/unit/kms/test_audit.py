"""The record of releases: appended, closed to others, whole or not there."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from attest.verified import Verified
from core.errors import Unavailable
from kms.audit import AuditLog
from tests.unit.kms.test_policy import BOOT

SHOWN = Verified(BOOT.tee_variant, bytes(64), root="simulated")


def test_lines_written_at_the_same_time_are_whole(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.jsonl")

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda _: log.record("GetAppKey", BOOT, SHOWN), range(100)))

    lines = (tmp_path / "audit.jsonl").read_text().splitlines()
    assert len(lines) == 100
    assert all(json.loads(line)["composeHash"] == BOOT.compose_hash.hex() for line in lines)
    assert (tmp_path / "audit.jsonl").stat().st_mode & 0o777 == 0o600


def test_a_record_that_was_cut_short_releases_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "write", lambda fd, data: 1)

    with pytest.raises(Unavailable, match="cut short"):
        AuditLog(tmp_path / "audit.jsonl").record("GetAppKey", BOOT, SHOWN)


def test_a_link_in_its_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "audit.jsonl").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(Unavailable):
        AuditLog(tmp_path / "audit.jsonl").record("GetAppKey", BOOT, SHOWN)

    assert not (tmp_path / "elsewhere").exists()


def test_it_is_synced_before_the_call_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)

    AuditLog(tmp_path / "audit.jsonl").record("GetAppKey", BOOT, SHOWN)

    assert len(synced) == 1
