from __future__ import annotations

import datetime
import gzip
import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgpack
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from attest import der, envelope, eventlog, ratls
from attest.envelope import Attestation, TdxEvidence
from attest.errors import Malformed, VerificationError
from attest.eventlog import runtime_event
from attest.ratls import GZIP_PREFIX, AppInfo, Extensions

Read = Callable[[str], bytes]
KEY = ec.generate_private_key(ec.SECP256R1())
NAME = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
INFO = AppInfo(*(bytes([i]) * 4 for i in range(8)), (b"\1" * 32, b"\2" * 32))
EVENTS = (runtime_event("app-id", b"\1"), runtime_event("system-ready", b""))


def certificate(*extensions: x509.UnrecognizedExtension) -> x509.Certificate:
    builder = (
        x509.CertificateBuilder()
        .subject_name(NAME)
        .issuer_name(NAME)
        .public_key(KEY.public_key())
        .serial_number(1)
        .not_valid_before(datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC))
        .not_valid_after(datetime.datetime(2034, 1, 1, tzinfo=datetime.UTC))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(KEY, hashes.SHA256())


def raw(oid: x509.ObjectIdentifier, value: bytes) -> x509.UnrecognizedExtension:
    return x509.UnrecognizedExtension(oid, value)


def packed(text: bytes) -> bytes:
    return GZIP_PREFIX + gzip.compress(text, mtime=0)


@pytest.fixture(scope="module")
def attestation(simulated: Any) -> Attestation:
    runtime = tuple(event for event in simulated.events if event.is_runtime)
    platform = TdxEvidence(simulated.quote, simulated.events)
    return Attestation(platform, runtime, simulated.report_data, "{}")


def test_report_data_of_a_key_hashes_its_public_key_info() -> None:
    assert ratls.report_data_for_key(b"spki") == hashlib.sha512(b"ratls-cert:spki").digest()


def test_the_object_identifiers_are_those_of_dstack() -> None:
    arc = "1.3.6.1.4.1.62397.1."
    oids = [
        ratls.QUOTE,
        ratls.EVENT_LOG,
        ratls.APP_ID,
        ratls.USAGE,
        ratls.ATTESTATION,
        ratls.APP_INFO,
    ]

    assert [oid.dotted_string.removeprefix(arc) for oid in oids] == ["1", "2", "3", "4", "8", "9"]


def test_every_extension_is_an_octet_string_and_comes_back(attestation: Attestation) -> None:
    read = ratls.read(
        certificate(
            ratls.quote_extension(b"quote"),
            ratls.event_log_extension(EVENTS),
            ratls.app_id_extension(b"\xab" * 20),
            ratls.usage_extension("app:custom"),
            ratls.attestation_extension(attestation),
            ratls.app_info_extension(INFO),
        )
    )

    assert read == Extensions(
        quote=b"quote",
        event_log=eventlog.to_json(EVENTS),
        app_id=b"\xab" * 20,
        usage="app:custom",
        attestation=envelope.encode(attestation.stripped()),
        app_info=INFO,
    )
    assert ratls.usage_extension("ca").value == b"\x04\x02ca"


def test_a_certificate_without_extensions_has_no_evidence() -> None:
    read = ratls.read(certificate())

    assert read == Extensions()
    assert read.evidence() is None
    assert Extensions(quote=b"q").evidence() is None
    assert Extensions(event_log="[]").evidence() is None


def test_evidence_is_the_attestation_or_else_the_older_pair(
    simulated: Any, attestation: Attestation
) -> None:
    newer = Extensions(attestation=envelope.encode(attestation), quote=b"ignored")
    older = Extensions(quote=simulated.quote, event_log=eventlog.to_json(simulated.events))

    assert newer.evidence() == attestation
    read = older.evidence()
    assert read is not None
    assert read.report_data == simulated.report_data
    assert read.runtime_events == attestation.runtime_events
    assert [event.digest for event in read.event_log] == [e.digest for e in simulated.events]


def test_evidence_that_cannot_be_read_is_refused() -> None:
    for broken in (Extensions(attestation=b""), Extensions(quote=b"", event_log="[]")):
        with pytest.raises(Malformed):
            broken.evidence()


def test_app_info_is_an_array_of_nine() -> None:
    assert msgpack.unpackb(INFO.encode()) == [
        *(bytes([i]) * 4 for i in range(8)),
        [b"\1" * 32, b"\2" * 32],
    ]
    for hashes_ in ((), None):
        info = replace(INFO, init_script_hashes=hashes_)
        assert AppInfo.decode(info.encode()) == info


@pytest.mark.parametrize(
    ("info", "why"),
    [
        (b"", "msgpack"),
        (b"\xc1", "msgpack"),
        (msgpack.packb({}), "list of 9"),
        (msgpack.packb([b""] * 8), "list of 9"),
        (msgpack.packb([b""] * 8 + [b""]), "neither nil nor a list"),
        (msgpack.packb([b""] * 7 + ["text", None]), "consist of bytes"),
        (msgpack.packb([b""] * 8 + [["text"]]), "consist of bytes"),
        (msgpack.packb([b""] * 8 + [None]) + b"\0", "msgpack"),
    ],
)
def test_other_app_info_is_refused(info: bytes, why: str) -> None:
    with pytest.raises(Malformed, match=why):
        AppInfo.decode(info)


def test_a_compressed_log_is_unpacked_and_a_plain_one_taken_as_it_is() -> None:
    assert ratls.inflated(b"[]") == b"[]"
    assert ratls.inflated(packed(b"[]")) == b"[]"
    assert ratls.inflated(packed(b" " * 16384)) == b" " * 16384


def test_a_log_too_large_for_readers_to_unpack_is_written_plain() -> None:
    large = [runtime_event("large", bytes(20_000))]

    read = ratls.read(certificate(ratls.event_log_extension(large)))

    assert read.event_log == eventlog.to_json(large)


@pytest.mark.parametrize(
    ("log", "why"),
    [
        (packed(b" " * 16385), "larger than 16 KiB"),
        (packed(bytes(50_000_000)), "larger than 16 KiB"),
        (packed(b"[]")[:-1], "cut short"),
        (packed(b"[]") + b"x", "followed by other bytes"),
        (GZIP_PREFIX, "cut short"),
        (GZIP_PREFIX + b"[]", "cannot be unpacked"),
    ],
)
def test_a_compressed_log_that_is_broken_or_too_large_is_refused(log: bytes, why: str) -> None:
    with pytest.raises(Malformed, match=why):
        ratls.inflated(log)


@pytest.mark.parametrize(
    "extension",
    [
        raw(ratls.QUOTE, b"\x0c\x01q"),  # a UTF8String
        raw(ratls.APP_ID, b"\x04\x02a"),
        raw(ratls.ATTESTATION, b"\x04\x01a\x04\x00"),
        raw(ratls.USAGE, b"\x04\x01\xff"),
        raw(ratls.EVENT_LOG, b"\x04\x01\xff"),
        raw(ratls.APP_INFO, b"\x04\x01\xff"),
    ],
)
def test_an_extension_of_another_form_is_refused(extension: x509.UnrecognizedExtension) -> None:
    with pytest.raises(Malformed):
        ratls.read(certificate(extension))


def test_a_certificate_whose_other_extensions_are_broken_is_refused() -> None:
    encoded = certificate(ratls.usage_extension("x")).public_bytes(Encoding.DER)
    constraints = bytes.fromhex("0603551d130101ff04023000")
    assert encoded.count(constraints) == 1
    # Basic constraints that are no longer a sequence.
    broken = encoded.replace(constraints, constraints[:-2] + b"\x31\x00")

    with pytest.raises(Malformed, match="extensions cannot be read"):
        ratls.read(x509.load_der_x509_certificate(broken))


oids = st.sampled_from(
    [ratls.QUOTE, ratls.EVENT_LOG, ratls.USAGE, ratls.ATTESTATION, ratls.APP_INFO]
)


@given(oids, st.binary(max_size=60), st.booleans())
def test_any_extension_is_read_or_refused(
    oid: x509.ObjectIdentifier, value: bytes, wrapped: bool
) -> None:
    content = der.element(der.OCTET_STRING, value) if wrapped else value
    try:
        ratls.read(certificate(raw(oid, content))).evidence()
    except VerificationError:
        return


@given(st.binary(max_size=80), st.booleans())
def test_any_compressed_log_is_unpacked_or_refused(log: bytes, whole: bool) -> None:
    try:
        assert (
            len(ratls.inflated(GZIP_PREFIX + (gzip.compress(log, mtime=0) if whole else log))) <= 80
        )
    except Malformed:
        assert not whole
