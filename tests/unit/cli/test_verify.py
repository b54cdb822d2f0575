from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cli.verify import verify
from tests.common import evidence
from tests.common.evidence import NOW, TdxVm, platform


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A request, the root and the collateral as files."""
    request = evidence.request(TdxVm().attestation())
    (tmp_path / "request.json").write_text(json.dumps(request))
    (tmp_path / "root.pem").write_text(platform().root_ca_pem)
    (tmp_path / "collateral.json").write_text(evidence.collateral())
    return tmp_path


def run(folder: Path, *options: str, request: str = "request.json") -> Result:
    arguments = [word.replace("DIR", str(folder)) for word in options]
    return CliRunner().invoke(verify, [str(folder / request), *arguments])


TRUSTED = ("--root-ca", "DIR/root.pem", "--collateral", "DIR/collateral.json", "--at", str(NOW))


def test_valid_evidence_prints_the_answer_and_exits_with_0(folder: Path) -> None:
    result = run(folder, *TRUSTED)

    assert result.exit_code == 0, result.output
    told: dict[str, Any] = json.loads(result.output)
    assert told["is_valid"] is True
    assert told["details"]["root"] == "simulated"


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (TRUSTED[2:], "trusted root"),
        (TRUSTED[:2], "no source of it configured"),
        ((*TRUSTED[:4], "--at", str(NOW + 10**6)), "not valid at that time"),
    ],
)
def test_evidence_that_is_not_valid_exits_with_1(
    folder: Path, options: tuple[str, ...], why: str
) -> None:
    result = run(folder, *options)

    assert result.exit_code == 1
    assert why in json.loads(result.output)["reason"]


@pytest.mark.parametrize("text", ["", "{}", '{"quote":"00"}', '{"attestation":"zz"}'])
def test_what_cannot_be_read_exits_with_2(folder: Path, text: str) -> None:
    (folder / "bad.json").write_text(text)
    result = run(folder, *TRUSTED, request="bad.json")

    assert result.exit_code == 2
    assert result.stderr.startswith("casemate verify: ")


def test_its_files_may_be_links(folder: Path) -> None:
    for name in ("request.json", "root.pem"):
        (folder / name).rename(folder / f"real-{name}")
        (folder / name).symlink_to(folder / f"real-{name}")

    assert run(folder, *TRUSTED).exit_code == 0


def test_a_file_that_is_not_there_exits_with_2(folder: Path) -> None:
    assert run(folder, request="none.json").exit_code == 2
    assert run(folder, "--root-ca", "DIR/request.json").exit_code == 2
