"""Every call of /prpc and /guest: what it answers and with what words it refuses."""

from __future__ import annotations

import hashlib
import re
import shutil
import socket
import uuid
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from core.config import Config
from image.registry import Image
from models.vm import VmEvent
from tests.api.vmm.calls import ask, create, info, post, refused
from tests.common import rows
from tests.common.waiting import free_port, until
from vmm import listing, process
from vmm.service import Vms

UNKNOWN = "500f0879-bbd6-4169-a102-45a41efa1494"


@pytest.fixture
def vms(app: Flask) -> Vms:
    found: Vms = app.extensions["vms"]
    return found


# CreateVm ---------------------------------------------------------------------------------------


def test_a_created_vm_runs_and_shows_what_was_asked(client: FlaskClient) -> None:
    port = free_port()

    vm_id = create(
        client,
        name="web 1",
        vcpu=2,
        memory=512,
        disk_size=3,
        ports=[rows.port(port, 8090)],
        encrypted_env="0x00FF",
        user_config="a=b",
        kms_urls=["https://kms"],
    )

    assert uuid.UUID(vm_id).version == 4
    vm = info(client, vm_id)
    assert (vm["id"], vm["name"], vm["status"]) == (vm_id, "web 1", "running")
    assert re.fullmatch(r"\d+s", vm["uptime"])
    assert vm["exited_at"] == "never"
    assert vm["app_id"] == hashlib.sha256(rows.COMPOSE.encode()).hexdigest()[:40]
    assert vm["app_url"] == f"http://127.0.0.1:{port}/"
    assert (vm["image_version"], vm["simulated_tee"]) == ("0.5.4", "dstack-tdx")
    assert vm["boot_progress"] == "booting"
    assert [event["event"] for event in vm["events"]] == ["vmm.start"]
    given = vm["configuration"]
    assert (given["vcpu"], given["memory"], given["disk_size"]) == (2, 512, 3)
    assert given["compose_file"] == rows.COMPOSE
    assert (given["encrypted_env"], given["user_config"]) == ("00ff", "a=b")
    assert given["ports"] == [
        {"protocol": "tcp", "host_port": port, "vm_port": 8090, "host_address": "127.0.0.1"}
    ]
    assert (given["kms_urls"], given["stopped"]) == (["https://kms"], False)


def test_the_configuration_of_a_vm_makes_another_of_its_kind(client: FlaskClient) -> None:
    given = info(client, create(client, stopped=True, user_config="x"))["configuration"]

    again = create(client, **given)

    assert info(client, again)["configuration"] == given


def test_a_vm_may_be_created_stopped(client: FlaskClient) -> None:
    vm = info(client, create(client, stopped=True))

    assert (vm["status"], vm["uptime"]) == ("stopped", "never")
    assert vm["configuration"]["stopped"] is True


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"name": "a/b"}, "name: "),
        ({"name": 3}, "name: must be a string"),
        ({"image": "nothing-0.5.4"}, "image: image nothing-0.5.4 not found"),
        ({"compose_file": "services: {}"}, "compose_file: must be JSON"),
        ({"vcpu": -1}, "vcpu: must be between 0 and 4294967295"),
        ({"vcpu": 2**32}, "vcpu: must be between 0 and 4294967295"),
        ({"vcpu": "2"}, "vcpu: must be a whole number"),
        ({"vcpu": 1.5}, "vcpu: must be a whole number"),
        ({"vcpu": True}, "vcpu: must be a whole number"),
        ({"memory": 0}, "memory: must be at least 1"),
        ({"disk_size": 0}, "disk_size: must be at least 1"),
        ({"encrypted_env": "xyz"}, "encrypted_env: must be hex text"),
        ({"app_id": "12"}, "app_id: must be 40 hex digits"),
        ({"ports": "80:80"}, "ports: must be a list"),
        ({"ports": [80]}, "ports[0]: must be an object"),
        ({"ports": [rows.port(80)]}, "ports[0].host_port: 80 is outside the ranges"),
        ({"ports": [{"host_port": "8000"}]}, "ports[0].host_port: must be a whole"),
        ({"ports": [rows.port(8000)] * 101}, "ports: at most 100 entries"),
        ({"gpus": {"gpus": [{"slot": "0000:3b:00.0"}], "attach_mode": "listed"}}, "gpus: "),
        ({"networking": {"mode": "bridge"}}, "networking.mode: "),
        ({"simulated_tee": "dstack-nitro-enclave"}, "simulated_tee: must be one of"),
    ],
)
def test_a_bad_field_is_refused_by_its_name_and_nothing_is_made(
    client: FlaskClient, config: Config, fields: dict[str, Any], text: str
) -> None:
    assert refused(client, "/prpc/CreateVm", 400, **rows.request(**fields)).startswith(text)

    assert ask(client, "/prpc/Status")["total"] == 0
    assert not list(config.run_path.glob("*"))


def test_a_missing_field_is_refused_by_its_name(client: FlaskClient) -> None:
    for name in ("name", "image", "compose_file", "vcpu", "memory", "disk_size"):
        fields = rows.request()
        del fields[name]

        assert refused(client, "/prpc/CreateVm", 400, **fields).startswith(f"{name}: ")


def test_a_port_of_another_vm_is_refused_also_by_another_address(client: FlaskClient) -> None:
    port = free_port()
    create(client, stopped=True, ports=[rows.port(port)])

    for address in ("", "127.0.0.1", "0.0.0.0"):
        wanted = rows.request(ports=[rows.port(port, host_address=address)])
        assert "already used by another VM" in refused(client, "/prpc/CreateVm", 400, **wanted)
    create(client, stopped=True, ports=[rows.port(port, protocol="udp")])
    create(client, stopped=True, ports=[rows.port(port, host_address="127.0.0.2")])


def test_a_port_of_another_program_is_refused_and_nothing_is_made(
    client: FlaskClient, config: Config
) -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        wanted = rows.request(ports=[rows.port(port)])
        text = refused(client, "/prpc/CreateVm", 400, **wanted)

    assert text == f"host port tcp 127.0.0.1:{port} cannot be bound: Address already in use"
    assert ask(client, "/prpc/Status")["total"] == 0
    assert not list(config.run_path.glob("*"))


def test_more_than_the_host_has_is_refused(client: FlaskClient) -> None:
    assert refused(client, "/prpc/CreateVm", 400, **rows.request(vcpu=21)).startswith(
        "vcpu: must be at most 20"
    )
    create(client, vcpu=20)

    text = refused(client, "/prpc/CreateVm", 400, **rows.request())

    assert text.startswith("vcpu: this host allows 20 in all running VMs, 20 are in use")


def test_a_qemu_that_does_not_start_is_told_in_its_words(
    client: FlaskClient, config: Config
) -> None:
    rows.behave(config.run_path, fail="could not load PC BIOS")

    text = refused(client, "/prpc/CreateVm", 503, **rows.request())

    assert text == "QEMU ended at once: could not load PC BIOS"
    assert ask(client, "/prpc/Status")["total"] == 0


# StartVm, StopVm, ShutdownVm, RemoveVm --------------------------------------------------------------


def test_a_vm_is_started_stopped_and_started_again(client: FlaskClient) -> None:
    vm_id = create(client, stopped=True)

    for _ in range(2):
        assert ask(client, "/prpc/StartVm", id=vm_id) is None
    assert info(client, vm_id)["status"] == "running"
    for _ in range(2):
        assert ask(client, "/prpc/StopVm", id=vm_id) is None
    vm = info(client, vm_id)
    assert (vm["status"], vm["uptime"]) == ("stopped", "never")
    assert vm["exited_at"].endswith("s")
    ask(client, "/prpc/StartVm", id=vm_id)
    assert info(client, vm_id)["status"] == "running"


def test_a_vm_whose_image_was_changed_is_not_started(client: FlaskClient, config: Config) -> None:
    vm_id = create(client, stopped=True)
    (config.image.path / rows.IMAGE / "initramfs.cpio.gz").write_text("changed")

    text = refused(client, "/prpc/StartVm", 400, id=vm_id)

    assert "initramfs.cpio.gz changed since it was built" in text
    vm = info(client, vm_id)
    assert (vm["status"], vm["boot_error"]) == ("stopped", text)


def test_a_vm_whose_image_is_gone_is_not_started(client: FlaskClient, image: Image) -> None:
    vm_id = create(client, stopped=True)
    image.directory.rename(image.directory.with_name("other-0.5.4"))

    assert refused(client, "/prpc/StartVm", 400, id=vm_id) == f"image {rows.IMAGE} not found"


def test_a_vm_shuts_down_by_itself(client: FlaskClient, vms: Vms) -> None:
    vm_id = create(client)

    assert ask(client, "/prpc/ShutdownVm", id=vm_id) is None

    until(lambda: process.find(vms.reconciler.workdir(vm_id).path) is None)
    vms.reconciler.one(vm_id)
    assert info(client, vm_id)["status"] == "stopped"
    text = refused(client, "/prpc/ShutdownVm", 400, id=vm_id)
    assert text == "VM is not running (it is stopped)"


def test_a_removed_vm_stays_listed_until_it_is_gone(client: FlaskClient, vms: Vms) -> None:
    vm_id = create(client)

    for _ in range(2):
        assert ask(client, "/prpc/RemoveVm", id=vm_id) is None
    assert info(client, vm_id)["status"] == "removing"
    assert "is being removed" in refused(client, "/prpc/StartVm", 400, id=vm_id)
    assert "is being removed" in refused(client, "/prpc/StopVm", 400, id=vm_id)
    vms.reconciler.one(vm_id)

    assert ask(client, "/prpc/GetInfo", id=vm_id) == {"found": False, "info": None}
    assert "not found" in refused(client, "/prpc/RemoveVm", 404, id=vm_id)


ONE_VM = ["StartVm", "StopVm", "ShutdownVm", "RemoveVm", "UpdateVm", "UpgradeApp"]
BAD_IDS = ["", UNKNOWN, "../../etc", "a" * 1000, "a\nb", "%", "' OR 1=1 --", "."]


@pytest.mark.parametrize("vm_id", BAD_IDS)
@pytest.mark.parametrize("method", ONE_VM)
def test_an_unknown_vm_is_not_found(client: FlaskClient, method: str, vm_id: str) -> None:
    assert "not found" in refused(client, f"/prpc/{method}", 404, id=vm_id)


def test_a_call_without_an_id_is_told_what_it_lacks(client: FlaskClient) -> None:
    for path in ("/prpc/StartVm", "/prpc/UpdateVm", "/guest/Info"):
        assert refused(client, path, 404).startswith("id: is missing")


@pytest.mark.parametrize("method", ["Info", "SysInfo", "NetworkInfo", "ListContainers", "Shutdown"])
def test_the_guest_of_an_unknown_vm_is_not_found(client: FlaskClient, method: str) -> None:
    for vm_id in BAD_IDS:
        assert "not found" in refused(client, f"/guest/{method}", 404, id=vm_id)


@pytest.mark.parametrize("vm_id", BAD_IDS)
def test_no_call_makes_a_folder_of_an_id(client: FlaskClient, config: Config, vm_id: str) -> None:
    for method in (*ONE_VM, "GetInfo", "ResizeVm"):
        post(client, f"/prpc/{method}", id=vm_id, vcpu=1)
    client.get("/logs", query_string={"id": vm_id})

    assert not list(config.run_path.glob("**/*"))


@pytest.mark.parametrize("method", [*ONE_VM, "GetInfo"])
def test_an_id_is_text(client: FlaskClient, method: str) -> None:
    for bad in (3, ["a"], {"id": "a"}, True):
        text = refused(client, f"/prpc/{method}", 400, id=bad)
        assert text == "id: must be a string"


# Status, GetInfo -----------------------------------------------------------------------------------


def test_vms_are_listed_filtered_and_paged(client: FlaskClient) -> None:
    ids = [create(client, name=name, stopped=True) for name in ("web", "worker", "db")]

    listed = ask(client, "/prpc/Status", keyword="w", page_size=1)
    assert ([vm["name"] for vm in listed["vms"]], listed["total"]) == (["web"], 2)
    assert listed["port_mapping_enabled"] is True
    listed = ask(client, "/prpc/Status", ids=[ids[2]], brief=True)
    assert [vm["configuration"] for vm in listed["vms"]] == [None]
    assert [vm["id"] for vm in ask(client, "/prpc/Status")["vms"]] == ids


def test_a_list_longer_than_what_is_read_at_once_has_every_vm_with_its_own_parts(
    client: FlaskClient, vms: Vms
) -> None:
    many = range(2 * listing.CHUNK + 1)
    with vms.database.writing() as session:
        session.add_all(
            rows.vm(name=f"vm-{each}", created_ms=each, events=[_event(f"of {each}")])
            for each in many
        )

    listed = ask(client, "/prpc/Status")

    assert listed["total"] == len(many)
    assert [vm["name"] for vm in listed["vms"]] == [f"vm-{each}" for each in many]
    assert [vm["events"][0]["event"] for vm in listed["vms"]] == [f"of {each}" for each in many]
    page = ask(client, "/prpc/Status", page=1, page_size=listing.CHUNK + 1)
    assert page["vms"] == listed["vms"][listing.CHUNK + 1 :]


def _event(text: str) -> VmEvent:
    return VmEvent(event=text, body="", timestamp_ms=1)


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"ids": "a"}, "ids"),
        ({"ids": [1]}, "ids[0]"),
        ({"ids": ["a"] * 10_001}, "ids"),
        ({"brief": "yes"}, "brief"),
        ({"keyword": 1}, "keyword"),
        ({"page": -1}, "page"),
        ({"page_size": 2**32}, "page_size"),
    ],
)
def test_a_bad_query_is_refused_by_its_field(
    client: FlaskClient, fields: dict[str, Any], name: str
) -> None:
    assert refused(client, "/prpc/Status", 400, **fields).startswith(f"{name}: ")


def test_any_page_may_be_asked_for(client: FlaskClient) -> None:
    listed = ask(client, "/prpc/Status", page=2**32 - 1, page_size=2**32 - 1, keyword="a" * 60_000)

    assert listed["vms"] == []


@pytest.mark.parametrize("vm_id", BAD_IDS)
def test_an_unknown_vm_is_no_error_of_getinfo(client: FlaskClient, vm_id: str) -> None:
    assert ask(client, "/prpc/GetInfo", id=vm_id) == {"found": False, "info": None}


# UpdateVm, UpgradeApp, ResizeVm -----------------------------------------------------------------------


@pytest.mark.parametrize("method", ["UpdateVm", "UpgradeApp"])
def test_an_update_answers_the_app_id_of_the_new_text(client: FlaskClient, method: str) -> None:
    vm_id = create(client, stopped=True)
    text = '{"name": "second"}'

    answer = ask(client, f"/prpc/{method}", id=vm_id, compose_file=text)

    assert answer == {"id": hashlib.sha256(text.encode()).hexdigest()[:40]}
    assert info(client, vm_id)["configuration"]["compose_file"] == text
    assert ask(client, f"/prpc/{method}", id=vm_id, user_config="x") == {"id": ""}


def test_a_resize_changes_what_it_names(client: FlaskClient) -> None:
    vm_id = create(client, stopped=True)

    assert ask(client, "/prpc/ResizeVm", id=vm_id, vcpu=4, memory=1024) is None

    given = info(client, vm_id)["configuration"]
    assert (given["vcpu"], given["memory"], given["disk_size"]) == (4, 1024, 1)


def test_a_resize_is_refused_with_its_reason(client: FlaskClient) -> None:
    stopped, running = create(client, stopped=True), create(client)

    assert "at least one of" in refused(client, "/prpc/ResizeVm", 400, id=stopped)
    for name in ("vcpu", "memory", "disk_size"):
        zero = refused(
            client, "/prpc/ResizeVm", 400, **{"id": stopped, name: 0, "image": rows.IMAGE}
        )
        assert zero.startswith(f"{name}: ")
        text = refused(client, "/prpc/ResizeVm", 400, **{"id": running, name: 7})
        assert text.startswith(f"{name}: can be changed only while the VM is stopped")
    assert "not found" in refused(client, "/prpc/ResizeVm", 404, id=UNKNOWN, vcpu=1)


# The rest -----------------------------------------------------------------------------------------


def test_the_compose_hash_is_of_the_exact_bytes(client: FlaskClient) -> None:
    text = '{ "name": "ä" }\n'

    answer = ask(client, "/prpc/GetComposeHash", name="web", compose_file=text)

    assert answer == {"hash": hashlib.sha256(text.encode()).hexdigest()}
    assert refused(client, "/prpc/GetComposeHash", 400, compose_file=text).startswith("name: ")
    text = refused(client, "/prpc/GetComposeHash", 400, name="web", compose_file="[]")
    assert text == "compose_file: must be a JSON object"


def test_images_are_listed_with_their_metadata(client: FlaskClient, image: Image) -> None:
    rows.image(image.directory.parent, "dev-0.5.4", is_dev=True)
    (image.directory.parent / "broken").mkdir()

    listed = ask(client, "/prpc/ListImages")["images"]

    assert [(each["name"], each["version"], each["is_dev"]) for each in listed] == [
        ("dev-0.5.4", "0.5.4", True),
        (rows.IMAGE, "0.5.4", False),
    ]
    assert listed[1]["description"] == Path(image.directory / "metadata.json").read_text()


def test_a_client_learns_addresses_and_limits(client: FlaskClient) -> None:
    assert ask(client, "/prpc/GetMeta") == {
        "kms": {"url": "", "urls": []},
        "gateway": {
            "url": "",
            "base_domain": "localhost",
            "port": 8082,
            "agent_port": 8090,
            "urls": [],
        },
        "resources": {
            "max_cvm_number": 1000,
            "max_allocable_vcpu": 20,
            "max_allocable_memory_in_mb": 100_000,
        },
        "networking": {
            "supported_modes": ["user", *(["passt"] if shutil.which("passt") else [])],
            "default_mode": "user",
            "default_bridge": "",
        },
    }


def test_a_guest_is_asked_and_its_answer_completed(client: FlaskClient, config: Config) -> None:
    disk = {"name": "vda", "mount_point": "/", "total_size": 2**40, "free_size": 1}
    rows.behave(
        config.run_path,
        guest={
            "Info": {"result": {"version": "1", "app_id": "AB" * 20}},
            "SysInfo": {"result": {"os_name": "Debian", "uptime": 2**40, "disks": [disk]}},
            "NetworkInfo": {"result": {"gateways": [{"address": "10.0.2.2"}]}},
            "ListContainers": {"result": {"containers": [{"id": "1", "created": -1}]}},
        },
    )
    vm_id = create(client)

    assert ask(client, "/guest/Info", id=vm_id)["app_id"] == "ab" * 20
    system = ask(client, "/guest/SysInfo", id=vm_id)
    assert (system["os_name"], system["uptime"], system["disks"]) == ("Debian", 2**40, [disk])
    network = ask(client, "/guest/NetworkInfo", id=vm_id)
    assert (network["gateways"], network["wg_info"]) == ([{"address": "10.0.2.2"}], "")
    (container,) = ask(client, "/guest/ListContainers", id=vm_id)["containers"]
    assert (container["id"], container["names"], container["created"]) == ("1", [], -1)
    assert ask(client, "/guest/Shutdown", id=vm_id) is None
    # Although the guest has not said so: nobody starts it again.
    assert info(client, vm_id)["status"] == "stopping"


@pytest.mark.parametrize(
    ("guest", "status", "text"),
    [
        ({"Info": {"error": {"message": "not now"}}}, 502, "guest agent: not now"),
        ({"Info": {"result": {"app_id": "xyz"}}}, 502, "guest agent: malformed answer: app_id"),
        ({"Info": {"result": "</script>"}}, 502, "guest agent: malformed answer"),
    ],
)
def test_a_guest_that_answers_badly_is_an_upstream_failure(
    client: FlaskClient, config: Config, guest: object, status: int, text: str
) -> None:
    rows.behave(config.run_path, guest=guest)

    assert refused(client, "/guest/Info", status, id=create(client)).startswith(text)


def test_a_guest_that_does_not_answer_is_a_timeout(
    client: FlaskClient, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmm.channel.ask.__kwdefaults__", {"begin_s": 0.1, "whole_s": 0.2})
    rows.behave(config.run_path, guest="hang")

    text = refused(client, "/guest/Info", 504, id=create(client))

    assert text == "the guest agent did not answer in time"


def test_a_guest_that_does_not_run_is_told(client: FlaskClient) -> None:
    text = refused(client, "/guest/Info", 400, id=create(client, stopped=True))

    assert text == "VM is not running (it is stopped)"
