"""The root keys on disk: made once, whole or absent, closed to others."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from core.errors import Conflict, Invalid
from core.kdf import pkcs8_pem
from kms import rootkeys


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "certs"
    rootkeys.save(made, rootkeys.create(), ec.generate_private_key(ec.SECP256R1()))
    return made


def test_saved_keys_are_read_back_and_closed_to_others(tmp_path: Path) -> None:
    keys = rootkeys.create()

    rootkeys.save(tmp_path / "certs", keys, ec.generate_private_key(ec.SECP256R1()))

    found = rootkeys.load(tmp_path / "certs")
    assert (pkcs8_pem(found.ca), found.k256) == (pkcs8_pem(keys.ca), keys.k256)
    assert (tmp_path / "certs").stat().st_mode & 0o777 == 0o700
    for name in ("root-ca.key", "root-k256.key", "tmp-ca.key"):
        assert (tmp_path / "certs" / name).stat().st_mode & 0o777 == 0o600
    assert len((tmp_path / "certs/root-k256.key").read_bytes()) == 32


def test_keys_are_never_written_over(folder: Path) -> None:
    before = (folder / "root-ca.key").read_bytes()

    with pytest.raises(Conflict, match="has its keys already"):
        rootkeys.save(folder, rootkeys.create(), ec.generate_private_key(ec.SECP256R1()))

    assert (folder / "root-ca.key").read_bytes() == before


@pytest.mark.parametrize("name", ["root-ca.key", "root-k256.key"])
def test_a_lost_key_is_not_replaced_once_it_was_used(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert not rootkeys.exist(folder)  # cut off while they were made: nobody has anything of them

    (folder / "root-ca.crt").write_text("")
    with pytest.raises(Conflict, match=f"{name} is gone; restore it"):
        rootkeys.exist(folder)


def test_a_key_that_others_can_read_is_refused(folder: Path) -> None:
    (folder / "root-k256.key").chmod(0o640)

    with pytest.raises(Conflict, match="chmod 600"):
        rootkeys.load(folder)


def test_what_a_killed_process_left_behind_is_removed(folder: Path) -> None:
    left = folder / ".root-k256.key.abc.part"
    left.write_bytes(bytes(32))

    rootkeys.load(folder)

    assert not left.exists()


@pytest.mark.parametrize("content", [b"", bytes(32), b"\xff" * 32, b"x" * 31, b"x" * 33])
def test_a_k256_key_must_be_one(folder: Path, content: bytes) -> None:
    (folder / "root-k256.key").write_bytes(content)

    with pytest.raises(Invalid, match="root-k256.key"):
        rootkeys.load(folder)


def test_a_ca_key_must_be_an_open_p256_key(folder: Path) -> None:
    p256, p384 = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP384R1())
    ed, form = ed25519.Ed25519PrivateKey.generate(), PrivateFormat.PKCS8
    locked = p256.private_bytes(Encoding.PEM, form, BestAvailableEncryption(b"password"))
    for content in (
        b"",
        b"no key",
        locked,
        pkcs8_pem(p384).encode(),
        ed.private_bytes(Encoding.PEM, form, NoEncryption()),
    ):
        (folder / "root-ca.key").write_bytes(content)
        with pytest.raises(Invalid, match="root-ca.key"):
            rootkeys.load(folder)
