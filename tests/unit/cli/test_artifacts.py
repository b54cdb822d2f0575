from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from attest import artifacts
from cli.artifacts import artifacts as command
from core.errors import CasemateError
from secretvm import builds
from tests.unit.attest.test_artifacts import sev_json, tdx_csv


@pytest.fixture
def data(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The data directory of the environment, with nothing published beside it."""
    monkeypatch.setenv("CASEMATE_DATA_DIR", str(data_dir))
    monkeypatch.setattr(builds, "PUBLISHED", data_dir / "none")
    return data_dir


def run(*arguments: str | Path) -> str:
    done = CliRunner().invoke(command, [str(each) for each in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def test_imported_files_are_known_from_then_on(data: Path, tmp_path: Path) -> None:
    (tmp_path / "tdx-new.csv").write_bytes(tdx_csv({}, {"vm_type": "dev"}))
    (tmp_path / "sev.json").write_bytes(sev_json())

    said = run("import", tmp_path / "tdx-new.csv", tmp_path / "sev.json")

    assert said == "tdx-new.csv: 2 builds\nsev.json: 1 builds\n"
    found = artifacts.read([builds.imported(data)])
    assert (len(found.tdx), len(found.sev)) == (2, 1)
    assert (data / "registry").stat().st_mode & 0o777 == 0o700
    listed = json.loads(run("ls", "--json"))
    assert [(Path(each["path"]).name, each["tdx"], each["sev"]) for each in listed] == [
        ("tdx-new.csv", 2, 0),
        ("sev.json", 0, 1),
    ]


def test_one_bad_file_and_none_is_imported(data: Path, tmp_path: Path) -> None:
    (tmp_path / "good.csv").write_bytes(tdx_csv({}))
    (tmp_path / "bad.csv").write_bytes(tdx_csv({"mrtd": "ab"}))

    with pytest.raises(CasemateError, match=r"bad\.csv: entry 1: mrtd"):
        run("import", tmp_path / "good.csv", tmp_path / "bad.csv")
    assert not (data / "registry").exists()


def test_a_file_of_another_name_or_a_folder_that_is_not_there_is_refused(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".hidden.csv").write_bytes(tdx_csv({}))
    (tmp_path / "good.csv").write_bytes(tdx_csv({}))
    with pytest.raises(CasemateError, match="must be named like"):
        run("import", tmp_path / ".hidden.csv")

    monkeypatch.setenv("CASEMATE_DATA_DIR", str(data / "elsewhere"))
    with pytest.raises(CasemateError, match="no data directory"):
        run("import", tmp_path / "good.csv")
