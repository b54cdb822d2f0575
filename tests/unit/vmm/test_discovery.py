from __future__ import annotations

import json
import os
import stat
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core.config import Config
from vmm import discovery
from vmm.version import VERSION


@pytest.fixture(autouse=True)
def runtime(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(data_dir / "run"))
    return data_dir / "run/dstack-vmm"


def put(runtime: Path, name: str, entry: object) -> Path:
    runtime.mkdir(parents=True, exist_ok=True)
    path = runtime / f"{name}.json"
    path.write_text(entry if isinstance(entry, str) else json.dumps(entry))
    return path


def test_a_service_says_where_it_is(config: Config, runtime: Path) -> None:
    path = discovery.announce(replace(config, address="tcp:127.0.0.1:9080"), Path("casemate.toml"))

    assert path is not None
    assert path.parent == runtime
    entry: dict[str, Any] = json.loads(path.read_text())
    assert (entry["id"], entry["pid"], entry["version"]) == (path.stem, os.getpid(), VERSION)
    assert (entry["address"], entry["node_name"]) == ("127.0.0.1:9080", "")
    assert entry["config_file"] == str(Path.cwd() / "casemate.toml")
    assert (entry["run_path"], entry["image_path"]) == (
        str(config.run_path),
        str(config.image.path),
    )
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [found["id"] for found in discovery.running()] == [path.stem]


def test_a_unix_address_is_absolute(config: Config) -> None:
    path = discovery.announce(replace(config, address="unix:./vmm.sock"), None)

    assert path is not None
    entry = json.loads(path.read_text())
    assert (entry["address"], entry["config_file"]) == (f"unix:{Path.cwd()}/vmm.sock", None)


def test_files_of_dead_services_are_dropped_and_others_kept(config: Config, runtime: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    dead = put(runtime, "dead", {"pid": ended.pid})
    alive = put(runtime, "alive", {"pid": os.getpid(), "started_at": 1})
    for name, entry in {"text": "x", "list": [1], "none": {}, "word": {"pid": "x"}}.items():
        put(runtime, name, entry)

    path = discovery.announce(config, None)

    assert not dead.exists()
    assert alive.exists()
    assert path is not None
    assert [entry.get("id") for entry in discovery.running()] == [path.stem, None]


def test_a_folder_that_cannot_be_written_is_no_fault(
    config: Config, runtime: Path, caplog: pytest.LogCaptureFixture
) -> None:
    runtime.parent.mkdir()
    runtime.write_text("a file")

    assert discovery.announce(config, None) is None

    assert "no discovery file" in caplog.text
    assert discovery.running() == []


def test_without_a_runtime_directory_it_is_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR")

    assert discovery.folder() == Path(f"/run/user/{os.getuid()}/dstack-vmm")


def test_the_systems_service_is_found_too(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "SYSTEM", data_dir / "systems")
    (data_dir / "systems").mkdir()
    entry = {"pid": os.getpid(), "address": "unix:/run/casemate/http.sock", "started_at": 1}
    (data_dir / "systems/x.json").write_text(json.dumps(entry))

    assert discovery.running() == [entry]
