"""A real VM with a simulated SEV-SNP: keys from a KMS that releases them to such guests, and its evidence."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from attest import compose, envelope
from attest.collateral import nowhere
from attest.root import read_roots
from attest.verified import Trust, verify_evidence
from image import manifest
from tests.common.kms import RunningKms
from tests.common.service import RunningService
from tests.common.waiting import free_port

pytestmark = pytest.mark.filterwarnings("ignore:Unverified HTTPS request")

BOOT_S = 240.0
NOW = 1_800_000_000
COMPOSE = json.dumps(
    {
        "manifest_version": 2,
        "name": "snp",
        "runner": "bash",
        "bash_script": "echo up >/dev/console",
        "key_provider": "kms",
    }
)


@pytest.fixture(scope="module")
def service(image_dir: tuple[Path, str]) -> Iterator[RunningService]:
    running = RunningService(Path(f"/tmp/cm-{os.getpid()}-snp"), image_dir[0])
    running.start()
    yield running
    running.end()


@pytest.fixture(scope="module")
def kms(
    service: RunningService, image_dir: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningKms]:
    folder = tmp_path_factory.mktemp("kms")
    running = RunningKms(
        folder,
        core="enforce_self_authorization = false\nsev_snp_key_release = true",
        # It stands in the table of the roots, behind TDX's.
        tables=f'snp = "{folder}/tee-root-ca.pem"\n[core.auth_api]\ntype = "file"\n',
    )
    running.trust(service.data_dir / "tee")
    running.start()
    app_id, compose_hash = (
        one(COMPOSE.encode()).hex() for one in (compose.app_id, compose.compose_hash)
    )
    running.policy("allow", "--os-image", manifest.digest(image_dir[0] / image_dir[1]))
    running.policy("allow", "--app", app_id, "--compose", compose_hash, "--any-device")
    yield running
    running.stop()


@pytest.fixture(scope="module")
def agent(service: RunningService, kms: RunningKms, image_dir: tuple[Path, str]) -> str:
    """The address of the VM's agent, once its app has started."""
    port = free_port()
    made = service.call(
        "prpc/CreateVm",
        name="snp",
        image=image_dir[1],
        compose_file=COMPOSE,
        simulated_tee="dstack-amd-sev-snp",
        vcpu=2,
        memory=2048,
        disk_size=2,
        kms_urls=[f"https://10.0.2.2:{kms.port}"],
        ports=[{"protocol": "tcp", "host_port": port, "vm_port": 8090}],
    )
    service.wait_for(made["id"], within_s=BOOT_S, boot_progress="done")
    return f"http://127.0.0.1:{port}"


def test_its_report_leads_to_this_hosts_root_and_to_no_other(
    agent: str, service: RunningService
) -> None:
    asked = {"algorithm": "ed25519"}
    answer = requests.post(f"{agent}/prpc/GetAttestationForAppKey", json=asked, timeout=60)
    said: dict[str, Any] = answer.json()
    evidence = envelope.decode(bytes.fromhex(said["attestation"]))
    root = read_roots((service.data_dir / "tee/tee-root-ca.pem").read_bytes()).snp

    known = verify_evidence(evidence, Trust(NOW, nowhere, snp_root=root, check_image=False))

    assert said["quote"] == said["event_log"] == ""
    assert (known.reason, known.root, known.tee_variant) == (
        None,
        "simulated",
        "dstack-amd-sev-snp",
    )
    assert known.report_data.startswith(b"dip1::ed25519-pk:")
    assert known.app_info is not None
    assert known.app_info.compose_hash == compose.compose_hash(COMPOSE.encode())
    refused = verify_evidence(evidence, Trust(NOW, nowhere, check_image=False))
    assert not refused.is_valid and not refused.quote_verified


def test_its_keys_are_in_the_kmss_audit_log(agent: str, kms: RunningKms) -> None:
    released = [
        json.loads(line) for line in (kms.data_dir / "audit.jsonl").read_text().splitlines()
    ]

    assert {record["root"] for record in released} == {"simulated"}
    assert any(record["teeVariant"] == "dstack-amd-sev-snp" for record in released)
