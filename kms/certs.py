"""The certificates of a KMS: its root, the CA under which strangers present evidence, its own leaf, app CAs.

Source: kms.md sections 1 and 3.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from attest import ratls
from core import certs, files
from core.certs import Issuer, Leaf
from core.errors import Invalid
from core.kdf import pkcs8_pem
from kms import derive, rootkeys
from kms.derive import RootKeys
from kms.settings import check_domain

ORGANIZATION = "Dstack"
ROOT_NAME = "Dstack KMS CA"
TMP_CA_NAME = "Dstack Client Temp CA"
APP_CA_NAME = "Dstack App CA"
TMP_CA_CERT = "tmp-ca.crt"
RPC_KEY = "rpc.key"
RPC_CERT = "rpc.crt"
DOMAIN = "rpc-domain"
USAGE_RPC, USAGE_APP_CA, USAGE_APP = "kms:rpc", "app:ca", "app:custom"
# A CA certificate this close to its end is made anew with the same key.
RENEWAL = datetime.timedelta(days=365)


@dataclass(frozen=True)
class Authority:
    """The KMS as an issuer of certificates, with what strangers are given; PEM texts."""

    root: Issuer
    ca_cert: str
    tmp_ca_cert: str
    tmp_ca_key: str = field(repr=False)


def prepare(folder: Path, keys: RootKeys) -> Authority:
    """Reads the CA certificates, making those that are missing, end soon or are of another key."""
    tmp_ca_key = _key(folder / rootkeys.TMP_CA_KEY)
    ca_cert = _ca(folder / rootkeys.CA_CERT, keys.ca, ROOT_NAME, path_length=1)
    tmp_ca_cert = _ca(folder / TMP_CA_CERT, tmp_ca_key, TMP_CA_NAME, path_length=0)
    root = Issuer(keys.ca, x509.load_pem_x509_certificate(ca_cert.encode()))
    return Authority(root, ca_cert, tmp_ca_cert, pkcs8_pem(tmp_ca_key))


def issue_rpc(
    folder: Path,
    root: Issuer,
    evidence: Sequence[x509.UnrecognizedExtension],
    rpc_key: ec.EllipticCurvePrivateKey,
) -> None:
    """Makes the KMS's own leaf anew, for the domain kept in the folder, with the given evidence in it."""
    domain = check_domain((folder / DOMAIN).read_text(errors="replace").strip(), DOMAIN)
    leaf = Leaf(
        # A name longer than a subject may be stands among the alternative names alone.
        subject=domain if len(domain) <= certs.MAX_COMMON_NAME else "",
        organization=ORGANIZATION,
        alt_names=[domain],
        extensions=[ratls.usage_extension(USAGE_RPC), *evidence],
    )
    chain = root.issue(rpc_key.public_key(), leaf)
    files.write_atomic(folder / RPC_CERT, chain + certs.pem(root.certificate), 0o644)


def rpc_key(folder: Path) -> ec.EllipticCurvePrivateKey:
    """The key of the KMS's own leaf, made the first time; Conflict when others can read it."""
    key = _key(folder / RPC_KEY)
    rootkeys.check_closed(folder / RPC_KEY)
    return key


def app_ca(root: Issuer, keys: RootKeys, app_id: bytes) -> Issuer:
    """The authority of one app: its key is derived, its certificate made anew each time."""
    key = derive.app_ca_key(keys, app_id)
    text = certs.authority(
        key,
        certs.name(APP_CA_NAME, ORGANIZATION),
        path_length=0,
        issuer=root,
        extensions=[ratls.app_id_extension(app_id), ratls.usage_extension(USAGE_APP_CA)],
    )
    return Issuer(key, x509.load_pem_x509_certificate(text.encode()))


def _key(path: Path) -> ec.EllipticCurvePrivateKey:
    made = pkcs8_pem(ec.generate_private_key(ec.SECP256R1()))
    return rootkeys.read_key(files.write_once(path, made), path.name)


def _ca(path: Path, key: ec.EllipticCurvePrivateKey, name: str, *, path_length: int) -> str:
    if path.exists():
        text = path.read_text(errors="replace")
        if not _is_due(text, key, path.name):
            return text
    text = certs.authority(key, certs.name(name, ORGANIZATION), path_length=path_length)
    files.write_atomic(path, text, 0o644)
    return text


def _is_due(text: str, key: ec.EllipticCurvePrivateKey, name: str) -> bool:
    try:
        found = x509.load_pem_x509_certificate(text.encode())
    except ValueError:
        raise Invalid.field(name, "is not a certificate; remove it to have it made anew") from None
    is_ours = found.public_key() == key.public_key()
    left = found.not_valid_after_utc - datetime.datetime.now(datetime.UTC)
    return not is_ours or left < RENEWAL
