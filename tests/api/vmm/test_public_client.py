"""The public command line client of dstack's VMM, command by command, in the form in which it writes its calls.

All but the logs are `POST /prpc/METHOD?json` with a JSON type; it prints the whole body of anything but 200.
"""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from flask.testing import FlaskClient

from tests.api.vmm.calls import create
from tests.common import rows
from tests.common.waiting import free_port

COMPOSE = '{\n    "manifest_version": 2,\n    "name": "web",\n    "runner": "docker-compose"\n}'


def rpc(client: FlaskClient, method: str, params: dict[str, Any] | None = None) -> Any:
    """One call as that client makes it."""
    answer = client.post(
        f"/prpc/{method}?json",
        json=params or {},
        headers={"Content-Type": "application/json", "Accept": "*/*"},
    )
    assert answer.status_code == 200, answer.text
    assert answer.content_type == "application/json"
    return answer.json if answer.data else None


def deploy(client: FlaskClient, **fields: Any) -> str:
    """The call of `deploy`, with all that it always sends."""
    params = {
        "name": "web",
        "image": rows.IMAGE,
        "compose_file": COMPOSE,
        "vcpu": 1,
        "memory": 1024,
        "disk_size": 20,
        "app_id": None,
        "ports": [],
        "hugepages": False,
        "pin_numa": False,
        "stopped": True,
        "no_tee": False,
    }
    vm_id: str = rpc(client, "CreateVm", params | fields)["id"]
    return vm_id


def shown(client: FlaskClient, vm_id: str) -> dict[str, Any]:
    """What `info --json` prints."""
    answer = rpc(client, "GetInfo", {"id": vm_id})
    assert answer["found"] is True
    info: dict[str, Any] = answer["info"]
    return info


def test_deploy_with_all_its_options(client: FlaskClient) -> None:
    port = free_port()

    vm_id = deploy(
        client,
        swap_size=0,
        user_config="a = b",
        encrypted_env="00ff" * 30,
        app_id="ab" * 20,
        kms_urls=["https://kms.example.com"],
        gateway_urls=["https://gateway.example.com"],
        ports=[{"protocol": "tcp", "host_address": "127.0.0.1", "host_port": port, "vm_port": 80}],
        gpus=None,
        simulated_tee="dstack-tdx",
        networks=[{"mode": "user"}],
    )

    given = shown(client, vm_id)["configuration"]
    assert (given["app_id"], given["user_config"]) == ("ab" * 20, "a = b")
    assert given["encrypted_env"] == "00ff" * 30
    assert given["ports"][0]["host_port"] == port


def test_deploy_with_nothing_but_what_it_needs(client: FlaskClient) -> None:
    vm_id = deploy(client)

    assert shown(client, vm_id)["app_id"] == hashlib.sha256(COMPOSE.encode()).hexdigest()[:40]


@pytest.mark.parametrize("gpus", [{"attach_mode": "listed", "gpus": []}, {"attach_mode": "listed"}])
def test_deploy_with_an_empty_list_of_gpus(client: FlaskClient, gpus: dict[str, Any]) -> None:
    assert shown(client, deploy(client, gpus=gpus))["configuration"]["gpus"]["gpus"] == []


def test_lsvm_and_info(client: FlaskClient) -> None:
    vm_id = deploy(client)

    (vm,) = rpc(client, "Status")["vms"]

    assert vm == shown(client, vm_id)
    assert {"id", "app_id", "name", "status", "uptime", "instance_id"} <= set(vm)
    configuration = vm["configuration"]
    assert {"vcpu", "memory", "disk_size", "image", "gpus", "ports"} <= set(configuration)
    assert (configuration["gpus"], vm["instance_id"]) == (None, None)


def test_start_stop_and_remove(client: FlaskClient) -> None:
    vm_id = deploy(client)

    for method, status in (
        ("StartVm", "running"),
        ("StopVm", "stopped"),
        ("StartVm", "running"),
        ("ShutdownVm", "stopping"),
        ("RemoveVm", "removing"),
    ):
        assert rpc(client, method, {"id": vm_id}) is None
        assert shown(client, vm_id)["status"] == status


def test_resize_sends_only_what_is_named(client: FlaskClient) -> None:
    vm_id = deploy(client)

    rpc(client, "ResizeVm", {"id": vm_id, "vcpu": 2})
    rpc(client, "ResizeVm", {"id": vm_id, "memory": 2048, "disk_size": 30, "image": rows.IMAGE})

    given = shown(client, vm_id)["configuration"]
    assert (given["vcpu"], given["memory"], given["disk_size"]) == (2, 2048, 30)


def test_logs_are_asked_for_with_a_json_type(client: FlaskClient) -> None:
    vm_id = create(client)

    answer = client.get(
        f"/logs?id={vm_id}&follow=false&ansi=false&lines=20",
        headers={"Content-Type": "application/json"},
    )

    assert answer.status_code == 200
    assert answer.content_type == "text/plain; charset=utf-8"
    assert "hello from" in answer.text


@pytest.mark.parametrize(("method", "key"), [("ListImages", "images"), ("ListGpus", "gpus")])
def test_lsimage_and_lsgpu(client: FlaskClient, method: str, key: str) -> None:
    assert isinstance(rpc(client, method)[key], list)


def test_an_update_of_the_variables_keeps_the_exact_text(client: FlaskClient) -> None:
    vm_id = deploy(client)
    text = shown(client, vm_id)["configuration"]["compose_file"]
    assert text == COMPOSE

    rpc(client, "UpgradeApp", {"id": vm_id, "encrypted_env": "aa"})
    rpc(client, "UpgradeApp", {"id": vm_id, "compose_file": text + "\n"})

    given = shown(client, vm_id)["configuration"]
    assert (given["compose_file"], given["encrypted_env"]) == (COMPOSE + "\n", "aa")


def test_an_update_of_the_user_config_or_the_ports_changes_nothing_else(
    client: FlaskClient,
) -> None:
    vm_id, port = deploy(client, user_config="old"), free_port()
    rule = {"protocol": "tcp", "host_port": port, "vm_port": 80}

    assert rpc(client, "UpgradeApp", {"id": vm_id, "user_config": "new"}) == {"id": ""}
    # An empty address is the host's default, as at creation.
    rpc(client, "UpgradeApp", {"id": vm_id, "update_ports": True, "ports": [rule]})
    rpc(client, "UpgradeApp", {"id": vm_id, "ports": []})

    given = shown(client, vm_id)["configuration"]
    assert (given["user_config"], given["compose_file"]) == ("new", COMPOSE)
    assert [p["host_address"] for p in given["ports"]] == ["127.0.0.1"]
    rpc(client, "UpgradeApp", {"id": vm_id, "update_ports": True})
    assert shown(client, vm_id)["configuration"]["ports"] == []


def test_an_update_of_all_is_two_calls(client: FlaskClient) -> None:
    vm_id = deploy(client)

    rpc(client, "ResizeVm", {"id": vm_id, "vcpu": 2})
    rpc(
        client,
        "UpgradeApp",
        {
            "id": vm_id,
            "compose_file": COMPOSE,
            "gpus": {"attach_mode": "listed", "gpus": []},
            "update_kms_urls": True,
            "kms_urls": ["https://kms.example.com"],
            "no_tee": True,
        },
    )

    given = shown(client, vm_id)["configuration"]
    assert (given["vcpu"], given["no_tee"]) == (2, True)
    assert given["kms_urls"] == ["https://kms.example.com"]


def test_a_refusal_is_printed_whole(client: FlaskClient) -> None:
    answer = client.post("/prpc/StartVm?json", json={"id": "none"})

    assert answer.status_code == 404
    assert answer.json == dict.fromkeys(("message", "error"), "VM none not found")
