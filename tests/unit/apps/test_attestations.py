"""Certificates and measurements as the interface writes them."""

from __future__ import annotations

import ssl
import threading

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from apps import attestations
from attest import ratls
from core import certs
from core.certs import Issuer, Leaf


def test_at_once_asks_all_in_parallel_and_keeps_their_order() -> None:
    all_there = threading.Barrier(attestations.AT_ONCE)

    def ask(number: int) -> int:
        all_there.wait(30)
        return number * 2

    numbers = range(2 * attestations.AT_ONCE)
    assert attestations.at_once(ask, numbers) == [2 * each for each in numbers]
    assert attestations.at_once(ask, []) == []


@pytest.mark.parametrize(
    "text", ["", "no", "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n"]
)
def test_a_text_without_certificates_has_none(text: str) -> None:
    assert attestations.certificates(text) == []


def test_a_certificate_of_no_known_version_is_none() -> None:
    root = certs.authority(
        ec.generate_private_key(ec.SECP256R1()), certs.name("root"), path_length=1
    )
    der = ssl.PEM_cert_to_DER_cert(root)
    assert der.count(bytes.fromhex("a003020102")) == 1
    spoilt = ssl.DER_cert_to_PEM_cert(
        der.replace(bytes.fromhex("a003020102"), bytes.fromhex("a003020105"))
    )

    assert len(attestations.certificates(root)) == 1
    assert attestations.certificates(spoilt) == []


@pytest.mark.parametrize("text", ["", "[]", "5", "{}", "[" * 100_000, '{"event_log": []}'])
def test_a_text_without_measurements_has_none(text: str) -> None:
    assert attestations.tcb_info(text) is None


def test_a_chain_is_told_certificate_by_certificate() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    root = certs.authority(key, certs.name("root", "Example"), path_length=1)
    issuer = Issuer(key, x509.load_pem_x509_certificate(root.encode()))
    extensions = (ratls.app_id_extension(b"\xab" * 20), ratls.usage_extension("app:custom"))
    leaf = Leaf(subject="web", alt_names=("web.example",), extensions=extensions)
    made = issuer.issue(ec.generate_private_key(ec.SECP256R1()).public_key(), leaf)

    first, second = attestations.certificates(made + root)

    assert first["subject"] == {
        "common_name": "web", "organization": None, "country": None, "state": None, "locality": None,
    }  # fmt: skip
    assert first["issuer"]["organization"] == "Example"
    assert (first["sans"], first["is_ca"], first["position_in_chain"]) == (
        ["web.example"],
        False,
        0,
    )
    assert (first["app_id"], first["cert_usage"], first["quote"]) == ("ab" * 20, "app:custom", None)
    assert first["not_before"] == "1975-01-01T00:00:00.000Z"
    assert (first["signature_algorithm"], first["version"]) == ("ecdsa-with-SHA256", "v3")
    assert (second["is_ca"], second["sans"], len(second["fingerprint"])) == (True, None, 64)
