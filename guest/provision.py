"""Keys and certificates from a KMS, which is shown evidence and known by its root certificate alone.

Source: kms.md section 6, guest-agent.md sections 4 (GetTlsKey) and 10.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import CasemateError, Invalid, Upstream
from guest.console import say
from guest.keys import AppKeys, KeyProvider

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

    from core.certs import Leaf
    from guest.evidence import Evidence

USAGE_RPC = "kms:rpc"
NETWORK_S = 20.0
_MAX_URLS = 16
# proc(5), /proc/net/route: the destination of the default route.
_DEFAULT = "00000000"


@dataclass(frozen=True)
class Provisioned:
    """What a KMS gave: the keys, and the hash of the OS image that it found (32 bytes or empty)."""

    keys: AppKeys
    os_image_hash: bytes


def wait_for_network(root: Path = Path("/")) -> None:
    """Returns when there is a way out of this machine, or after NETWORK_S: DHCP runs beside the boot."""
    deadline = time.monotonic() + NETWORK_S
    while time.monotonic() < deadline:
        routes = (root / "proc/net/route").read_text().splitlines()[1:]
        if any(route.split()[1] == _DEFAULT for route in routes):
            return
        time.sleep(0.02)
    say("no network yet")


def from_kms(
    urls: Sequence[str], proof: Evidence, vm_config: str, wanted_id: bytes = b""
) -> Provisioned:
    """The app's keys from the first KMS that gives them; the error of the first one when none does.

    `wanted_id` is the SubjectPublicKeyInfo of the only root that the app accepts; empty: any.
    """
    if not urls:
        raise Invalid("this app wants keys from a KMS, but the host names none (kms_urls)")
    first: CasemateError | None = None
    for url in urls[:_MAX_URLS]:
        try:
            return _ask(url, proof, vm_config, wanted_id)
        except CasemateError as error:
            say(f"no keys from {url}: {error.message}")
            first = first or error
    assert first is not None
    raise first


def _ask(url: str, proof: Evidence, vm_config: str, wanted_id: bytes) -> Provisioned:
    from core import kms_client

    met = kms_client.Kms(url).introduction()
    identity = _identity(met.ca_cert)
    if wanted_id and wanted_id != identity:
        raise Invalid("the KMS is not the one that the app-compose names (key_provider_id)")
    client = kms_client.client_certificate(met, proof.ra_tls_extension)
    server = kms_client.Kms(url, met.ca_cert, check_server)
    given = server.call("GetAppKey", {"api_version": 1, "vm_config": vm_config}, client)
    provider = KeyProvider(
        "Kms",
        id=identity.hex(),
        url=url,
        tmp_ca_key=met.temp_ca_key,
        tmp_ca_cert=met.temp_ca_cert,
    )
    return read_answer(given, met.ca_cert, provider)


def _identity(ca_cert: str) -> bytes:
    """The SubjectPublicKeyInfo (DER) of a root certificate, by which a KMS is known."""
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization

    try:
        key = x509.load_pem_x509_certificate(ca_cert.encode()).public_key()
    except ValueError:
        raise Upstream("the root certificate of the KMS cannot be read") from None
    return key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def check_server(certificate: x509.Certificate) -> None:
    """Refuses (Upstream) a server under the KMS's root that is an app and not the KMS itself."""
    from attest import ratls
    from attest.errors import VerificationError

    try:
        usage = ratls.read(certificate).usage
    except VerificationError as error:
        raise Upstream(f"the server's certificate cannot be read: {error.message}") from None
    if usage != USAGE_RPC:
        raise Upstream("the server's certificate is not that of a KMS")


def read_answer(given: Mapping[str, Any], ca_cert: str, provider: KeyProvider) -> Provisioned:
    """The keys in an answer of GetAppKey; Upstream when it holds none that are whole."""
    if given.get("ca_cert") != ca_cert:
        raise Upstream("the KMS gave keys under another root than it showed")
    keys = AppKeys(
        disk_crypt_key=_bytes(given, "disk_crypt_key", 32),
        env_crypt_key=_bytes(given, "env_crypt_key", 32),
        k256_key=_bytes(given, "k256_key", 32),
        k256_signature=_bytes(given, "k256_signature", 65),
        gateway_app_id=str(given.get("gateway_app_id") or ""),
        ca_cert=ca_cert,
        key_provider=provider,
    )
    return Provisioned(keys, _bytes(given, "os_image_hash", 32, 0))


def _bytes(given: Mapping[str, Any], name: str, *sizes: int) -> bytes:
    try:
        value = bytes.fromhex(given.get(name) or "")
    except (TypeError, ValueError):
        value = b"?"
    if len(value) not in sizes:
        raise Upstream(f"the answer of the KMS has no {name} of {sizes[0]} bytes")
    return value


@dataclass(frozen=True)
class Wish:
    """What a certificate is to carry beside its names: the app's evidence, the KMS's word on the app."""

    ra_tls: bool
    app_info: bool


def certify(
    keys: AppKeys, proof: Evidence, key: ec.EllipticCurvePrivateKey, leaf: Leaf, wish: Wish
) -> list[str]:
    """The chain [leaf, app CA, root CA] in PEM that the app's KMS signs for a key of the app."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    from attest import ratls
    from attest.csr import CertRequest
    from core import kms_client
    from core.certs import spki_der

    spki = spki_der(key.public_key())
    request = CertRequest(
        spki=spki,
        attestation=proof.attestation(ratls.report_data_for_key(spki)),
        subject=leaf.subject,
        alt_names=tuple(leaf.alt_names),
        server_auth=leaf.server_auth,
        client_auth=leaf.client_auth,
        ext_quote=wish.ra_tls,
        ext_app_info=wish.app_info,
        not_before=leaf.not_before,
        not_after=leaf.not_after,
    ).encode()
    signature = key.sign(request, ec.ECDSA(hashes.SHA256()))
    server = kms_client.Kms(keys.key_provider.url, keys.ca_cert, check_server)
    params = {"api_version": 2, "csr": request.hex(), "signature": signature.hex()}
    return _chain(server.call("SignCert", params))


def _chain(given: Mapping[str, Any]) -> list[str]:
    chain = given.get("certificate_chain")
    if not isinstance(chain, list) or not chain or not all(isinstance(pem, str) for pem in chain):
        raise Upstream("the answer of the KMS has no certificate chain")
    return chain
