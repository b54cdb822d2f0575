from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attest import compose
from core import prpc
from core.config import Config
from core.errors import Invalid
from image.registry import Image
from tests.common import rows
from vmm.configuration import Checked, check, check_compose, check_name
from vmm.schemas import VmConfiguration


def checked(config: Config, *, host_tee: str = "", **fields: Any) -> Checked:
    return check(prpc.load(VmConfiguration, rows.request(**fields)), config, host_tee=host_tee)


def test_a_whole_configuration_is_taken(config: Config, image: Image) -> None:
    found = checked(
        config,
        name=" web server ",
        ports=[rows.port(8000), rows.port(8000, protocol="udp")],
        encrypted_env="00" * 256 * 1024,
        kms_urls=["https://kms"],
        gpus={"attach_mode": "listed", "gpus": []},
        networking={"mode": "user"},
        app_id="0x" + "AB" * 20,
    )

    assert (found.name, found.image.name, found.app_id) == ("web server", rows.IMAGE, "ab" * 20)
    assert [port.protocol for port in found.ports] == ["tcp", "udp"]
    assert found.options["kms_urls"] == ["https://kms"]


def test_an_app_without_an_id_is_known_by_its_compose_hash(config: Config, image: Image) -> None:
    assert checked(config).app_id == compose.app_id(rows.COMPOSE.encode()).hex()
    assert checked(config, app_id=None).app_id == checked(config, app_id="").app_id


@pytest.mark.parametrize(
    ("field", "value", "name"),
    [
        ("name", "", "name"),
        ("name", "  ", "name"),
        ("name", "a" * 65, "name"),
        ("name", "a/b", "name"),
        ("name", "a\nb", "name"),
        ("name", "a,b", "name"),
        ("name", "ä", "name"),
        ("image", "", "image"),
        ("image", "nothing-0.5.4", "image"),
        ("image", "../images/tiny-0.5.4", "image"),
        ("image", "/etc", "image"),
        ("image", "..", "image"),
        ("image", "a" * 65, "image"),
        ("compose_file", "", "compose_file"),
        ("compose_file", "services: {}", "compose_file"),
        ("compose_file", "[]", "compose_file"),
        ("compose_file", '{"a": 1, "a": 2}', "compose_file"),
        ("compose_file", '{"runner": 3}', "compose_file"),
        ("compose_file", "[" * 100_000, "compose_file"),
        ("vcpu", 0, "vcpu"),
        ("vcpu", 4097, "vcpu"),
        ("vcpu", 21, "vcpu"),
        ("memory", 100_001, "memory"),
        ("memory", 0, "memory"),
        ("memory", 2**32 - 1, "memory"),
        ("disk_size", 0, "disk_size"),
        ("disk_size", 2**32 - 1, "disk_size"),
        ("encrypted_env", "00" * (256 * 1024 + 1), "encrypted_env"),
        ("app_id", "ab", "app_id"),
        ("app_id", "0x" + "g" * 40, "app_id"),
        ("app_id", "0x0x" + "a" * 38, "app_id"),
        ("gpus", {"gpus": [{"slot": "3b:00.0"}], "attach_mode": "listed"}, "gpus"),
        ("gpus", {"attach_mode": "all"}, "gpus"),
        ("gpus", {"attach_mode": "some"}, "gpus.attach_mode"),
        ("networking", {"mode": "tap"}, "networking.mode"),
        ("networking", {"mode": "bridge"}, "networking.mode"),
        ("networking", {"mode": "user,restrict=no"}, "networking.mode"),
        ("networks", [{"mode": "user"}, {"mode": "bridge"}], "networking.mode"),
        ("networks", [{"mode": "custom"}], "networking.mode"),
        ("networking", {"mode": "user", "bridge_name": "br0"}, "networking.bridge_name"),
        ("networking", {"mode": "bridge", "bridge_name": "br0"}, "networking.bridge_name"),
        ("simulated_tee", "dstack-gcp-tdx", "simulated_tee"),
        ("simulated_tee", "nonsense", "simulated_tee"),
        ("ports", [rows.port(80)], "ports[0].host_port"),
        ("ports", [rows.port(8000), rows.port(8001, 0)], "ports[1].vm_port"),
        ("ports", [rows.port(8000), rows.port(8000)], "ports[1].host_port"),
    ],
)
def test_a_refusal_names_the_field_once(
    config: Config, image: Image, field: str, value: object, name: str
) -> None:
    with pytest.raises(Invalid) as refusal:
        checked(config, **{field: value})

    assert list(refusal.value.fields) == [name]
    assert refusal.value.message.startswith(f"{name}: ")
    assert refusal.value.message.count(f"{name}: ") == 1


def test_the_user_configuration_has_a_limit(
    config: Config, image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmm.configuration.USER_CONFIG_LIMIT", 4)
    monkeypatch.setattr("vmm.configuration.COMPOSE_LIMIT", 100)

    assert checked(config, user_config="ää")
    with pytest.raises(Invalid, match="user_config: must have at most 4 bytes"):
        checked(config, user_config="äää")
    with pytest.raises(Invalid, match="compose_file: must have at most 100 bytes"):
        checked(config, compose_file=json.dumps({"name": "a" * 100}))


def test_names_of_the_documented_alphabet_are_taken() -> None:
    assert check_name("Az09-_. @~!$^()") == "Az09-_. @~!$^()"
    assert check_name("a" * 64) == "a" * 64


@given(st.text())
def test_a_name_is_taken_only_if_every_letter_is_of_the_alphabet(name: str) -> None:
    try:
        taken = check_name(name)
    except Invalid:
        return

    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_. @~!$^()"
    assert set(taken) <= set(letters)
    assert 1 <= len(taken) <= 64


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text())
def test_any_text_as_compose_file_is_taken_as_it_is_or_refused(text: str) -> None:
    try:
        raw = check_compose(text)
    except Invalid as refusal:
        assert list(refusal.fields) == ["compose_file"]
        return

    assert raw.decode() == text


@pytest.mark.parametrize(
    ("fields", "simulate", "host_tee", "platform"),
    [
        ({}, True, "", "dstack-tdx"),
        ({}, False, "", None),
        ({}, True, "tdx", None),
        ({"no_tee": True}, True, "", None),
        ({"simulated_tee": "dstack-tdx"}, False, "", "dstack-tdx"),
        ({"simulated_tee": "dstack-tdx", "no_tee": True}, True, "", "dstack-tdx"),
        ({"simulated_tee": None}, True, "", "dstack-tdx"),
        ({"simulated_tee": ""}, False, "", None),
    ],
)
def test_a_tee_is_simulated_where_the_host_or_the_request_says_so_and_none_is_there(
    config: Config,
    image: Image,
    fields: dict[str, Any],
    simulate: bool,
    host_tee: str,
    platform: str | None,
) -> None:
    config = replace(config, cvm=replace(config.cvm, simulate=simulate))

    assert checked(config, host_tee=host_tee, **fields).simulated_tee == platform


def test_a_broken_image_is_refused_with_its_reason(config: Config, image: Image) -> None:
    image.kernel.unlink()

    with pytest.raises(Invalid, match=r"image: image tiny-0\.5\.4: kernel bzImage is missing"):
        checked(config)


@pytest.mark.parametrize(
    "text", ['{"key_provider": "local"}', '{"local_key_provider_enabled": true}']
)
def test_a_local_key_provider_is_refused_with_an_image_that_cannot_check_it(
    config: Config, image: Image, text: str
) -> None:
    path = rows.image(config.image.path, "ours-0.5.4").directory / "metadata.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "name": "casemate-0.5.4"}))

    with pytest.raises(
        Invalid, match="compose_file: key_provider local is not offered by image ours"
    ):
        checked(config, image="ours-0.5.4", compose_file=text)
    assert checked(config, compose_file=text).image.name == rows.IMAGE


@pytest.mark.parametrize("platform", ["dstack-tdx", "dstack-amd-sev-snp"])
def test_either_simulated_platform_can_be_asked_for(
    config: Config, image: Image, platform: str
) -> None:
    assert checked(config, simulated_tee=platform).simulated_tee == platform
    assert checked(config).simulated_tee == "dstack-tdx"
