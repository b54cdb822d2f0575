"""Calls about the host: GPUs, DHCP leases, the KMS, images, processes of VMs."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from app import create_app
from core.config import Config
from core.config_cvm import GpuConfig
from core.errors import Conflict
from image.registry import Image
from models.base import Database
from models.port import DhcpLease
from tests.api.vmm.calls import ask, create, info, refused
from tests.common import rows
from tests.common.waiting import free_port, until
from vmm import network, process
from vmm.host import Host
from vmm.service import Vms

APP = "ab" * 20


@contextmanager
def calling(config: Config, host: Host) -> Iterator[FlaskClient]:
    """A caller of a service with another configuration or host."""
    app = create_app(config, host)
    yield app.test_client()
    app.extensions["vms"].database.engine.dispose()


# ListGpus ------------------------------------------------------------------------------------------


def device(root: Path, slot: str, product: str, kind: str, driver: str = "") -> None:
    folder = root / "sys/bus/pci/devices" / slot
    folder.mkdir(parents=True)
    vendor, _, number = product.partition(":")
    for name, value in (("vendor", vendor), ("device", number), ("class", kind)):
        (folder / name).write_text(f"0x{value}\n")
    if driver:
        (root / "sys/bus/pci/drivers" / driver).mkdir(parents=True, exist_ok=True)
        (folder / "driver").symlink_to(root / "sys/bus/pci/drivers" / driver)


@pytest.fixture
def gpu_host(host: Host, tmp_path: Path) -> Host:
    """A host with two H200, one of them free for VMs, a network card and an excluded GPU."""
    device(tmp_path, "0000:3b:00.0", "10de:2335", "030200", "vfio-pci")
    device(tmp_path, "0000:3c:00.0", "10de:2335", "030200", "nvidia")
    device(tmp_path, "0000:3d:00.0", "10de:2335", "030200", "vfio-pci")
    device(tmp_path, "0000:01:00.0", "8086:1572", "020000", "i40e")
    return replace(host, root=tmp_path)


def with_gpus(config: Config) -> Config:
    settings = GpuConfig(enabled=True, exclude=("3d:00.0",), allow_attach_all=False)
    return replace(config, cvm=replace(config.cvm, gpu=settings))


def test_gpus_are_listed_with_what_they_are_called(
    config: Config, database: Database, gpu_host: Host, image: Image
) -> None:
    names = gpu_host.root / "usr/share/misc"
    names.mkdir(parents=True)
    (names / "pci.ids").write_text(
        "# names\n10de  NVIDIA Corporation\n\t2335  GH100 [H200 SXM 141GB]\n"
        "\t\t10de 18be  of a board\n8086  Intel Corporation\n\t2335  another\n\n"
        "C 02  Network controller\nC 03  Display controller\n\t02  3D controller\n"
    )
    with calling(with_gpus(config), gpu_host) as client:
        listed = ask(client, "/prpc/ListGpus")

    called = "3D controller: NVIDIA Corporation GH100 [H200 SXM 141GB] [10de:2335]"
    described = {"product_id": "10de:2335", "description": called}
    assert listed == {
        "gpus": [
            {"slot": "0000:3b:00.0", **described, "is_free": True},
            {"slot": "0000:3c:00.0", **described, "is_free": False},
        ],
        "allow_attach_all": False,
    }


def test_without_names_a_gpu_is_known_by_its_numbers(
    config: Config, database: Database, gpu_host: Host, image: Image
) -> None:
    with calling(with_gpus(config), gpu_host) as client:
        listed = ask(client, "/prpc/ListGpus")["gpus"]

    assert listed[0]["description"] == "Class 0302: Device [10de:2335]"


def test_a_gpu_that_a_vm_holds_is_not_free(
    config: Config, database: Database, gpu_host: Host, image: Image
) -> None:
    with calling(with_gpus(config), gpu_host) as client:
        vm_id = create(client)
        folder = config.run_path / vm_id
        argv = [*process.launched(folder), "-device", "vfio-pci,host=0000:3b:00.0,bus=pci.1"]
        (folder / "launch.json").write_text(json.dumps({"argv": argv}))

        assert [each["is_free"] for each in ask(client, "/prpc/ListGpus")["gpus"]] == [False] * 2
        ask(client, "/prpc/StopVm", id=vm_id)
        assert ask(client, "/prpc/ListGpus")["gpus"][0]["is_free"] is True


def test_a_host_that_gives_no_gpus_lists_none(client: FlaskClient) -> None:
    assert ask(client, "/prpc/ListGpus") == {"gpus": [], "allow_attach_all": True}


# ReportDhcpLease --------------------------------------------------------------------------------------


def leases(database: Database) -> list[tuple[str, str, str]]:
    with database.reading() as session:
        return sorted((each.vm_id, each.mac, each.ip) for each in session.query(DhcpLease))


def test_the_address_of_a_card_is_noted_and_replaced(
    client: FlaskClient, database: Database
) -> None:
    first = create(client, stopped=True)
    second = create(client, stopped=True, networks=[{"mode": "user"}] * 2)
    macs = network.mac_address(first), network.mac_address(second, 1)

    ask(client, "/prpc/ReportDhcpLease", mac=macs[0].upper(), ip="192.168.122.7")
    ask(client, "/prpc/ReportDhcpLease", mac=macs[0], ip="192.168.122.8")
    ask(client, "/prpc/ReportDhcpLease", mac=macs[1].replace(":", "-"), ip="192.168.122.9")

    assert leases(database) == sorted(
        [(first, macs[0], "192.168.122.8"), (second, macs[1], "192.168.122.9")]
    )
    # An address that another card got has left the first one: nobody's port may lead to a stranger.
    ask(client, "/prpc/ReportDhcpLease", mac=macs[1], ip="192.168.122.8")
    assert leases(database) == [(second, macs[1], "192.168.122.8")]


@pytest.mark.parametrize(
    ("fields", "status", "text"),
    [
        ({"mac": "02:ab:cd:ef:01:23", "ip": "192.168.122.7"}, 404, "no VM has a network card"),
        ({"mac": "02:ab:cd:ef:01", "ip": "192.168.122.7"}, 400, "mac: must be six bytes"),
        ({"mac": "", "ip": "192.168.122.7"}, 400, "mac: "),
        ({"mac": "02:ab:cd:ef:01:23", "ip": "300.1.1.1"}, 400, "ip: must be an IP address"),
        ({"mac": "02:ab:cd:ef:01:23", "ip": "127.0.0.1"}, 400, "ip: 127.0.0.1 is no address of"),
        ({"mac": "02:ab:cd:ef:01:23", "ip": "::"}, 400, "ip: :: is no address of a guest"),
        ({"mac": "02:ab:cd:ef:01:23"}, 400, "ip: "),
    ],
)
def test_a_lease_that_cannot_be_is_refused(
    client: FlaskClient, fields: dict[str, Any], status: int, text: str
) -> None:
    assert refused(client, "/prpc/ReportDhcpLease", status, **fields).startswith(text)


def test_interfaces_are_shown_with_their_addresses(client: FlaskClient) -> None:
    vm_id = create(client, stopped=True)

    assert info(client, vm_id)["interfaces"] == [
        {
            "mode": "user",
            "backend": "slirp",
            "mac": network.mac_address(vm_id),
            "bridge_name": None,
            "netdev_id": "net0",
        }
    ]


# GetAppEnvEncryptPubKey -----------------------------------------------------------------------------------

Serve = Callable[[int, bytes], str]


@pytest.fixture
def kms() -> Iterator[Serve]:
    """Plays a KMS that answers everything alike; gives its URL and keeps what it was asked."""
    servers: list[HTTPServer] = []

    def serve(status: int, body: bytes) -> str:
        class Kms(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                assert (self.path, asked) == (
                    "/prpc/GetAppEnvEncryptPubKey?json",
                    {"app_id": APP},
                )
                self.send_response(status)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        server = HTTPServer(("127.0.0.1", 0), Kms)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def test_the_key_of_an_app_comes_from_the_kms(
    config: Config, database: Database, host: Host, image: Image, kms: Serve
) -> None:
    key = {
        "public_key": "01" * 32,
        "signature": "02" * 65,
        "timestamp": 1_700_000_000,
        "signature_v1": "03" * 65,
    }
    url = kms(200, json.dumps(key).encode())

    with calling(replace(config, kms_url=url), host) as client:
        assert ask(client, "/prpc/GetAppEnvEncryptPubKey", app_id="0x" + APP) == key


@pytest.mark.parametrize(
    ("status", "body", "text"),
    [
        (400, b'{"error": "no such app"}', "refused: no such app"),
        (500, b"<html>", "refused: status 500"),
        (200, b"[]", "did not answer with a JSON object"),
        (200, b'{"public_key": "xyz"}', "KMS: malformed answer: public_key"),
        (302, b"", "refused: status 302"),
    ],
)
def test_a_kms_that_answers_badly_is_an_upstream_failure(
    config: Config,
    database: Database,
    host: Host,
    image: Image,
    kms: Serve,
    status: int,
    body: bytes,
    text: str,
) -> None:
    with calling(replace(config, kms_url=kms(status, body)), host) as client:
        assert text in refused(client, "/prpc/GetAppEnvEncryptPubKey", 502, app_id=APP)


def test_a_kms_that_is_not_there_is_told(
    config: Config, database: Database, host: Host, image: Image
) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with calling(replace(config, kms_url=url), host) as client:
        text = refused(client, "/prpc/GetAppEnvEncryptPubKey", 502, app_id=APP)
        assert text.endswith("cannot be reached: Connection refused")
    with calling(replace(config, kms_url=""), host) as client:
        text = refused(client, "/prpc/GetAppEnvEncryptPubKey", 400, app_id=APP)
        assert text == "this host knows no KMS; set kms_url in its configuration"
        text = refused(client, "/prpc/GetAppEnvEncryptPubKey", 400, app_id="abcd")
        assert text == "app_id: must be 20 bytes (40 hex digits)"


# DeleteImage -----------------------------------------------------------------------------------------------


def test_an_image_that_a_vm_uses_stays(client: FlaskClient, image: Image) -> None:
    create(client, name="web 1", stopped=True)

    text = refused(client, "/prpc/DeleteImage", 400, id=image.name)

    assert text == f"image {image.name} is used by VM web 1; remove that VM first"
    assert image.directory.is_dir()


def test_an_image_that_nobody_uses_is_deleted(client: FlaskClient, image: Image) -> None:
    assert ask(client, "/prpc/DeleteImage", id=image.name) is None

    assert ask(client, "/prpc/ListImages") == {"images": []}
    assert "not found" in refused(client, "/prpc/DeleteImage", 404, id=image.name)


@pytest.mark.parametrize("name", ["", "..", "../images", "a/b", "/etc", ".hidden", "a..b"])
def test_only_the_name_of_an_image_can_be_deleted(
    client: FlaskClient, image: Image, name: str
) -> None:
    assert refused(client, "/prpc/DeleteImage", 400, id=name).startswith("image: must be 1-64")
    assert image.directory.is_dir()


# SvList, SvStop, SvRemove ------------------------------------------------------------------------------------


def test_the_process_of_a_vm_is_listed_ended_and_dropped(client: FlaskClient, app: Flask) -> None:
    vm_id = create(client, name="web 1")
    vms: Vms = app.extensions["vms"]

    (listed,) = ask(client, "/prpc/SvList")["processes"]
    found = process.find(vms.reconciler.workdir(vm_id).path)
    assert found is not None
    assert (listed["id"], listed["name"]) == (vm_id, "web 1 (qemu)")
    assert (listed["status"], listed["pid"]) == ("running", found.pid)
    assert vm_id in listed["command"]
    text = refused(client, "/prpc/SvRemove", 400, id=vm_id)
    assert text.endswith("is running; stop it first")

    ask(client, "/prpc/SvStop", id=vm_id)
    (listed,) = ask(client, "/prpc/SvList")["processes"]
    assert (listed["status"], listed["pid"]) == ("exited(0)", None)
    assert info(client, vm_id)["status"] == "stopped"
    ask(client, "/prpc/SvRemove", id=vm_id)
    assert ask(client, "/prpc/SvList") == {"processes": []}


@pytest.mark.parametrize("process_id", ["", "x", "../..", "x.forward"])
def test_an_unknown_process_is_not_found(client: FlaskClient, process_id: str) -> None:
    vm_id = create(client, stopped=True)

    for method in ("SvStop", "SvRemove"):
        assert "not found" in refused(client, f"/prpc/{method}", 404, id=process_id)
        for name in ("none", "../x", "shared", "UP"):
            assert "not found" in refused(client, f"/prpc/{method}", 404, id=f"{vm_id}.{name}")


# Two calls at once -----------------------------------------------------------------------------------------------


def test_of_two_starts_that_cannot_be_both_are_refused(
    client: FlaskClient, app: Flask, config: Config
) -> None:
    vm_id = create(client, stopped=True)
    rows.behave(config.run_path / vm_id, fail="no room")
    told: list[str] = []

    def start() -> None:
        told.append(refused(app.test_client(), "/prpc/StartVm", 503, id=vm_id))

    threads = [threading.Thread(target=start) for _ in range(3)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(60)

    assert told == ["QEMU ended at once: no room"] * 3
    assert info(client, vm_id)["status"] == "stopped"


def test_a_stop_answers_though_another_call_holds_the_vm(
    client: FlaskClient, app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmm.service.STOP_PATIENCE_S", 0.1)
    vm_id = create(client)
    vms: Vms = app.extensions["vms"]

    with vms.reconciler.locked(vm_id):
        assert ask(client, "/prpc/StopVm", id=vm_id) is None
        assert info(client, vm_id)["status"] == "stopping"
        with pytest.raises(Conflict, match=f"VM {vm_id} is busy with another call; try again"):
            vms.reconciler.one(vm_id, patience_s=0)
    # Whoever looks next does it, here in place of the background process.
    vms.reconciler.one(vm_id)
    until(lambda: info(client, vm_id)["status"] == "stopped")
