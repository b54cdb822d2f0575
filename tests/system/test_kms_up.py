"""The KMS that `casemate up` keeps beside the service."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.kms_up import KeptKms, _answers, allow_image, allows_all, write_config
from core import policy_file
from core.errors import Unavailable
from kms import settings
from tests.common import rows
from tests.common.waiting import free_port, until
from vmm import simulation


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def data_dir(tmp_path: Path, port: int) -> Path:
    """A data directory of a service with a simulated TEE."""
    simulation.prepare(tmp_path / "tee")
    write_config(tmp_path, port, simulated=True)
    return tmp_path


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def kept(data_dir: Path, said: list[str]) -> Iterator[KeptKms]:
    made = KeptKms(data_dir, said.append)
    yield made
    made.stop()


def test_it_answers_and_comes_back_after_a_kill(
    kept: KeptKms, port: int, said: list[str], data_dir: Path
) -> None:
    url = f"https://127.0.0.1:{port}"
    kept.start(url)
    pid = kept._process.pid
    key = (data_dir / "kms/certs/root-k256.key").read_bytes()

    os.kill(pid, signal.SIGKILL)

    until(lambda: kept._process.pid != pid, what="a new process")
    until(lambda: _answers(url), seconds=60, what="its answer")
    assert any("ended with -9 and was started again" in line for line in said)
    assert (data_dir / "kms/certs/root-k256.key").read_bytes() == key


def test_one_that_cannot_start_shows_its_last_words(kept: KeptKms, data_dir: Path) -> None:
    (data_dir / "kms.toml").write_text("address = 5\n")

    with pytest.raises(Unavailable, match="the KMS does not answer: .*address"):
        kept.start(f"https://127.0.0.1:{free_port()}")


def test_a_host_with_a_tee_asks_its_operator(tmp_path: Path, data_dir: Path, port: int) -> None:
    assert allows_all(data_dir)

    write_config(data_dir, port, simulated=False)

    given = settings.load(data_dir / "kms.toml").core
    assert not allows_all(data_dir)
    assert (given.auth_api.type, given.simulate, given.attest_rpc_cert) == ("file", False, False)
    assert given.attestation.root_ca == settings.RootCas()
    assert not allows_all(tmp_path / "elsewhere")


def test_its_policy_file_begins_with_the_image_built_there(data_dir: Path, port: int) -> None:
    image = rows.image(data_dir / "images")
    allow_image(data_dir, image.name)  # a KMS that allows everything has none
    write_config(data_dir, port, simulated=False)

    allow_image(data_dir, image.name)

    path = data_dir / "kms/policy.json"
    assert policy_file.read(path) == {"osImages": [image.digest]}
    policy_file.change(path, lambda document: document["osImages"].clear())
    allow_image(data_dir, image.name)
    assert policy_file.read(path) == {"osImages": []}
