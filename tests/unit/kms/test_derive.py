"""Every derivation of the KMS against the published answers."""

from __future__ import annotations

import hashlib
import hmac
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from core import k256
from core.errors import Invalid
from core.kdf import scalar_of
from kms import derive
from kms.derive import RootKeys
from tests.unit.kms.conftest import APP_ID, INSTANCE_ID


@pytest.fixture
def root(known_answers: dict[str, Any]) -> RootKeys:
    given = known_answers["kms_derivations_computed"]
    ca = load_pem_private_key(given["root_ca_key_pkcs8_pem"].encode(), None)
    assert isinstance(ca, ec.EllipticCurvePrivateKey)
    return RootKeys(ca, bytes.fromhex(given["root_k256_key"]))


def test_an_app_gets_the_published_keys(root: RootKeys, known_answers: dict[str, Any]) -> None:
    answers = known_answers["kms_derivations_computed"]["apps"]
    assert answers
    for answer in answers:
        app_id, instance_id = (bytes.fromhex(answer[name]) for name in ("app_id", "instance_id"))

        keys = derive.app_keys(root, app_id, instance_id)

        assert keys.disk_crypt_key.hex() == answer["disk_crypt_key"]
        assert keys.env_crypt_key.hex() == answer["env_crypt_key"]
        assert keys.k256_key.hex() == answer["k256_app_key"]
        assert k256.public_key(keys.k256_key).hex() == answer["k256_app_public"]
        assert derive.env_public_key(root, app_id).hex() == answer["env_public_key"]
        ca = scalar_of(derive.app_ca_key(root, app_id))
        assert ca.hex() == answer["app_ca_p256_scalar"]


def test_the_root_key_vouches_for_the_app_key(
    root: RootKeys, known_answers: dict[str, Any]
) -> None:
    (answer,) = known_answers["kms_derivations_computed"]["apps"]

    keys = derive.app_keys(root, APP_ID, INSTANCE_ID)

    message = b"dstack-kms-issued:" + APP_ID + k256.public_key(keys.k256_key)
    assert k256.keccak256(message).hex() == answer["k256_signature_message_keccak"]
    assert k256.recover(keys.k256_signature, message) == root.k256_public
    assert len(keys.k256_signature) == 65 and keys.k256_signature[64] in (0, 1)


def test_the_published_signature_of_the_simulator_is_of_this_form(
    known_answers: dict[str, Any],
) -> None:
    given = known_answers["simulator_chain_upstream"]
    app_id, public = (bytes.fromhex(given[name]) for name in ("app_id", "app_public"))

    signer = k256.recover(
        bytes.fromhex(given["k256_signature"]), b"dstack-kms-issued:" + app_id + public
    )

    assert signer.hex() == given["kms_root_public"]


def test_instances_share_all_keys_but_the_disks(root: RootKeys) -> None:
    one, other = (derive.app_keys(root, APP_ID, bytes([i]) * 20) for i in (1, 2))

    assert one.disk_crypt_key != other.disk_crypt_key
    assert (one.env_crypt_key, one.k256_key) == (other.env_crypt_key, other.k256_key)


def test_two_apps_share_nothing(root: RootKeys) -> None:
    one, other = (derive.app_keys(root, bytes([i]) * 20, INSTANCE_ID) for i in (1, 2))

    assert not {one.disk_crypt_key, one.env_crypt_key, one.k256_key} & {
        other.disk_crypt_key,
        other.env_crypt_key,
        other.k256_key,
    }


def test_the_k256_key_is_hkdf_with_the_salt_of_dstack(root: RootKeys) -> None:
    extracted = hmac.digest(b"RATLS", root.k256, "sha256")

    expected = hmac.digest(extracted, APP_ID + b"app-key" + b"\1", hashlib.sha256)

    assert derive.app_keys(root, APP_ID, b"").k256_key == expected


@pytest.mark.parametrize("size", [0, 19, 21, 32])
def test_an_app_id_of_another_length_gets_no_keys(root: RootKeys, size: int) -> None:
    for refused in (
        lambda: derive.app_keys(root, bytes(size), INSTANCE_ID),
        lambda: derive.env_public_key(root, bytes(size)),
        lambda: derive.app_ca_key(root, bytes(size)),
    ):
        with pytest.raises(Invalid, match="app_id must be 20 bytes"):
            refused()


def test_no_key_shows_when_it_is_printed(root: RootKeys) -> None:
    keys = derive.app_keys(root, APP_ID, INSTANCE_ID)

    shown = f"{root!r} {keys!r}"

    assert repr(root.k256) not in shown
    for secret in (keys.disk_crypt_key, keys.env_crypt_key, keys.k256_key):
        assert repr(secret) not in shown and secret.hex() not in shown
