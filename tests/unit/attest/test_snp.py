from __future__ import annotations

import contextlib
import datetime
import struct
import time
from collections.abc import Callable
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from attest import envelope, snp
from attest.errors import Malformed, Mismatch, NotGenuine, Refused, VerificationError
from attest.evidence import SnpEvidence
from attest_sim import pki
from attest_sim.snp import SimulatedProcessor
from tests.common.evidence import NOW, processor, roots

Read = Callable[[str], bytes]
CHIP = b"a simulated processor for tests."
OTHER = b"another simulated processor....."
# The real VCEK has the serial number 0, which the cryptography library warns of (and reads).
pytestmark = pytest.mark.filterwarnings("ignore::cryptography.utils.CryptographyDeprecationWarning")


def report(**changes: Any) -> bytes:
    return processor().report(bytes(64), **({"measurement": bytes(48)} | changes))


def body(**patches: bytes) -> bytes:
    raw = bytearray(report()[: snp.SIGNED_SIZE])
    for at, value in patches.items():
        start = int(at.removeprefix("at_"), 16)
        raw[start : start + len(value)] = value
    return processor().signed(bytes(raw))


def verify(raw: bytes, chain: str | None = None, now: int = NOW) -> snp.VerifiedSnp:
    text = processor().chain_pem if chain is None else chain
    return snp.verify_snp(snp.parse(raw), snp.certificates([text.encode()]), now, roots().snp)


@pytest.fixture
def real(vector: Read) -> snp.Report:
    platform = envelope.decode(vector("snp-milan.attestation.bin")).platform
    assert isinstance(platform, SnpEvidence)
    return snp.parse(platform.report)


@pytest.fixture
def real_chain(vector: Read) -> tuple[x509.Certificate, ...]:
    names = ("amd-ark-milan.pem", "snp-milan.vcek.pem", "snp-milan.ask.pem")
    return snp.certificates(vector(name) for name in names)


def test_a_real_report_is_genuine_under_amds_root(
    real: snp.Report, real_chain: tuple[x509.Certificate, ...]
) -> None:
    verified = snp.verify_snp(real, real_chain, int(time.time()))

    assert verified.root == "amd"
    assert verified.report.tcb_status == "OutOfDate"
    assert (verified.report.version, verified.report.vmpl) == (3, 0)


@pytest.mark.parametrize("name", ["milan", "genoa", "turin"])
def test_amds_roots_are_pinned_by_their_keys(vector: Read, name: str) -> None:
    [root] = snp.certificates([vector(f"amd-ark-{name}.pem")])

    assert snp._key_hash(root) in snp.AMD_ROOTS


def test_a_real_report_is_not_genuine_under_a_simulated_root(
    real: snp.Report, real_chain: tuple[x509.Certificate, ...]
) -> None:
    with pytest.raises(NotGenuine, match="trusted root"):
        snp.verify_snp(real, real_chain, int(time.time()), roots().snp)


def test_a_simulated_report_is_genuine_under_its_own_root_alone() -> None:
    raw = report()

    assert verify(raw).root == "simulated"
    with pytest.raises(NotGenuine, match="trusted root"):
        snp.verify_snp(snp.parse(raw), snp.certificates(processor().chain_der), NOW)


def test_what_runs_may_be_newer_than_what_the_report_is_signed_for() -> None:
    assert snp.parse(report()).tcb_status == "UpToDate"
    assert snp.parse(report(running_tcb=bytes([9] * 8))).tcb_status == "OutOfDate"


@pytest.mark.parametrize("at", [0, 0x50, 0x90, 0xC0, 0x1A0, 0x29F, 0x2A0, 0x2E8])
def test_a_flipped_byte_is_noticed(at: int) -> None:
    raw = bytearray(report())
    raw[at] ^= 1

    with pytest.raises(VerificationError):
        verify(bytes(raw))


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (report(policy=1 << 19 | 0x30000), "debug policy"),
        (report(vmpl=1), "VMPL 1"),
        (body(at_48=b"\x04"), "another key"),
    ],
)
def test_states_that_are_never_acceptable_are_refused(raw: bytes, why: str) -> None:
    with pytest.raises(Refused, match=why):
        verify(raw)


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"", "0 bytes instead of 1184"),
        (report() + b"\0", "1185 bytes"),
        (report()[:-1] + b"\1", "bytes that are not zero"),
        (body(at_0=b"\x01"), "version 1 is unknown"),
        (body(at_0=b"\x06"), "version 6 is unknown"),
        (body(at_34=b"\x02"), "signature algorithm 2"),
    ],
)
def test_what_is_no_report_is_refused(raw: bytes, why: str) -> None:
    with pytest.raises(Malformed, match=why):
        snp.parse(raw)


def pem(*certs: x509.Certificate) -> str:
    return "".join(cert.public_bytes(Encoding.PEM).decode() for cert in certs)


def test_a_chain_that_lacks_a_link_is_refused() -> None:
    own = processor()

    with pytest.raises(NotGenuine, match="no ASK"):
        verify(report(), pem(own.ark, own.vcek))
    with pytest.raises(NotGenuine, match="no VCEK"):
        verify(report(), pem(own.ark, own.ask))
    with pytest.raises(NotGenuine, match="trusted root"):
        verify(report(), pem(own.ask, own.vcek))


def test_a_link_that_somebody_else_signed_is_refused() -> None:
    own, other = processor(), processor(OTHER)

    with pytest.raises(NotGenuine, match="wrong signature"):
        verify(report(), pem(own.ark, other.ask, other.vcek))


def test_a_report_that_somebody_else_signed_is_refused() -> None:
    raw = processor(OTHER).report(bytes(64), measurement=bytes(48))

    with pytest.raises(NotGenuine, match="signature is wrong"):
        verify(raw)


@pytest.mark.parametrize("name", ["vcek", "ark"])
@pytest.mark.parametrize("late", [False, True])
def test_certificates_count_in_their_time_alone(name: str, late: bool) -> None:
    end = pki.NOT_AFTER if late else pki.NOT_BEFORE
    moment = int(end.timestamp()) + (1 if late else -1)
    own = processor()
    if name == "vcek":
        day = datetime.timedelta(days=1)
        own = SimulatedProcessor.from_seed(
            CHIP, not_before=pki.NOT_BEFORE + day, not_after=pki.NOT_AFTER - day
        )
        moment += -3600 if late else 3600

    with pytest.raises(NotGenuine, match="not valid at that time"):
        verify(report(), own.chain_pem, moment)


@pytest.mark.parametrize("now", [-(10**20), 10**20])
def test_a_time_that_no_calendar_has_is_refused(now: int) -> None:
    with pytest.raises(Malformed, match="not a Unix time"):
        verify(report(), now=now)


def test_a_certificate_for_another_tcb_version_is_refused() -> None:
    for at in (0, 1, 6, 7):
        tcb = bytearray((4, 0, 0, 0, 0, 0, 24, 213))
        tcb[at] += 1
        own = SimulatedProcessor.from_seed(CHIP, tcb=bytes(tcb))

        with pytest.raises(Mismatch, match="another TCB version"):
            verify(report(), own.chain_pem)


def test_a_certificate_of_another_processor_is_refused() -> None:
    with pytest.raises(Mismatch, match="another processor"):
        verify(body(at_1a0=bytes(64)))


def test_the_newest_family_has_another_order_of_tcb_parts() -> None:
    turin = body(at_188=b"\x1a\x02")

    # The simulated VCEK says nothing of the part that only this family has.
    with pytest.raises(Malformed, match="DER"):
        verify(turin)


def rsa_signed(name: str, issuer: str, key: Any, **extensions: bytes) -> x509.Certificate:
    from attest_sim import snp as sim

    builder = sim._builder(name, issuer, key, pki.NOT_BEFORE, pki.NOT_AFTER)
    for value in extensions.values():
        oid = x509.ObjectIdentifier("1.3.6.1.4.1.3704.1.4")
        builder = builder.add_extension(x509.UnrecognizedExtension(oid, value), critical=False)
    return sim._signed(builder, sim._rsa_key(CHIP, "ark" if issuer == "ARK" else "ask"))


def test_a_vcek_that_is_no_p384_key_is_refused() -> None:
    own = processor()
    odd = rsa_signed("VCEK", "ASK", own.ask.public_key())
    small = rsa_signed("VCEK", "ASK", pki.derive_key(CHIP, "small").public_key())

    for vcek in (odd, small):
        with pytest.raises(NotGenuine, match="not a P-384 key"):
            verify(report(), pem(own.ark, own.ask, vcek))


def test_an_ask_that_is_no_rsa_key_is_refused() -> None:
    own = processor()
    odd = rsa_signed("ASK", "ARK", own.vcek.public_key())

    with pytest.raises(NotGenuine, match="not signed with RSA"):
        verify(report(), pem(own.ark, odd, own.vcek))


def test_a_vcek_without_extensions_belongs_to_no_processor() -> None:
    own = processor()
    bare = rsa_signed("VCEK", "ASK", own.vcek.public_key())

    with pytest.raises(Mismatch, match="another processor"):
        verify(report(), pem(own.ark, own.ask, bare))


def test_an_extension_that_is_there_twice_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    # The library does not build such a certificate, but it says this of one that it reads.
    class Twice:
        not_valid_before_utc = pki.NOT_BEFORE

        @property
        def extensions(self) -> None:
            raise x509.DuplicateExtension("twice", x509.ObjectIdentifier("1.2.3"))

    with pytest.raises(Malformed, match="extensions cannot be read"):
        snp.check_processor(snp.parse(report()), Twice())  # type: ignore[arg-type]


def test_a_name_that_cannot_be_read_is_refused() -> None:
    class Nameless:
        @property
        def issuer(self) -> None:
            raise ValueError("not a name")

    with pytest.raises(Malformed, match="broken name"):
        snp._issued_by(processor().ark, [Nameless()], "ASK")  # type: ignore[list-item]


def test_keys_that_the_library_does_not_know_are_refused() -> None:
    class Unknown:
        def public_key(self) -> None:
            raise ValueError("unknown")

    with pytest.raises(Malformed, match="unknown key"):
        snp._key_hash(Unknown())  # type: ignore[arg-type]


def test_a_key_of_another_kind_in_the_chain_is_passed_over() -> None:
    own = processor()
    key = ed25519.Ed25519PrivateKey.generate().public_key()
    odd = rsa_signed("other", "ASK", key)

    assert verify(report(), pem(odd, own.ark, own.ask, own.vcek).replace(pem(odd), "")).root


@pytest.mark.parametrize(
    "raw", [b"", b"\x30\x03", b"-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----"]
)
def test_a_broken_certificate_is_refused(raw: bytes) -> None:
    with pytest.raises(Malformed, match="cannot be read"):
        snp.certificates([raw])


def test_a_chain_longer_than_any_real_one_is_refused() -> None:
    with pytest.raises(Malformed, match="more than 16"):
        snp.certificates([processor().chain_pem.encode() * 6])


@given(st.binary(max_size=300), st.integers(0, snp.SIZE - 1))
def test_any_bytes_are_read_or_refused(noise: bytes, at: int) -> None:
    raw = bytearray(report())
    raw[at : at + len(noise)] = noise
    with contextlib.suppress(VerificationError):
        snp.parse(bytes(raw))
    with contextlib.suppress(VerificationError):
        snp.certificates([noise])


def test_numbers_are_little_endian() -> None:
    parsed = snp.parse(report(policy=0x30001))

    assert parsed.policy == struct.unpack_from("<Q", report(policy=0x30001), 8)[0] == 0x30001
