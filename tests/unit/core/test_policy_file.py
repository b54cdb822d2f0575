"""The policy file: changing it as one step, and what it must look like."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from core import policy_file
from core.errors import Invalid

APP, COMPOSE = "11" * 20, "22" * 32


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "policy.json"
    made.write_text('{"osImages": ["' + "bb" * 32 + '"]}')
    return made


def test_changes_at_the_same_time_are_all_kept(path: Path) -> None:
    def add(number: int) -> None:
        policy_file.change(path, lambda doc: policy_file.add(doc["osImages"], f"{number:064x}"))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(40)))

    assert len(policy_file.read(path)["osImages"]) == 41
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_change_that_breaks_the_file_is_not_made(path: Path) -> None:
    before = path.read_text()

    with pytest.raises(Invalid):
        policy_file.change(path, lambda document: document.update(osImages=5))

    assert path.read_text() == before


def test_a_hash_is_listed_once_and_dropped_however_it_is_written() -> None:
    texts = ["0xAB"]

    policy_file.add(texts, "ab")
    assert texts == ["0xAB"]
    policy_file.add(texts, "0xCD")
    assert texts == ["0xAB", "cd"]
    assert policy_file.drop(texts, "ab") and texts == ["cd"]
    assert not policy_file.drop(texts, "ab")


def test_an_app_is_allowed_anywhere_and_each_of_its_texts_once(path: Path) -> None:
    for compose_hash in (COMPOSE, "33" * 32, COMPOSE.upper()):
        policy_file.change(path, lambda doc: policy_file.allow_app(doc, APP, compose_hash))  # noqa: B023

    assert policy_file.read(path)["apps"] == {
        APP: {"composeHashes": [COMPOSE, "33" * 32], "devices": [], "allowAnyDevice": True}
    }


def test_the_operators_word_on_an_apps_devices_stays(path: Path) -> None:
    entry: dict[str, Any] = {"devices": ["44" * 32]}
    path.write_text(json.dumps({"apps": {"0x" + APP.upper(): entry}}))

    policy_file.change(path, lambda doc: policy_file.allow_app(doc, APP, COMPOSE))

    assert policy_file.read(path)["apps"] == {
        "0x" + APP.upper(): {**entry, "composeHashes": [COMPOSE]}
    }
