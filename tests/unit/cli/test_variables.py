from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from cli import variables
from core.errors import Invalid, Upstream
from tests.common import rows
from tests.unit.cli.conftest import SIGNER, Kms, Wired

Run = Callable[..., Result]


@pytest.fixture
def vm(wired: Wired) -> dict[str, Any]:
    """A stopped VM whose app may have A."""
    text = json.dumps({"docker_compose_file": "services: {}", "allowed_envs": ["A"]})
    made = wired.call("prpc/CreateVm", **rows.request(stopped=True, compose_file=text))
    return wired.info(made["id"])


@pytest.fixture
def kms(wired: Wired, vm: dict[str, Any]) -> Kms:
    made = Kms(vm["app_id"])
    wired.instead["/prpc/GetAppEnvEncryptPubKey"] = made.answer
    return made


def test_words_win_over_a_file_and_the_environment_fills_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "env"
    file.write_text("# a remark\n\nA=of the file\nB=x=y \n")
    monkeypatch.setenv("C", "of the environment")

    assert variables.read(["A=1", "C"], file) == {"A": "1", "B": "x=y ", "C": "of the environment"}


@pytest.mark.parametrize("word", ["1A=x", "=secret", "a b=secret", "NOT_SET_ANYWHERE"])
def test_a_bad_variable_is_refused_without_its_value(word: str) -> None:
    with pytest.raises(Invalid) as refused:
        variables.read([word], None)

    assert "secret" not in refused.value.message


def test_all_variables_are_replaced_in_one_call(run: Run, wired: Wired, kms: Kms) -> None:
    done = run("vm", "env", "web", "A=1", "B=two words")

    (change,) = wired.said("/prpc/UpdateVm")
    assert kms.opened(change["encrypted_env"]) == {"A": "1", "B": "two words"}
    assert json.loads(change["compose_file"])["allowed_envs"] == ["A", "B"]
    assert "two words" not in done.output
    assert "compose hash: " in done.stderr


def test_the_same_names_leave_the_document_as_it_is(
    run: Run, wired: Wired, kms: Kms, vm: dict[str, Any]
) -> None:
    run("vm", "env", "web", "--env-file", "-", input="A=new\n")

    (change,) = wired.said("/prpc/UpdateVm")
    assert change["compose_file"] == vm["configuration"]["compose_file"]
    assert kms.opened(change["encrypted_env"]) == {"A": "new"}


def test_variables_are_cleared_and_named(run: Run, wired: Wired, kms: Kms) -> None:
    assert run("vm", "env", "web").stdout.splitlines() == ["NAME", "A"]

    done = run("vm", "env", "web", "--clear", "--json")

    assert json.loads(done.stdout)["allowed_envs"] == []
    assert json.loads(done.stdout)["encrypted_env"] is True
    assert run("vm", "env", "web", "--clear", "A=1").exit_code == 2


def test_the_signer_of_the_key_is_told_and_another_is_refused(run: Run, kms: Kms) -> None:
    assert SIGNER in run("vm", "env", "web", "A=1").stderr
    run("vm", "env", "web", "A=1", "--kms-signer", f"0x{SIGNER.upper()[0:]}".replace("0X", "0x"))

    with pytest.raises(Invalid, match=f"kms-signer: the key was signed by {SIGNER}"):
        run("vm", "env", "web", "A=1", "--kms-signer", "02" * 33)


@pytest.mark.parametrize(
    "broken",
    [
        {"public_key": "zz"},
        {"public_key": "00"},
        {"signature_v1": "00"},
        {"signature_v1": "ff" * 65},
        {"timestamp": None},
    ],
)
def test_a_malformed_key_is_refused(
    run: Run, wired: Wired, kms: Kms, broken: dict[str, Any]
) -> None:
    kms.answer.update(broken)

    with pytest.raises(Upstream, match="malformed"):
        run("vm", "env", "web", "A=1")
    assert wired.said("/prpc/UpdateVm") == []


def test_an_older_signature_is_taken_where_there_is_no_newer(run: Run, kms: Kms) -> None:
    kms.answer["signature_v1"] = ""

    assert SIGNER in run("vm", "env", "web", "A=1").stderr
