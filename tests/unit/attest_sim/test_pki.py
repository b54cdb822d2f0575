from __future__ import annotations

import datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, utils

from attest_sim import pki

SEED = bytes(range(32))


def test_one_seed_makes_one_certificate_and_another_seed_another() -> None:
    first, again = (pki.authority(SEED, "Simulated Root", is_ca=True) for _ in range(2))
    other = pki.authority(bytes(32), "Simulated Root", is_ca=True)

    assert first.der == again.der
    assert first.der != other.der
    assert first.certificate.serial_number != other.certificate.serial_number


def test_keys_and_bytes_for_different_purposes_differ() -> None:
    keys = {pki.public_point(pki.derive_key(SEED, label)) for label in ("a", "b", "c")}

    assert len(keys) == 3
    assert pki.derive(SEED, "ppid", 16) != pki.derive(SEED, "serial", 16)


def test_certificates_chain_and_say_who_they_are() -> None:
    root = pki.authority(SEED, "Simulated Root", is_ca=True)
    leaf = pki.authority(SEED, "Simulated Leaf", root, is_ca=False)

    root.certificate.verify_directly_issued_by(root.certificate)
    leaf.certificate.verify_directly_issued_by(root.certificate)
    assert "Simulated" in leaf.certificate.subject.rfc4514_string()
    constraints = leaf.certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    usage = root.certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    assert not constraints.value.ca
    assert constraints.critical
    assert (usage.key_cert_sign, usage.crl_sign, usage.digital_signature) == (True, True, False)


def test_signatures_are_the_same_each_time_and_verify() -> None:
    key = pki.derive_key(SEED, "signer")
    raw = pki.sign_raw(key, b"message")
    r, s = int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:], "big")

    assert raw == pki.sign_raw(key, b"message")
    encoded = utils.encode_dss_signature(r, s)
    assert encoded == pki.sign(key, b"message")
    key.public_key().verify(encoded, b"message", ec.ECDSA(hashes.SHA256()))


def test_a_revocation_list_is_signed_and_valid_for_the_given_time() -> None:
    root = pki.authority(SEED, "Simulated Root", is_ca=True)
    start = datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC)
    end = start + datetime.timedelta(days=1)

    crl = x509.load_der_x509_crl(root.revocation_list(start, end))

    assert crl.is_signature_valid(root.key.public_key())
    assert (crl.last_update_utc, crl.next_update_utc) == (start, end)
    assert len(crl) == 0
