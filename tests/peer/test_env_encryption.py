"""Variables that the published SDKs encrypt to a KMS's key open with the key that it gives the app."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core.config import Config
from guest import env
from kms import derive, rootkeys
from models.base import Database
from tests.common.kms import RunningKms
from vmm.host import Host
from vmm.service import Vms

HERE = Path(__file__).parent
APP_ID = "ab" * 20
VARIABLES = {"PASSWORD": "héllo 'quoted' \"twice\"", "EMPTY": "", "LINES": "a\nb"}
pytestmark = pytest.mark.filterwarnings("ignore:Unverified HTTPS request")

Peer = Callable[[dict[str, Any]], dict[str, Any]]


@pytest.fixture(scope="module")
def kms(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningKms]:
    running = RunningKms(tmp_path_factory.mktemp("kms"), tables='[core.auth_api]\ntype = "dev"\n')
    running.start()
    yield running
    running.stop()


@pytest.fixture
def python_sdk(peer_python: Path) -> Peer:
    """PyPI dstack-sdk."""
    command = [sys.executable, "-S", HERE / "python/env_calls.py"]
    return lambda given: _said(command, given, {"PYTHONPATH": str(peer_python)})


@pytest.fixture
def node_sdk(peer_node: Path) -> Peer:
    """npm @phala/dstack-sdk."""
    command = ["node", HERE / "node/env_calls.mjs", peer_node]
    return lambda given: _said(command, given, {})


def _said(command: list[Any], given: dict[str, Any], variables: dict[str, str]) -> dict[str, Any]:
    path = {"PATH": "/usr/local/bin:/usr/bin:/bin", **variables}
    done = subprocess.run(
        command, input=json.dumps(given).encode(), env=path, stdout=-1, check=True
    )
    said: dict[str, Any] = json.loads(done.stdout)
    return said


@pytest.mark.parametrize("sdk", ["python_sdk", "node_sdk"])
def test_what_an_sdk_encrypts_arrives_in_the_app(
    kms: RunningKms, sdk: str, request: pytest.FixtureRequest
) -> None:
    peer: Peer = request.getfixturevalue(sdk)
    key = kms.call("GetAppEnvEncryptPubKey", app_id=APP_ID)

    said = peer({**key, "app_id": APP_ID, "variables": VARIABLES})

    root = rootkeys.load(kms.data_dir / "certs")
    assert said["signer"] == said["legacy_signer"] == "0x" + root.k256_public.hex()
    private = derive.env_crypt_key(root, bytes.fromhex(APP_ID))
    opened = env.decrypt(private, bytes.fromhex(said["sealed"].removeprefix("0x")))
    assert env.variables(opened, VARIABLES) == VARIABLES


def test_the_vm_manager_passes_the_key_on(
    kms: RunningKms, config: Config, database: Database, host: Host
) -> None:
    vms = Vms(replace(config, kms_url=kms.url), database, host)

    told = vms.env_key(bytes.fromhex(APP_ID))

    assert (
        told["public_key"].hex() == kms.call("GetAppEnvEncryptPubKey", app_id=APP_ID)["public_key"]
    )
    assert len(told["signature_v1"]) == 65 and told["timestamp"] > 0
