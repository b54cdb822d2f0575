"""Identity from files that the host wrote."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from core.errors import Invalid, TooLarge
from guest.identity import App, InstanceInfo, SysConfig


def app(tmp_path: Path, **fields: object) -> App:
    path = tmp_path / "app-compose.json"
    path.write_text(json.dumps(fields))
    return App.read(path)


def test_the_exact_bytes_are_the_app(tmp_path: Path, known_answers: dict[str, Any]) -> None:
    for answer in known_answers["compose_hash_computed"]:
        path = tmp_path / "app-compose.json"
        path.write_bytes(answer["canonical"].encode())
        assert App.read(path).compose_hash.hex() == answer["compose_hash"]
        path.write_bytes(answer["canonical"].encode() + b"\n")
        assert App.read(path).compose_hash.hex() != answer["compose_hash"]


def test_without_an_app_id_it_is_the_head_of_the_compose_hash(tmp_path: Path) -> None:
    read = app(tmp_path, name="a")
    instance = InstanceInfo().of_app(read, fresh_seed=b"s" * 20)

    assert instance.app_id == read.compose_hash[:20]
    assert instance.instance_id == hashlib.sha256(b"s" * 20 + instance.app_id).digest()[:20]


def test_a_given_app_id_and_seed_are_kept_and_a_given_instance_id_is_not(tmp_path: Path) -> None:
    given = InstanceInfo(seed=b"x" * 20, instance_id=b"y" * 20, app_id=b"z" * 20)

    instance = given.of_app(app(tmp_path), fresh_seed=b"s" * 20)

    assert (instance.app_id, instance.seed) == (b"z" * 20, b"x" * 20)
    assert instance.instance_id == hashlib.sha256(b"x" * 20 + b"z" * 20).digest()[:20]
    kept = given.of_app(app(tmp_path), fresh_seed=b"", keep_id=True)
    assert kept.instance_id == b"y" * 20


def test_an_app_that_wants_no_instance_id_has_none(tmp_path: Path) -> None:
    instance = InstanceInfo().of_app(app(tmp_path, no_instance_id=True), fresh_seed=b"s" * 20)

    assert instance.instance_id == b""


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{", '{"app_id": 5}', '{"app_id": "zz"}', '{"app_id": "00"}', "[" * 9000],
)
def test_a_broken_instance_info_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / ".instance_info"
    path.write_text(text)

    with pytest.raises(Invalid):
        InstanceInfo.read(path)


def test_an_absent_instance_info_is_empty_and_a_large_one_refused(tmp_path: Path) -> None:
    path = tmp_path / ".instance_info"
    assert InstanceInfo.read(path) == InstanceInfo()

    path.write_bytes(b" " * (10 * 1024 + 1))

    with pytest.raises(TooLarge):
        InstanceInfo.read(path)


def test_the_vm_config_is_kept_as_text_and_its_image_hash_read(tmp_path: Path) -> None:
    text = '{ "os_image_hash" : "' + "ab" * 32 + '" }'
    path = tmp_path / "sys-config.json"
    path.write_text(json.dumps({"vm_config": text, "kms_urls": None}))

    config = SysConfig.read(path)

    assert (config.vm_config, config.os_image_hash) == (text, b"\xab" * 32)


@pytest.mark.parametrize(
    "config",
    [{"vm_config": {}}, {"vm_config": "no json"}, {"vm_config": "[]"}, {"mr_config": 1}]
    + [{"vm_config": '{"os_image_hash": "ab"}'}],
)
def test_a_broken_sys_config_is_refused(tmp_path: Path, config: object) -> None:
    path = tmp_path / "sys-config.json"
    path.write_text(json.dumps(config))

    with pytest.raises(Invalid):
        SysConfig.read(path)
