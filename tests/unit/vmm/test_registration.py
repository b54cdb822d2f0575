"""What users deploy becomes known to a KMS that decides by a policy file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from attest import compose
from core import policy_file, prpc
from core.config import Config, KmsConfig
from core.errors import Unavailable
from image.registry import Image
from models.base import Database
from tests.common import rows
from vmm.host import Host
from vmm.schemas import Change, Configuration, StatusQuery, VmConfiguration
from vmm.service import Vms


def text(**fields: Any) -> str:
    return json.dumps({**json.loads(rows.COMPOSE), "key_provider": "kms", **fields})


def wanted(**fields: Any) -> Configuration:
    loaded: Configuration = prpc.load(VmConfiguration, rows.request(stopped=True, **fields))
    return loaded


def hash_of(compose_file: str) -> str:
    return compose.compose_hash(compose_file.encode()).hex()


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    return tmp_path / "kms" / "policy.json"


@pytest.fixture
def registering(config: Config, database: Database, host: Host, image: Image, policy: Path) -> Vms:
    return Vms(replace(config, kms=KmsConfig(True, policy)), database, host)


def test_a_new_vm_and_its_new_text_are_allowed(registering: Vms, policy: Path) -> None:
    first, second = text(), text(name="second")
    vm_id = registering.create(wanted(compose_file=first, app_id="ab" * 20))
    assert policy_file.read(policy)["apps"]["ab" * 20]["composeHashes"] == [hash_of(first)]

    registering.update(Change(vm_id, compose_file=second))

    assert policy_file.read(policy)["apps"] == {
        "ab" * 20: {
            "composeHashes": [hash_of(first), hash_of(second)],
            "devices": [],
            "allowAnyDevice": True,
        }
    }


def test_what_the_operator_took_out_stays_out_until_it_is_deployed_again(
    registering: Vms, policy: Path
) -> None:
    vm_id = registering.create(wanted(compose_file=text()))
    policy_file.change(policy, lambda document: document["apps"].clear())

    registering.update(Change(vm_id, user_config="x"))

    assert policy_file.read(policy)["apps"] == {}


def test_an_app_that_wants_no_keys_of_a_kms_is_not_added(registering: Vms, policy: Path) -> None:
    registering.create(wanted(compose_file=text(key_provider="none")))

    assert not policy.exists()


def test_nothing_is_added_where_it_is_not_switched_on(vms: Vms) -> None:
    vms.create(wanted(compose_file=text()))

    assert vms.config.kms == KmsConfig()


def test_a_file_that_cannot_be_changed_is_told_and_leaves_no_vm(
    registering: Vms, policy: Path
) -> None:
    policy.parent.mkdir()
    policy.write_text("no json")

    with pytest.raises(Unavailable, match="policy file of this host's KMS cannot be changed"):
        registering.create(wanted(compose_file=text()))

    assert registering.status(StatusQuery())["total"] == 0
    assert policy.read_text() == "no json"
