from __future__ import annotations

import base64
import hashlib
import json
import secrets
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes, padding, serialization
from cryptography.hazmat.primitives.asymmetric import padding as rsa_padding
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESSIV

from core.errors import Invalid
from secretvm.secrets import Given, Keys, variables

OAEP = rsa_padding.OAEP(rsa_padding.MGF1(hashes.SHA1()), hashes.SHA1(), None)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return Keys.kept(tmp_path_factory.mktemp("data"))


def salted(text: bytes, secret: bytes) -> str:
    """What `openssl enc -aes-256-cbc -md md5 -base64` makes of a text under a pass phrase."""
    salt = secrets.token_bytes(8)
    derived = b""
    while len(derived) < 48:
        derived += hashlib.md5(derived[-16:] + secret + salt).digest()
    padder = padding.PKCS7(128).padder()
    encryptor = Cipher(algorithms.AES(derived[:32]), modes.CBC(derived[32:])).encryptor()
    padded = padder.update(text) + padder.finalize()
    return base64.b64encode(b"Salted__" + salt + encryptor.update(padded)).decode()


def wrapped(keys: Keys, secret: bytes, how: rsa_padding.AsymmetricPadding = OAEP) -> str:
    public = serialization.load_pem_public_key(keys.public()["rsa_public_key"].encode())
    assert isinstance(public, rsa.RSAPublicKey)
    return base64.b64encode(public.encrypt(secret, how)).decode()


def siv(keys: Keys, text: bytes) -> str:
    """What the public client makes of a text for the key of the contract."""
    once = X25519PrivateKey.generate()
    theirs = bytes.fromhex(keys.public()["kms_contract_public_key"])
    shared = once.exchange(X25519PublicKey.from_public_bytes(theirs))
    sealed = AESSIV(shared).encrypt(text, [b""])
    return (once.public_key().public_bytes_raw() + sealed).hex()


def new_secret() -> bytes:
    return base64.b64encode(secrets.token_bytes(32))


def test_plain_secrets_are_lines_of_names_and_values(keys: Keys) -> None:
    given = Given(secrets_plaintext="# a remark\n\nA=1\nB=x=y \nA=2\nEMPTY=\n")

    assert given.opened(keys) == {"A": "2", "B": "x=y ", "EMPTY": ""}


@pytest.mark.parametrize("how", [OAEP, rsa_padding.PKCS1v15()], ids=["oaep", "pkcs1"])
def test_the_envelope_of_the_client_is_opened_under_both_paddings(
    keys: Keys, how: rsa_padding.AsymmetricPadding
) -> None:
    secret = new_secret()
    given = Given(
        secrets_encrypted=salted(b"A=1\n", secret), secrets_key=wrapped(keys, secret, how)
    )

    assert given.opened(keys) == {"A": "1"}


def test_registry_credentials_come_in_the_same_envelope(keys: Keys) -> None:
    secret = new_secret()
    told = json.dumps({"repository": "ghcr.io", "username": "u", "password": "p"}).encode()
    given = Given(
        docker_credentials_encrypted=salted(told, secret),
        docker_credentials_key=wrapped(keys, secret),
    )

    assert given.opened(keys) == {
        "DSTACK_DOCKER_REGISTRY": "ghcr.io",
        "DSTACK_DOCKER_USERNAME": "u",
        "DSTACK_DOCKER_PASSWORD": "p",
    }


def test_the_cipher_of_the_client_is_opened(keys: Keys) -> None:
    given = Given(
        secrets_cipher=siv(keys, b"A=1"),
        kms_docker_cipher=siv(keys, b"p"),
        kms_docker_username="u",
        kms_docker_repository="ghcr.io",
    )

    assert given.opened(keys) == {
        "A": "1",
        "DSTACK_DOCKER_REGISTRY": "ghcr.io",
        "DSTACK_DOCKER_USERNAME": "u",
        "DSTACK_DOCKER_PASSWORD": "p",
    }


def broken(keys: Keys) -> dict[str, Given]:
    secret = new_secret()
    good, key = salted(b"A=1", secret), wrapped(keys, secret)
    raw, bent = base64.b64decode(key), base64.b64decode(good)
    return {
        "no base64": Given(secrets_encrypted="%%%", secrets_key=key),
        "another key": Given(secrets_encrypted=good, secrets_key=wrapped(keys, new_secret())),
        "a bent key": Given(
            secrets_encrypted=good,
            secrets_key=base64.b64encode(raw[:-1] + bytes([raw[-1] ^ 1])).decode(),
        ),
        "a short key": Given(
            secrets_encrypted=good, secrets_key=base64.b64encode(raw[:-1]).decode()
        ),
        "a key that is no key": Given(
            secrets_encrypted=good, secrets_key=wrapped(keys, b"not 44 characters")
        ),
        "no salt": Given(secrets_encrypted=base64.b64encode(bent[8:]).decode(), secrets_key=key),
        "cut off": Given(secrets_encrypted=base64.b64encode(bent[:-3]).decode(), secrets_key=key),
    }


def test_whatever_is_wrong_with_an_envelope_one_refusal_says_it(keys: Keys) -> None:
    messages = set()
    for name, given in broken(keys).items():
        with pytest.raises(Invalid) as refused:
            given.opened(keys)
        assert refused.value.fields.keys() == {"secrets_encrypted"}, name
        messages.add(refused.value.message)

    assert len(messages) == 1


@pytest.mark.parametrize("text", ["", "zz", "00" * 20, "00" * 60, "ab" * 60])
def test_a_cipher_for_another_key_is_refused(keys: Keys, text: str) -> None:
    with pytest.raises(Invalid, match=r"secrets_cipher|kms_docker"):
        Given(secrets_cipher=text or "0").opened(keys)


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"secrets_plaintext": "A=1", "secrets_cipher": "00"}, "secrets_cipher"),
        ({"secrets_encrypted": "00"}, "secrets_key"),
        ({"secrets_key": "00"}, "secrets_encrypted"),
        ({"docker_credentials_encrypted": "00"}, "docker_credentials_key"),
        ({"kms_docker_cipher": "00", "kms_docker_username": "u"}, "kms_docker_repository"),
        ({"kms_docker_username": "u"}, "kms_docker_cipher"),
    ],
)
def test_schemes_are_not_mixed_and_come_whole(
    keys: Keys, given: dict[str, str], field: str
) -> None:
    with pytest.raises(Invalid) as refused:
        Given(**given).opened(keys)

    assert refused.value.fields.keys() == {field}


@pytest.mark.parametrize(
    "raw",
    [b"A", b"1A=x", b"A B=x", b"=x", b"A=\0", b"\xff=x", b"A=" + b"x" * 200_000, b"A=1\n" * 90_000],
)
def test_what_the_guest_would_not_take_is_refused(raw: bytes) -> None:
    with pytest.raises(Invalid) as refused:
        variables("secrets_plaintext", raw)

    assert len(refused.value.message) < 100


def test_a_refusal_does_not_tell_what_the_line_holds() -> None:
    with pytest.raises(Invalid) as refused:
        variables("secrets_plaintext", b"hunter2\n")

    assert "hunter2" not in refused.value.message
    assert "line 1" in refused.value.message


def test_the_keys_are_made_once_and_are_for_the_service_alone(tmp_path: Path) -> None:
    made, again = Keys.kept(tmp_path), Keys.kept(tmp_path)

    assert made.public() == again.public()
    file = tmp_path / "secretvm-keys.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "PRIVATE" not in repr(made)


def test_the_envelope_is_openssls_own(keys: Keys, tmp_path: Path) -> None:
    import shutil
    import subprocess

    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed")
    secret = new_secret()
    command = [openssl, "enc", "-aes-256-cbc", "-md", "md5", "-base64", "-A", "-pass", "stdin"]
    # The first line of standard input is the pass phrase, the rest the text.
    told = secret + b"\nA=of openssl\n"
    done = subprocess.run(command, input=told, capture_output=True, check=True)
    given = Given(secrets_encrypted=done.stdout.decode(), secrets_key=wrapped(keys, secret))

    assert given.opened(keys) == {"A": "of openssl"}
