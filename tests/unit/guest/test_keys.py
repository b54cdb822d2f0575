"""Keys and signatures, against the published answers and against the other side of each operation."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from core import k256
from core.errors import Invalid
from core.kdf import dh_secret, kdf, p256_key, pkcs8_pem
from guest import keys
from guest.keys import AppKeys, KeyProvider

SECP256K1_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141


@pytest.fixture
def published(vectors: Path) -> AppKeys:
    return keys.load(vectors / "simulator-appkeys.json")


def test_get_key_gives_the_published_keys(
    published: AppKeys, known_answers: dict[str, Any]
) -> None:
    for answer in known_answers["get_key_computed"]:
        for algorithm in ("secp256k1", "ed25519"):
            derived = keys.derive(published, answer["path"], "signing", algorithm)
            assert derived.key.hex() == answer["key"]
            assert derived.public_key.hex() == answer[f"{algorithm}_public"]


def test_both_links_of_a_key_recover_to_their_signers(
    published: AppKeys, known_answers: dict[str, Any]
) -> None:
    chain = known_answers["simulator_chain_upstream"]
    derived = keys.derive(published, "my/key/path", "signing", "")

    first, second = derived.signature_chain

    app_key = k256.recover(first, f"signing:{derived.public_key.hex()}".encode())
    assert app_key.hex() == chain["app_public"]
    issued = b"dstack-kms-issued:" + bytes.fromhex(chain["app_id"]) + app_key
    assert k256.recover(second, issued).hex() == chain["kms_root_public"]
    assert first[64] in (0, 1) and int.from_bytes(first[32:64], "big") <= SECP256K1_ORDER // 2


def test_an_algorithm_that_get_key_does_not_have_is_refused(published: AppKeys) -> None:
    for algorithm in ("secp256k1_prehashed", "rsa", "ED25519"):
        with pytest.raises(Invalid, match="Unsupported algorithm"):
            keys.derive(published, "", "", algorithm)


def test_legacy_keys_have_the_published_scalars(
    published: AppKeys, known_answers: dict[str, Any]
) -> None:
    for answer in known_answers["tappd_derive_key_computed"]:
        key = p256_key(kdf(published.k256_key, answer["path"].encode()))
        assert f"{key.private_numbers().private_value:064x}" == answer["p256_private_scalar"]


def test_a_seed_gives_the_same_three_keys_and_another_seed_others() -> None:
    seed = bytes(range(32))
    one, again, other = keys.from_seed(seed), keys.from_seed(seed), keys.from_seed(bytes(32))

    assert pkcs8_pem(one.ca_key) == pkcs8_pem(again.ca_key)
    assert (one.disk_crypt_key, one.k256_key) == (again.disk_crypt_key, again.k256_key)
    assert len({one.disk_crypt_key, one.k256_key, other.disk_crypt_key, other.k256_key}) == 4
    # Both computed here from kms.md section 1 by HKDF of the standard library's hmac.
    assert one.k256_key == _hkdf(seed, b"app-k256-key")
    assert one.disk_crypt_key == dh_secret(_hkdf(seed, b"app-disk-key"))


def _hkdf(key: bytes, info: bytes) -> bytes:
    import hmac

    extracted = hmac.digest(b"RATLS", key, "sha256")
    return hmac.digest(extracted, info + b"\1", "sha256")


def test_the_keys_file_survives_a_round_trip() -> None:
    made = keys.from_seed(os.urandom(32))
    for kind, id_text in (("None", ""), ("Local", "ab" * 32), ("Tpm", "cd" * 32), ("Kms", "ef")):
        provider = KeyProvider(kind, pkcs8_pem(made.ca_key), id_text)
        if kind == "Kms":
            provider = KeyProvider(kind, "", id_text, "https://kms", "tmp key", "tmp cert")
        given = AppKeys(made.disk_crypt_key, b"", made.k256_key, b"", "any", "PEM", provider)
        assert AppKeys.read(given.to_json().encode()) == given


@pytest.mark.parametrize(
    "text",
    [
        b"no json",
        b"[]",
        b"{}",
        b'{"disk_crypt_key": "zz"}',
        b'{"disk_crypt_key": 5}',
        b'{"disk_crypt_key": "00"}',
    ],
)
def test_a_broken_keys_file_is_refused(text: bytes) -> None:
    with pytest.raises(Invalid):
        AppKeys.read(text)


@pytest.mark.parametrize(
    "provider", [None, {}, [], {"Kms": {}, "None": {}}, {"Other": {"key": ""}}]
)
def test_a_keys_file_must_name_one_known_provider(provider: object) -> None:
    with pytest.raises(Invalid, match="key_provider"):
        KeyProvider.read(provider)


def test_every_algorithm_verifies_what_it_signed() -> None:
    key, digest = os.urandom(32), hashlib.sha256(b"data").digest()
    for algorithm, data in (
        ("ed25519", b""),
        ("ed25519", b"data"),
        ("secp256k1", b"data"),
        ("k256", b"data"),
        ("secp256k1_prehashed", digest),
    ):
        public = keys.public_key(keys.signing_algorithm(algorithm), key)
        signature = keys.sign(key, algorithm, data)
        assert len(signature) == 64
        assert keys.verify(algorithm, data, signature, public)
        flipped = bytes([signature[0] ^ 1]) + signature[1:]
        assert not keys.verify(algorithm, data, flipped, public)


def test_plain_secp256k1_signs_the_sha256_of_the_data() -> None:
    key = os.urandom(32)
    signature = keys.sign(key, "secp256k1", b"data")
    digest = hashlib.sha256(b"data").digest()
    assert keys.verify("secp256k1_prehashed", digest, signature, k256.public_key(key))


def test_uncompressed_keys_verify_and_high_s_does_not() -> None:
    key = ec.generate_private_key(ec.SECP256K1())
    scalar = key.private_numbers().private_value.to_bytes(32, "big")
    uncompressed = key.public_key().public_bytes(
        serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
    )
    signature = keys.sign(scalar, "secp256k1", b"data")
    high_s = SECP256K1_ORDER - int.from_bytes(signature[32:], "big")

    assert keys.verify("secp256k1", b"data", signature, uncompressed)
    assert not keys.verify(
        "secp256k1", b"data", signature[:32] + high_s.to_bytes(32, "big"), uncompressed
    )


def test_signatures_that_are_no_numbers_of_the_curve_are_false_not_errors() -> None:
    public = k256.public_key(os.urandom(32))
    for signature in (bytes(64), b"\xff" * 64):
        assert not keys.verify("secp256k1", b"", signature, public)


@pytest.mark.parametrize(
    ("algorithm", "data", "signature", "public"),
    [
        ("rsa", b"", bytes(64), bytes(33)),
        ("", b"", bytes(64), bytes(33)),
        ("secp256k1", b"", bytes(63), b"\2" + bytes(31) + b"\1"),
        ("secp256k1", b"", bytes(64), b"\2" + b"\xff" * 32),
        ("secp256k1", b"", bytes(64), b"\6" + bytes(64)),
        ("secp256k1", b"", bytes(64), b""),
        ("secp256k1_prehashed", b"short", bytes(64), b"\2" + bytes(31) + b"\1"),
        ("ed25519", b"", bytes(64), bytes(31)),
        ("ed25519", b"", bytes(64), b"\2" + bytes(31)),
        ("ed25519", b"", bytes(64), b"\xff" * 32),
    ],
)
def test_malformed_input_of_verify_is_refused(
    algorithm: str, data: bytes, signature: bytes, public: bytes
) -> None:
    with pytest.raises(Invalid):
        keys.verify(algorithm, data, signature, public)


def test_real_ed25519_keys_are_points() -> None:
    for _ in range(50):
        public = ed25519.Ed25519PrivateKey.generate().public_key().public_bytes_raw()
        assert not keys.verify("ed25519", b"", bytes(64), public)


def test_a_digest_of_another_length_is_refused_with_its_length() -> None:
    with pytest.raises(Invalid, match="32-byte digest, but received 5 bytes"):
        keys.sign(bytes(31) + b"\1", "secp256k1_prehashed", b"short")


def test_keccak_has_the_original_padding() -> None:
    # The published digest of the empty string, which differs from SHA3-256's.
    empty = "c5d2460186f7233c927e7db2dcc703c0e500b653ca82273b7bfad8045d85a470"
    assert k256.keccak256(b"").hex() == empty
