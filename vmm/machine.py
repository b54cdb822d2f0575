"""A VM's row, its image and the host's facts -> the machine that QEMU is to make, or why it cannot.

Nothing is started here.  The refusals say what to change; those that a request alone decides come earlier, from
vmm/configuration.py.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attest import compose, mr_config
from core.config import Config
from core.errors import Invalid
from image.registry import Image
from models.vm import Vm
from vmm import companion, gpu, network, numa, qemu, records
from vmm.host import Account, Host
from vmm.workdir import WorkDir

# The processor that SEV-SNP launch measurements are computed for.
SNP_CPU = "EPYC-v4"
# SNPActive alone, which is what QEMU sets in the VMSA.
SNP_FEATURES = 1
# Older guests do not look at MRCONFIGID and would refuse their boot.
MR_CONFIG_SINCE = (0, 5, 2)


@dataclass(frozen=True)
class Plan:
    """The machine, the programs to start before it, and what its guest and verifiers are told of it."""

    machine: qemu.Machine
    companions: dict[str, list[str]]  # folder name -> command
    bound: tuple[network.Port, ...]  # host ports, whoever binds them
    networks: dict[str, Any]  # as launched: each card, and the host ports that the relay takes
    mr_config: str = ""  # the document whose hash is bound, "" for none
    switches: int = 0  # how many of machine.gpus are NVSwitches


def plan(vm: Vm, image: Image, workdir: WorkDir, config: Config, host: Host) -> Plan:
    """What starting this VM now would need; Invalid or Unavailable when this host cannot do it."""
    tee = platform(vm, host)
    document = _mr_config_document(vm)
    nics = network.check_nics(
        vm.options.get("networking"), vm.options.get("networks") or [], config.cvm.networking
    )
    ports = _ports(vm, config)
    network.check_reachable(ports, nics)
    devices = gpu.requested(vm.options.get("gpus"), host.root, config.cvm.gpu)
    near = [numa.node_of(host.root, device.slot) for device in devices] or [0]
    account = Account.of(config.cvm.user) if config.cvm.user else None
    wants_tpm = compose.AppCompose.parse(vm.compose_file.encode()).key_provider == "tpm"
    nodes = sorted(set(near))
    spread = numa.spread(nodes, vm.vcpu, vm.memory_mb) if vm.hugepages else ()
    numa.check_free(host.root, spread)
    machine = qemu.Machine(
        vm_id=vm.id,
        qemu=host.qemu,
        accel=host.accelerator.name,
        cpu=SNP_CPU if tee == "amd-sev-snp" else host.accelerator.cpu,
        vcpu=spread[-1].last_cpu + 1 if spread else vm.vcpu,
        memory_mb=sum(node.memory_gib for node in spread) * 1024 if spread else vm.memory_mb,
        kernel=image.kernel,
        initrd=image.initrd,
        cmdline=image.cmdline,
        rootfs=image.rootfs,
        data_disk=workdir.data_disk,
        share=_share(config.cvm.host_share_mode, image, workdir),
        serial_log=workdir.serial_log,
        qmp_socket=workdir.path / "qmp.sock",
        host_socket=workdir.host_socket,
        guest_socket=workdir.guest_socket,
        cards=_cards(vm.id, nics, ports, workdir.path, config),
        sys_vendor=config.cvm.product.sys_vendor,
        product_name=config.cvm.product.product_name,
        tee=_tee(tee, vm, image, document, config, host),
        firmware=_firmware(tee, image),
        cid=vm.cid if uses_vsock(config.cvm.channel, tee, image, host) else None,
        swtpm_socket=workdir.path / companion.TPM / "sock" if wants_tpm else None,
        numa=spread,
        gpus=tuple(qemu.Gpu(each.slot, nodes.index(node)) for each, node in zip(devices, near)),
        pci_hole64_size=config.cvm.qemu_pci_hole64_size,
        hotplug_off=config.cvm.qemu_hotplug_off,
        pinned_cpus=numa.cpus(host.root, near[0]) if vm.pin_numa else "",
        run_as=account,
    )
    return Plan(
        machine=machine,
        companions=_companions(machine, ports, account),
        bound=ports,
        networks=_networks(nics, machine, ports),
        mr_config=document if tee else "",
        switches=sum(device.is_switch for device in devices),
    )


def platform(vm: Vm, host: Host) -> str:
    """The TEE that a VM is started in, "" for none; Invalid when it wants one and cannot have it."""
    if vm.no_tee or vm.simulated_tee:
        return ""
    if not host.tee:
        raise Invalid(
            "this host has no TDX or SEV-SNP; set no_tee for a development VM "
            "(or cvm.simulate for simulated evidence)"
        )
    if host.accelerator.name != "kvm":
        raise Invalid(
            f"a {host.tee} VM needs KVM, and this host emulates ({host.accelerator.why}); "
            "make /dev/kvm usable, or set no_tee for a development VM"
        )
    if not host.has_vsock:
        raise Invalid(
            f"a {host.tee} VM needs /dev/vhost-vsock, which is part of what is measured; "
            "load it with: modprobe vhost_vsock"
        )
    return host.tee


def uses_vsock(setting: str, tee: str, image: Image, host: Host) -> bool:
    """Whether guest and host speak over vsock (cvm.channel); Invalid when that was demanded in vain."""
    if tee:
        if setting == "serial":
            raise Invalid(
                f"cvm.channel is serial, but the published device list of a {tee} VM has vsock; "
                "set cvm.channel = auto"
            )
        return True
    if setting == "vsock" and not host.has_vsock:
        raise Invalid(
            "cvm.channel is vsock, but /dev/vhost-vsock does not open: modprobe vhost_vsock"
        )
    return setting == "vsock" or setting == "auto" and host.has_vsock and not _is_ours(image)


def _is_ours(image: Image) -> bool:
    # The guest in Casemate's own images speaks over virtio-serial alone.
    return str(json.loads(image.metadata).get("name", "")).startswith("casemate-")


def _firmware(tee: str, image: Image) -> Path | None:
    if not tee:
        return None
    firmware = (image.bios_sev if tee == "amd-sev-snp" else None) or image.bios
    if firmware is None:
        key = "bios-sev" if tee == "amd-sev-snp" else "bios"
        raise Invalid(
            f"image {image.name} has no firmware for {tee} ({key} in its metadata.json); "
            "use an image that has"
        )
    return firmware


def _tee(
    tee: str, vm: Vm, image: Image, document: str, config: Config, host: Host
) -> qemu.Tdx | qemu.Snp | None:
    if tee == "amd-sev-snp":
        cbitpos, reduced_phys_bits = host.sev_numbers()
        return qemu.Snp(mr_config.host_data(document), cbitpos, reduced_phys_bits)
    if tee == "tdx":
        bound = config.cvm.use_mrconfigid and image.version_key >= MR_CONFIG_SINCE
        return qemu.Tdx(_mrconfigid(vm, document) if bound else None, config.cvm.qgs_port)
    return None


def _mrconfigid(vm: Vm, document: str) -> bytes:
    raw = vm.compose_file.encode()
    if compose.AppCompose.parse(raw).key_provider_id:
        return mr_config.version_3(document)
    return mr_config.version_1(compose.compose_hash(raw))


def _mr_config_document(vm: Vm) -> str:
    raw = vm.compose_file.encode()
    app = compose.AppCompose.parse(raw)
    values = {
        "app_id": vm.app_id,
        "compose_hash": compose.compose_hash(raw).hex(),
        "instance_id": vm.instance_id,
        "key_provider": app.key_provider,
        "key_provider_id": app.key_provider_id.hex(),
        "version": 3,
    }
    # RFC 8785: names in order, no spaces, absent fields left out; all values here are plain ASCII.
    present = {key: value for key, value in values.items() if value}
    return json.dumps(present, sort_keys=True, separators=(",", ":"))


def _ports(vm: Vm, config: Config) -> tuple[network.Port, ...]:
    """The VM's host ports, held against the rules of today: they may have changed since it was made."""
    return tuple(
        network.check_port(
            *(index, lease.protocol, lease.host_address, lease.host_port, lease.vm_port),
            config.cvm.port_mapping,
        )
        for index, lease in enumerate(map(records.port_of, vm.ports))
    )


def _cards(
    vm_id: str,
    nics: Sequence[network.Nic],
    ports: tuple[network.Port, ...],
    folder: Path,
    config: Config,
) -> tuple[qemu.Card, ...]:
    settings = config.cvm.networking
    binding = next((i for i, nic in enumerate(nics) if nic.mode in network.BINDING), None)
    cards: list[qemu.Card] = []
    for index, nic in enumerate(nics):
        mac = network.mac_address(vm_id, index, settings.mac_prefix)
        match nic.mode:
            case "user":
                cards.append(
                    qemu.UserCard(
                        mac=mac,
                        ports=ports if index == binding else (),
                        net=settings.net,
                        dhcp_start=settings.dhcp_start,
                        restrict=settings.restrict,
                    )
                )
            case "passt":
                companion.check_installed("passt", "networking.mode")
                cards.append(qemu.PasstCard(mac, folder / f"passt{index}" / "sock"))
            case "bridge":
                cards.append(qemu.BridgeCard(mac, nic.bridge))
            case _:
                cards.append(qemu.CustomCard(mac, settings.netdev))
    return tuple(cards)


def _networks(
    nics: Sequence[network.Nic], machine: qemu.Machine, ports: tuple[network.Port, ...]
) -> dict[str, Any]:
    relayed = () if any(nic.mode in network.BINDING for nic in nics) else ports
    return {
        "networks": [
            {"mode": nic.mode, "mac": card.mac, "bridge_name": nic.bridge or None}
            for nic, card in zip(nics, machine.cards, strict=True)
        ],
        "relayed": [[p.protocol, p.host_address, p.host_port, p.vm_port] for p in relayed],
    }


def _companions(
    machine: qemu.Machine, ports: tuple[network.Port, ...], account: Account | None
) -> dict[str, list[str]]:
    before = qemu.as_account(account)
    found: dict[str, list[str]] = {}
    left = (
        ()
        if any(isinstance(card, qemu.UserCard) and card.ports for card in machine.cards)
        else ports
    )
    for card in machine.cards:
        if isinstance(card, qemu.PasstCard):
            argv = companion.passt_argv(
                card.socket, left, as_root=account is None and os.geteuid() == 0
            )
            found[card.socket.parent.name] = [*before, *argv]
            left = ()
    if machine.swtpm_socket is not None:
        companion.check_installed("swtpm", "key_provider")
        state = machine.swtpm_socket.parent / "state"
        found[companion.TPM] = [*before, *companion.swtpm_argv(machine.swtpm_socket, state)]
    return found


def _share(mode: str, image: Image, workdir: WorkDir) -> qemu.Share:
    if mode == "vhd":
        return qemu.Share("vhd", workdir.shared_image)
    if mode == "9p" and _is_ours(image):
        raise Invalid(
            f"cvm.host_share_mode is 9p, which the kernel of image {image.name} does not know; use vhd"
        )
    return qemu.Share(mode, workdir.shared, readonly=image.shared_ro)


def vm_config(vm: Vm, image: Image, made: Plan, config: Config, host: Host) -> dict[str, Any]:
    """What a verifier needs to compute the launch measurement again (vmm.md section 6)."""
    machine, cvm = made.machine, config.cvm
    told: dict[str, Any] = {
        "spec_version": 1,
        "os_image_hash": image.digest,
        "cpu_count": machine.vcpu,
        "memory_size": machine.memory_mb * 1024**2,
        "qemu_version": cvm.qemu_version or ".".join(map(str, host.qemu_version)),
        "qemu_single_pass_add_pages": cvm.qemu_single_pass_add_pages,
        "pic": cvm.qemu_pic,
        "pci_hole64_size": machine.pci_hole64_size,
        "hugepages": vm.hugepages,
        "num_gpus": len(machine.gpus) - made.switches,
        "num_nvswitches": made.switches,
        "num_nics": len(machine.cards) if len(machine.cards) != 1 else None,
        "swtpm": True if machine.swtpm_socket else None,
        "hotplug_off": machine.hotplug_off,
        "image": vm.image,
        "host_share_mode": machine.share.mode,
        "ovmf_variant": image.ovmf_variant,
        "channel": "serial" if machine.cid is None else "vsock",
    }
    told |= _measurement(machine, vm, image)
    if isinstance(machine.tee, qemu.Snp):
        told["mr_config"] = made.mr_config
    return {key: value for key, value in told.items() if value is not None}


def _measurement(machine: qemu.Machine, vm: Vm, image: Image) -> dict[str, Any]:
    # The image's own description for verifiers, where its builder wrote one.
    if machine.tee is None and not vm.simulated_tee:
        return {}
    kind = "snp" if isinstance(machine.tee, qemu.Snp) else "tdx"
    try:
        proof = {
            "checksum_file": _base64(image.directory / "sha256sum.txt"),
            "measurement": _base64(image.directory / f"measurement.{kind}.cbor"),
        }
    except FileNotFoundError:
        return {}
    if kind == "tdx":
        return {"tdx_attestation_variant": "lite", "tdx_measurement": proof}
    features = {"vcpus": machine.vcpu, "vcpu_type": SNP_CPU, "guest_features": SNP_FEATURES}
    return {"sev_snp_measurement": json.dumps(proof | features)}


def _base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()
