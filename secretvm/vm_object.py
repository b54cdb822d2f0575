"""The VM object of this interface, made of rows alone (pure).

Source: secretvm.md section 2.
"""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from attest import compose
from core.config import Config
from core.config_secretvm import VmTypeConfig
from secretvm import document, sizes
from secretvm.document import Measured

# The VMM's words in those of this interface; others are the same.
_WORDS = {"exited": "error", "unknown": "error"}
ERRORS = {
    "exited": "the VM ended by itself; its serial log may say why",
    "unknown": "the host cannot find the VM's files, or its QEMU does not answer",
}


@dataclass(frozen=True)
class Team:
    """A project as its members see it."""

    id: str
    name: str
    is_shared: bool  # by more than one member


@dataclass(frozen=True)
class Row:
    """Everything about a VM that its object shows; `word` is the VMM's status."""

    vm: SimpleNamespace
    secret: SimpleNamespace | None  # None: made elsewhere
    word: str
    held: bool = False  # by an update
    ports: Sequence[Any] = ()
    team: Team | None = None
    owner: str | None = None
    role: str | None = None


@dataclass(frozen=True)
class Flags:
    """What was asked for and is not measured; kept as JSON in the VM's row of this interface."""

    kms_provider: str = "dstack"
    platform: str = "tdx"
    description: str = ""
    ita: bool = False
    poc: bool = False
    skip_attest: bool = False
    skip_launch: bool = False
    custom_domain: str = ""
    dev_token_name: str | None = None
    dev_token_hint: str | None = None

    @classmethod
    def read(cls, kept: Mapping[str, Any]) -> Flags:
        """The flags as a row keeps them; those of another release are left out."""
        return cls(**{key: value for key, value in kept.items() if key in cls.__dataclass_fields__})


def vm_object(row: Row, config: Config) -> dict[str, Any]:
    """The object that create, instances and details answer."""
    vm = row.vm
    app = compose.document_of(vm.compose_file)
    flags = Flags.read(row.secret.flags) if row.secret else Flags()
    measured = document.measured_in(app) or Measured(private=not app.get("public_logs"))
    size = size_of(row, config)
    made, changed = iso(vm.created_ms), iso(max(vm.created_ms, vm.started_ms or 0))
    status = status_of(row)
    return {
        "id": vm.id,
        "vmId": short_id(vm.number),
        "name": vm.name,
        "nameFromUser": name_of(row),
        "vm_uid": _uid(vm.id),
        "vmDomain": domain(row, config),
        **_people(row),
        **_type(size, config),
        **_host(config),
        "memory": vm.memory_mb / 1024 if vm.memory_mb % 1024 else vm.memory_mb // 1024,
        "vcpus": vm.vcpu,
        "disk_size": vm.disk_gb,
        "status": status,
        "state": state_of(row),
        "error_message": (vm.boot_error or ERRORS[row.word]) if status == "error" else None,
        "ip_address": None,
        "gateway": None,
        "network_bridge": None,
        "network_is_tap": False,
        "network_ports": [_port(each) for each in row.ports],
        "docker_file": document.docker_compose(app),
        "secret_fs_persistent": measured.persistent,
        "kmsProvider": flags.kms_provider,
        "platform": flags.platform,
        "environment": measured.environment,
        "private": measured.private,
        "upgradeability": measured.upgradeable,
        "description": flags.description,
        "itaJwtEnabled": flags.ita,
        "pocJwtEnabled": flags.poc,
        "dev_token_name": flags.dev_token_name,
        "dev_token_hint": flags.dev_token_hint,
        **_cluster(row),
        "artifacts_version": vm.image_version,
        "skip_launch": flags.skip_launch,
        "createdAt": made,
        "updatedAt": changed,
        "created_at": made,
        "updated_at": changed,
    }


def status_of(row: Row) -> str:
    """The status word of this interface."""
    if row.held:
        return "updating"
    if row.word == "stopped" and row.vm.started_ms is None:
        return "created"
    return _WORDS.get(row.word, row.word)


def state_of(row: Row) -> str:
    """As the status, but `starting` until the guest of this start has given a quote."""
    is_up = row.word == "running"
    if is_up and row.secret and not row.secret.flags.get("skip_attest") and not has_quoted(row):
        return "starting"
    return status_of(row)


def has_quoted(row: Row) -> bool:
    """Whether the guest has given a quote since its last start."""
    quoted = row.secret.quoted_ms if row.secret else None
    return quoted is not None and quoted >= (row.vm.started_ms or 0)


def name_of(row: Row) -> str:
    """The name that its maker gave."""
    return str(row.secret.name if row.secret else row.vm.name)


def domain(row: Row, config: Config) -> str:
    """The host name of a VM."""
    given = row.secret.domain if row.secret else ""
    return given or f"{row.vm.name}.{config.secretvm.base_domain or config.gateway.base_domain}"


def size_of(row: Row, config: Config) -> VmTypeConfig:
    """The size of a VM; of one made elsewhere the one with its shape, or one of its own without a price."""
    vm = row.vm
    named = row.secret.vm_type if row.secret else ""
    for each in config.secretvm.vm_types:
        if each.id == named:
            return each
    found = sizes.of_shape(config, vm.vcpu, vm.memory_mb)
    return found or VmTypeConfig(named or "custom", vm.vcpu, vm.memory_mb // 1024, vm.disk_gb)


def short_id(number: int) -> str:
    """The id shown to people."""
    return f"vm-{number}"


def iso(milliseconds: int) -> str:
    """A moment as ISO 8601 with Z."""
    moment = datetime.datetime.fromtimestamp(milliseconds / 1000, datetime.UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{milliseconds % 1000:03d}Z"


# Parts ---------------------------------------------------------------------------------------


def _uid(vm_id: str) -> str:
    try:
        return uuid.UUID(vm_id).hex
    except ValueError:  # of a folder that was brought from elsewhere
        return vm_id.replace("-", "")


def _people(row: Row) -> dict[str, Any]:
    team = row.team if row.team and row.team.is_shared else None
    return {
        "user": row.owner,
        "ownerSub": row.vm.user_id,
        "userRole": row.role,
        "teamId": team.id if team else None,
        "teamName": team.name if team else None,
        "teamInfo": {"id": team.id, "name": team.name} if team else None,
    }


def _type(size: VmTypeConfig, config: Config) -> dict[str, Any]:
    told = sizes.described(config, size)
    flat = ("type", "cpu", "ram", "disk", "traffic", "pricePerHour")
    return {
        "vmTypeId": size.id,
        "vmType": told,
        **{f"vmType_{name}": told[name] for name in flat},
    }


def _host(config: Config) -> dict[str, Any]:
    kind, _, rest = config.address.partition(":")
    address, _, port = rest.rpartition(":") if kind == "tcp" else ("", "", "")
    since = "2026-01-01T00:00:00.000Z"
    host = {
        "id": "1",
        "name": config.node_name or "casemate",
        "host": address or "localhost",
        "port": int(port) if port else None,
        "createdAt": since,
        "updatedAt": since,
    }
    return {
        "hostId": host["id"],
        "host": host,
        "host_host": host["host"],
        "host_port": host["port"],
    }


def _port(lease: Any) -> dict[str, Any]:
    return {
        "protocol": lease.protocol,
        "host_address": lease.host_address,
        "from": lease.host_port,
        "to": lease.vm_port,
    }


def _cluster(row: Row) -> dict[str, Any]:
    cluster_id = row.secret.cluster_id if row.secret else None
    return {
        "isCluster": cluster_id is not None,
        "clusterName": row.secret.cluster_name if row.secret else None,
        "lbClusterId": cluster_id,
        "k8sCluster": None,
        "k8sWorker": None,
    }
