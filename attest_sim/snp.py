"""A simulated SEV-SNP processor: reports in the real layout under an ARK, ASK and VCEK of its own.

Layout: attestation.md section 5.  Every name says that it is simulated, and a verifier knows AMD's roots by
their keys, so that only one whose configuration names this root can accept what it signs.
"""

from __future__ import annotations

import datetime
import functools
import struct
from collections.abc import Callable
from dataclasses import dataclass

from Crypto.PublicKey import RSA
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils
from cryptography.x509.oid import NameOID

from attest import der
from attest.snp import SIGNED_SIZE, SIZE
from attest_sim import pki
from core.errors import Invalid

SEED_SIZE = 32
# AMD's have 4096 bits; making such keys takes seconds, and nothing is protected by these.
KEY_BITS = 2048
# Bit 17 is always one, bit 16 allows SMT; neither debug nor migration.
POLICY = 0x30000
# boot loader, TEE, four reserved, SNP, microcode
TCB = bytes((4, 0, 0, 0, 0, 0, 24, 213))
MILAN = (0x19, 0x01, 0x01)

# SEC 2: the order of P-384's base point.
_P384_ORDER = int(
    "FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF"
    "C7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973",
    16,
)
_ARC = "1.3.6.1.4.1.3704.1"


@dataclass(frozen=True, repr=False)
class SimulatedProcessor:
    """One simulated processor: its certificates, and reports as its firmware would sign them."""

    chip_id: bytes
    ark: x509.Certificate
    ask: x509.Certificate
    vcek: x509.Certificate
    _key: ec.EllipticCurvePrivateKey

    @classmethod
    def from_seed(
        cls,
        seed: bytes,
        *,
        tcb: bytes = TCB,
        not_before: datetime.datetime = pki.NOT_BEFORE,
        not_after: datetime.datetime = pki.NOT_AFTER,
        rsa_keys: tuple[rsa.RSAPrivateKey, rsa.RSAPrivateKey] | None = None,
    ) -> SimulatedProcessor:
        """The processor that a 32-byte seed stands for; without `rsa_keys` its keys are the same everywhere.

        `tcb` is the version that its VCEK is for, the two times are those of the VCEK.
        """
        if len(seed) != SEED_SIZE:
            raise Invalid(f"the seed of a simulated TEE has {SEED_SIZE} bytes, not {len(seed)}")
        chip_id = pki.derive(seed, "chip id", 64)
        ark_key, ask_key = rsa_keys or (_rsa_key(seed, "ark"), _rsa_key(seed, "ask"))
        scalar = int.from_bytes(pki.derive(seed, "key vcek", 64), "big") % (_P384_ORDER - 1) + 1
        key = ec.derive_private_key(scalar, ec.SECP384R1())
        always = pki.NOT_BEFORE, pki.NOT_AFTER
        ark = _signed(_builder("ARK", "ARK", ark_key.public_key(), *always), ark_key)
        ask = _signed(_builder("ASK", "ARK", ask_key.public_key(), *always), ark_key)
        builder = _builder("VCEK", "ASK", key.public_key(), not_before, not_after)
        for extension in _vcek_extensions(chip_id, tcb):
            builder = builder.add_extension(extension, critical=False)
        return cls(chip_id, ark, ask, _signed(builder, ask_key), key)

    @classmethod
    def new(cls, seed: bytes) -> SimulatedProcessor:
        """One whose authorities have keys drawn at random, which is quicker by a second; for who keeps its text."""
        drawn = (rsa.generate_private_key(65537, KEY_BITS) for _ in range(2))
        return cls.from_seed(seed, rsa_keys=(next(drawn), next(drawn)))

    @classmethod
    def from_text(cls, text: str) -> SimulatedProcessor:
        """The processor of another's to_text(): nobody needs to find its RSA keys again.  Invalid if it is none."""
        try:
            vcek, ask, ark = x509.load_pem_x509_certificates(text.encode())
            key = serialization.load_pem_private_key(text.encode(), None)
        except ValueError:
            raise Invalid("this is no simulated processor: three certificates and a key") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name != "secp384r1":
            raise Invalid("the key of a simulated processor must be on P-384")
        chip = vcek.extensions.get_extension_for_oid(x509.ObjectIdentifier(f"{_ARC}.4")).value
        assert isinstance(
            chip, x509.UnrecognizedExtension
        )  # nobody registers AMD's with this library
        return cls(chip.value, ark, ask, vcek, key)

    def to_text(self) -> str:
        """VCEK, ASK, ARK and the key that signs reports, in PEM."""
        key = self._key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        return self.chain_pem + key.decode()

    @property
    def root_ca_pem(self) -> str:
        """The root that a verifier must be told to trust."""
        return _pem(self.ark)

    @property
    def chain_pem(self) -> str:
        """VCEK, ASK and ARK."""
        return _pem(self.vcek) + _pem(self.ask) + _pem(self.ark)

    @property
    def chain_der(self) -> tuple[bytes, ...]:
        """The same certificates as evidence carries them."""
        encoding = serialization.Encoding.DER
        return tuple(cert.public_bytes(encoding) for cert in (self.vcek, self.ask, self.ark))

    def report(
        self,
        report_data: bytes,
        *,
        measurement: bytes,
        host_data: bytes = bytes(32),
        policy: int = POLICY,
        vmpl: int = 0,
        running_tcb: bytes = TCB,
    ) -> bytes:
        """A report over 64 bytes of report data, the launch measurement (48) and host data (32)."""
        if (len(report_data), len(measurement), len(host_data)) != (64, 48, 32):
            raise Invalid(
                "a report has 64 bytes of report data, a measurement of 48, host data of 32"
            )
        body = bytearray(SIGNED_SIZE)
        struct.pack_into("<IIQ", body, 0, 3, 0, policy)
        struct.pack_into("<II", body, 0x30, vmpl, 1)
        fields = (
            (0x38, running_tcb),
            (0x50, report_data),
            (0x90, measurement),
            (0xC0, host_data),
            (0x180, TCB),
            (0x188, bytes(MILAN)),
            (0x1A0, self.chip_id),
            (0x1E0, running_tcb),
            (0x1F0, running_tcb),
        )
        for at, value in fields:
            body[at : at + len(value)] = value
        return self.signed(bytes(body))

    def signed(self, body: bytes) -> bytes:
        """The first 672 bytes of a report with this processor's signature after them."""
        algorithm = ec.ECDSA(hashes.SHA384(), deterministic_signing=True)
        r, s = utils.decode_dss_signature(self._key.sign(body, algorithm))
        signature = r.to_bytes(72, "little") + s.to_bytes(72, "little")
        return (body + signature).ljust(SIZE, b"\0")


@functools.lru_cache(maxsize=8)
def _rsa_key(seed: bytes, name: str) -> rsa.RSAPrivateKey:
    made = RSA.generate(KEY_BITS, randfunc=_stream(seed, name))
    key = serialization.load_der_private_key(made.export_key("DER"), None)
    assert isinstance(key, rsa.RSAPrivateKey)
    return key


def _stream(seed: bytes, name: str) -> Callable[[int], bytes]:
    """A source of bytes that gives the same ones in the same order for the same seed and name."""
    taken = 0

    def take(size: int) -> bytes:
        nonlocal taken
        taken += 1
        return pki.derive(seed, f"key {name} {taken}", size)

    return take


def _builder(
    name: str,
    issuer: str,
    key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey,
    not_before: datetime.datetime,
    not_after: datetime.datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .issuer_name(_name(issuer))
        .public_key(key)
        .serial_number(1)
        .not_valid_before(not_before)
        .not_valid_after(not_after)
    )


def _signed(builder: x509.CertificateBuilder, key: rsa.RSAPrivateKey) -> x509.Certificate:
    pss = padding.PSS(padding.MGF1(hashes.SHA384()), 48)
    return builder.sign(key, hashes.SHA384(), rsa_padding=pss)


def _name(name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, f"Simulated {name}"),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, pki.ORGANIZATION),
        ]
    )


def _vcek_extensions(chip_id: bytes, tcb: bytes) -> list[x509.UnrecognizedExtension]:
    parts = {
        f"{_ARC}.3.1": tcb[0],
        f"{_ARC}.3.2": tcb[1],
        f"{_ARC}.3.3": tcb[6],
        f"{_ARC}.3.8": tcb[7],
    }
    values = {oid: der.integer(part) for oid, part in parts.items()}
    values[f"{_ARC}.4"] = chip_id
    return [
        x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), value)
        for oid, value in values.items()
    ]


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()
