"""Starts each kind of VM on a host whose /dev, /sys and QEMU are stand-ins, and looks at what was started."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import socket
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from attest import compose, mr_config
from core import prpc
from core.config import Config, HostApiConfig
from core.config_cvm import GpuConfig, NetworkingConfig, PortMappingConfig, PortRange
from core.errors import Conflict, Invalid, Unavailable
from image import manifest, registry
from image.registry import Image
from models.base import Database
from models.port import DhcpLease
from models.vm import Vm
from tests.common import rows
from tests.common.passt import needs_passt
from tests.common.waiting import free_port, until
from vmm import companion, process, reconcile
from vmm.accel import Accelerator
from vmm.background import Background
from vmm.description import describe
from vmm.host import Host, sev_numbers
from vmm.network import mac_address
from vmm.schemas import Configuration, VmConfiguration
from vmm.service import Vms

VM_ID = "0a1b2c3d-0000-4000-8000-000000000001"
GPU, SWITCH = "0000:3b:00.0", "0000:86:00.0"
NODES = {0: "0-15,32-47", 1: "16-31,48-63"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A host with vsock, two NUMA nodes with 64 GiB of huge pages each, a GPU on node 0, a switch on 1."""
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/vhost-vsock").touch()
    (tmp_path / "proc").mkdir()
    mounts = "hugetlbfs /dev/hugepages hugetlbfs rw,relatime,pagesize=1024M 0 0\n"
    (tmp_path / "proc/mounts").write_text(mounts)
    for node, cpus in NODES.items():
        folder = tmp_path / f"sys/devices/system/node/node{node}"
        (folder / "hugepages/hugepages-1048576kB").mkdir(parents=True)
        (folder / "hugepages/hugepages-1048576kB/free_hugepages").write_text("64\n")
        (folder / "cpulist").write_text(f"{cpus}\n")
    for slot, device, kind, node in ((GPU, "2335", "030200", 0), (SWITCH, "22a3", "068000", 1)):
        folder = tmp_path / "sys/bus/pci/devices" / slot
        folder.mkdir(parents=True)
        (folder / "vendor").write_text("0x10de\n")
        (folder / "device").write_text(f"0x{device}\n")
        (folder / "class").write_text(f"0x{kind}\n")
        (folder / "numa_node").write_text(f"{node}\n")
        (folder / "driver").symlink_to("../../drivers/vfio-pci")
    (tmp_path / "sys/bus/pci/drivers/vfio-pci").mkdir(parents=True)
    for bridge in ("br0", "br7"):
        (tmp_path / "sys/class/net" / bridge).mkdir(parents=True)
    return tmp_path


@pytest.fixture
def fixed_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uuid, "uuid4", lambda: uuid.UUID(VM_ID))


@pytest.fixture
def on(
    config: Config, database: Database, fake_qemu: Path, root: Path, image: Image
) -> Callable[..., Vms]:
    """The service on a host with this TEE; keyword arguments replace settings of [cvm]."""

    def make(tee: str = "", accel: str = "kvm", **cvm: Any) -> Vms:
        accelerator = Accelerator(accel, "host" if accel == "kvm" else "max", "test")
        host = Host(str(fake_qemu), (9, 2, 1), accelerator, tee, root)
        settings = replace(config.cvm, **{"simulate": False, **cvm})
        return Vms(replace(config, cvm=settings), database, host)

    return make


def firmware(image: Image, **files: str) -> None:
    """Gives an image firmware files, by their names in metadata.json."""
    path = image.directory / "metadata.json"
    described = json.loads(path.read_text())
    for key, name in files.items():
        (image.directory / name).write_text(f"the {name}")
        described[key.replace("_", "-")] = name
    path.write_text(json.dumps(described))
    manifest.write(image.directory, described, ("bzImage", "initramfs.cpio.gz"))


def wanted(**fields: Any) -> Configuration:
    loaded: Configuration = prpc.load(VmConfiguration, rows.request(**fields))
    return loaded


def folder(vms: Vms, vm_id: str) -> Path:
    return vms.reconciler.workdir(vm_id).path


def row(vms: Vms, vm_id: str) -> Vm:
    with vms.database.reading() as session:
        return session.get_one(Vm, vm_id)


def argv(vms: Vms, vm_id: str) -> str:
    """The command that was started, one option a line, without what differs between two runs."""
    words = process.launched(folder(vms, vm_id))
    text = words[0]
    for word in words[1:]:
        text += f"\n{word}" if word.startswith("-") else f" {word}"
    text = text.replace(vms.host.qemu, "QEMU").replace(str(vms.config.image.path), "IMAGES")
    return text.replace(str(folder(vms, vm_id)), "W") + "\n"


def told(vms: Vms, vm_id: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """.sys-config.json and the vm_config in it."""
    system = json.loads((folder(vms, vm_id) / "shared/.sys-config.json").read_text())
    return system, json.loads(system["vm_config"])


# TEEs ------------------------------------------------------------------------------------------------


def test_a_tdx_vm_is_started_as_published(
    on: Callable[..., Vms], image: Image, fixed_id: None, golden: Callable[[str, str], None]
) -> None:
    firmware(image, bios="ovmf.fd")
    vms = on("tdx", qemu_hotplug_off=True, qemu_pci_hole64_size=1 << 40, qgs_port=4051)

    vm_id = vms.create(wanted(vcpu=4, memory=4096))

    golden("launch/tdx.txt", argv(vms, vm_id))
    bound = b"\1" + compose.compose_hash(rows.COMPOSE.encode()) + bytes(15)
    assert base64.b64encode(bound).decode() in argv(vms, vm_id)
    system, config = told(vms, vm_id)
    assert system["host_api_url"] == "vsock://2:10000/api"
    assert json.loads(system["mr_config"])["compose_hash"] == bound[1:33].hex()
    assert config == {
        "spec_version": 1,
        "os_image_hash": registry.load(vms.config.image.path, rows.IMAGE).digest,
        "cpu_count": 4,
        "memory_size": 4096 * 1024**2,
        "qemu_version": "9.2.1",
        "pci_hole64_size": 1 << 40,
        "hugepages": False,
        "num_gpus": 0,
        "num_nvswitches": 0,
        "hotplug_off": True,
        "image": rows.IMAGE,
        "host_share_mode": "vhd",
        "channel": "vsock",
    }


def test_a_tdx_vm_with_a_key_provider_binds_the_document(
    on: Callable[..., Vms], image: Image
) -> None:
    firmware(image, bios="ovmf.fd")
    vms = on("tdx")
    text = '{"key_provider": "kms", "key_provider_id": "abcd"}'

    vm_id = vms.create(wanted(compose_file=text))

    document = told(vms, vm_id)[0]["mr_config"]
    parsed = mr_config.parse(document)
    assert (parsed.key_provider, parsed.key_provider_id) == ("kms", b"\xab\xcd")
    assert parsed.identity.compose_hash == compose.compose_hash(text.encode())
    assert document == json.dumps(json.loads(document), sort_keys=True, separators=(",", ":"))
    bound = base64.b64encode(mr_config.version_3(document)).decode()
    assert f'"mrconfigid":"{bound}"' in argv(vms, vm_id)


def test_mrconfigid_and_quote_service_can_be_left_out(on: Callable[..., Vms], image: Image) -> None:
    firmware(image, bios="ovmf.fd")
    vms = on("tdx", use_mrconfigid=False, qgs_port=0)

    text = argv(vms, vms.create(wanted()))

    assert '{"qom-type":"tdx-guest","id":"tdx"}' in text


def test_a_snp_vm_is_started_with_what_qemu_says_of_the_host(
    on: Callable[..., Vms], image: Image, fixed_id: None, golden: Callable[[str, str], None]
) -> None:
    firmware(image, bios="ovmf.fd", bios_sev="ovmf-sev.fd")
    (image.directory / "measurement.snp.cbor").write_bytes(b"\xa0")
    vms = on("amd-sev-snp")

    vm_id = vms.create(wanted())

    text = argv(vms, vm_id)
    golden("launch/sev-snp.txt", text)
    assert "cbitpos=51,reduced-phys-bits=1" in text
    document = told(vms, vm_id)[0]["mr_config"]
    assert base64.b64encode(mr_config.host_data(document)).decode() in text
    config = told(vms, vm_id)[1]
    assert config["mr_config"] == document
    measured = json.loads(config["sev_snp_measurement"])
    assert base64.b64decode(measured["measurement"]) == b"\xa0"
    assert (measured["vcpus"], measured["vcpu_type"]) == (1, "EPYC-v4")


def test_a_simulated_vm_describes_its_image_for_verifiers(vms: Vms, image: Image) -> None:
    (image.directory / "measurement.tdx.cbor").write_bytes(b"\xa0")

    config = told(vms, vms.create(wanted(simulated_tee="dstack-tdx")))[1]

    assert config["tdx_attestation_variant"] == "lite"
    assert base64.b64decode(config["tdx_measurement"]["measurement"]) == b"\xa0"
    sums = (image.directory / "sha256sum.txt").read_bytes()
    assert base64.b64decode(config["tdx_measurement"]["checksum_file"]) == sums


@pytest.mark.parametrize(
    ("said", "complained", "match"),
    [
        (b"", b"no /dev/sev\n", "no /dev/sev"),
        (b'{"id": "sev", "error": {"desc": "SEV is not enabled in KVM"}}', b"", "not enabled"),
        (b'{"id": "sev", "return": {"cbitpos": "x"}}', b"", "no answer"),
        (b"garbage\n[]\n", b"", "no answer"),
    ],
)
def test_a_qemu_that_does_not_tell_sev_is_quoted(
    said: bytes, complained: bytes, match: str
) -> None:
    with pytest.raises(Unavailable, match=match):
        sev_numbers(said, complained)


def test_a_verifier_is_told_how_qemu_differs(on: Callable[..., Vms], image: Image) -> None:
    firmware(image, bios="ovmf.fd")
    vms = on("tdx", qemu_single_pass_add_pages=False, qemu_pic=True, qemu_version="8.2.2")

    config = told(vms, vms.create(wanted()))[1]

    assert (config["qemu_single_pass_add_pages"], config["pic"]) == (False, True)
    assert config["qemu_version"] == "8.2.2"


@pytest.mark.parametrize(
    ("tee", "accel", "spoil", "match"),
    [
        ("", "kvm", None, "this host has no TDX or SEV-SNP; set no_tee"),
        ("tdx", "tcg", None, "a tdx VM needs KVM"),
        ("tdx", "kvm", "vsock", "modprobe vhost_vsock"),
        ("amd-sev-snp", "kvm", "vsock", "modprobe vhost_vsock"),
        ("tdx", "kvm", "bios", "has no firmware for tdx"),
        ("amd-sev-snp", "kvm", "bios", "has no firmware for amd-sev-snp"),
    ],
)
def test_a_tee_vm_that_this_host_cannot_start_is_refused_with_advice(
    on: Callable[..., Vms],
    root: Path,
    image: Image,
    tee: str,
    accel: str,
    spoil: str | None,
    match: str,
) -> None:
    if spoil != "bios":
        firmware(image, bios="ovmf.fd")
    if spoil == "vsock":
        (root / "dev/vhost-vsock").unlink()
    vms = on(tee, accel)
    vm_id = vms.create(wanted(stopped=True))  # which always works

    with pytest.raises(Invalid, match=match):
        vms.start(vm_id)

    assert process.find(folder(vms, vm_id)) is None
    assert match in row(vms, vm_id).boot_error


@pytest.mark.parametrize("fields", [{"no_tee": True}, {"simulated_tee": "dstack-tdx"}])
def test_a_host_with_a_tee_starts_vms_without_one_too(
    on: Callable[..., Vms], fields: dict[str, Any]
) -> None:
    vms = on("tdx", "tcg", channel="serial")

    text = argv(vms, vms.create(wanted(**fields)))

    assert "tdx" not in text.replace(vms.config.data_dir.name, "")
    assert "-bios" not in text


# Channel ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "has_device", "is_ours", "vsock"),
    [
        ("auto", True, False, True),
        ("auto", True, True, False),
        ("auto", False, False, False),
        ("serial", True, False, False),
        ("vsock", True, True, True),
    ],
)
def test_vsock_is_used_where_both_ends_have_it(
    on: Callable[..., Vms],
    root: Path,
    image: Image,
    setting: str,
    has_device: bool,
    is_ours: bool,
    vsock: bool,
) -> None:
    if not has_device:
        (root / "dev/vhost-vsock").unlink()
    if is_ours:
        firmware(image, name="casemate-0.5.4")
    vms = on(channel=setting)

    vm_id = vms.create(wanted(no_tee=True))

    cid = row(vms, vm_id).cid
    assert (f"vhost-vsock-pci,guest-cid={cid}" in argv(vms, vm_id)) is vsock
    assert ("casemate.host.0" in argv(vms, vm_id)) is not vsock
    assert (folder(vms, vm_id) / "guest.cid").exists() is vsock


def test_a_channel_that_cannot_be_is_refused(
    on: Callable[..., Vms], root: Path, image: Image
) -> None:
    firmware(image, bios="ovmf.fd")
    with pytest.raises(Invalid, match=r"set cvm\.channel = auto"):
        on("tdx", channel="serial").create(wanted())
    (root / "dev/vhost-vsock").unlink()
    with pytest.raises(Invalid, match="modprobe vhost_vsock"):
        on(channel="vsock").create(wanted(no_tee=True))


def test_a_guest_with_vsock_is_known_by_its_number(on: Callable[..., Vms]) -> None:
    vms = on(channel="vsock")
    vm_id = vms.create(wanted(no_tee=True))
    background = Background(vms)
    cid = row(vms, vm_id).cid
    assert cid is not None

    background._answer_of(cid)("Notify", {"event": "boot.progress", "payload": "done"})

    assert row(vms, vm_id).boot_progress == "done"
    vms.stop(vm_id)
    for unknown in (cid, cid + 1):
        with pytest.raises(Exception, match="no running VM"):
            background._answer_of(unknown)


def has_vsock() -> bool:
    try:
        socket.socket(socket.AF_VSOCK).close()
        return True
    except OSError:
        return False


@pytest.mark.skipif(not has_vsock(), reason="this kernel has no vsock")
def test_the_host_api_is_served_once_the_device_is_there(
    on: Callable[..., Vms], root: Path
) -> None:
    (root / "dev/vhost-vsock").unlink()
    vms = on()
    own_port = HostApiConfig(port=100_000 + os.getpid())
    background = Background(replace(vms, config=replace(vms.config, host_api=own_port)))
    background._hear()
    assert background.listener is None

    (root / "dev/vhost-vsock").touch()
    background._hear()

    assert background.listener is not None
    background.listener.close()


# Numbers ---------------------------------------------------------------------------------------------


def test_each_vm_has_a_number_of_its_own_until_the_pool_is_used_up(on: Callable[..., Vms]) -> None:
    vms = on(cid_start=2000, cid_pool_size=2)
    first, second = (vms.create(wanted(no_tee=True, stopped=True)) for _ in range(2))
    assert [row(vms, each).cid for each in (first, second)] == [2000, 2001]

    with pytest.raises(Invalid, match=r"cvm\.cid_pool_size"):
        vms.create(wanted(no_tee=True, stopped=True))

    vms.remove(first)
    vms.reconciler.one(first)
    assert row(vms, vms.create(wanted(no_tee=True, stopped=True))).cid == 2000


def test_a_vm_older_than_the_numbers_gets_one_at_its_start(on: Callable[..., Vms]) -> None:
    vms = on()
    vm_id = vms.create(wanted(no_tee=True, stopped=True))
    with vms.database.writing() as session:
        session.get_one(Vm, vm_id).cid = None

    vms.start(vm_id)

    assert row(vms, vm_id).cid == 1000


def test_the_limits_of_the_host_hold_at_creation_and_at_start(on: Callable[..., Vms]) -> None:
    vms = on(max_allocable_vcpu=4, max_allocable_memory_in_mb=1024)
    for field, value in (("vcpu", 5), ("memory", 1025)):
        with pytest.raises(Invalid, match=f"{field}: must be at most"):
            vms.create(wanted(no_tee=True, stopped=True, **{field: value}))
    vms.create(wanted(no_tee=True, vcpu=3))
    second = vms.create(wanted(no_tee=True, vcpu=2, stopped=True))

    with pytest.raises(Conflict, match="vcpu: this host allows 4"):
        vms.start(second)


def test_the_ranges_of_ports_hold_at_start_too(on: Callable[..., Vms], config: Config) -> None:
    port = free_port()
    vm_id = on().create(wanted(no_tee=True, stopped=True, ports=[rows.port(port)]))
    other = 1 if port > 1 else 2
    narrow = PortMappingConfig(enabled=True, range=(PortRange("tcp", other, other),))

    with pytest.raises(Invalid, match=r"ports\[0\]\.host_port: .* outside the ranges"):
        on(port_mapping=narrow).start(vm_id)


# Memory and GPUs -------------------------------------------------------------------------------------

GPUS = GpuConfig(enabled=True, listing=("10de:2335", "10de:22a3"))


def test_memory_and_gpus_are_near_each_other(
    on: Callable[..., Vms], image: Image, fixed_id: None, golden: Callable[[str, str], None]
) -> None:
    firmware(image, bios="ovmf.fd")
    vms = on("tdx", gpu=GPUS)
    gpus = {"gpus": [{"slot": "3b:00.0"}, {"slot": SWITCH}], "attach_mode": "listed"}

    vm_id = vms.create(wanted(vcpu=5, memory=3000, gpus=gpus, hugepages=True, pin_numa=True))

    golden("launch/tdx-hugepages-gpus.txt", argv(vms, vm_id))
    config = told(vms, vm_id)[1]
    # Two nodes: six processors, and two whole GiB on each.
    assert (config["cpu_count"], config["memory_size"]) == (6, 4 * 1024**3)
    assert (config["num_gpus"], config["num_nvswitches"], config["hugepages"]) == (1, 1, True)


def test_huge_pages_that_are_not_there_are_named(on: Callable[..., Vms], root: Path) -> None:
    vms = on()
    pages = "sys/devices/system/node/node0/hugepages/hugepages-1048576kB/free_hugepages"
    (root / pages).write_text("1\n")

    with pytest.raises(Invalid, match="hugepages: node 0 of this host has 1 GiB"):
        vms.create(wanted(no_tee=True, memory=2048, hugepages=True))


def test_a_host_that_says_nothing_of_its_nodes_pins_nobody(
    on: Callable[..., Vms], root: Path
) -> None:
    shutil.rmtree(root / "sys/devices/system/node")

    with pytest.raises(Invalid, match="says nothing of NUMA node 0"):
        on().create(wanted(no_tee=True, pin_numa=True))


def test_a_gpu_of_another_driver_is_named(on: Callable[..., Vms], root: Path) -> None:
    vms = on(gpu=GPUS)
    driver = root / "sys/bus/pci/devices" / GPU / "driver"
    driver.unlink()

    for name in ("no driver", "nvidia"):
        if name == "nvidia":
            (root / "sys/bus/pci/drivers/nvidia").mkdir()
            driver.symlink_to("../../drivers/nvidia")
        with pytest.raises(Invalid, match=f"{GPU} is bound to {name}; bind it to vfio-pci"):
            vms.create(wanted(no_tee=True, gpus={"attach_mode": "all"}))


def test_a_bridge_that_is_not_there_is_named(on: Callable[..., Vms]) -> None:
    vms = on(networking=NetworkingConfig(mode="bridge", bridge="br9"))

    with pytest.raises(Invalid, match="networking: this host has no bridge br9"):
        vms.create(wanted(no_tee=True))


def test_a_gpu_that_another_vm_holds_is_named(on: Callable[..., Vms]) -> None:
    vms = on(gpu=GPUS)
    everything = {"attach_mode": "all"}
    both = [vms.create(wanted(no_tee=True, stopped=True, gpus=everything)) for _ in range(2)]
    vms.start(both[0])
    assert f"vfio-pci,host={GPU},bus=pci.1" in argv(vms, both[0])

    with pytest.raises(Conflict, match=f"{GPU} is in use by VM {both[0]}"):
        vms.start(both[1])

    vms.stop(both[0])
    vms.start(both[1])


# Networks --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "networking", "networks"),
    [
        ("several-cards", {}, [{"mode": "bridge"}, {"mode": "user"}, {"mode": "custom"}]),
        ("default-bridge", {"mode": "bridge"}, []),
        ("named-bridge", {}, [{"mode": "bridge", "bridge_name": "br7"}]),
    ],
)
def test_cards_are_as_the_request_or_else_the_host_says(
    on: Callable[..., Vms],
    fixed_id: None,
    golden: Callable[[str, str], None],
    name: str,
    networking: dict[str, str],
    networks: list[dict[str, str]],
) -> None:
    settings = NetworkingConfig(
        **{"bridge": "br0", "bridges": ("br7",), "netdev": "tap,id={id},ifname=t0", **networking}
    )
    vms = on(networking=settings)

    vm_id = vms.create(wanted(no_tee=True, networks=networks))

    golden(f"launch/{name}.txt", argv(vms, vm_id))


def test_a_custom_network_alone_has_no_ports(on: Callable[..., Vms]) -> None:
    vms = on(networking=NetworkingConfig(netdev="tap,id={id}"))

    with pytest.raises(Invalid, match="ports: need a network card in mode user, passt or bridge"):
        vms.create(
            wanted(no_tee=True, ports=[rows.port(free_port())], networks=[{"mode": "custom"}])
        )


def lease(vms: Vms, vm_id: str, ip: str) -> None:
    with vms.database.writing() as session:
        mac = mac_address(vm_id)
        found = session.query(DhcpLease).filter_by(mac=mac).one_or_none()
        if found is None:
            session.add(DhcpLease(vm_id=vm_id, mac=mac, ip=ip, reported_ms=1))
        else:
            found.ip = ip
    vms.reconciler.one(vm_id)


def answers(port: int) -> bytes:
    try:
        with socket.create_connection(("127.0.0.1", port), 5) as connection:
            return connection.recv(100)
    except OSError:
        return b""


def test_ports_of_a_bridge_vm_follow_its_leases(on: Callable[..., Vms]) -> None:
    vms = on(networking=NetworkingConfig(mode="bridge", bridge="br0"))
    port = free_port()
    with socket.create_server(("127.0.0.2", 0)) as one:
        inside = one.getsockname()[1]
        vm_id = vms.create(wanted(no_tee=True, ports=[rows.port(port, inside)]))
        assert answers(port) == b""  # nobody knows its address yet

        lease(vms, vm_id, "127.0.0.2")

        with socket.create_connection(("127.0.0.1", port), 5):
            assert one.accept()[0]
    relay = folder(vms, vm_id) / "forward"
    before = process.find(relay)
    assert before is not None

    lease(vms, vm_id, "127.0.0.3")
    assert process.find(relay) not in (None, before)

    # A relay that died is missed at the next look, and a start remembers the lease.
    found = process.find(relay)
    assert found is not None
    os.kill(found.pid, signal.SIGKILL)
    until(lambda: not process.is_locked(relay))
    vms.reconciler.one(vm_id)
    assert process.find(relay) is not None

    vms.stop(vm_id)
    assert process.find(relay) is None
    vms.start(vm_id)
    assert process.find(relay) is not None

    vms.remove(vm_id)
    vms.reconciler.one(vm_id)
    assert not folder(vms, vm_id).exists()
    with vms.database.reading() as session:
        assert session.query(DhcpLease).count() == 0


def test_the_relay_ends_with_a_vm_that_ends_by_itself(on: Callable[..., Vms]) -> None:
    vms = on(networking=NetworkingConfig(mode="bridge", bridge="br0"))
    vm_id = vms.create(wanted(no_tee=True, ports=[rows.port(free_port())]))
    lease(vms, vm_id, "127.0.0.2")
    found = process.find(folder(vms, vm_id))
    assert found is not None

    os.kill(found.pid, signal.SIGKILL)
    until(lambda: not process.is_alive(found))
    vms.reconciler.one(vm_id)

    assert process.find(folder(vms, vm_id) / "forward") is None


needs_swtpm = pytest.mark.skipif(shutil.which("swtpm") is None, reason="swtpm is not installed")


@needs_passt
def test_passt_binds_the_ports_and_ends_with_its_vm(on: Callable[..., Vms]) -> None:
    vms = on(networking=NetworkingConfig(mode="passt"))
    port = free_port()

    vm_id = vms.create(wanted(no_tee=True, ports=[rows.port(port)]))

    passt = folder(vms, vm_id) / "passt0"
    assert process.find(passt) is not None
    assert f"addr.path={passt}/run/sock" in " ".join(process.launched(folder(vms, vm_id)))
    with socket.create_connection(("127.0.0.1", port), 5):
        pass
    vms.stop(vm_id)
    assert process.find(passt) is None
    assert answers(port) == b""
    vms.start(vm_id)
    assert process.find(passt) is not None


@needs_passt
def test_a_start_that_fails_leaves_no_program_beside_it(on: Callable[..., Vms]) -> None:
    vms = on(networking=NetworkingConfig(mode="passt"))
    vm_id = vms.create(wanted(no_tee=True, stopped=True))
    rows.behave(folder(vms, vm_id), fail="no such machine")

    with pytest.raises(Unavailable, match="no such machine"):
        vms.start(vm_id)

    assert process.find(folder(vms, vm_id) / "passt0") is None


@pytest.mark.parametrize(
    ("program", "fields", "field"),
    [
        ("passt", {"networks": [{"mode": "passt"}]}, "networking.mode"),
        ("swtpm", {"compose_file": '{"key_provider": "tpm"}'}, "compose_file"),
    ],
)
def test_a_program_that_is_missing_is_named(
    on: Callable[..., Vms],
    monkeypatch: pytest.MonkeyPatch,
    program: str,
    fields: dict[str, Any],
    field: str,
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)

    with pytest.raises(Invalid, match=f"{field}: {program} is not installed .* apt-get install"):
        on().create(wanted(no_tee=True, **fields))


@needs_swtpm
def test_a_software_tpm_keeps_its_state_and_ends_with_its_vm(on: Callable[..., Vms]) -> None:
    vms = on()

    vm_id = vms.create(wanted(no_tee=True, compose_file='{"key_provider": "tpm"}'))

    tpm = folder(vms, vm_id) / companion.TPM
    assert process.find(tpm) is not None
    assert f"socket,id=chrtpm,path={tpm}/run/sock" in argv(vms, vm_id).replace(
        "W/", f"{tpm.parent}/"
    )
    assert told(vms, vm_id)[1]["swtpm"] is True
    vms.stop(vm_id)
    assert process.find(tpm) is None


# Shares and users ------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["9p", "vvfat"])
def test_a_folder_is_shared_where_the_host_says_so(on: Callable[..., Vms], mode: str) -> None:
    vms = on(host_share_mode=mode)

    vm_id = vms.create(wanted(no_tee=True))

    assert ("security_model=mapped" if mode == "9p" else "driver=vvfat") in argv(vms, vm_id)
    assert not (folder(vms, vm_id) / "shared.img").exists()
    assert told(vms, vm_id)[1]["host_share_mode"] == mode


def test_our_images_have_no_9p(on: Callable[..., Vms], image: Image) -> None:
    firmware(image, name="casemate-0.5.4")

    with pytest.raises(Invalid, match="use vhd"):
        on(host_share_mode="9p").create(wanted(no_tee=True))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may become another user")
def test_qemu_runs_as_the_configured_user(on: Callable[..., Vms]) -> None:
    vms = on(user="nobody")
    vms.config.data_dir.chmod(0o711)
    vms.config.run_path.mkdir(exist_ok=True)
    vms.config.run_path.chmod(0o711)
    Path(vms.host.qemu).parent.chmod(0o755)

    # The stand-in lies in a folder of root's alone: only what the command says is looked at.
    vm_id = vms.create(wanted(no_tee=True, stopped=True))
    with pytest.raises(Unavailable):
        vms.start(vm_id)

    words = process.launched(folder(vms, vm_id))
    assert words[0] == "setpriv"
    assert words[words.index("--") + 1] == vms.host.qemu
    found = folder(vms, vm_id).stat()
    assert (found.st_uid, found.st_mode & 0o7777) == (0, 0o1770)
    disk = (folder(vms, vm_id) / "hda.img").stat()
    assert (disk.st_uid, disk.st_gid, disk.st_mode & 0o777) == (0, 65534, 0o660)


def test_a_user_that_is_not_there_is_refused(on: Callable[..., Vms]) -> None:
    with pytest.raises(Invalid, match=r"cvm\.user: no-such-user is no user of this host"):
        on(user="no-such-user").create(wanted(no_tee=True))


# Silence ---------------------------------------------------------------------------------------------


def test_a_qemu_that_falls_silent_is_noticed_and_one_that_speaks_again_is_too(
    on: Callable[..., Vms], monkeypatch: pytest.MonkeyPatch
) -> None:
    vms = on()
    vm_id = vms.create(wanted(no_tee=True))
    assert vms.reconciler.listen(vm_id)
    assert row(vms, vm_id).silent_ms is None

    found = process.find(folder(vms, vm_id))
    assert found is not None
    os.kill(found.pid, signal.SIGSTOP)  # as a QEMU that hangs
    until(lambda: psutil.Process(found.pid).status() == psutil.STATUS_STOPPED)
    with monkeypatch.context() as hurry:
        hurry.setattr(reconcile, "LISTEN_S", 0.3)
        assert not vms.reconciler.listen(vm_id)
        assert not vms.reconciler.listen(vm_id)

    vm = row(vms, vm_id)
    assert vm.silent_ms is not None
    assert [each.event for each in vm.events].count("vmm.silent") == 1
    os.kill(found.pid, signal.SIGCONT)
    assert until(lambda: vms.reconciler.listen(vm_id))
    assert row(vms, vm_id).silent_ms is None


def test_the_background_process_hears_that_a_qemu_is_silent(
    on: Callable[..., Vms], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconcile, "LISTEN_S", 0.3)
    vms = on(channel="serial")
    vm_id = vms.create(wanted(no_tee=True))
    found = process.find(folder(vms, vm_id))
    assert found is not None
    os.kill(found.pid, signal.SIGSTOP)
    until(lambda: psutil.Process(found.pid).status() == psutil.STATUS_STOPPED)
    background = Background(vms)
    background.sweep()

    background._hear()

    assert until(lambda: row(vms, vm_id).silent_ms)
    assert describe(row(vms, vm_id), vms.config, brief=True)["status"] == "unknown"
    os.kill(found.pid, signal.SIGCONT)
