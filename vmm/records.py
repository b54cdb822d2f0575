"""Reading and writing VM rows: the transitions that several verbs share, each conditional."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, func, or_, select
from sqlalchemy.orm import Session

from core.config import Config
from core.errors import Conflict, Invalid, NotFound, Unavailable
from models.account import MAIN_ID
from models.port import DhcpLease, PortLease
from models.vm import Vm, VmEvent
from vmm import network
from vmm.configuration import Checked
from vmm.lifecycle import Observed, Wished
from vmm.schemas import Configuration

# Below what Linux gives to outgoing connections, above the ports of clusters' fronts.
OWN_PORTS = range(21000, 32768)
# Behind all ports that a request named.
OWN_POSITION = 1000


def now_ms() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def get(session: Session, vm_id: str) -> Vm:
    """The row of a VM, or NotFound."""
    vm = session.get(Vm, vm_id)
    if vm is None:
        raise _unknown(vm_id)
    return vm


def check_known(session: Session, vm_id: str) -> None:
    """NotFound unless there is such a VM: a quarter of what its row with its ports and events costs."""
    if session.scalar(select(Vm.id).where(Vm.id == vm_id)) is None:
        raise _unknown(vm_id)


def _unknown(vm_id: str) -> NotFound:
    return NotFound(
        f"VM {vm_id[:64]} not found" if vm_id else "id: is missing; a VM without one is not found"
    )


@dataclass(frozen=True)
class Owner:
    """Whose a VM is: the project it belongs to, and the user who made it."""

    project_id: str = MAIN_ID
    user_id: str | None = None


def new_row(vm_id: str, wanted: Configuration, checked: Checked, owner: Owner) -> Vm:
    """The row of a VM that does not exist yet."""
    return Vm(
        id=vm_id,
        project_id=owner.project_id,
        user_id=owner.user_id,
        name=checked.name,
        app_id=checked.app_id,
        hugepages=wanted.hugepages,
        pin_numa=wanted.pin_numa,
        wished=Wished.STOPPED if wanted.stopped else Wished.RUNNING,
        observed=Observed.ABSENT,
        created_ms=now_ms(),
        **_changeable(wanted, checked),
    )


def assign(vm: Vm, wanted: Configuration, checked: Checked) -> None:
    """Writes what an update may change of a VM into its row."""
    for name, value in _changeable(wanted, checked).items():
        setattr(vm, name, value)


def _changeable(wanted: Configuration, checked: Checked) -> dict[str, Any]:
    return {
        "image": checked.image.name,
        "image_version": checked.image.version,
        "vcpu": wanted.vcpu,
        "memory_mb": wanted.memory,
        "disk_gb": wanted.disk_size,
        "no_tee": wanted.no_tee,
        "simulated_tee": checked.simulated_tee,
        "compose_file": wanted.compose_file,
        "encrypted_env": wanted.encrypted_env,
        "user_config": wanted.user_config,
        "options": checked.options,
    }


def refuse_removed(vm: Vm) -> None:
    """Invalid when a VM is on its way out."""
    if vm.wished == Wished.REMOVED:
        raise Invalid(f"VM {vm.id} is being removed")


def refuse_unread(vm: Vm) -> None:
    """Invalid with the reason when nothing but the name of a VM's folder could be read (vmm/reload.py)."""
    if not vm.image:
        why = vm.options.get("unreadable", "no manifest in it")
        raise Invalid(
            f"the folder of VM {vm.id} cannot be read ({why}); mend it and reload, or remove the VM"
        )


def add_event(session: Session, vm_id: str, event: str, body: str, keep: int) -> None:
    """Appends an event and drops all but the newest `keep` of that VM."""
    session.add(VmEvent(vm_id=vm_id, event=event, body=body, timestamp_ms=now_ms()))
    session.flush()
    newest = (
        select(VmEvent.id).where(VmEvent.vm_id == vm_id).order_by(VmEvent.id.desc()).limit(keep)
    )
    session.execute(
        delete(VmEvent)
        .where(VmEvent.vm_id == vm_id, VmEvent.id.not_in(newest))
        .execution_options(synchronize_session=False)
    )


def check_ports_free(session: Session, vm_id: str, ports: tuple[network.Port, ...]) -> None:
    """Conflict naming one of a VM's wished host ports that another VM holds."""
    numbers = [port.host_port for port in ports]
    others = session.scalars(
        select(PortLease).where(
            PortLease.host_port.in_(numbers), PortLease.vm_id.is_distinct_from(vm_id)
        )
    )
    network.check_free(ports, [port_of(lease) for lease in others])


def lease_ports(session: Session, vm: Vm, ports: tuple[network.Port, ...]) -> None:
    """Gives a VM its host ports; Conflict names one that another VM holds."""
    check_ports_free(session, vm.id, ports)
    own = [lease for lease in vm.ports if lease.own]
    # Gone from the table before the new ones come: a port that stays would meet its own old lease.
    vm.ports = own
    session.flush()
    vm.ports = own + [
        PortLease(
            position=index,
            protocol=port.protocol,
            host_address=port.host_address,
            host_port=port.host_port,
            vm_port=port.vm_port,
        )
        for index, port in enumerate(ports)
    ]


def lease_own_ports(session: Session, vm: Vm, guest_ports: Sequence[int], address: str) -> None:
    """Leads a free host port of the service's choosing to each TCP port of the guest that has none yet."""
    has = {lease.vm_port for lease in vm.ports if lease.own}
    for guest_port in dict.fromkeys(guest_ports):
        if guest_port not in has:
            port = free_port(session, address, guest_port)
            vm.ports.append(
                PortLease(
                    position=OWN_POSITION + guest_port,
                    protocol=port.protocol,
                    host_address=port.host_address,
                    host_port=port.host_port,
                    vm_port=port.vm_port,
                    own=True,
                )
            )
            session.flush()


def own_ports(session: Session, vm_id: str) -> dict[int, network.Port]:
    """The ports that the service leads to a VM by its own choice, by the guest's."""
    leases = select(PortLease).where(PortLease.vm_id == vm_id, PortLease.own)
    return {lease.vm_port: port_of(lease) for lease in session.scalars(leases)}


def drop_own_port(session: Session, vm_id: str, guest_port: int) -> None:
    """Gives the host port of a guest port back, if the service chose one."""
    session.execute(
        delete(PortLease).where(
            PortLease.vm_id == vm_id, PortLease.own, PortLease.vm_port == guest_port
        )
    )


def free_port(
    session: Session, address: str, guest_port: int, among: Sequence[int] = OWN_PORTS
) -> network.Port:
    """A TCP port of the host that nobody holds, for a guest's port; Unavailable when there is none."""
    taken = set(session.scalars(select(PortLease.host_port)))
    free = [number for number in among if number not in taken]
    for number in random.sample(free, len(free)):
        port = network.Port("tcp", address, number, guest_port)
        try:
            network.check_bindable([port])
        except Conflict:
            continue
        return port
    raise Unavailable(f"no host port of {among[0]} to {among[-1]} is free")


def assign_cid(session: Session, vm: Vm, config: Config) -> None:
    """Gives a VM that has none its vsock number; Invalid when the pool is used up."""
    if vm.cid is not None:
        return
    first, size = config.cvm.cid_start, config.cvm.cid_pool_size
    pool = range(first, first + size)
    taken = set(session.scalars(select(Vm.cid).where(Vm.cid.between(first, pool[-1]))))
    vm.cid = next((cid for cid in pool if cid not in taken), None)
    if vm.cid is None:
        raise Invalid(
            f"this host has room for {size} VMs (cvm.cid_pool_size) and all numbers are in use; "
            "remove a VM or make the pool larger"
        )


def leased_address(session: Session, vm_id: str, macs: Sequence[str]) -> str:
    """The address that DHCP gave the first of these cards that has one, or ""."""
    leases = select(DhcpLease).where(DhcpLease.vm_id == vm_id, DhcpLease.mac.in_(macs))
    found = {lease.mac: lease.ip for lease in session.scalars(leases)}
    return next((found[mac] for mac in macs if mac in found), "")


def wishes(session: Session) -> dict[str, str]:
    """What is wished of each VM, by id."""
    return {row.id: row.wished for row in session.execute(select(Vm.id, Vm.wished))}


def vm_of_card(session: Session, mac: str, prefix: str) -> str:
    """The VM that has the card with a MAC; NotFound when none has."""
    for vm_id, options in session.execute(select(Vm.id, Vm.options)):
        for index in range(max(1, len(options.get("networks") or []))):
            if network.mac_address(vm_id, index, prefix) == mac:
                return str(vm_id)
    raise NotFound(f"no VM has a network card with the MAC {mac}")


def lease_address(session: Session, vm_id: str, mac: str, address: str) -> list[str]:
    """Notes the address of a card; returns the VMs whose ports may lead elsewhere now, this one first.

    An address has one owner: a card that had it before has lost it.
    """
    former = session.scalars(
        select(DhcpLease).where(or_(DhcpLease.mac == mac, DhcpLease.ip == address))
    ).all()
    for lease in former:
        session.delete(lease)
    session.flush()
    session.add(DhcpLease(vm_id=vm_id, mac=mac, ip=address, reported_ms=now_ms()))
    return list(dict.fromkeys([vm_id, *(lease.vm_id for lease in former)]))


def port_of(lease: PortLease) -> network.Port:
    """A lease as the value that the network rules speak of."""
    return network.Port(lease.protocol, lease.host_address, lease.host_port, lease.vm_port)


def check_capacity(session: Session, vm: Vm, config: Config) -> None:
    """Conflict when the VMs that run and this one exceed the host's limits."""
    others = (Vm.observed != Observed.ABSENT, Vm.id != vm.id)
    vcpus, memory = session.execute(
        select(func.coalesce(func.sum(Vm.vcpu), 0), func.coalesce(func.sum(Vm.memory_mb), 0)).where(
            *others
        )
    ).one()
    for field, used, wanted, most in (
        ("vcpu", vcpus, vm.vcpu, config.cvm.max_allocable_vcpu),
        ("memory", memory, vm.memory_mb, config.cvm.max_allocable_memory_in_mb),
    ):
        if used + wanted > most:
            raise Conflict(
                f"{field}: this host allows {most} in all running VMs, {used} are in use and "
                f"{wanted} were asked for; stop a VM or ask for less"
            )
