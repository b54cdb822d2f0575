from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from core.config import Config
from core.errors import Invalid, Unavailable
from guest import env
from secretvm import wanted
from secretvm.secrets import Given, Keys
from secretvm.vm_object import Flags
from secretvm.wanted import Prepared, Wanted

APP_ID = "ab" * 20
COMPOSE = b"services: {web: {image: x, ports: ['8080:80']}}\n"
KEY = X25519PrivateKey.generate()


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return Keys.kept(tmp_path_factory.mktemp("data"))


def key_of(app_id: bytes) -> bytes:
    assert app_id.hex() == APP_ID
    return KEY.public_key().public_bytes_raw()


def no_kms(app_id: bytes) -> bytes:
    raise Unavailable("there is no KMS")


def asked(**fields: Any) -> Wanted:
    return Wanted(**{"name": "my vm", "vm_type": "small", "compose": COMPOSE, **fields})


def prepare(config: Config, keys: Keys, given: Wanted, *, tee: str = "") -> Prepared:
    return wanted.prepare(
        given, config, host_tee=tee, app_id=lambda: APP_ID, keys=keys, key_of=key_of
    )


def change(config: Config, keys: Keys, before: Prepared, **fields: Any) -> Prepared:
    given = Wanted(**fields)
    return wanted.prepare_change(before, given, config, host_tee="", keys=keys, key_of=key_of)


def opened(prepared: Prepared) -> dict[str, str]:
    plain = env.decrypt(KEY.private_bytes_raw(), prepared.encrypted_env)
    return env.variables(plain, [each["key"] for each in json.loads(plain)["env"]])


def test_what_the_guest_lets_in_is_what_was_sealed(config: Config, keys: Keys) -> None:
    prepared = prepare(config, keys, asked(secrets=Given(secrets_plaintext="B=2\nA=1")))

    assert opened(prepared) == {"B": "2", "A": "1"}
    assert json.loads(prepared.app_compose)["allowed_envs"] == ["A", "B"]
    assert prepared.publish == (29343, 8080)
    assert prepared.starts


def test_without_secrets_no_kms_is_asked(config: Config, keys: Keys) -> None:
    prepared = wanted.prepare(
        asked(persistent=True, upgradeable=True),
        config,
        host_tee="",
        app_id=lambda: APP_ID,
        keys=keys,
        key_of=no_kms,
    )

    assert prepared.encrypted_env == b""


def test_no_app_id_is_drawn_for_what_is_refused(config: Config, keys: Keys) -> None:
    def draw() -> str:
        raise AssertionError("drawn too early")

    with pytest.raises(Invalid):
        wanted.prepare(
            asked(secrets=Given(secrets_cipher="00")),
            config,
            host_tee="",
            app_id=draw,
            keys=keys,
            key_of=key_of,
        )


@pytest.mark.parametrize("flags", [{"skip_launch": True}, {"custom_domain": "vm.example.com"}])
def test_what_waits_is_not_started(config: Config, keys: Keys, flags: dict[str, Any]) -> None:
    assert not prepare(config, keys, asked(**flags)).starts


def test_a_platform_is_had_or_simulated(config: Config, keys: Keys) -> None:
    real = replace(config, cvm=replace(config.cvm, simulate=False))

    assert prepare(real, keys, asked(platform="tdx"), tee="tdx")
    assert prepare(real, keys, asked(platform="sev"), tee="amd-sev-snp")
    assert prepare(config, keys, asked(platform="sev"))
    for platform, tee in (("sev", "tdx"), ("tdx", "amd-sev-snp"), ("tdx", ""), ("", "")):
        with pytest.raises(Invalid, match="platform"):
            prepare(real, keys, asked(platform=platform), tee=tee)


def test_a_change_keeps_all_that_is_not_given(config: Config, keys: Keys) -> None:
    before = prepare(
        config,
        keys,
        asked(
            secrets=Given(secrets_plaintext="A=1"),
            persistent=True,
            private=True,
            dev_token="a-token-of-some-length",
            description="what for",
        ),
    )

    after = change(config, keys, replace(before, encrypted_env=b"", user_config=""))

    # Empty means that what is sealed stays.
    assert after == replace(before, encrypted_env=b"", user_config="")


def test_a_change_of_the_name_makes_no_other_app(config: Config, keys: Keys) -> None:
    before = prepare(config, keys, asked())

    after = change(config, keys, before, name="renamed")

    assert (after.name, after.app_compose) == ("renamed", before.app_compose)


def test_a_flag_can_be_switched_off_again(config: Config, keys: Keys) -> None:
    before = prepare(config, keys, asked(persistent=True, ita=True))

    after = change(config, keys, before, persistent=False, ita=False)

    assert json.loads(after.app_compose)["secretvm"]["persistent"] is False
    assert (before.flags.ita, after.flags.ita) == (True, False)


def test_ports_that_no_compose_text_asked_for_stay(config: Config, keys: Keys) -> None:
    before = replace(prepare(config, keys, asked()), publish=(29343, 8080, 443))

    after = change(config, keys, before, compose=b"services: {web: {image: y, ports: ['90:9']}}")

    assert after.publish == (29343, 90, 443)


def test_an_agent_gets_what_is_taken_for_granted_of_agents() -> None:
    given = wanted.for_agent(Wanted())

    assert (given.upgradeable, given.skip_attest) == (True, True)
    assert wanted.for_agent(Wanted(skip_attest=False)).skip_attest is False


def test_of_a_token_only_its_ends_are_told_and_of_a_short_one_nothing() -> None:
    long, short = (
        wanted.changed_flags(Flags(), Wanted(dev_token=token))
        for token in ("0123456789abcdef", "0123456789abcde")
    )

    assert (long.dev_token_name, long.dev_token_hint) == ("0123", "cdef")
    assert (short.dev_token_name, short.dev_token_hint) == (None, None)


def elsewhere(**app: Any) -> Prepared:
    document = {"manifest_version": 2, "docker_compose_file": "services: {}", **app}
    text = json.dumps(document, indent=1)
    return Prepared(APP_ID, text, b"", "", "", "theirs", Flags(), None, ())


def test_of_a_vm_made_elsewhere_the_compose_text_alone_is_replaced(
    config: Config, keys: Keys
) -> None:
    before = elsewhere(kms_enabled=True, allowed_envs=["A"])

    after = change(config, keys, before, compose=COMPOSE)

    told = json.loads(after.app_compose)
    assert told == {
        **json.loads(before.app_compose),
        "docker_compose_file": COMPOSE.decode(),
    }
    assert after.publish == ()
    assert change(config, keys, before, description="x").app_compose == ""


def test_a_vm_made_elsewhere_without_a_compose_text_takes_none(config: Config, keys: Keys) -> None:
    with pytest.raises(Invalid, match="dockercompose"):
        change(config, keys, elsewhere(docker_compose_file=""), compose=COMPOSE)


def test_a_vm_made_elsewhere_takes_the_secrets_that_its_maker_allowed(
    config: Config, keys: Keys
) -> None:
    before = elsewhere(allowed_envs=["A"])

    assert opened(change(config, keys, before, secrets=Given(secrets_plaintext="A=1")))
    with pytest.raises(Invalid, match="secrets"):
        change(config, keys, before, secrets=Given(secrets_plaintext="B=1"))


def test_keys_lie_in_the_data_directory(tmp_path: Path) -> None:
    Keys.kept(tmp_path)

    assert [path.name for path in tmp_path.iterdir()] == ["secretvm-keys.json"]
