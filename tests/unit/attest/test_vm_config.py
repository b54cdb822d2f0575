from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attest import vm_config
from attest.errors import Malformed, VerificationError
from attest.vm_config import Proof, VmConfig

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=8,
)
KEYS = [
    "os_image_hash",
    "memory_size",
    "qemu_version",
    "tdx_measurement",
    "sev_snp_measurement",
    "mr_config",
    "checksum_file",
    "measurement",
    "vcpus",
]


def parsed(**fields: Any) -> VmConfig:
    return vm_config.parse(json.dumps(fields))


def test_an_empty_text_says_nothing() -> None:
    assert vm_config.parse("") == VmConfig()


def test_the_fields_that_verification_reads() -> None:
    proof = {"checksum_file": "YQ==", "measurement": "Yg=="}
    found = parsed(
        os_image_hash="0x" + "AB" * 32,
        memory_size=1024,
        tdx_measurement=proof,
        sev_snp_measurement=json.dumps(
            proof | {"vcpus": 2, "vcpu_type": "EPYC-v4", "guest_features": 1}
        ),
        mr_config="{}",
        unknown=1,
    )

    assert found.os_image_hash == b"\xab" * 32
    assert (found.memory_size, found.mr_config) == (1024, "{}")
    assert found.tdx == Proof(b"a", b"b")
    assert found.snp is not None
    assert (found.snp.proof, found.snp.vcpus, found.snp.vcpu_type) == (found.tdx, 2, "EPYC-v4")


@pytest.mark.parametrize(
    ("fields", "single"),
    [
        ({}, True),
        ({"qemu_version": "8.2.2"}, False),
        ({"qemu_version": "9.0.0"}, True),
        ({"qemu_version": "10.0.2"}, True),
        ({"qemu_version": "10.0"}, True),
        ({"qemu_version": "new"}, True),
        ({"qemu_version": "8.2.2", "qemu_single_pass_add_pages": True}, True),
        ({"qemu_version": "9.2.1", "qemu_single_pass_add_pages": False}, False),
    ],
)
def test_qemu_adds_pages_as_its_version_does_unless_the_configuration_says(
    fields: dict[str, Any], single: bool
) -> None:
    assert parsed(**fields).single_pass is single


def test_an_older_snp_host_gives_no_proof() -> None:
    found = parsed(sev_snp_measurement=json.dumps({"vcpus": 2, "vcpu_type": "EPYC-v4"}))

    assert found.snp is not None
    assert found.snp.proof is None


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"os_image_hash": "ab"}, "os_image_hash must be 64 hex digits"),
        ({"os_image_hash": 5}, "os_image_hash must be a string"),
        ({"memory_size": -1}, "memory_size"),
        ({"memory_size": True}, "memory_size"),
        ({"memory_size": 2**53}, "memory_size"),
        ({"memory_size": "1"}, "memory_size"),
        ({"tdx_measurement": []}, "tdx_measurement: must be a JSON object"),
        ({"tdx_measurement": {}}, "checksum_file must be base64"),
        ({"tdx_measurement": {"checksum_file": "!"}}, "checksum_file must be base64"),
        ({"tdx_measurement": {"checksum_file": "ü"}}, "checksum_file must be base64"),
        ({"sev_snp_measurement": "[]"}, "sev_snp_measurement: must be a JSON object"),
        ({"sev_snp_measurement": "{"}, "sev_snp_measurement: must be a JSON object"),
    ],
)
def test_a_broken_field_is_refused_and_named(fields: dict[str, Any], why: str) -> None:
    with pytest.raises(Malformed, match=why):
        parsed(**fields)


@pytest.mark.parametrize("text", ["[]", "{", "null", "[" * 100_000, " " * (1024**2) + "{}"])
def test_a_text_that_is_no_object_is_refused(text: str) -> None:
    with pytest.raises(Malformed):
        vm_config.parse(text)


@given(st.dictionaries(st.sampled_from(KEYS), JSON))
def test_any_object_is_read_or_refused(fields: dict[str, Any]) -> None:
    with contextlib.suppress(VerificationError):
        parsed(**fields)
