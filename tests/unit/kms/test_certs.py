"""The certificates of a KMS: what they say, and when they are made anew."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from attest import ratls
from core import certs as making
from core.errors import Conflict, Invalid
from core.proc import run
from kms import certs, rootkeys
from kms.derive import RootKeys


@pytest.fixture
def keys() -> RootKeys:
    return rootkeys.create()


@pytest.fixture
def folder(tmp_path: Path, keys: RootKeys) -> Path:
    rootkeys.save(tmp_path, keys, ec.generate_private_key(ec.SECP256R1()))
    (tmp_path / "rpc-domain").write_text("kms.example\n")
    return tmp_path


def read(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def test_the_authorities_say_who_they_are(folder: Path, keys: RootKeys) -> None:
    certs.prepare(folder, keys)

    for name, subject, length in (
        ("root-ca.crt", "CN=Dstack KMS CA,O=Dstack", 1),
        ("tmp-ca.crt", "CN=Dstack Client Temp CA,O=Dstack", 0),
    ):
        found = read(folder / name)
        assert found.subject.rfc4514_string() == subject
        basic = found.extensions.get_extension_for_class(x509.BasicConstraints).value
        assert (basic.ca, basic.path_length) == (True, length)
        usage = found.extensions.get_extension_for_class(x509.KeyUsage).value
        assert usage.digital_signature and usage.key_cert_sign and usage.crl_sign
        left = found.not_valid_after_utc - datetime.datetime.now(datetime.UTC)
        assert datetime.timedelta(days=3649) < left <= datetime.timedelta(days=3650)
        found.verify_directly_issued_by(found)


def test_authorities_stay_and_the_own_leaf_is_new_at_each_start(
    folder: Path, keys: RootKeys
) -> None:
    seen = []
    for _ in range(2):
        authority = certs.prepare(folder, keys)
        key = certs.rpc_key(folder)
        certs.issue_rpc(folder, authority.root, [], key)
        seen.append(
            [
                (folder / name).read_bytes()
                for name in ("root-ca.crt", "tmp-ca.crt", "rpc.key", "rpc.crt")
            ]
        )

    assert seen[0][:3] == seen[1][:3]
    assert seen[0][3] != seen[1][3]


def test_the_own_leaf_is_a_kmss_for_its_domain(folder: Path, keys: RootKeys) -> None:
    authority = certs.prepare(folder, keys)
    certs.issue_rpc(folder, authority.root, [], certs.rpc_key(folder))

    leaf = read(folder / "rpc.crt")
    assert leaf.subject.rfc4514_string() == "CN=kms.example,O=Dstack"
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["kms.example"]
    assert ratls.read(leaf).usage == "kms:rpc"
    usage = leaf.extensions.get_extension_for_class(x509.KeyUsage).value
    assert usage.digital_signature and not usage.key_cert_sign
    done = run(
        ["openssl", "verify", "-x509_strict", "-CAfile", folder / "root-ca.crt", folder / "rpc.crt"]
    )
    assert done.stdout.strip().endswith(b": OK")


def test_a_domain_too_long_for_a_subject_is_an_alternative_name(
    folder: Path, keys: RootKeys
) -> None:
    domain = ".".join(["a" * 60] * 3)
    (folder / "rpc-domain").write_text(domain)
    authority = certs.prepare(folder, keys)

    certs.issue_rpc(folder, authority.root, [], certs.rpc_key(folder))

    leaf = read(folder / "rpc.crt")
    assert leaf.subject.rfc4514_string() == "O=Dstack"
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [domain]


@pytest.mark.parametrize(("days", "is_new"), [(364, True), (366, False)])
def test_an_authority_is_renewed_with_the_same_key_in_its_last_year(
    folder: Path, keys: RootKeys, monkeypatch: pytest.MonkeyPatch, days: int, is_new: bool
) -> None:
    with monkeypatch.context() as soon:
        soon.setattr(making, "LIFETIME", datetime.timedelta(days=days))
        before = certs.prepare(folder, keys)

    after = certs.prepare(folder, keys)

    assert (before.ca_cert != after.ca_cert) is is_new
    assert (before.tmp_ca_cert != after.tmp_ca_cert) is is_new
    assert before.root.certificate.public_key() == after.root.certificate.public_key()


def test_a_certificate_of_another_key_is_replaced(folder: Path, keys: RootKeys) -> None:
    before = certs.prepare(folder, keys)
    (folder / "root-ca.crt").write_text(before.tmp_ca_cert)

    after = certs.prepare(folder, keys)

    assert after.root.certificate.public_key() == keys.ca.public_key()


@pytest.mark.parametrize("content", [b"broken", b"\xff"])
def test_a_broken_certificate_is_not_guessed_at(
    folder: Path, keys: RootKeys, content: bytes
) -> None:
    (folder / "root-ca.crt").write_bytes(content)

    with pytest.raises(Invalid, match="root-ca.crt: is not a certificate; remove it"):
        certs.prepare(folder, keys)


@pytest.mark.parametrize("content", [b"", b"two words", b"\xff"])
def test_a_broken_domain_is_refused(folder: Path, keys: RootKeys, content: bytes) -> None:
    authority = certs.prepare(folder, keys)
    (folder / "rpc-domain").write_bytes(content)

    with pytest.raises(Invalid, match="rpc-domain: must be a host name"):
        certs.issue_rpc(folder, authority.root, [], certs.rpc_key(folder))


def test_a_listeners_key_that_others_can_read_is_refused(folder: Path) -> None:
    certs.rpc_key(folder)
    (folder / "rpc.key").chmod(0o644)

    with pytest.raises(Conflict, match="rpc.key can be read by others"):
        certs.rpc_key(folder)


def test_missing_keys_of_less_weight_are_made(folder: Path, keys: RootKeys) -> None:
    (folder / "tmp-ca.key").unlink()

    authority = certs.prepare(folder, keys)

    key = load_pem_private_key((folder / "tmp-ca.key").read_bytes(), None)
    assert (
        x509.load_pem_x509_certificate(authority.tmp_ca_cert.encode()).public_key()
        == key.public_key()
    )
    assert (folder / "tmp-ca.key").stat().st_mode & 0o777 == 0o600
