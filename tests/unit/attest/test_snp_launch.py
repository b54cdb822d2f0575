from __future__ import annotations

import contextlib
import hashlib
import json
import struct
import uuid
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attest import envelope, snp, snp_launch
from attest.errors import Malformed, VerificationError
from attest.evidence import SnpEvidence
from attest.snp_launch import Measurement, Section
from tests.common.evidence import SNP_MEASURED
from tests.unit.attest.test_ovmf import entry, firmware

Read = Callable[[str], bytes]
HASHES = uuid.UUID("7255371f-3a3b-4b04-927b-1da6efa8d454")
METADATA = uuid.UUID("dc886566-984a-4798-a75e-5585a7bf67cc")
AP_RESET = uuid.UUID("00f771de-1a7e-4fcb-890e-68c77e2fb44e")


def of_input(given: dict[str, Any]) -> Measurement:
    """An answer's input, in the form that older hosts wrote."""
    sections = given["ovmf_sections"]
    return Measurement(
        cmdline=given["base_cmdline"],
        ovmf_hash=bytes.fromhex(given["ovmf_hash"]),
        kernel_hash=bytes.fromhex(given["kernel_hash"]),
        initrd_hash=bytes.fromhex(given["initrd_hash"]),
        hashes_table_gpa=given["sev_hashes_table_gpa"],
        reset_eip=given["sev_es_reset_eip"],
        sections=tuple(Section(s["gpa"], s["size"], s["section_type"]) for s in sections),
    )


def launched(given: dict[str, Any]) -> bytes:
    return snp_launch.digest(
        of_input(given), given["vcpus"], given["vcpu_type"], given["guest_features"]
    )


def test_the_known_answer_comes_out(vector: Read) -> None:
    answer = json.loads(vector("known-answers.json"))["snp_measurement_upstream"]

    assert launched(answer["input"]).hex() == answer["measurement"]


def test_the_measurement_of_a_real_report_comes_out(vector: Read) -> None:
    attestation = envelope.decode(vector("snp-milan.attestation.bin"))
    assert isinstance(attestation.platform, SnpEvidence)
    given = json.loads(json.loads(attestation.config)["sev_snp_measurement"])

    assert launched(given) == snp.parse(attestation.platform.report).measurement


def test_every_input_counts() -> None:
    def digest(measured: Measurement = SNP_MEASURED, *vm: Any) -> bytes:
        return snp_launch.digest(measured, *(vm or (2, "EPYC-v4", 1)))

    others = [
        digest(replace(SNP_MEASURED, cmdline="console=ttyS1")),
        digest(replace(SNP_MEASURED, ovmf_hash=bytes(48))),
        digest(replace(SNP_MEASURED, kernel_hash=bytes(32))),
        digest(replace(SNP_MEASURED, initrd_hash=bytes(32))),
        digest(replace(SNP_MEASURED, hashes_table_gpa=0x810000)),
        digest(replace(SNP_MEASURED, reset_eip=0)),
        digest(replace(SNP_MEASURED, sections=SNP_MEASURED.sections[1:])),
        digest(SNP_MEASURED, 3, "EPYC-v4", 1),
        digest(SNP_MEASURED, 2, "EPYC-Milan", 1),
        digest(SNP_MEASURED, 2, "EPYC-v4", 0x21),
    ]

    assert len({digest(), *others}) == len(others) + 1


@pytest.mark.parametrize(
    ("name", "signature"),
    [
        ("EPYC-v4", 0x800F12),
        ("EPYC-Rome", 0x830F10),
        ("EPYC-Milan", 0xA00F11),
        ("EPYC-Genoa", 0xA10F10),
    ],
)
def test_processors_have_the_signatures_of_their_family(name: str, signature: int) -> None:
    # As the processors answer CPUID function 1.
    assert snp_launch._cpu_signature(*snp_launch.VCPUS[name]) == signature


def sev_firmware(
    *, gpa: int = 0x810C00, signature: bytes = b"ASEV", version: int = 1, count: int = 1
) -> bytes:
    """Firmware of one page with one section of secrets."""
    table = signature + struct.pack("<III", 28, version, count)
    table += struct.pack("<III", 0x80D000, 0x1000, 2)
    entries = (
        entry(HASHES, struct.pack("<II", gpa, 0x400)),
        entry(AP_RESET, struct.pack("<I", 0x80B004)),
    )
    back = len(table) + 64 + sum(map(len, entries)) + 22 + 18 + 32
    raw = table + firmware(*entries, entry(METADATA, struct.pack("<I", back)))
    return bytes(4096 - len(raw)) + raw


def test_an_image_is_measured_from_its_files() -> None:
    raw = sev_firmware()
    measured = snp_launch.measure(b"kernel", b"initrd", "quiet", raw)

    page = struct.pack("<HBBIQ", 0x70, 1, 0, 0, 2**32 - 4096)
    first = hashlib.sha384(bytes(48) + hashlib.sha384(raw).digest() + page).digest()
    assert measured == Measurement(
        cmdline="quiet",
        ovmf_hash=first,
        kernel_hash=hashlib.sha256(b"kernel").digest(),
        initrd_hash=hashlib.sha256(b"initrd").digest(),
        hashes_table_gpa=0x810C00,
        reset_eip=0x80B004,
        sections=(Section(0x80D000, 0x1000, 2),),
    )
    assert snp_launch.decode(snp_launch.encode(measured)) == measured


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (firmware(), "no place for the kernel's hashes"),
        (sev_firmware(gpa=0), "no place for the kernel's hashes"),
        (bytes(1) + sev_firmware(), "not made of whole pages"),
        (sev_firmware(signature=b"XXXX"), "unknown form"),
        (sev_firmware(version=2), "unknown form"),
        (sev_firmware(count=65), "unknown form"),
    ],
)
def test_firmware_that_cannot_bind_a_kernel_is_refused(raw: bytes, why: str) -> None:
    with pytest.raises(Malformed, match=why):
        snp_launch.measure(b"kernel", b"initrd", "quiet", raw)


def test_firmware_without_a_section_table_is_refused() -> None:
    raw = firmware(entry(HASHES, struct.pack("<I", 1)))

    with pytest.raises(Malformed, match="no SEV section table"):
        snp_launch.measure(b"", b"", "", bytes(4096 - len(raw)) + raw)


@pytest.mark.parametrize(
    ("measured", "vcpus", "kind", "why"),
    [
        (SNP_MEASURED, 0, "EPYC-v4", "vcpus must be 1 to 512"),
        (SNP_MEASURED, 513, "EPYC-v4", "vcpus must be 1 to 512"),
        (SNP_MEASURED, 1, "Xeon", "vcpu_type must be one of"),
        (replace(SNP_MEASURED, sections=(Section(0, 4096, 9),)), 1, "EPYC-v4", "unknown type"),
        (replace(SNP_MEASURED, sections=(Section(0, 4095, 1),)), 1, "EPYC-v4", "unknown type"),
        (replace(SNP_MEASURED, sections=(Section(0, 2**31, 1),)), 1, "EPYC-v4", "unknown type"),
        (replace(SNP_MEASURED, hashes_table_gpa=0), 1, "EPYC-v4", "not inside of its page"),
        (replace(SNP_MEASURED, hashes_table_gpa=0x810FFF), 1, "EPYC-v4", "not inside"),
        (
            replace(SNP_MEASURED, sections=(Section(0x810000, 0x2000, 0x10),)),
            1,
            "EPYC-v4",
            "not inside",
        ),
    ],
)
def test_a_launch_that_cannot_be_is_refused(
    measured: Measurement, vcpus: int, kind: str, why: str
) -> None:
    with pytest.raises(Malformed, match=why):
        snp_launch.digest(measured, vcpus, kind, 1)


def changed(**fields: object) -> bytes:
    return cbor2.dumps(cbor2.loads(snp_launch.encode(SNP_MEASURED)) | fields)


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"\xff", "not one CBOR map"),
        (changed(version=2), "version is not 1"),
        (changed(ovmf_sections=5), "must be a list"),
        (changed(ovmf_sections=[{}] * 65), "must be a list"),
        (changed(ovmf_sections=[5]), "a section must be a map"),
        (changed(ovmf_sections=[{"gpa": 0, "size": 0, "type": -1}]), "type must be"),
        (changed(cmdline=b"x"), "cmdline must be a string"),
        (changed(ovmf_hash=bytes(32)), "ovmf_hash must be 48 bytes"),
        (changed(kernel_hash="x"), "kernel_hash must be 32 bytes"),
        (changed(reset_eip=2**32), "reset_eip must be a whole number"),
        (changed(reset_eip=True), "reset_eip must be a whole number"),
    ],
)
def test_a_broken_measurement_file_is_refused(raw: bytes, why: str) -> None:
    with pytest.raises(Malformed, match=why):
        snp_launch.decode(raw)


@given(st.integers(0, len(snp_launch.encode(SNP_MEASURED)) - 1), st.integers(1, 255))
def test_any_flipped_byte_is_read_or_refused(at: int, bits: int) -> None:
    raw = bytearray(snp_launch.encode(SNP_MEASURED))
    raw[at] ^= bits
    with contextlib.suppress(VerificationError):
        snp_launch.digest(snp_launch.decode(bytes(raw)), 1, "EPYC-v4", 1)
