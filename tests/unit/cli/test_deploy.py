from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from attest import compose as document
from core.errors import Invalid, NotFound
from image.registry import Image
from tests.common import rows
from tests.common.waiting import free_port
from tests.unit.cli.conftest import Kms, Wired

Run = Callable[..., Result]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "docker-compose.yaml"
    path.write_text("services:\n  web:\n    image: nginx\n")
    return path


@pytest.fixture
def app_compose(tmp_path: Path) -> Path:
    path = tmp_path / "app-compose.json"
    path.write_text('{"docker_compose_file": "services: {}"}')
    return path


@pytest.fixture
def vm(wired: Wired) -> dict[str, Any]:
    made = wired.call("prpc/CreateVm", **rows.request(stopped=True, disk_size=2))
    return wired.info(made["id"])


def test_a_vm_is_made_of_a_docker_compose_file(run: Run, wired: Wired, file: Path) -> None:
    done = run("vm", "create", "--name", "web", "--compose", file, "--stopped")

    info = wired.info(done.stdout.strip())
    configuration = info["configuration"]
    sizes = [configuration[name] for name in ("vcpu", "memory", "disk_size")]
    assert (info["status"], sizes) == ("stopped", [1, 2048, 10])
    assert configuration["image"] == rows.IMAGE
    assert json.loads(configuration["compose_file"])["docker_compose_file"] == file.read_text()


def test_every_option_reaches_the_service(
    run: Run, wired: Wired, app_compose: Path, tmp_path: Path
) -> None:
    (tmp_path / "user").write_text("for the app")
    wired.instead["/prpc/CreateVm"] = {"id": "some-id"}

    done = run(
        *("vm", "create", "--json", "--stopped", "--name", "web", "--app-compose", app_compose),
        *("--vcpu", 2, "--memory", "4G", "--disk", "1T", "--image", "other"),
        *("--port", "18080:80", "--port", "udp:18053:53", "--user-config", tmp_path / "user"),
        *("--net", "user", "--net", "bridge:br7", "--gpu", "0000:3b:00.0", "--kms-url", "https://k"),
        *("--gateway-url", "https://g", "--app-id", "0xAB" + "cd" * 19, "--hugepages", "--pin-numa"),
        *("--no-tee", "--simulated-tee", "dstack-tdx"),
    )  # fmt: skip

    assert json.loads(done.stdout) == {"id": "some-id"}
    (sent,) = wired.said("/prpc/CreateVm")
    assert sent == {
        "name": "web",
        "image": "other",
        "compose_file": app_compose.read_text(),
        "vcpu": 2,
        "memory": 4096,
        "disk_size": 1024,
        "ports": [
            {"protocol": "tcp", "host_address": "", "host_port": 18080, "vm_port": 80},
            {"protocol": "udp", "host_address": "", "host_port": 18053, "vm_port": 53},
        ],
        "app_id": "0xAB" + "cd" * 19,
        "user_config": "for the app",
        "hugepages": True,
        "pin_numa": True,
        "gpus": {"attach_mode": "listed", "gpus": [{"slot": "0000:3b:00.0"}]},
        "kms_urls": ["https://k"],
        "gateway_urls": ["https://g"],
        "stopped": True,
        "no_tee": True,
        "simulated_tee": "dstack-tdx",
        "networks": [
            {"mode": "user", "bridge_name": None},
            {"mode": "bridge", "bridge_name": "br7"},
        ],
    }


def test_variables_are_encrypted_for_the_app_that_is_made(
    run: Run, wired: Wired, app_compose: Path
) -> None:
    app_compose.write_text('{"allowed_envs": ["A"], "docker_compose_file": "services: {}"}')
    kms = Kms(document.app_id(app_compose.read_bytes()).hex())
    wired.instead["/prpc/GetAppEnvEncryptPubKey"] = kms.answer

    run("vm", "create", "--name", "w", "--app-compose", app_compose, "-e", "A=s3cret", "--stopped")

    (sent,) = wired.said("/prpc/CreateVm")
    assert kms.opened(sent["encrypted_env"]) == {"A": "s3cret"}
    asked = [m["app_id"] for m in wired.said("/prpc/GetAppEnvEncryptPubKey")]
    assert asked == [document.app_id(app_compose.read_bytes()).hex()]
    assert "s3cret" not in json.dumps(wired.asked)


def test_an_update_is_one_call_and_a_new_document_keeps_new_variables(
    run: Run, wired: Wired, file: Path, vm: dict[str, Any], tmp_path: Path
) -> None:
    kms = Kms(vm["app_id"])
    wired.instead["/prpc/GetAppEnvEncryptPubKey"] = kms.answer
    (tmp_path / "user").write_text("new")
    wired.asked.clear()
    port = free_port()

    done = run(
        *("vm", "update", "web", "--compose", file, "-e", "B=2", "--port", f"{port}:80", "--json"),
        *("--user-config", tmp_path / "user", "--vcpu", 2, "--memory", 512, "--disk", 4),
        *("--image", rows.IMAGE, "--net", "user", "--kms-url", "none"),
    )

    (sent,) = wired.said("/prpc/UpdateVm")
    after = json.loads(sent["compose_file"])
    assert (after["docker_compose_file"], after["allowed_envs"]) == (file.read_text(), ["B"])
    assert kms.opened(sent["encrypted_env"]) == {"B": "2"}
    now = wired.info(vm["id"])["configuration"]
    assert (now["vcpu"], now["memory"], now["disk_size"]) == (2, 512, 4)
    assert now["ports"][0]["host_port"] == port
    assert now["user_config"] == "new"
    assert now["networks"][0]["mode"] == "user"
    assert now["compose_file"] == sent["compose_file"]
    assert json.loads(done.stdout)["id"] == vm["id"]


def test_lists_are_emptied_by_none(run: Run, wired: Wired, vm: dict[str, Any]) -> None:
    wired.instead["/prpc/UpdateVm"] = {"id": ""}

    run("vm", "update", "web", "--port", "none", "--net", "default", "--gpu", "none", "--tee")

    (sent,) = wired.said("/prpc/UpdateVm")
    assert sent == {
        "id": vm["id"],
        "update_ports": True,
        "update_networking": True,
        "gpus": {"attach_mode": "listed", "gpus": []},
        "no_tee": False,
    }


def test_a_refused_update_changes_nothing(run: Run, wired: Wired, vm: dict[str, Any]) -> None:
    with pytest.raises(Exception, match="disk_size: can only grow"):
        run("vm", "update", "web", "--vcpu", 2, "--disk", 1)

    assert wired.info(vm["id"])["configuration"]["vcpu"] == 1


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("update", "web"), 2),
        (("create", "--name", "x"), 2),
        (("update", "web", "--memory", "1.5G"), 2),
        (("update", "web", "--disk", "10M"), 2),
    ],
)
def test_a_wrong_command_line_is_told(
    run: Run, vm: dict[str, Any], words: tuple[str, ...], code: int
) -> None:
    assert run("vm", *words).exit_code == code


def test_a_network_that_is_none_is_refused(run: Run, vm: dict[str, Any]) -> None:
    with pytest.raises(Invalid, match="only bridge takes a name"):
        run("vm", "update", "web", "--net", "user:br0")


def test_a_host_without_images_says_how_to_build_one(run: Run, file: Path, image: Image) -> None:
    (image.directory / "metadata.json").unlink()

    with pytest.raises(NotFound, match="casemate image build"):
        run("vm", "create", "--name", "web", "--compose", file)
