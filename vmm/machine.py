"""A VM's row, its image and the host's facts -> the machine that QEMU is to make, or why it cannot.

Nothing is started here.  The refusals say what to change; those that a request alone decides come earlier, from
vmm/configuration.py.
"""

from __future__ import annotations

import base64
import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from attest import compose, mr_config
from core.config import Config
from core.errors import Invalid
from image.registry import Image
from models.vm import Vm
from vmm import companion, gpu, network, numa, qemu, records
from vmm.host import Account, Host
from vmm.simulation import SNP as SIMULATED_SNP
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
    return _Start(vm, image, workdir, config, host).plan()


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
    # The guest in Casemate's own images speaks over virtio-serial alone.
    return setting == "vsock" or setting == "auto" and host.has_vsock and not image.is_ours


@dataclass(frozen=True)
class _Start:
    """One start of one VM, part by part."""

    vm: Vm
    image: Image
    workdir: WorkDir
    config: Config
    host: Host

    def plan(self) -> Plan:
        network.check_reachable(self.ports, self.nics)
        return Plan(
            machine=self.machine,
            companions=self.companions(),
            bound=self.ports,
            networks=self.networks(),
            mr_config=self.document
            if self.platform or self.vm.simulated_tee == SIMULATED_SNP
            else "",
            switches=sum(device.is_switch for device in self.devices),
        )

    @cached_property
    def machine(self) -> qemu.Machine:
        vm, image, cvm = self.vm, self.image, self.config.cvm
        is_snp = self.platform == "amd-sev-snp"
        has_vsock = uses_vsock(cvm.channel, self.platform, image, self.host)
        return qemu.Machine(
            vm_id=vm.id,
            qemu=self.host.qemu,
            accel=self.host.accelerator.name,
            cpu=SNP_CPU if is_snp else self.host.accelerator.cpu,
            vcpu=self.spread[-1].last_cpu + 1 if self.spread else vm.vcpu,
            memory_mb=sum(node.memory_gib for node in self.spread) * 1024 or vm.memory_mb,
            kernel=image.kernel,
            initrd=image.initrd,
            cmdline=image.cmdline,
            rootfs=image.rootfs,
            data_disk=self.workdir.data_disk,
            share=self.share(),
            serial_log=self.workdir.serial_log,
            qmp_socket=self.workdir.path / "qmp.sock",
            host_socket=self.workdir.host_socket,
            guest_socket=self.workdir.guest_socket,
            cards=tuple(self.card(index, nic) for index, nic in enumerate(self.nics)),
            sys_vendor=cvm.product.sys_vendor,
            product_name=cvm.product.product_name,
            tee=self.tee(),
            firmware=self.firmware(),
            cid=vm.cid if has_vsock else None,
            is_dev=image.is_dev,
            swtpm_socket=companion.socket_of(self.tpm) if self.app.key_provider == "tpm" else None,
            numa=self.spread,
            gpus=self.gpus(),
            pci_hole64_size=cvm.qemu_pci_hole64_size,
            hotplug_off=cvm.qemu_hotplug_off,
            pinned_cpus=numa.cpus(self.host.root, self.near[0]) if vm.pin_numa else "",
            run_as=self.account,
        )

    @cached_property
    def platform(self) -> str:
        return platform(self.vm, self.host)

    @cached_property
    def app(self) -> compose.AppCompose:
        return compose.AppCompose.parse(self.vm.compose_file.encode())

    @cached_property
    def account(self) -> Account | None:
        return Account.of(self.config.cvm.user) if self.config.cvm.user else None

    @property
    def tpm(self) -> Path:
        return self.workdir.path / companion.TPM

    # The TEE

    def firmware(self) -> Path | None:
        if not self.platform:
            return None
        is_snp = self.platform == "amd-sev-snp"
        firmware = (self.image.bios_sev if is_snp else None) or self.image.bios
        if firmware is None:
            raise Invalid(
                f"image {self.image.name} has no firmware for {self.platform} "
                f"({'bios-sev' if is_snp else 'bios'} in its metadata.json); use an image that has"
            )
        return firmware

    def tee(self) -> qemu.Tdx | qemu.Snp | None:
        if self.platform == "amd-sev-snp":
            cbitpos, reduced_phys_bits = self.host.sev_numbers()
            return qemu.Snp(mr_config.host_data(self.document), cbitpos, reduced_phys_bits)
        if self.platform == "tdx":
            cvm = self.config.cvm
            is_bound = cvm.use_mrconfigid and self.image.version_key >= MR_CONFIG_SINCE
            return qemu.Tdx(self.mrconfigid() if is_bound else None, cvm.qgs_port)
        return None

    def mrconfigid(self) -> bytes:
        if self.app.key_provider_id:
            return mr_config.version_3(self.document)
        return mr_config.version_1(compose.compose_hash(self.vm.compose_file.encode()))

    @cached_property
    def document(self) -> str:
        """The MRCONFIG document, version 3."""
        values = {
            "app_id": self.vm.app_id,
            "compose_hash": compose.compose_hash(self.vm.compose_file.encode()).hex(),
            # With keys for one boot it is another one at each.
            "instance_id": self.vm.instance_id if self.app.key_provider != "none" else None,
            "key_provider": self.app.key_provider,
            "key_provider_id": self.app.key_provider_id.hex(),
            "version": 3,
        }
        # RFC 8785: names in order, no spaces, absent fields left out; all values here are plain ASCII.
        present = {key: value for key, value in values.items() if value}
        return json.dumps(present, sort_keys=True, separators=(",", ":"))

    # Devices

    @cached_property
    def devices(self) -> tuple[gpu.Device, ...]:
        wanted = self.vm.options.get("gpus")
        devices = gpu.requested(wanted, self.host.root, self.config.cvm.gpu)
        for device in devices:
            if device.driver != "vfio-pci":
                has = device.driver or "no driver"
                reason = f"{device.slot} is bound to {has}; bind it to vfio-pci first"
                raise Invalid.field("gpus", reason)
        return devices

    @cached_property
    def near(self) -> list[int]:
        """The host node of each device; node 0 where there is none."""
        return [numa.node_of(self.host.root, device.slot) for device in self.devices] or [0]

    @cached_property
    def spread(self) -> tuple[qemu.NumaNode, ...]:
        if not self.vm.hugepages:
            return ()
        spread = numa.spread(sorted(set(self.near)), self.vm.vcpu, self.vm.memory_mb)
        numa.check_free(self.host.root, spread)
        return spread

    def gpus(self) -> tuple[qemu.Gpu, ...]:
        nodes = sorted(set(self.near))
        return tuple(
            qemu.Gpu(device.slot, nodes.index(node))
            for device, node in zip(self.devices, self.near, strict=False)
        )

    def share(self) -> qemu.Share:
        mode = self.config.cvm.host_share_mode
        if mode == "vhd":
            return qemu.Share("vhd", self.workdir.shared_image)
        if mode == "9p" and self.image.is_ours:
            raise Invalid(
                f"cvm.host_share_mode is 9p, which the kernel of image {self.image.name} does not "
                "know; use vhd"
            )
        return qemu.Share(mode, self.workdir.shared, readonly=self.image.shared_ro)

    # Networks

    @cached_property
    def ports(self) -> tuple[network.Port, ...]:
        """The VM's host ports, held against the rules of today: they may have changed since it was made."""
        return tuple(
            # The service's own choice needs nobody's leave.
            records.port_of(lease)
            if lease.own
            else network.check_port(
                *(index, lease.protocol, lease.host_address, lease.host_port, lease.vm_port),
                self.config.cvm.port_mapping,
            )
            for index, lease in enumerate(self.vm.ports)
        )

    @cached_property
    def nics(self) -> tuple[network.Nic, ...]:
        options = self.vm.options
        nics = network.check_nics(
            options.get("networking"), options.get("networks") or [], self.config.cvm.networking
        )
        for nic in nics:
            if nic.bridge and not (self.host.root / "sys/class/net" / nic.bridge).exists():
                raise Invalid.field("networking", f"this host has no bridge {nic.bridge}")
        return nics

    @cached_property
    def binding(self) -> int | None:
        """The card that has the host ports, by its number; None leaves them to the relay."""
        modes = (index for index, nic in enumerate(self.nics) if nic.mode in network.BINDING)
        return next(modes, None)

    def card(self, index: int, nic: network.Nic) -> qemu.Card:
        settings = self.config.cvm.networking
        mac = network.mac_address(self.vm.id, index, settings.mac_prefix)
        match nic.mode:
            case "user":
                return qemu.UserCard(
                    mac=mac,
                    ports=self.ports if index == self.binding else (),
                    net=settings.net,
                    dhcp_start=settings.dhcp_start,
                    restrict=settings.restrict,
                )
            case "passt":
                return qemu.PasstCard(mac, companion.socket_of(self.workdir.path / f"passt{index}"))
            case "bridge":
                return qemu.BridgeCard(mac, nic.bridge)
            case _:
                return qemu.CustomCard(mac, settings.netdev)

    def networks(self) -> dict[str, Any]:
        """The networks as launched, for whoever looks at a VM whose record was changed since."""
        relayed = self.ports if self.binding is None else ()
        return {
            "networks": [
                {"mode": nic.mode, "mac": card.mac, "bridge_name": nic.bridge or None}
                for nic, card in zip(self.nics, self.machine.cards, strict=True)
            ],
            "relayed": [[p.protocol, p.host_address, p.host_port, p.vm_port] for p in relayed],
        }

    def companions(self) -> dict[str, list[str]]:
        before = qemu.as_account(self.account)
        as_root = self.account is None and os.geteuid() == 0
        found: dict[str, list[str]] = {}
        for index, card in enumerate(self.machine.cards):
            if isinstance(card, qemu.PasstCard):
                companion.check_installed("passt", "networking.mode")
                ports = self.ports if index == self.binding else ()
                argv = companion.passt_argv(card.socket, ports, as_root=as_root)
                found[f"passt{index}"] = [*before, *argv]
        if self.machine.swtpm_socket is not None:
            companion.check_installed("swtpm", "compose_file")
            argv = companion.swtpm_argv(self.machine.swtpm_socket)
            found[companion.TPM] = [*before, *argv]
        return found


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
    if _is_snp(machine, vm):
        told["mr_config"] = made.mr_config
    return {key: value for key, value in told.items() if value is not None}


def _is_snp(machine: qemu.Machine, vm: Vm) -> bool:
    return isinstance(machine.tee, qemu.Snp) or vm.simulated_tee == SIMULATED_SNP


def _measurement(machine: qemu.Machine, vm: Vm, image: Image) -> dict[str, Any]:
    # The image's own description for verifiers, where its builder wrote one.
    if machine.tee is None and not vm.simulated_tee:
        return {}
    kind = "snp" if _is_snp(machine, vm) else "tdx"
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
