"""SEV-SNP attestation reports: what their bytes say, and whether an AMD processor signed them.

Sources: attestation.md section 5; AMD 56860 (SNP Firmware ABI), table 23 (report); AMD 57230 (VCEK), tables 8 to
11 (extensions of its certificate).  Revocation is snp_crl.py's.
"""

from __future__ import annotations

import datetime
import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from attest import der
from attest.errors import BadSignature, Malformed, Mismatch, NotGenuine, Refused
from attest.root import RootName, custom_name

SIZE = 1184
SIGNED_SIZE = 0x2A0
# SHA-256 of the public keys (SubjectPublicKeyInfo) of "ARK-Milan", "ARK-Genoa" and "ARK-Turin".
AMD_ROOTS = {
    "9f056bee44377e29308cb5ffa895bdfb62d18881fa6bed8d6f075b0204089cb9",
    "429a69c9422aa258ee4d8db5fcda9c6470ef15f8cd5a9cebd6cbc7d90b863831",
    "4f125410563a2ab9a50356f9243f6fe0b6f73de98603f53f90339c70e9d7ad08",
}
MAX_CHAIN = 16

_VERSIONS = range(2, 6)
_ECDSA_P384 = 1
_DEBUG = 1 << 19
_SIGNED_BY_VCEK = 0
_TURIN_FAMILY = 0x1A
_NUMBER_SIZE = 72
_PEM = re.compile(rb"-----BEGIN CERTIFICATE-----[^-]{1,16384}-----END CERTIFICATE-----")

_ARC = "1.3.6.1.4.1.3704.1"
_HARDWARE_ID = x509.ObjectIdentifier(f"{_ARC}.4")
# Extension of the VCEK's certificate -> byte of the TCB version; the newest family has one more part.
_TCB = {f"{_ARC}.3.1": 0, f"{_ARC}.3.2": 1, f"{_ARC}.3.3": 6, f"{_ARC}.3.8": 7}
_TURIN_TCB = {
    f"{_ARC}.3.9": 0,
    f"{_ARC}.3.1": 1,
    f"{_ARC}.3.2": 2,
    f"{_ARC}.3.3": 3,
    f"{_ARC}.3.8": 7,
}


@dataclass(frozen=True)
class Report:
    """An attestation report; TCB versions as their eight bytes."""

    version: int
    guest_svn: int
    policy: int
    family_id: bytes
    image_id: bytes
    vmpl: int
    signature_algorithm: int
    platform_info: int
    key_flags: int
    report_data: bytes
    measurement: bytes
    host_data: bytes
    id_key_digest: bytes
    author_key_digest: bytes
    report_id: bytes
    report_id_ma: bytes
    family: int
    model: int
    stepping: int
    current_tcb: bytes
    reported_tcb: bytes
    committed_tcb: bytes
    launch_tcb: bytes
    chip_id: bytes
    signed: bytes
    signature: bytes

    @property
    def is_debug(self) -> bool:
        """Whether the policy lets the host look into the VM."""
        return bool(self.policy & _DEBUG)

    @property
    def tcb_status(self) -> str:
        """`UpToDate` when everything that runs or ran at launch is at least what the report is signed for."""
        running = {self.current_tcb, self.committed_tcb, self.launch_tcb}
        return "UpToDate" if running == {self.reported_tcb} else "OutOfDate"


@dataclass(frozen=True)
class Chain:
    """The certificates that vouch for a report, and what answers call their root."""

    ark: x509.Certificate
    ask: x509.Certificate
    vcek: x509.Certificate
    root: RootName


@dataclass(frozen=True)
class VerifiedSnp:
    """A genuine report, and which root it leads to."""

    report: Report
    root: RootName


def parse(raw: bytes) -> Report:
    """Reads a report of 1184 bytes; Malformed for another size, version or signature algorithm."""
    if len(raw) != SIZE:
        raise Malformed(f"report: {len(raw)} bytes instead of {SIZE}")
    report = Report(
        version=_uint(raw, 0, 4),
        guest_svn=_uint(raw, 4, 4),
        policy=_uint(raw, 8, 8),
        family_id=raw[0x10:0x20],
        image_id=raw[0x20:0x30],
        vmpl=_uint(raw, 0x30, 4),
        signature_algorithm=_uint(raw, 0x34, 4),
        platform_info=_uint(raw, 0x40, 8),
        key_flags=_uint(raw, 0x48, 4),
        report_data=raw[0x50:0x90],
        measurement=raw[0x90:0xC0],
        host_data=raw[0xC0:0xE0],
        id_key_digest=raw[0xE0:0x110],
        author_key_digest=raw[0x110:0x140],
        report_id=raw[0x140:0x160],
        report_id_ma=raw[0x160:0x180],
        family=raw[0x188],
        model=raw[0x189],
        stepping=raw[0x18A],
        current_tcb=raw[0x38:0x40],
        reported_tcb=raw[0x180:0x188],
        committed_tcb=raw[0x1E0:0x1E8],
        launch_tcb=raw[0x1F0:0x1F8],
        chip_id=raw[0x1A0:0x1E0],
        signed=raw[:SIGNED_SIZE],
        signature=raw[SIGNED_SIZE : SIGNED_SIZE + 2 * _NUMBER_SIZE],
    )
    if any(raw[SIGNED_SIZE + 2 * _NUMBER_SIZE :]):
        raise Malformed("report: its signature is followed by bytes that are not zero")
    if report.version not in _VERSIONS:
        raise Malformed(f"report: version {report.version} is unknown")
    if report.signature_algorithm != _ECDSA_P384:
        raise Malformed(f"report: signature algorithm {report.signature_algorithm} is unknown")
    return report


def _uint(raw: bytes, at: int, size: int) -> int:
    return int.from_bytes(raw[at : at + size], "little")


def certificates(given: Iterable[bytes]) -> tuple[x509.Certificate, ...]:
    """Certificates in DER or PEM (one or several in each item); Malformed when one cannot be read."""
    found: list[x509.Certificate] = []
    for item in given:
        try:
            if b"-----BEGIN" in item:
                found += [x509.load_pem_x509_certificate(pem) for pem in _PEM.findall(item)]
            else:
                found.append(x509.load_der_x509_certificate(item))
        except (ValueError, x509.InvalidVersion):
            raise Malformed("report: a certificate of its chain cannot be read") from None
        if len(found) > MAX_CHAIN:
            raise Malformed(f"report: its chain has more than {MAX_CHAIN} certificates")
    return tuple(found)


def check_state(report: Report) -> None:
    """Refuses a VM whose host may look inside, or a report that not the VM's most privileged level asked for."""
    if report.is_debug:
        raise Refused("the VM was started with the debug policy: its host can read its memory")
    if report.vmpl != 0:
        raise Refused(f"the report was made at VMPL {report.vmpl}, not 0")
    if report.key_flags >> 2 & 7 != _SIGNED_BY_VCEK:
        raise Refused("the report is signed with another key than the processor's own (VCEK)")


def verify_snp(
    report: Report,
    chain: Sequence[x509.Certificate],
    now: int,
    root_der: bytes | None = None,
) -> VerifiedSnp:
    """Verifies a report with its chain (ARK, ASK and VCEK in any order) at the Unix time `now`.

    The roots are AMD's, known by their keys, unless `root_der` names another; then only that one is trusted.
    Raises Malformed, NotGenuine, Mismatch (another processor or TCB version), or Refused (see check_state).
    """
    check_state(report)
    found = chain_of(chain, root_der)
    check_chain(found, now)
    check_signature(report, found.vcek)
    check_processor(report, found.vcek)
    return VerifiedSnp(report, found.root)


def chain_of(given: Sequence[x509.Certificate], root_der: bytes | None = None) -> Chain:
    """The chain that is among some certificates, told by keys and names alone; the roots are verify_snp's.

    Raises NotGenuine when there is none to a trusted root, Malformed when a certificate is broken.
    """
    pins = AMD_ROOTS if root_der is None else {_key_hash(certificates([root_der])[0])}
    ark = next((cert for cert in given if _key_hash(cert) in pins), None)
    if ark is None:
        raise NotGenuine("report: its certificate chain does not end in the trusted root")
    ask = _issued_by(ark, given, "ASK")
    name: RootName = "amd" if _key_hash(ark) in AMD_ROOTS else custom_name(ark)
    return Chain(ark, ask, _issued_by(ask, given, "VCEK"), name)


def check_chain(chain: Chain, now: int) -> None:
    """Refuses (NotGenuine) a chain with a wrong signature, or that is not valid at the Unix time `now`."""
    for cert, issuer in ((chain.ark, chain.ark), (chain.ask, chain.ark), (chain.vcek, chain.ask)):
        _check_certificate(cert, issuer, now)


def _key_hash(certificate: x509.Certificate) -> str:
    spki = _key(certificate).public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(spki).hexdigest()


def _key(certificate: x509.Certificate) -> CertificatePublicKeyTypes:
    try:
        return certificate.public_key()
    except (ValueError, UnsupportedAlgorithm):
        raise Malformed("report: a certificate of its chain has an unknown key") from None


def _issued_by(
    issuer: x509.Certificate, chain: Sequence[x509.Certificate], name: str
) -> x509.Certificate:
    try:
        for cert in chain:
            if cert.issuer == issuer.subject and cert.subject != issuer.subject:
                return cert
    except ValueError:
        raise Malformed("report: a certificate of its chain has a broken name") from None
    raise NotGenuine(f"report: its certificate chain has no {name}")


def _check_certificate(cert: x509.Certificate, issuer: x509.Certificate, now: int) -> None:
    try:
        moment = datetime.datetime.fromtimestamp(now, datetime.UTC)
    except (ValueError, OverflowError, OSError):
        raise Malformed("the time of verification is not a Unix time") from None
    if not cert.not_valid_before_utc <= moment <= cert.not_valid_after_utc:
        raise NotGenuine("report: a certificate of its chain is not valid at that time")
    key = _key(issuer)
    if not isinstance(key, rsa.RSAPublicKey):
        raise NotGenuine("report: a certificate of its chain is not signed with RSA")
    pss = padding.PSS(padding.MGF1(hashes.SHA384()), 48)
    try:
        key.verify(cert.signature, cert.tbs_certificate_bytes, pss, hashes.SHA384())
    except InvalidSignature:
        raise BadSignature("report: a certificate of its chain has a wrong signature") from None


def check_signature(report: Report, vcek: x509.Certificate) -> None:
    """Refuses (BadSignature, NotGenuine) a report that this VCEK's key has not signed."""
    key = _key(vcek)
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise NotGenuine("report: its VCEK is not a P-384 key")
    r, s = (_uint(report.signature, at, _NUMBER_SIZE) for at in (0, _NUMBER_SIZE))
    try:
        key.verify(utils.encode_dss_signature(r, s), report.signed, ec.ECDSA(hashes.SHA384()))
    except InvalidSignature:
        raise BadSignature("report: its signature is wrong") from None


def check_processor(report: Report, vcek: x509.Certificate) -> None:
    """Refuses (Mismatch) a VCEK that is not of the report's processor and TCB version."""
    try:
        present = {extension.oid: extension.value for extension in vcek.extensions}
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        raise Malformed("report: its VCEK's extensions cannot be read") from None

    def value(oid: x509.ObjectIdentifier) -> bytes:
        extension = present.get(oid)
        return extension.value if isinstance(extension, x509.UnrecognizedExtension) else b""

    # The newest family names a chip with 8 bytes; the report pads them with zeros.
    hardware_id = value(_HARDWARE_ID)
    if not hardware_id or hardware_id.ljust(64, b"\0") != report.chip_id:
        raise Mismatch("report: its VCEK belongs to another processor")
    is_turin = report.version >= 3 and report.family == _TURIN_FAMILY
    for oid, at in (_TURIN_TCB if is_turin else _TCB).items():
        part = der.content(value(x509.ObjectIdentifier(oid)), der.INTEGER)
        if int.from_bytes(part, "big") != report.reported_tcb[at]:
            raise Mismatch("report: its VCEK was made for another TCB version")
