from __future__ import annotations

import base64
import json
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from attest import mr_config
from core.config import Config
from core.proc import run
from image.registry import Image
from models.port import PortLease
from models.vm import Vm
from tests.common import rows
from vmm import boot_files, disk, machine
from vmm.host import Host
from vmm.workdir import WorkDir


@pytest.fixture
def workdir(data_dir: Path) -> WorkDir:
    made = WorkDir(data_dir / "vm/id")
    made.make()
    return made


def write(workdir: WorkDir, vm: Vm, image: Image, config: Config, host: Host) -> dict[str, bytes]:
    made = machine.plan(vm, image, workdir, config, host)
    measured = machine.vm_config(vm, image, made, config, host)
    boot_files.write(workdir, vm, made, measured, config)
    return {path.name: path.read_bytes() for path in workdir.shared.iterdir()}


def test_a_plain_vm_gets_its_text_and_its_configuration(
    workdir: WorkDir, image: Image, config: Config, host: Host
) -> None:
    vm = rows.vm(compose_file='{ "name":"ä" }\n')

    files = write(workdir, vm, image, config, host)

    assert set(files) == {"app-compose.json", ".instance_info", ".sys-config.json"}
    assert files["app-compose.json"] == '{ "name":"ä" }\n'.encode()
    assert json.loads(files[".instance_info"]) == {"app_id": vm.app_id}


def test_the_opaque_parts_are_written_as_they_are_and_go_when_they_are_gone(
    workdir: WorkDir, image: Image, config: Config, host: Host
) -> None:
    vm = rows.vm(encrypted_env=b"\x00\xff", user_config="user=ä")
    files = write(workdir, vm, image, config, host)
    assert (files[".encrypted-env"], files[".user-config"]) == (b"\x00\xff", "user=ä".encode())

    vm.encrypted_env, vm.user_config = b"", ""

    files = write(workdir, vm, image, config, host)
    assert not {".encrypted-env", ".user-config"} & set(files)


def test_the_guests_own_word_about_itself_is_kept(
    workdir: WorkDir, image: Image, config: Config, host: Host
) -> None:
    workdir.share(".instance_info", "told by the guest")

    assert write(workdir, rows.vm(), image, config, host)[".instance_info"] == b"told by the guest"


def test_the_system_configuration_says_what_a_verifier_needs(
    workdir: WorkDir, image: Image, config: Config, host: Host
) -> None:
    cvm = replace(config.cvm, kms_urls=("https://kms",), gateway_urls=("https://gw",))
    vm = rows.vm(vcpu=3, memory_mb=512, options={"gateway_urls": ["https://own"]})

    files = write(workdir, vm, image, replace(config, cvm=cvm), host)

    system = json.loads(files[".sys-config.json"])
    assert (system["kms_urls"], system["gateway_urls"]) == (["https://kms"], ["https://own"])
    assert system["host_api_url"] == "serial:casemate.host.0"
    measured: dict[str, Any] = json.loads(system["vm_config"])
    assert measured["os_image_hash"] == (image.directory / "digest.txt").read_text().strip()
    assert (measured["cpu_count"], measured["memory_size"]) == (3, 512 * 1024**2)
    assert (measured["qemu_version"], measured["channel"]) == ("7.2.22", "serial")


def test_a_simulated_vm_gets_the_seed_and_a_real_one_never(
    workdir: WorkDir, image: Image, config: Config, host: Host
) -> None:
    vm = rows.vm(simulated_tee="dstack-tdx")
    files = write(workdir, vm, image, config, host)
    told = json.loads(files[".tee-simulator.json"])
    assert told["platform"] == "dstack-tdx"
    assert bytes.fromhex(told["seed"]) == (config.tee_dir / "seed").read_bytes()

    vm.simulated_tee = None

    assert ".tee-simulator.json" not in write(workdir, vm, image, config, host)


def test_the_mirrors_of_the_row_are_dstacks(
    workdir: WorkDir, image: Image, config: Config, host: Host
) -> None:
    lease = PortLease(
        position=0, protocol="tcp", host_address="127.0.0.1", host_port=8000, vm_port=80
    )
    vm = rows.vm(ports=[lease], wished="running")

    write(workdir, vm, image, config, host)

    manifest = json.loads((workdir.path / "vm-manifest.json").read_text())
    assert manifest["port_map"] == [
        {"address": "127.0.0.1", "protocol": "tcp", "from": 8000, "to": 80}
    ]
    assert (manifest["id"], manifest["memory"], manifest["disk_size"]) == (vm.id, 256, 1)
    assert json.loads((workdir.path / "vm-state.json").read_text()) == {"started": True}


def test_no_file_is_open_to_others(
    workdir: WorkDir, image: Image, config: Config, host: Host
) -> None:
    write(workdir, rows.vm(encrypted_env=b"x", simulated_tee="dstack-tdx"), image, config, host)
    disk.create_share(workdir.shared_image, workdir.shared)

    for path in (*workdir.path.rglob("*"), *config.tee_dir.rglob("*")):
        wanted = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == wanted, path


def test_the_share_holds_what_the_folder_holds(
    workdir: WorkDir, image: Image, config: Config, host: Host
) -> None:
    files = write(workdir, rows.vm(user_config="x" * 6 * 1024**2), image, config, host)
    disk.create_share(workdir.shared_image, workdir.shared)

    workdir.unshare(".user-config")
    disk.create_share(workdir.path / "second.img", workdir.shared)

    assert contents(workdir.shared_image) == files
    assert ".user-config" not in contents(workdir.path / "second.img")
    label = run(["mlabel", "-s", "-i", workdir.shared_image, "::"]).stdout
    assert b"DSTACKSHR" in label
    assert not list(workdir.path.glob("*.new"))


def contents(share: Path) -> dict[str, bytes]:
    listing = run(["mdir", "-b", "-a", "-i", share, "::"]).stdout.decode()
    names = [line.removeprefix("::/") for line in listing.splitlines()]
    return {name: run(["mtype", "-i", share, f"::{name}"]).stdout for name in names}


def test_a_data_disk_is_made_once(tmp_path: Path) -> None:
    path = tmp_path / "hda.img"
    disk.create_data_disk(path, 3)
    shown = json.loads(run(["qemu-img", "info", "--output=json", path]).stdout)
    before = path.stat()

    disk.create_data_disk(path, 7)

    assert (shown["format"], shown["virtual-size"]) == ("qcow2", 3 * 1024**3)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert path.stat().st_blocks * 512 < 1024**2


def test_a_data_disk_may_stand_on_the_images(tmp_path: Path) -> None:
    disk.create_data_disk(tmp_path / "base.img", 1)

    disk.create_data_disk(tmp_path / "hda.img", 2, tmp_path / "base.img")

    shown = json.loads(run(["qemu-img", "info", "--output=json", tmp_path / "hda.img"]).stdout)
    assert shown["backing-filename"] == str(tmp_path / "base.img")
    assert shown["virtual-size"] == 2 * 1024**3


def test_a_simulated_snp_vm_is_bound_to_its_app_as_a_real_one(
    workdir: WorkDir, image: Image, config: Config, host: Host
) -> None:
    vm = rows.vm(simulated_tee="dstack-amd-sev-snp", instance_id="1d" * 20)
    files = write(workdir, vm, image, config, host)

    system = json.loads(files[".sys-config.json"])
    assert set(json.loads(files[".tee-simulator.json"])) == {"platform", "processor"}
    bound = mr_config.parse(system["mr_config"]).identity
    assert bound.app_id.hex() == vm.app_id
    # Its keys, and with them its instance id, last one boot.
    assert bound.instance_id == b""
    assert json.loads(system["vm_config"])["mr_config"] == system["mr_config"]

    vm.compose_file = '{"key_provider": "kms"}'
    system = json.loads(write(workdir, vm, image, config, host)[".sys-config.json"])
    assert mr_config.parse(system["mr_config"]).identity.instance_id.hex() == vm.instance_id


def test_a_simulated_snp_vm_tells_its_images_measurement(
    workdir: WorkDir, image: Image, config: Config, host: Host
) -> None:
    (image.directory / "measurement.snp.cbor").write_bytes(b"measured")
    vm = rows.vm(simulated_tee="dstack-amd-sev-snp")

    system = json.loads(write(workdir, vm, image, config, host)[".sys-config.json"])

    told = json.loads(json.loads(system["vm_config"])["sev_snp_measurement"])
    assert (base64.b64decode(told["measurement"]), told["vcpus"]) == (b"measured", 1)
