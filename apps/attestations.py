"""What the guests of an app say of themselves, all asked at once (apps.md section 3.7)."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import NameOID, SignatureAlgorithmOID

from apps.cvms import Cvm
from apps.names import moment
from apps.service import App, Apps
from attest import ratls
from attest.errors import VerificationError
from attest.evidence import TdxEvidence
from core.errors import CasemateError, NotFound
from core.messages import GuestInfo
from vmm.service import Vms

Json = dict[str, Any]
Item = TypeVar("Item")
Answer = TypeVar("Answer")

# Each guest has this long; so many are asked at the same time.
GUEST_S = 3.0
AT_ONCE = 64

_ALGORITHMS = {
    SignatureAlgorithmOID.ECDSA_WITH_SHA256: "ecdsa-with-SHA256",
    SignatureAlgorithmOID.ECDSA_WITH_SHA384: "ecdsa-with-SHA384",
    SignatureAlgorithmOID.RSA_WITH_SHA256: "sha256WithRSAEncryption",
    SignatureAlgorithmOID.ED25519: "ed25519",
}
# What cryptography raises for certificates that break the rules, some of it only when they are looked at.
_UNREADABLE = (
    ValueError,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
    x509.DuplicateExtension,
)
_TCB_TEXTS = ("mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3", "app_compose")
_EVENT = {"imr": int, "event_type": int, "digest": str, "event": str, "event_payload": str}


@dataclass(frozen=True)
class Said:
    """What one guest says; `error` tells why something is missing."""

    certificates: list[Json] | None = None
    quote: str | None = None
    device_id: str = ""
    instance_id: str | None = None
    tcb_info: Json | None = None
    error: str | None = None
    pem: str = ""  # of its certificate


def at_once(ask: Callable[[Item], Answer], items: Sequence[Item]) -> list[Answer]:
    """The answers to one question about many, asked in parallel and in their order."""
    with ThreadPoolExecutor(max(1, min(AT_ONCE, len(items)))) as pool:
        return list(pool.map(ask, items))


def asked(service: Apps, app: App) -> Json:
    """The attestation of an app, all of whose guests are asked at once."""
    cvms = service.cvms([row.id for row in app.rows])
    if not cvms:  # the last one went meanwhile
        raise NotFound("App not found")
    said = at_once(lambda cvm: heard(service.vms, cvm), cvms)
    return of_app(app.id, cvms, said, service.vms.qemu_version)


def heard(vms: Vms, cvm: Cvm) -> Said:
    """What the agent of one VM says; never an error, which its `error` tells instead."""
    if cvm.status != "running":
        return Said(error=f"the CVM is {cvm.status}")
    try:
        told = vms.ask_guest(cvm.uuid, "Info", GuestInfo, within_s=GUEST_S)
    except CasemateError as error:
        return Said(error=error.message)
    chain = certificates(told["app_cert"])
    tcb = tcb_info(told["tcb_info"])
    return Said(
        certificates=chain or None,
        quote=next((each["quote"] for each in chain if each["quote"]), None),
        device_id=told["device_id"].hex(),
        instance_id=told["instance_id"].hex() or None,
        tcb_info=tcb,
        error=_lacking(tcb, chain),
        pem=told["app_cert"],
    )


def _lacking(tcb: Json | None, chain: Sequence[Json]) -> str | None:
    if tcb is None:
        return "the guest shows no TCB info"
    return None if chain else "the guest shows no certificate"


def instance(cvm: Cvm, said: Said) -> Json:
    """One VM of an app with what its guest says."""
    return {
        "vm_uuid": cvm.uuid,
        "name": cvm.row.name,
        "instance_id": cvm.row.instance_id or said.instance_id,
        "status": cvm.status,
        "image_version": cvm.row.image_version,
        "quote": said.quote,
        "ppid": "",
        "device_id": said.device_id,
        "tcb_info": said.tcb_info,
        "app_certificates": said.certificates,
        "compose_file": said.tcb_info and said.tcb_info["app_compose"],
        "error": said.error,
    }


def of_app(app_id: str, cvms: Sequence[Cvm], said: Sequence[Said], qemu_version: str) -> Json:
    """The attestation of an app."""
    kms, url = cvms[0].kms, cvms[0].catalog.config.cvm.gateway_urls
    return {
        "app_id": app_id,
        "contract_address": f"0x{app_id}",
        "kms_info": {
            "contract_address": kms.contract_address or "",
            "chain_id": None if kms.chain_id is None else str(kms.chain_id),
            "version": "",
            "url": kms.url,
            "gateway_app_id": kms.gateway_app_id,
            "gateway_app_url": next(iter(url), ""),
            "kms_type": kms.type,
        },
        "instances": [instance(*pair) for pair in zip(cvms, said, strict=True)],
        "kms_guest_agent_info": None,
        "gateway_guest_agent_info": None,
        "qemu_version": qemu_version or None,
    }


def of_cvm(cvm: Cvm, said: Said) -> Json:
    """The attestation of one VM by itself."""
    is_online = said.certificates is not None or said.tcb_info is not None
    return {
        "name": cvm.row.name,
        "is_online": is_online,
        "is_public": cvm.flag("public_tcbinfo", True),
        "error": said.error,
        "app_certificates": said.certificates,
        "tcb_info": said.tcb_info,
        "compose_file": said.tcb_info and said.tcb_info["app_compose"],
    }


# What a guest says is data: nothing of its form is taken for granted ------------------------------


def tcb_info(text: str) -> Json | None:
    """The measurements and the event log out of a guest's JSON text; None when it holds no such thing."""
    try:
        told = json.loads(text)
    except (ValueError, RecursionError):
        return None
    log = told.get("event_log") if isinstance(told, dict) else None
    if not isinstance(log, list) or not all(isinstance(told.get(n), str) for n in _TCB_TEXTS):
        return None
    rootfs = told.get("rootfs_hash")
    return {
        **{name: told[name] for name in _TCB_TEXTS},
        "event_log": [_event(each) for each in log if _is_event(each)],
        "rootfs_hash": rootfs if isinstance(rootfs, str) else None,
    }


def _is_event(entry: object) -> bool:
    return isinstance(entry, dict) and all(
        isinstance(entry.get(name), kind) for name, kind in _EVENT.items()
    )


def _event(entry: Json) -> Json:
    return {name: entry[name] for name in _EVENT}


def certificates(pem: str) -> list[Json]:
    """The certificates of a chain as the interface writes them; none when the text holds none."""
    try:
        chain = x509.load_pem_x509_certificates(pem.encode())
        return [_certificate(each, place) for place, each in enumerate(chain)]
    except _UNREADABLE:
        return []


def _certificate(certificate: x509.Certificate, place: int) -> Json:
    try:
        extensions = ratls.read(certificate)
        quote = _quote(extensions)
    except VerificationError:
        extensions, quote = ratls.Extensions(), None
    subject, issuer = certificate.subject, certificate.issuer
    return {
        "subject": {
            **_name(subject),
            "state": _part(subject, NameOID.STATE_OR_PROVINCE_NAME),
            "locality": _part(subject, NameOID.LOCALITY_NAME),
        },
        "issuer": _name(issuer),
        "serial_number": f"{certificate.serial_number:x}",
        "not_before": moment(int(certificate.not_valid_before_utc.timestamp() * 1000)),
        "not_after": moment(int(certificate.not_valid_after_utc.timestamp() * 1000)),
        "version": certificate.version.name,
        "fingerprint": certificate.fingerprint(hashes.SHA256()).hex(),
        "signature_algorithm": _algorithm(certificate),
        "sans": _sans(certificate),
        "is_ca": _is_ca(certificate),
        "position_in_chain": place,
        "quote": quote,
        "app_id": None if extensions.app_id is None else extensions.app_id.hex(),
        "cert_usage": extensions.usage,
    }


def _quote(extensions: ratls.Extensions) -> str | None:
    evidence = extensions.evidence()
    if evidence is None:
        return None
    platform = evidence.platform
    return (platform.quote if isinstance(platform, TdxEvidence) else platform.report).hex()


def _name(name: x509.Name) -> Json:
    return {
        "common_name": _part(name, NameOID.COMMON_NAME),
        "organization": _part(name, NameOID.ORGANIZATION_NAME),
        "country": _part(name, NameOID.COUNTRY_NAME),
    }


def _part(name: x509.Name, kind: x509.ObjectIdentifier) -> str | None:
    found = name.get_attributes_for_oid(kind)
    return str(found[0].value) if found else None


def _algorithm(certificate: x509.Certificate) -> str:
    oid = certificate.signature_algorithm_oid
    return _ALGORITHMS.get(oid, oid.dotted_string)


def _sans(certificate: x509.Certificate) -> list[str] | None:
    try:
        kind = x509.SubjectAlternativeName
        names = certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None
    return [str(each.value) for each in names]


def _is_ca(certificate: x509.Certificate) -> bool:
    try:
        return bool(certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca)
    except x509.ExtensionNotFound:
        return False
