"""/metrics: what it says, and to whom."""

from __future__ import annotations

from dataclasses import replace

import pytest
from flask.testing import FlaskClient
from prometheus_client.parser import text_string_to_metric_families

from app import create_app
from core.config import AuthConfig, Config
from image.registry import Image
from models.base import Database
from tests.common import rows
from tests.common.waiting import free_port
from vmm.host import Host
from vmm.service import Vms


def figures(client: FlaskClient) -> dict[str, float]:
    """Each sample by its name and labels."""
    answer = client.get("/metrics")
    assert answer.status_code == 200
    assert answer.content_type.startswith("text/plain; version=0.0.4")
    return {
        " ".join([sample.name, *sample.labels.values()]): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def test_vms_are_counted_by_status_with_what_they_use(client: FlaskClient, vms: Vms) -> None:
    with vms.database.writing() as session:
        session.add(rows.vm(vcpu=2, memory_mb=512, wished="running", observed="alive"))
        session.add(rows.vm(vcpu=4, memory_mb=1024, wished="stopped", observed="alive"))
        session.add(rows.vm())
        session.add(rows.vm(wished="removed"))

    found = figures(client)

    by_status = {
        word: found[f"casemate_vms {word}"]
        for word in ("running", "starting", "exited", "stopping", "stopped", "removing")
    }
    assert by_status == {
        "running": 1, "starting": 0, "exited": 0, "stopping": 1, "stopped": 1, "removing": 1,
    }  # fmt: skip
    assert found["casemate_vm_vcpus"] == 6
    assert found["casemate_vm_memory_bytes"] == 1536 * 1024**2
    assert found["casemate_vm_vcpus_limit"] == vms.config.cvm.max_allocable_vcpu
    assert found["casemate_disk_free_bytes"] > 0
    assert any(name.startswith("casemate_build_info") for name in found)


def test_leases_sweeps_and_requests_are_counted(client: FlaskClient) -> None:
    wanted = rows.request(stopped=True, ports=[rows.port(free_port())])
    made = client.post("/prpc/CreateVm", json=wanted)
    assert made.status_code == 200
    client.post("/prpc/CreateVm", json={})
    client.get("/logs?id=unknown")
    client.get("/nowhere")

    found = figures(client)

    assert found["casemate_port_leases"] == 1
    assert found["casemate_http_requests_total 200 vmm"] == 1
    assert found["casemate_http_requests_total 400 vmm"] == 1
    assert found["casemate_http_requests_total 404 logs"] == 1
    assert found["casemate_http_requests_total 404 none"] == 1
    assert "casemate_background_sweeps_total" in found
    assert figures(client)["casemate_http_requests_total 200 metrics"] == 1


@pytest.mark.parametrize(("token", "status"), [("", 401), ("wrong", 401), ("right", 200)])
def test_figures_are_for_operators(
    config: Config, database: Database, host: Host, image: Image, token: str, status: int
) -> None:
    closed = replace(config, auth=AuthConfig(enabled=True, tokens=("right",)))
    client = create_app(closed, host).test_client()

    headers = {"Authorization": f"Bearer {token}"} if token else {}

    assert client.get("/metrics", headers=headers).status_code == status
