"""ReloadVms: folders that came, changed, went or cannot be read."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from core import files
from core.config import Config
from tests.api.vmm.calls import ask, create, info, refused
from tests.common import rows
from tests.common.waiting import free_port, until
from vmm import process, reload
from vmm.reload import Reload
from vmm.service import Vms

# As dstack's VMM writes it: the older form with one `networking`, and keys that we do not know.
DSTACK_ID = "5b2e6a1c-9f60-4b6e-8f43-0c9f6f3a7d11"


def folder_of_dstack(run_path: Path, vm_id: str = DSTACK_ID, **changes: Any) -> Path:
    folder = run_path / vm_id
    (folder / "shared").mkdir(parents=True)
    manifest = {
        "id": vm_id,
        "name": "from elsewhere",
        "app_id": "cd" * 20,
        "vcpu": 2,
        "memory": 2048,
        "disk_size": 20,
        "image": rows.IMAGE,
        "port_map": [],
        "created_at_ms": 1_690_000_000_000,
        "hugepages": False,
        "pin_numa": False,
        "gpus": None,
        "kms_urls": ["https://kms.example.com:9201"],
        "gateway_urls": [],
        "no_tee": True,
        "networking": {"mode": "user"},
        "cid": 1234,
    }
    (folder / "vm-manifest.json").write_text(json.dumps(manifest | changes))
    (folder / "vm-state.json").write_text('{"started": false}')
    (folder / "shared/app-compose.json").write_text('{"name": "kept  exactly"}\n')
    (folder / "shared/.encrypted-env").write_bytes(b"\x01\x02")
    (folder / "shared/.user-config").write_text("a=b")
    info = {"app_id": "cd" * 20, "instance_id": "ef" * 20, "instance_id_seed": "00" * 20}
    (folder / "shared/.instance_info").write_text(json.dumps(info))
    return folder


def counts(client: FlaskClient) -> tuple[int, int, int]:
    told = ask(client, "/prpc/ReloadVms")
    return told["loaded"], told["updated"], told["removed"]


def change(folder: Path, **fields: Any) -> None:
    path = folder / "vm-manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_a_folder_of_a_dstack_host_is_imported(client: FlaskClient, config: Config) -> None:
    port = free_port()
    rule = {"address": "127.0.0.1", "protocol": "tcp", "from": port, "to": 80}
    folder_of_dstack(config.run_path, port_map=[rule])

    assert counts(client) == (1, 0, 0)

    vm = info(client, DSTACK_ID)
    assert (vm["name"], vm["status"], vm["app_id"]) == ("from elsewhere", "stopped", "cd" * 20)
    assert vm["instance_id"] == "ef" * 20
    given = vm["configuration"]
    assert given["compose_file"] == '{"name": "kept  exactly"}\n'
    assert (given["encrypted_env"], given["user_config"]) == ("0102", "a=b")
    assert (given["vcpu"], given["memory"], given["disk_size"]) == (2, 2048, 20)
    assert given["kms_urls"] == ["https://kms.example.com:9201"]
    assert given["networking"] == {"mode": "user", "bridge_name": None}
    assert [(p["host_port"], p["vm_port"]) for p in given["ports"]] == [(port, 80)]
    ask(client, "/prpc/StartVm", id=DSTACK_ID)
    assert info(client, DSTACK_ID)["status"] == "running"
    assert counts(client) == (0, 1, 0)
    assert info(client, DSTACK_ID)["status"] == "running"


def test_an_imported_vm_that_should_run_is_one_that_ended(
    client: FlaskClient, config: Config
) -> None:
    folder = folder_of_dstack(config.run_path)
    (folder / "vm-state.json").write_text('{"started": true}')

    counts(client)

    assert info(client, DSTACK_ID)["status"] == "exited"


def test_what_a_known_folder_says_wins(client: FlaskClient, config: Config) -> None:
    vm_id = create(client, stopped=True, encrypted_env="01", user_config="old")
    folder = config.run_path / vm_id

    change(folder, name="renamed", vcpu=3, networks=[{"mode": "user"}, {"mode": "user"}])
    (folder / "shared/app-compose.json").write_text('{"name": "new"}')
    (folder / "shared/.user-config").unlink()
    assert counts(client) == (0, 1, 0)

    vm = info(client, vm_id)
    assert (vm["name"], len(vm["interfaces"])) == ("renamed", 2)
    given = vm["configuration"]
    assert (given["vcpu"], given["compose_file"]) == (3, '{"name": "new"}')
    assert (given["encrypted_env"], given["user_config"]) == ("01", "")


def test_a_reload_of_what_was_not_touched_changes_nothing(client: FlaskClient) -> None:
    fields: dict[str, Any] = {"user_config": "x", "encrypted_env": "ff", "no_tee": True}
    vm_id = create(client, ports=[rows.port(free_port())], kms_urls=["https://kms"], **fields)
    ask(client, "/prpc/UpdateVm", id=vm_id, compose_file='{"a": 1}', user_config="y")
    before = info(client, vm_id)

    assert counts(client) == (0, 1, 0)

    after = info(client, vm_id)
    assert after["configuration"] == before["configuration"]
    assert (after["status"], after["app_id"]) == ("running", before["app_id"])


def test_a_vm_whose_folder_is_gone_is_dropped_and_ended(
    client: FlaskClient, app: Flask, config: Config
) -> None:
    vm_id, other = create(client), create(client, stopped=True)
    vms: Vms = app.extensions["vms"]
    workdir = vms.reconciler.workdir(vm_id)
    found = process.find(workdir.path)
    assert found is not None
    shutil.rmtree(config.run_path / vm_id)

    # The operator reads along; that is none of the VM's processes.
    with subprocess.Popen(
        [sys.executable, "-c", "input()", workdir.serial_log], stdin=subprocess.PIPE
    ) as reader:
        assert counts(client) == (0, 1, 1)

        assert ask(client, "/prpc/GetInfo", id=vm_id)["found"] is False
        until(lambda: not process.is_alive(found))
        assert reader.poll() is None
        reader.kill()
    assert info(client, other)["status"] == "stopped"
    assert [path.name for path in config.run_path.glob("[!.]*")] == [other]


BROKEN: list[tuple[dict[str, Any], str]] = [
    ({"id": "another"}, "vm-manifest.json: id is 'another', not the folder's name"),
    ({"image": "gone-0.5.4"}, "image: image gone-0.5.4 not found"),
    ({"vcpu": "two"}, "vm-manifest.json: vcpu: must be a whole number"),
    ({"vcpu": 0}, "vcpu: must be at least 1"),
    ({"name": "../x"}, "name: may contain only"),
    ({"volumes": ["data.img"]}, "vm-manifest.json: volumes are not supported"),
    ({"networks": [{"mode": "bridge", "bridge": "br0"}]}, "networking.bridge_name: is not"),
]


@pytest.mark.parametrize(("fields", "reason"), BROKEN)
def test_a_folder_that_cannot_be_read_is_shown_and_stops_no_other(
    client: FlaskClient, config: Config, fields: dict[str, Any], reason: str
) -> None:
    known = create(client, stopped=True)
    change(config.run_path / known, **fields)
    folder_of_dstack(config.run_path, "0-first", **({"id": "0-first"} | fields))
    folder_of_dstack(config.run_path, "z-last")

    assert counts(client) == (1, 0, 0)

    for vm_id in ("0-first", known):
        vm = info(client, vm_id)
        assert vm["status"] == "unknown"
        assert vm["boot_error"].startswith(reason)
    assert info(client, "z-last")["status"] == "stopped"
    ask(client, "/prpc/RemoveVm", id="0-first")


def test_a_folder_that_was_mended_is_read_again(client: FlaskClient, config: Config) -> None:
    folder = folder_of_dstack(config.run_path)
    whole = (folder / "vm-manifest.json").read_text()
    (folder / "vm-manifest.json").write_text(whole[:100])
    assert counts(client) == (0, 0, 0)
    assert info(client, DSTACK_ID)["boot_error"].startswith(
        "vm-manifest.json: it is not valid JSON"
    )
    for _ in range(2):
        assert "vm-manifest.json: it is not valid" in refused(
            client, "/prpc/StartVm", 400, id=DSTACK_ID
        )
    assert info(client, DSTACK_ID)["status"] == "unknown"

    (folder / "vm-manifest.json").write_text(whole)
    assert counts(client) == (0, 1, 0)

    assert info(client, DSTACK_ID)["status"] == "stopped"
    assert info(client, DSTACK_ID)["name"] == "from elsewhere"


def test_a_start_writes_an_unreadable_folder_anew(client: FlaskClient, config: Config) -> None:
    vm_id = create(client, stopped=True)
    (config.run_path / vm_id / "vm-manifest.json").write_text("{")
    counts(client)
    assert info(client, vm_id)["status"] == "unknown"

    ask(client, "/prpc/StartVm", id=vm_id)
    ask(client, "/prpc/StopVm", id=vm_id)

    assert counts(client) == (0, 1, 0)
    assert info(client, vm_id)["status"] == "stopped"


def test_a_vm_made_while_folders_are_read_is_left_to_its_maker(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = Reload._folders
    made: list[str] = []

    def folders(reload: Reload) -> list[Path]:
        made.append(create(client, stopped=True))
        return look(reload)

    monkeypatch.setattr(Reload, "_folders", folders)

    assert counts(client) == (0, 0, 0)

    assert info(client, made[0])["status"] == "stopped"


def test_a_vm_that_is_busy_is_not_dropped_and_stops_no_other(
    client: FlaskClient, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reload, "LOCK_S", 0.1)
    busy, other = create(client, stopped=True), create(client, stopped=True)
    for vm_id in (busy, other):
        shutil.rmtree(config.run_path / vm_id)

    with files.locked(config.run_path / f".{busy}.lock", timeout_s=5):
        assert counts(client) == (0, 0, 1)

    assert info(client, busy)["id"] == busy
    assert counts(client) == (0, 0, 1)


def test_the_disk_of_a_running_vm_is_not_touched(client: FlaskClient, config: Config) -> None:
    vm_id = create(client)
    folder = config.run_path / vm_id
    change(folder, disk_size=9)
    before = (folder / "hda.img").read_bytes()

    assert counts(client) == (0, 0, 0)

    assert (folder / "hda.img").read_bytes() == before
    assert info(client, vm_id)["configuration"]["disk_size"] == 1


def test_what_is_no_folder_of_a_vm_is_left_alone(client: FlaskClient, config: Config) -> None:
    config.run_path.mkdir()
    (config.run_path / "notes").mkdir()
    (config.run_path / "a file").write_text("x")
    (config.run_path / "link").symlink_to(config.run_path / "notes")
    half = folder_of_dstack(config.run_path)
    (half / ".removing").touch()

    assert counts(client) == (0, 0, 0)

    assert ask(client, "/prpc/Status")["total"] == 0
    assert (config.run_path / "notes").is_dir()


def test_a_vm_whose_folder_or_image_is_missing_is_unknown(
    client: FlaskClient, config: Config
) -> None:
    first, second = create(client), create(client)
    ask(client, "/prpc/StopVm", id=first)
    shutil.rmtree(config.run_path / first)
    assert info(client, first)["status"] == "unknown"

    (config.image.path / rows.IMAGE / "metadata.json").rename(config.data_dir / "elsewhere")

    assert info(client, second)["status"] == "running"
    ask(client, "/prpc/StopVm", id=second)
    assert info(client, second)["status"] == "unknown"
