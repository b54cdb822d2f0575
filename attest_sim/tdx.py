"""A simulated TDX platform: quotes, collateral and boot events under a root of its own.

Layouts: attestation.md sections 1 and 2.  Every name says that it is simulated, and the FMSPC is no part of
Intel's, so that only a verifier whose configuration names this root can accept what it signs.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import struct
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from attest import der
from attest.eventlog import ACPI_EVENT_TYPE, ACPI_MARKER, Event
from attest_sim import pki
from core.errors import Invalid

SEED_SIZE = 32
# "SIMULA" in ASCII: no Intel part has this family, model and platform code.
FMSPC = b"SIMULA"
PCE_ID = bytes(2)
# attestation.md section 1: the vendor id that a verifier expects of a quoting enclave.
QE_VENDOR_ID = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
# attestation.md section 2: SEPT_VE_DISABLE and nothing else, so not a debug TD; the usual XFAM.
TD_ATTRIBUTES = bytes.fromhex("0000001000000000")
XFAM = bytes.fromhex("e702060000000000")
COLLATERAL_LIFETIME = datetime.timedelta(days=7)
# A verifier whose clock is behind ours by less than this accepts fresh collateral.
COLLATERAL_HEAD_START = datetime.timedelta(days=1)

_SGX_EXTENSIONS = "1.2.840.113741.1.13.1"
_CPU_SVN = bytes([1] * 16)
_TEE_TCB_SVN = bytes([1, 0, 1] + [0] * 13)
_PCE_SVN = 1
_QE_SVN = 1
_QE_PRODUCT_ID = 2
_QE_ATTRIBUTES = bytes.fromhex("11000000000000000700000000000000")
_QE_AUTH_DATA = bytes(range(32))


def _label(name: str) -> bytes:
    return hashlib.sha384(b"casemate simulated tee: " + name.encode()).digest()


SIMULATED_MRTD = _label("mrtd")


@dataclass(frozen=True, repr=False)
class SimulatedPlatform:
    """One simulated host: its certificates, and quotes as its quoting enclave would sign them."""

    ppid: bytes
    _root: pki.Authority
    _pck_ca: pki.Authority
    _tcb: pki.Authority
    _attestation_key: ec.EllipticCurvePrivateKey
    _certification: bytes

    @classmethod
    def from_seed(cls, seed: bytes) -> SimulatedPlatform:
        """The platform that a 32-byte seed stands for, everywhere the same; Invalid for another length."""
        if len(seed) != SEED_SIZE:
            raise Invalid(f"the seed of a simulated TEE has {SEED_SIZE} bytes, not {len(seed)}")
        ppid = pki.derive(seed, "ppid", 16)
        root = pki.authority(seed, "Simulated TEE Root CA", is_ca=True)
        pck_ca = pki.authority(seed, "Simulated PCK Platform CA", root, is_ca=True)
        tcb = pki.authority(seed, "Simulated TCB Signing", root, is_ca=False)
        extension = _pck_extension(ppid)
        pck = pki.authority(
            seed, "Simulated PCK Certificate", pck_ca, is_ca=False, extension=extension
        )
        key = pki.derive_key(seed, "attestation key")
        # The same in every quote of a platform, so it is signed once.
        certification = _certification(key, (pck, pck_ca, root))
        return cls(ppid, root, pck_ca, tcb, key, certification)

    @property
    def root_ca_pem(self) -> str:
        """The root certificate that a verifier must be told to trust, in PEM."""
        return self._root.pem

    @property
    def root_ca_der(self) -> bytes:
        """The same certificate in DER."""
        return self._root.der

    def quote(
        self,
        report_data: bytes,
        *,
        mrtd: bytes,
        rtmrs: Sequence[bytes],
        mr_config_id: bytes = bytes(48),
        td_attributes: bytes = TD_ATTRIBUTES,
        version: int = 4,
    ) -> bytes:
        """A quote over 64 bytes of report data, MRTD, the four RTMRs and MRCONFIGID (48 each).

        Version 5 has the same report with its type and size before it.
        """
        header = struct.pack(
            "<HHIHH16s20s", version, 2, 0x81, _QE_SVN, _PCE_SVN, QE_VENDOR_ID, self.ppid
        )
        body = _td_report(report_data, mrtd, rtmrs, mr_config_id, td_attributes)
        signed = header + (struct.pack("<HI", 2, len(body)) if version == 5 else b"") + body
        signature = pki.sign_raw(self._attestation_key, signed)
        data = signature + pki.public_point(self._attestation_key) + self._certification
        return signed + struct.pack("<I", len(data)) + data

    def collateral_json(self, now: int, *, revoked: Sequence[int] = ()) -> str:
        """What a verifier needs beside the root, as dcap-qvl's QuoteCollateralV3 JSON.

        Valid from a day before `now` (Unix seconds) until seven days after it; `revoked` are serial numbers of
        certificates under the PCK CA.
        """
        moment = datetime.datetime.fromtimestamp(now, datetime.UTC)
        issued, until = moment - COLLATERAL_HEAD_START, moment + COLLATERAL_LIFETIME
        tcb_info = json.dumps(_tcb_info(issued, until), separators=(",", ":"))
        qe_identity = json.dumps(_qe_identity(issued, until), separators=(",", ":"))
        fields = {
            "pck_crl_issuer_chain": self._pck_ca.pem + self._root.pem,
            "root_ca_crl": self._root.revocation_list(issued, until).hex(),
            "pck_crl": self._pck_ca.revocation_list(issued, until, revoked).hex(),
            "tcb_info_issuer_chain": self._tcb.pem + self._root.pem,
            "tcb_info": tcb_info,
            "tcb_info_signature": pki.sign_raw(self._tcb.key, tcb_info.encode()).hex(),
            "qe_identity_issuer_chain": self._tcb.pem + self._root.pem,
            "qe_identity": qe_identity,
            "qe_identity_signature": pki.sign_raw(self._tcb.key, qe_identity.encode()).hex(),
        }
        return json.dumps(fields)


def _certification(
    attestation_key: ec.EllipticCurvePrivateKey, chain: Sequence[pki.Authority]
) -> bytes:
    bound = hashlib.sha256(pki.public_point(attestation_key) + _QE_AUTH_DATA).digest()
    report = _qe_report(bound)
    pem = "".join(authority.pem for authority in chain).encode()
    data = b"".join(
        (
            report,
            pki.sign_raw(chain[0].key, report),
            struct.pack("<H", len(_QE_AUTH_DATA)) + _QE_AUTH_DATA,
            struct.pack("<HI", 5, len(pem)) + pem,
        )
    )
    return struct.pack("<HI", 6, len(data)) + data


def _td_report(
    report_data: bytes,
    mrtd: bytes,
    rtmrs: Sequence[bytes],
    mr_config_id: bytes,
    td_attributes: bytes,
) -> bytes:
    registers = (mrtd, mr_config_id, *rtmrs)
    if len(report_data) != 64 or [len(register) for register in registers] != [48] * 6:
        raise Invalid("a TD report has 64 bytes of report data, 48-byte registers and four RTMRs")
    return b"".join(
        (
            _TEE_TCB_SVN,
            _label("mrseam"),
            bytes(48),  # MRSIGNERSEAM: zero stands for the vendor's own module
            bytes(8),
            td_attributes,
            XFAM,
            mrtd,
            mr_config_id,
            bytes(48),
            bytes(48),
            *rtmrs,
            report_data,
        )
    )


def _qe_report(bound: bytes) -> bytes:
    report = bytearray(384)
    report[0:16] = _CPU_SVN
    report[48:64] = _QE_ATTRIBUTES
    report[64:96] = _label("qe mrenclave")[:32]
    report[128:160] = _label("qe mrsigner")[:32]
    report[256:260] = struct.pack("<HH", _QE_PRODUCT_ID, _QE_SVN)
    report[320:352] = bound
    return bytes(report)


def _pck_extension(ppid: bytes) -> x509.UnrecognizedExtension:
    def field(arc: str, value: bytes) -> bytes:
        return der.element(der.SEQUENCE, der.oid(f"{_SGX_EXTENSIONS}.{arc}"), value)

    svns = [field(f"2.{i}", der.integer(svn)) for i, svn in enumerate(_CPU_SVN, 1)]
    pce_svn = field("2.17", der.integer(_PCE_SVN))
    cpu_svn = field("2.18", der.element(der.OCTET_STRING, _CPU_SVN))
    value = der.element(
        der.SEQUENCE,
        field("1", der.element(der.OCTET_STRING, ppid)),
        field("2", der.element(der.SEQUENCE, *svns, pce_svn, cpu_svn)),
        field("3", der.element(der.OCTET_STRING, PCE_ID)),
        field("4", der.element(der.OCTET_STRING, FMSPC)),
        field("5", der.integer(0, der.ENUMERATED)),
    )
    return x509.UnrecognizedExtension(x509.ObjectIdentifier(_SGX_EXTENSIONS), value)


def _validity(issued: datetime.datetime, until: datetime.datetime) -> dict[str, object]:
    return {
        "issueDate": f"{issued:%Y-%m-%dT%H:%M:%SZ}",
        "nextUpdate": f"{until:%Y-%m-%dT%H:%M:%SZ}",
        "tcbEvaluationDataNumber": 1,
    }


def _level(issued: datetime.datetime, tcb: dict[str, object]) -> dict[str, object]:
    return {
        "tcb": tcb,
        "tcbDate": f"{issued:%Y-%m-%dT00:00:00Z}",
        "tcbStatus": "UpToDate",
    }


def _tcb_info(issued: datetime.datetime, until: datetime.datetime) -> dict[str, object]:
    tcb = {
        "sgxtcbcomponents": [{"svn": svn} for svn in _CPU_SVN],
        "pcesvn": _PCE_SVN,
        "tdxtcbcomponents": [{"svn": svn} for svn in _TEE_TCB_SVN],
    }
    return {
        "id": "TDX",
        "version": 3,
        **_validity(issued, until),
        "fmspc": FMSPC.hex().upper(),
        "pceId": PCE_ID.hex(),
        "tcbType": 0,
        "tdxModule": {
            "mrsigner": bytes(48).hex(),
            "attributes": bytes(8).hex(),
            "attributesMask": "FF" * 8,
        },
        "tcbLevels": [_level(issued, tcb)],
    }


def _qe_identity(issued: datetime.datetime, until: datetime.datetime) -> dict[str, object]:
    return {
        "id": "TD_QE",
        "version": 2,
        **_validity(issued, until),
        "miscselect": bytes(4).hex(),
        "miscselectMask": "FF" * 4,
        "attributes": _QE_ATTRIBUTES.hex(),
        "attributesMask": "FF" * 16,
        "mrsigner": _label("qe mrsigner")[:32].hex(),
        "isvprodid": _QE_PRODUCT_ID,
        "tcbLevels": [_level(issued, {"isvsvn": _QE_SVN})],
    }


# UEFI and TCG event types of the entries below (TCG PC Client Platform Firmware Profile, section 10.4.1).
_SEPARATOR, _TAG = 0x4, 0x6
_VARIABLE, _BOOT, _APPLICATION, _ACTION = 0x80000001, 0x80000002, 0x80000003, 0x80000007
_FIRMWARE_BLOB, _HANDOFF = 0x8000000A, 0x8000000B
_GLOBAL_VARIABLES = "8be4df61-93ca-11d2-aa0d-00e098032b8c"
_SECURITY_DATABASE = "d719b2cb-3d3a-4596-a3bc-dad00e67656f"


def boot_events() -> tuple[Event, ...]:
    """The entries of RTMR0 to 2 of a VM whose image has no measurement: real order, fixed digests.

    Together with MRTD = SIMULATED_MRTD they are the boot of every such VM; the digests that real firmware
    computes from constants are those, the rest are labels that say simulated.
    """
    return (
        _boot(0, _HANDOFF, _label("td hob")),
        _boot(0, _FIRMWARE_BLOB, _label("firmware volume")),
        *(_boot(0, _VARIABLE, digest) for digest in _secure_boot_variables()),
        _boot(0, _SEPARATOR, _sha384(bytes(4))),
        *(_acpi(name) for name in ("acpi-loader", "acpi-rsdp", "acpi-tables")),
        _boot(1, _APPLICATION, _label("kernel")),
        _boot(0, _BOOT, _sha384(bytes(2))),
        _boot(0, _BOOT, _label("boot option")),
        _boot(1, _ACTION, _sha384(b"Calling EFI Application from Boot Option")),
        _boot(1, _SEPARATOR, _sha384(bytes(4))),
        _boot(2, _TAG, _label("command line")),
        _boot(2, _TAG, _label("initrd")),
        _boot(1, _ACTION, _sha384(b"Exit Boot Services Invocation")),
        _boot(1, _ACTION, _sha384(b"Exit Boot Services Returned with Success")),
    )


def _boot(imr: int, event_type: int, digest: bytes) -> Event:
    return Event(imr, event_type, digest, "", b"")


def _acpi(name: str) -> Event:
    return Event(0, ACPI_EVENT_TYPE, _label(name), name, ACPI_MARKER)


def _secure_boot_variables() -> list[bytes]:
    # attestation.md section 3: what OVMF measures of variables that are not set.
    variables = (
        (_GLOBAL_VARIABLES, "SecureBoot"),
        (_GLOBAL_VARIABLES, "PK"),
        (_GLOBAL_VARIABLES, "KEK"),
        (_SECURITY_DATABASE, "db"),
        (_SECURITY_DATABASE, "dbx"),
    )
    return [
        _sha384(
            uuid.UUID(guid).bytes_le + struct.pack("<QQ", len(name), 0) + name.encode("utf-16-le")
        )
        for guid, name in variables
    ]


def _sha384(data: bytes) -> bytes:
    return hashlib.sha384(data).digest()
