"""The vm_config text of evidence: what the host says of a VM, worth nothing until measurements agree.

Source: attestation.md section 3 (fields), vmm.md section 6.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from attest.errors import Malformed

MAX_CHARS = 1024 * 1024

_HASH = re.compile(r"(?:0x)?([0-9a-fA-F]{64})")
_VERSION = re.compile(r"(\d{1,4})\.\d+(?:\..*)?")


@dataclass(frozen=True)
class Proof:
    """An image's description for verifiers: sha256sum.txt, and the measurement file that it lists."""

    checksum_file: bytes
    measurement: bytes


@dataclass(frozen=True)
class SnpVm:
    """How a SEV-SNP VM was launched: the proof of its image if any, and what the image does not say."""

    proof: Proof | None
    vcpus: int
    vcpu_type: str
    guest_features: int


@dataclass(frozen=True)
class VmConfig:
    """The fields that verification reads; `os_image_hash` is empty where the host gave none."""

    os_image_hash: bytes = b""
    memory_size: int = 0
    single_pass: bool = True
    tdx: Proof | None = None
    snp: SnpVm | None = None
    mr_config: str = ""


def parse(text: str) -> VmConfig:
    """Reads a vm_config text; unknown fields are ignored, an empty text says nothing.  Malformed otherwise."""
    given = _object(text, "vm_config") if text else {}
    tdx, snp = given.get("tdx_measurement"), given.get("sev_snp_measurement")
    return VmConfig(
        os_image_hash=_hash(given),
        memory_size=_whole(given, "memory_size"),
        single_pass=_single_pass(given),
        tdx=None if tdx is None else _proof(tdx, "tdx_measurement"),
        snp=None if snp is None else _snp(snp),
        mr_config=_text(given, "mr_config"),
    )


def _object(text: object, what: str) -> Mapping[str, object]:
    if isinstance(text, str) and len(text) <= MAX_CHARS:
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            value = None
    else:
        value = text
    if not isinstance(value, dict):
        raise Malformed(f"{what}: must be a JSON object of at most 1 MiB")
    return value


def _hash(given: Mapping[str, object]) -> bytes:
    text = _text(given, "os_image_hash")
    match = _HASH.fullmatch(text)
    if text and not match:
        raise Malformed("vm_config: os_image_hash must be 64 hex digits")
    return bytes.fromhex(match[1]) if match else b""


def _single_pass(given: Mapping[str, object]) -> bool:
    # attestation.md section 3: how QEMU adds the firmware's pages, unless the configuration says.
    said = given.get("qemu_single_pass_add_pages")
    if isinstance(said, bool):
        return said
    version = _VERSION.fullmatch(_text(given, "qemu_version"))
    return not version or int(version[1]) >= 9


def _proof(value: object, what: str) -> Proof:
    given = _object(value, what)
    return Proof(_base64(given, "checksum_file", what), _base64(given, "measurement", what))


def _snp(value: object) -> SnpVm:
    what = "sev_snp_measurement"
    given = _object(value, what)
    return SnpVm(
        # Older hosts wrote the inputs themselves, which nothing binds to the image.
        proof=_proof(given, what) if "checksum_file" in given else None,
        vcpus=_whole(given, "vcpus"),
        vcpu_type=_text(given, "vcpu_type"),
        guest_features=_whole(given, "guest_features"),
    )


def _base64(given: Mapping[str, object], key: str, what: str) -> bytes:
    value = given.get(key)
    try:
        if isinstance(value, str):
            return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        pass
    raise Malformed(f"{what}: {key} must be base64 text")


def _text(given: Mapping[str, object], key: str) -> str:
    value = given.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise Malformed(f"vm_config: {key} must be a string")
    return value


def _whole(given: Mapping[str, object], key: str) -> int:
    value = given.get(key, 0)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**53:
        raise Malformed(f"vm_config: {key} must be a whole number")
    return value
