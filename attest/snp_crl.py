"""AMD's lists of revoked keys: whether one is the ARK's own and current, and whether it names a chain's ASK.

Source: AMD 57230, section 4.3 (the list is signed by the ARK, RSA-PSS with SHA-384).
"""

from __future__ import annotations

import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from attest.errors import BadSignature, Malformed, NotGenuine, Revoked, Stale
from attest.snp import Chain


def read(raw: bytes) -> x509.CertificateRevocationList:
    """A list in DER or PEM; Malformed when it is none."""
    try:
        is_pem = raw.lstrip().startswith(b"-----BEGIN")
        return x509.load_pem_x509_crl(raw) if is_pem else x509.load_der_x509_crl(raw)
    except ValueError:
        raise Malformed("crl: cannot be read") from None


def check_signature(crl: x509.CertificateRevocationList, chain: Chain, now: int) -> None:
    """Refuses a list that the ARK has not signed (BadSignature), or not for the Unix time `now` (Stale)."""
    if crl.issuer != chain.ark.subject:
        raise NotGenuine("crl: another authority than the chain's root has made it")
    key = chain.ark.public_key()
    pss = padding.PSS(padding.MGF1(hashes.SHA384()), 48)
    try:
        if not isinstance(key, rsa.RSAPublicKey):
            raise InvalidSignature
        key.verify(crl.signature, crl.tbs_certlist_bytes, pss, hashes.SHA384())
    except InvalidSignature:
        raise BadSignature("crl: its signature is wrong") from None
    moment = datetime.datetime.fromtimestamp(now, datetime.UTC)
    ends = crl.next_update_utc
    if moment < crl.last_update_utc or (ends is not None and ends < moment):
        raise Stale("crl: it is not valid at that time")


def check_not_listed(crl: x509.CertificateRevocationList, chain: Chain) -> None:
    """Refuses (Revoked) a chain whose ASK is on the list.

    A list speaks of its issuer's certificates; AMD numbers the VCEKs, which the ASK issues, with zero.
    """
    if crl.get_revoked_certificate_by_serial_number(chain.ask.serial_number) is not None:
        raise Revoked("crl: the ASK of the report's chain was revoked")
