"""What the bytes of a TDX quote say; nothing here asks whether it is genuine.

Layout: attestation.md section 1 (Intel TDX DCAP Quoting Library API, appendix A).
"""

from __future__ import annotations

from dataclasses import dataclass

from attest.cursor import Cursor
from attest.errors import Malformed

TEE_TYPE_SGX = 0x00
TEE_TYPE_TDX = 0x81
# ECDSA over P-256, the only key that quoting enclaves sign with today.
KEY_TYPE_P256 = 2
# Version 5: body type -> size of the TD report (1.0, and 1.5 with two more fields).
BODY_SIZES = {2: 584, 3: 648}
# Certification data: the quoting enclave's own report, and inside it a PEM chain.
CERTIFICATION_QE_REPORT = 6
CERTIFICATION_PEM_CHAIN = 5


@dataclass(frozen=True)
class TdReport:
    """A TD report: registers of 48 bytes, report data of 64; the last two fields only in version 1.5."""

    tee_tcb_svn: bytes
    mr_seam: bytes
    mr_signer_seam: bytes
    seam_attributes: bytes
    td_attributes: bytes
    xfam: bytes
    mrtd: bytes
    mr_config_id: bytes
    mr_owner: bytes
    mr_owner_config: bytes
    rtmrs: tuple[bytes, bytes, bytes, bytes]
    report_data: bytes
    tee_tcb_svn2: bytes = b""
    mr_service_td: bytes = b""

    @property
    def is_debug(self) -> bool:
        """Whether the host may look into the TD: any bit of the attributes' first byte (TUD) is set."""
        return self.td_attributes[0] != 0


@dataclass(frozen=True)
class TdxQuote:
    """A parsed quote: header, TD report, and the signature data as it stands."""

    version: int
    key_type: int
    tee_type: int
    qe_svn: int
    pce_svn: int
    qe_vendor_id: bytes
    user_data: bytes
    report: TdReport
    signed: bytes
    signature: bytes
    attestation_key: bytes
    qe_report: bytes
    qe_report_signature: bytes
    qe_auth_data: bytes
    pck_chain_pem: bytes


def parse(raw: bytes) -> TdxQuote:
    """Reads a TDX quote of version 4 or 5; zero bytes after it are padding.  Malformed otherwise."""
    cursor = Cursor(raw, "quote")
    version, key_type, tee_type = cursor.uint(2), cursor.uint(2), cursor.uint(4)
    if version not in (4, 5) or tee_type not in (TEE_TYPE_SGX, TEE_TYPE_TDX):
        raise Malformed("quote: not a TDX quote of version 4 or 5")
    if tee_type == TEE_TYPE_SGX:
        raise Malformed("quote: an SGX quote where a TDX quote is expected")
    if key_type != KEY_TYPE_P256:
        raise Malformed(f"quote: attestation key type {key_type} is unknown")
    qe_svn, pce_svn = cursor.uint(2), cursor.uint(2)
    qe_vendor_id, user_data = cursor.take(16), cursor.take(20)
    report = _report(cursor, _body_size(cursor) if version == 5 else BODY_SIZES[2])
    signed = raw[: cursor.at]
    data = Cursor(cursor.take(cursor.uint(4)), "quote signature data")
    if any(cursor.rest()):
        raise Malformed("quote: followed by bytes that are not padding")
    signature, attestation_key = data.take(64), data.take(64)
    qe_report, qe_signature, auth_data, chain = _certification(data)
    return TdxQuote(
        version=version,
        key_type=key_type,
        tee_type=tee_type,
        qe_svn=qe_svn,
        pce_svn=pce_svn,
        qe_vendor_id=qe_vendor_id,
        user_data=user_data,
        report=report,
        signed=signed,
        signature=signature,
        attestation_key=attestation_key,
        qe_report=qe_report,
        qe_report_signature=qe_signature,
        qe_auth_data=auth_data,
        pck_chain_pem=chain,
    )


def _body_size(cursor: Cursor) -> int:
    body_type, size = cursor.uint(2), cursor.uint(4)
    if BODY_SIZES.get(body_type) != size:
        raise Malformed(f"quote: body type {body_type} with {size} bytes is unknown")
    return size


def _report(cursor: Cursor, size: int) -> TdReport:
    has_service_td = size == BODY_SIZES[3]
    return TdReport(
        tee_tcb_svn=cursor.take(16),
        mr_seam=cursor.take(48),
        mr_signer_seam=cursor.take(48),
        seam_attributes=cursor.take(8),
        td_attributes=cursor.take(8),
        xfam=cursor.take(8),
        mrtd=cursor.take(48),
        mr_config_id=cursor.take(48),
        mr_owner=cursor.take(48),
        mr_owner_config=cursor.take(48),
        rtmrs=(cursor.take(48), cursor.take(48), cursor.take(48), cursor.take(48)),
        report_data=cursor.take(64),
        tee_tcb_svn2=cursor.take(16) if has_service_td else b"",
        mr_service_td=cursor.take(48) if has_service_td else b"",
    )


def _certification(data: Cursor) -> tuple[bytes, bytes, bytes, bytes]:
    """The quoting enclave's report, its signature, its authentication data, and the PEM chain."""
    kind, size = data.uint(2), data.uint(4)
    if kind != CERTIFICATION_QE_REPORT:
        raise Malformed(f"quote: certification data of type {kind} is unknown")
    inner = Cursor(data.take(size), "quote certification data")
    report, signature = inner.take(384), inner.take(64)
    auth_data = inner.take(inner.uint(2))
    kind, size = inner.uint(2), inner.uint(4)
    chain = inner.take(size)
    # Other types name the platform instead of carrying its certificate.
    return report, signature, auth_data, chain if kind == CERTIFICATION_PEM_CHAIN else b""
