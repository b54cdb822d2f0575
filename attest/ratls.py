"""RA-TLS: the X.509 extensions in which a certificate carries its attestation.

Source: guest-agent.md section 4.  Each value is a DER OCTET STRING around the content.
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields

import msgpack
from cryptography import x509

from attest import der, envelope, eventlog, quote
from attest.envelope import Attestation, TdxEvidence
from attest.errors import Malformed
from attest.eventlog import Event

_ARC = "1.3.6.1.4.1.62397.1"
QUOTE = x509.ObjectIdentifier(f"{_ARC}.1")
EVENT_LOG = x509.ObjectIdentifier(f"{_ARC}.2")
APP_ID = x509.ObjectIdentifier(f"{_ARC}.3")
USAGE = x509.ObjectIdentifier(f"{_ARC}.4")
ATTESTATION = x509.ObjectIdentifier(f"{_ARC}.8")
APP_INFO = x509.ObjectIdentifier(f"{_ARC}.9")

GZIP_PREFIX = b"ELGZv1"
MAX_INFLATED = 16 * 1024
# zlib: a gzip header and trailer around the largest window.
_GZIP_WINDOW = 16 + zlib.MAX_WBITS


def report_data_for_key(spki_der: bytes) -> bytes:
    """The report data (64 bytes) of an attestation that binds a key, given its SubjectPublicKeyInfo."""
    return hashlib.sha512(b"ratls-cert:" + spki_der).digest()


@dataclass(frozen=True)
class AppInfo:
    """What a certificate says of the app it was issued to; ids and hashes as raw bytes."""

    app_id: bytes
    compose_hash: bytes
    instance_id: bytes
    device_id: bytes
    mr_system: bytes
    mr_aggregated: bytes
    os_image_hash: bytes
    key_provider_info: bytes
    init_script_hashes: tuple[bytes, ...] | None = None

    def encode(self) -> bytes:
        """The msgpack array that stands in the certificate."""
        packed: bytes = msgpack.packb(astuple(self))
        return packed

    @classmethod
    def decode(cls, raw: bytes) -> AppInfo:
        """Reads the msgpack array; Malformed when it is anything else."""
        try:
            values = msgpack.unpackb(raw)
        except (ValueError, msgpack.UnpackException):
            raise Malformed("certificate: its app info is not valid msgpack") from None
        names = [field.name for field in fields(cls)]
        if not isinstance(values, list) or len(values) != len(names):
            raise Malformed(f"certificate: its app info must be a list of {len(names)}")
        hashes = values.pop()
        if hashes is not None and not isinstance(hashes, list):
            raise Malformed("certificate: its app info ends in neither nil nor a list of hashes")
        if not all(isinstance(value, bytes) for value in (*values, *(hashes or ()))):
            raise Malformed("certificate: its app info must consist of bytes")
        values.append(None if hashes is None else tuple(hashes))
        return cls(**dict(zip(names, values, strict=True)))


@dataclass(frozen=True)
class Extensions:
    """The attestation extensions of one certificate; None for those it does not have."""

    quote: bytes | None = None
    event_log: str | None = None
    app_id: bytes | None = None
    usage: str | None = None
    attestation: bytes | None = None
    app_info: AppInfo | None = None

    def evidence(self) -> Attestation | None:
        """The attestation in the certificate, the older pair of quote and log included; None without.

        A VerificationError when what is there cannot be read.
        """
        if self.attestation is not None:
            return envelope.decode(self.attestation)
        if self.quote is None or self.event_log is None:
            return None
        log = eventlog.from_json(self.event_log)
        report_data = quote.parse(self.quote).report.report_data
        runtime = tuple(event for event in log if event.is_runtime)
        return Attestation(TdxEvidence(self.quote, log), runtime, report_data, "")


def quote_extension(raw: bytes) -> x509.UnrecognizedExtension:
    """`.1`, the older form's TDX quote."""
    return _extension(QUOTE, raw)


def event_log_extension(events: Iterable[Event]) -> x509.UnrecognizedExtension:
    """`.2`, the older form's event log; compressed unless it is larger than readers unpack."""
    text = eventlog.to_json(events).encode()
    if len(text) > MAX_INFLATED:
        return _extension(EVENT_LOG, text)
    return _extension(EVENT_LOG, GZIP_PREFIX + gzip.compress(text, mtime=0))


def app_id_extension(app_id: bytes) -> x509.UnrecognizedExtension:
    """`.3`, the 20-byte app id that a KMS vouches for."""
    return _extension(APP_ID, app_id)


def usage_extension(usage: str) -> x509.UnrecognizedExtension:
    """`.4`, what the certificate is for, such as `app:custom`."""
    return _extension(USAGE, usage.encode())


def attestation_extension(attestation: Attestation) -> x509.UnrecognizedExtension:
    """`.8`, the attestation in its stripped form."""
    return _extension(ATTESTATION, envelope.encode(attestation.stripped()))


def app_info_extension(info: AppInfo) -> x509.UnrecognizedExtension:
    """`.9`, what the issuer says of the app."""
    return _extension(APP_INFO, info.encode())


def _extension(oid: x509.ObjectIdentifier, content: bytes) -> x509.UnrecognizedExtension:
    return x509.UnrecognizedExtension(oid, der.element(der.OCTET_STRING, content))


def read(certificate: x509.Certificate) -> Extensions:
    """The attestation extensions of a certificate that anybody may have made; Malformed when broken."""
    try:
        present = {extension.oid: extension.value for extension in certificate.extensions}
    except (ValueError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        raise Malformed("certificate: its extensions cannot be read") from None

    def content(oid: x509.ObjectIdentifier) -> bytes | None:
        value = present.get(oid)
        if not isinstance(value, x509.UnrecognizedExtension):
            return None
        return der.content(value.value, der.OCTET_STRING)

    log, usage, info = content(EVENT_LOG), content(USAGE), content(APP_INFO)
    return Extensions(
        quote=content(QUOTE),
        event_log=None if log is None else _text(inflated(log), "event log"),
        app_id=content(APP_ID),
        usage=None if usage is None else _text(usage, "usage"),
        attestation=content(ATTESTATION),
        app_info=None if info is None else AppInfo.decode(info),
    )


def inflated(log: bytes) -> bytes:
    """The event log as text bytes: unpacked when it is compressed, at most 16 KiB then."""
    if not log.startswith(GZIP_PREFIX):
        return log
    unpacker = zlib.decompressobj(_GZIP_WINDOW)
    try:
        # The cap is given to the unpacker: what is above it is never made.
        text = unpacker.decompress(log[len(GZIP_PREFIX) :], MAX_INFLATED + 1)
    except zlib.error:
        raise Malformed("certificate: its event log cannot be unpacked") from None
    if len(text) > MAX_INFLATED:
        raise Malformed("certificate: its event log is larger than 16 KiB")
    if not unpacker.eof or unpacker.unused_data:
        raise Malformed("certificate: its event log is cut short or followed by other bytes")
    return text


def _text(raw: bytes, what: str) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise Malformed(f"certificate: its {what} is not UTF-8") from None
