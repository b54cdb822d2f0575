from __future__ import annotations

from pathlib import Path

import pytest

from core import config as configuration
from core.config_runs import RunsConfig
from core.errors import Invalid


def load(folder: Path, text: str) -> RunsConfig:
    file = folder / "casemate.toml"
    file.write_text(f'data_dir = "{folder}"\n[runs]\n{text}\n')
    return configuration.load(file).runs


def test_without_a_table_runs_are_kept_for_ninety_days(data_dir: Path) -> None:
    assert load(data_dir, "") == RunsConfig()
    assert load(data_dir, "").keep_days == 90


@pytest.mark.parametrize("days", [1, 365, 36_500])
def test_the_owner_of_a_host_says_how_long_runs_are_kept(data_dir: Path, days: int) -> None:
    assert load(data_dir, f"keep_days = {days}").keep_days == days


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("keep_days = 0", "runs.keep_days"),
        ("keep_days = -1", "runs.keep_days"),
        ("keep_days = 36501", "runs.keep_days"),
        ('keep_days = "long"', "runs.keep_days"),
        ("keep_days = true", "runs.keep_days"),
        ("keep_days = 1.5", "runs.keep_days"),
        ('api_version = "new"', "runs.api_version"),
        ('hostname = "a b"', "runs.hostname"),
        ("provisioning_timeout = 0", "runs.provisioning_timeout"),
    ],
)
def test_a_bad_value_is_refused_by_its_key(data_dir: Path, text: str, key: str) -> None:
    with pytest.raises(Invalid, match=key):
        load(data_dir, text)
