"""The encrypted environment: what opens, what is kept, what is refused."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from core.errors import Invalid
from core.proc import run
from guest import env


def seal(key: bytes, plaintext: bytes) -> bytes:
    """What a client writes, from kms.md section 7."""
    ephemeral = X25519PrivateKey.generate()
    shared = ephemeral.exchange(X25519PrivateKey.from_private_bytes(key).public_key())
    nonce = os.urandom(12)
    return (
        ephemeral.public_key().public_bytes_raw()
        + nonce
        + AESGCM(shared).encrypt(nonce, plaintext, None)
    )


def document(*pairs: tuple[str, str]) -> bytes:
    return json.dumps({"env": [{"key": key, "value": value} for key, value in pairs]}).encode()


def test_published_environments_open(known_answers: dict[str, Any]) -> None:
    for answer in (known_answers["env_decrypt_upstream"], *known_answers["env_encrypt_computed"]):
        opened = env.decrypt(bytes.fromhex(answer["secret"]), bytes.fromhex(answer["ciphertext"]))
        assert opened.decode() == answer["plaintext"]


def test_any_changed_byte_closes_it() -> None:
    key = os.urandom(32)
    sealed = seal(key, document(("A", "b")))
    assert env.decrypt(key, sealed) == document(("A", "b"))

    # The top bit of a public key is not part of it (RFC 7748): byte 31 is left out.
    for at in (0, 12, 32, 40, 44, 50, len(sealed) - 1):
        changed = bytearray(sealed)
        changed[at] ^= 1
        with pytest.raises(Invalid):
            env.decrypt(key, bytes(changed))


@pytest.mark.parametrize("sealed", [b"", bytes(59), bytes(60), bytes(200)])
def test_short_input_and_the_zero_point_are_refused(sealed: bytes) -> None:
    with pytest.raises(Invalid):
        env.decrypt(os.urandom(32), sealed)


def test_only_allowed_names_are_kept() -> None:
    plaintext = document(("A", "1"), ("LD_PRELOAD", "/evil.so"), ("B", "2"), ("PATH", "/x"))

    assert env.variables(plaintext, ("A", "B")) == {"A": "1", "B": "2"}
    assert env.variables(plaintext, ()) == {}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("1A", "x"),
        ("A-B", "x"),
        ("", "x"),
        ("Ä", "x"),
        ("A\n", "x"),
        ("A" * 256, "x"),
        ("A", "x\0y"),
        ("A", "x" * (128 * 1024 + 1)),
        ("A", "\ud800"),
    ],
)
def test_an_allowed_name_or_value_that_breaks_a_rule_stops_the_boot(name: str, value: str) -> None:
    with pytest.raises(Invalid):
        env.variables(document((name, value)), (name,))


@pytest.mark.parametrize(
    "plaintext",
    [b"", b"[]", b"{}", b'{"env": {}}', b'{"env": ["A"]}', b'{"env": [{"key": 1}]}', b"\xff"],
)
def test_another_document_is_refused(plaintext: bytes) -> None:
    with pytest.raises(Invalid):
        env.variables(plaintext, ("A",))


def test_count_and_total_are_limited() -> None:
    def many(count: int, size: int) -> Sequence[tuple[str, str]]:
        return [(f"A{i}", "x" * size) for i in range(count)]

    assert len(env.variables(document(*many(1024, 1)), [f"A{i}" for i in range(1024)])) == 1024
    with pytest.raises(Invalid):
        env.variables(document(*many(1025, 1)), ())
    with pytest.raises(Invalid):
        env.variables(document(*many(9, 128 * 1024)), [f"A{i}" for i in range(9)])


def test_a_shell_reads_the_values_back(tmp_path: Path) -> None:
    values = {"A": 'it\'s $HOME `id` "x"', "B": "two\nlines"}
    (tmp_path / "env").write_text(env.to_shell(values))

    done = run(["sh", "-c", '. "$0"; printf "%s|%s" "$A" "$B"', tmp_path / "env"])

    assert done.stdout.decode() == f"{values['A']}|{values['B']}"


TOKEN_HASH = hashlib.sha256(b"opensesame").hexdigest()


def test_an_app_may_want_a_token_that_only_its_owner_knows() -> None:
    env.check_launch_token({}, "")
    env.check_launch_token({"APP_LAUNCH_TOKEN": "opensesame"}, TOKEN_HASH)
    env.check_launch_token({"APP_LAUNCH_TOKEN": "opensesame"}, f"0x{TOKEN_HASH.upper()}")


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ({}, TOKEN_HASH),
        ({"TOKEN": "opensesame"}, TOKEN_HASH),
        ({"APP_LAUNCH_TOKEN": "opensesam"}, TOKEN_HASH),
        ({"APP_LAUNCH_TOKEN": ""}, TOKEN_HASH),
        ({"APP_LAUNCH_TOKEN": TOKEN_HASH}, TOKEN_HASH),
        ({"APP_LAUNCH_TOKEN": "opensesame"}, TOKEN_HASH[:-2]),
        ({"APP_LAUNCH_TOKEN": "opensesame"}, "ünï"),
    ],
)
def test_an_environment_without_the_right_launch_token_is_refused(
    values: dict[str, str], wanted: str
) -> None:
    with pytest.raises(Invalid, match="APP_LAUNCH_TOKEN"):
        env.check_launch_token(values, wanted)
