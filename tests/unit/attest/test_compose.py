from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attest import compose
from attest.compose import AppCompose
from core.errors import Invalid

Read = Callable[[str], bytes]


def parse(**fields: object) -> AppCompose:
    return AppCompose.parse(json.dumps(fields).encode())


def test_the_hash_is_of_the_bytes_as_they_are() -> None:
    spaced, tight = b'{ "name": "a" }', b'{"name":"a"}'

    assert compose.compose_hash(spaced) == hashlib.sha256(spaced).digest()
    assert compose.compose_hash(spaced) != compose.compose_hash(tight)
    assert compose.app_id(spaced) == hashlib.sha256(spaced).digest()[:20]


def test_known_compose_hashes(vector: Read) -> None:
    known = json.loads(vector("known-answers.json"))["compose_hash_computed"]

    assert len(known) == 2
    for answer in known:
        raw = answer["canonical"].encode()
        assert compose.compose_hash(raw).hex() == answer["compose_hash"]
        assert AppCompose.parse(raw).runner == answer["app_compose"]["runner"]


def test_the_public_simulators_document_is_read(vector: Read) -> None:
    parsed = AppCompose.parse(vector("simulator-app-compose.json"))

    assert (parsed.name, parsed.manifest_version, parsed.runner) == (
        "guest-agent",
        2,
        "docker-compose",
    )
    assert parsed.key_provider == "kms"
    assert parsed.gateway_enabled and parsed.public_logs and parsed.public_sysinfo
    assert parsed.docker_compose_file.startswith("services:\n")
    assert parsed.pre_launch_script.startswith("docker run")
    assert (parsed.storage_fs, parsed.key_provider_id, parsed.allowed_envs) == ("ext4", b"", ())


def test_an_empty_object_means_the_defaults() -> None:
    assert AppCompose.parse(b"{}", default_name="vm") == AppCompose(name="vm")
    defaults = AppCompose()
    assert (defaults.manifest_version, defaults.runner) == (1, "docker-compose")
    assert (defaults.public_logs, defaults.public_tcbinfo) == (False, True)
    assert (defaults.key_provider, defaults.event_log_version) == ("none", 1)


def test_null_means_absent_and_unknown_fields_are_ignored() -> None:
    assert parse(name=None, public_tcbinfo=None, novelty=[1]) == AppCompose()


def test_numbers_up_to_their_ends_are_read() -> None:
    assert parse(manifest_version=0).manifest_version == 0
    assert parse(swap_size=2**64 - 1).swap_size == 2**64 - 1
    assert [parse(event_log_version=v).event_log_version for v in (1, 2)] == [1, 2]


def test_a_given_name_wins_over_the_default() -> None:
    assert AppCompose.parse(b'{"name":"mine"}', default_name="vm").name == "mine"


def test_every_field_is_read() -> None:
    parsed = parse(
        manifest_version=3,
        name="n",
        runner="bash",
        docker_compose_file="services: {}",
        bash_script="true",
        public_logs=True,
        public_sysinfo=True,
        public_tcbinfo=False,
        key_provider="tpm",
        key_provider_id="0xAB",
        gateway_enabled=True,
        no_instance_id=True,
        allowed_envs=["A", "B"],
        event_log_version=2,
        init_script=["one", "two"],
        pre_launch_script="p",
        storage_fs="zfs",
        swap_size=5,
        secure_time=True,
        launch_token_hash="outer",
        requirements={"launch_token_hash": "inner", "require_digest": True, "more": 1},
        runner_ssh=True,
    )

    assert parsed == AppCompose(
        3,
        "n",
        "bash",
        "services: {}",
        "true",
        True,
        True,
        False,
        "tpm",
        b"\xab",
        True,
        True,
        ("A", "B"),
        2,
        ("one", "two"),
        "p",
        "zfs",
        5,
        True,
        "inner",
        True,
        {"launch_token_hash": "inner", "require_digest": True, "more": 1},
        True,
    )
    assert isinstance(hash(parsed), int)


def test_the_launch_token_hash_may_stand_outside_of_requirements() -> None:
    assert parse(launch_token_hash="outer").launch_token_hash == "outer"


def test_images_that_a_registry_may_replace_are_found() -> None:
    digest = "@sha256:" + "ab" * 32
    text = f"""
services:
  one: {{image: "nginx:latest", x: 1}}
  two:
    image: 'ghcr.io/a/b'   # image: commented
  three:
    "image" : ${{IMAGE:-x}}
  four:
    image: nginx{digest}
  five:
    image: nginx@sha256:short
  six:
    image: localhost/casemate-hello:1
    my-image-name: no
    image_policy: no
  seven:
    image: "nginx:latest"
"""

    assert compose.mutable_images(text) == (
        *("nginx:latest", "ghcr.io/a/b", "commented", "${IMAGE:-x}", "nginx@sha256:short"),
    )


def test_a_text_without_end_is_searched_in_linear_time() -> None:
    began = time.process_time()

    assert len(compose.mutable_images("image: ${" * 100_000)) <= 1
    assert len(compose.mutable_images("image: a\n" * 100_000)) == 1

    assert time.process_time() - began < 5


@pytest.mark.parametrize(
    ("fields", "provider"),
    [
        ({}, "none"),
        ({"kms_enabled": True}, "kms"),
        ({"local_key_provider_enabled": True}, "local"),
        ({"kms_enabled": True, "local_key_provider_enabled": True}, "kms"),
        ({"kms_enabled": True, "key_provider": "none"}, "none"),
        ({"key_provider": "local"}, "local"),
        ({"key_provider": None, "kms_enabled": True}, "kms"),
    ],
)
def test_key_provider_wins_over_the_older_flags(fields: dict[str, object], provider: str) -> None:
    assert parse(**fields).key_provider == provider


@pytest.mark.parametrize(
    "fields",
    [
        {"gateway_enabled": True},
        {"tproxy_enabled": True},
        {"features": ["kms", "tproxy-net"]},
        {"gateway_enabled": False, "tproxy_enabled": True},
    ],
)
def test_the_gateway_has_older_names(fields: dict[str, object]) -> None:
    assert parse(**fields).gateway_enabled
    assert not parse(features=["kms"]).gateway_enabled


@pytest.mark.parametrize(
    ("given_script", "scripts"),
    [("one", ("one",)), ("", ()), ([], ()), (["a"] * 5, ("a",) * 5)],
)
def test_init_script_is_one_text_or_a_list(given_script: object, scripts: tuple[str]) -> None:
    assert parse(init_script=given_script).init_scripts == scripts


@pytest.mark.parametrize(
    ("size", "bytes_"),
    [(0, 0), (7, 7), ("7", 7), ("2G", 2**31), ("512m", 2**29), ("1 TB", 2**40), (" 4K ", 4096)],
)
def test_swap_size_is_a_number_of_bytes_or_has_a_unit(size: object, bytes_: int) -> None:
    assert parse(swap_size=size).swap_size == bytes_


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("manifest_version", "2"),
        ("manifest_version", True),
        ("manifest_version", -1),
        ("manifest_version", 2**64),
        ("manifest_version", 1.5),
        ("name", 1),
        ("name", "a\0b"),
        ("name", "\ud800"),
        ("runner", []),
        ("docker_compose_file", {}),
        ("bash_script", 1),
        ("public_logs", "true"),
        ("public_sysinfo", 1),
        ("public_tcbinfo", "no"),
        ("key_provider", "magic"),
        ("key_provider", 1),
        ("key_provider_id", "xyz"),
        ("key_provider_id", "abc"),
        ("key_provider_id", "ab" * 1025),
        ("key_provider_id", 5),
        ("kms_enabled", "yes"),
        ("local_key_provider_enabled", 0),
        ("gateway_enabled", "on"),
        ("tproxy_enabled", 1),
        ("features", "tproxy-net"),
        ("no_instance_id", "x"),
        ("allowed_envs", "A"),
        ("allowed_envs", [1]),
        ("event_log_version", 0),
        ("event_log_version", 3),
        ("event_log_version", "1"),
        ("init_script", ["a"] * 6),
        ("init_script", [1]),
        ("init_script", 5),
        ("pre_launch_script", ["a"]),
        ("storage_fs", 1),
        ("swap_size", "lots"),
        ("swap_size", -1),
        ("secure_time", "x"),
        ("requirements", []),
        ("requirements", {"launch_token_hash": 1}),
        ("launch_token_hash", 1),
    ],
)
def test_a_wrong_type_is_refused_and_the_field_named(field: str, value: object) -> None:
    with pytest.raises(Invalid) as refused:
        parse(**{field: value})

    [named] = refused.value.fields
    assert named in (field, "launch_token_hash")
    assert str(refused.value).startswith(f"{named}: must ")


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"null",
        b'"text"',
        b"{",
        b"\xff{}",
        b'{"a":NaN}',
        b'{"a":Infinity}',
        b"[" * 100_000,
        b'{"a":' + b"9" * 5000 + b"}",
    ],
)
def test_what_is_no_json_object_is_refused(raw: bytes) -> None:
    with pytest.raises(Invalid) as refused:
        AppCompose.parse(raw)

    assert list(refused.value.fields) == ["compose_file"]


@pytest.mark.parametrize("raw", [b'{"name":"a","name":"b"}', b'{"x":{"y":1,"y":2}}'])
def test_a_field_written_twice_is_refused(raw: bytes) -> None:
    with pytest.raises(Invalid, match="twice"):
        AppCompose.parse(raw)


FIELDS = [
    "manifest_version",
    "name",
    "key_provider",
    "key_provider_id",
    "allowed_envs",
    "event_log_version",
    "init_script",
    "swap_size",
    "requirements",
    "features",
    "public_logs",
]
json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=6)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(FIELDS), json_values))
def test_any_object_is_read_or_refused_as_invalid(fields: dict[str, Any]) -> None:
    try:
        parsed = parse(**fields)
    except Invalid as refused:
        assert refused.fields
        return
    assert isinstance(parsed.name, str)


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused_as_invalid(raw: bytes) -> None:
    try:
        AppCompose.parse(raw)
    except Invalid:
        return
    assert isinstance(json.loads(raw), dict)


def secretvm(**table: object) -> compose.SecretVm | None:
    return AppCompose.parse(json.dumps({"secretvm": table}).encode()).secretvm


def test_the_secretvm_table_is_read() -> None:
    assert AppCompose.parse(b"{}").secretvm is None
    assert secretvm() == compose.SecretVm()
    found = secretvm(environment="dev", private=True, upgradeable=True, dev_token_sha256="AB" * 32)
    assert found == compose.SecretVm(
        "dev", frozenset(compose.PRIVATE_PAGES), False, True, b"\xab" * 32
    )


def test_the_mask_of_private_mode_names_pages_in_their_order() -> None:
    for number, name in enumerate(compose.PRIVATE_PAGES):
        mask = "".join("1" if place == number else "0" for place in range(5))
        found = secretvm(private=mask)
        assert found is not None
        assert found.closed == {name}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("private", "1111"),
        ("private", "00002"),
        ("private", 1),
        ("environment", 5),
        ("persistent", "yes"),
        ("docker_files_sha256", "ab"),
        ("dev_token_sha256", "zz" * 32),
    ],
)
def test_a_bad_field_of_the_secretvm_table_is_named(field: str, value: object) -> None:
    with pytest.raises(Invalid, match=f"secretvm: {field}: must be"):
        secretvm(**{field: value})
