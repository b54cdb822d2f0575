"""The versions of the interface: one table from a version's name to how it writes VMs, apps and users (pure).

Source: apps.md sections 1 and 3.  Clients check what they get, so a key that may be left out but not be null
is left out here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from apps.catalog import RATE, Catalog, Kms
from apps.cvms import Cvm, Me, Ref
from apps.deployments import Promise
from apps.links import Links
from apps.names import hashed, moment
from models.port import PortLease
from vmm.version import VERSION

Json = dict[str, Any]


@dataclass(frozen=True)
class Version:
    """How one version of the interface writes things."""

    name: str
    me: Callable[[Me], Json]
    listed: Callable[[Cvm, Links], Json]  # in the list of CVMs
    of_app: Callable[[Cvm, Links], Json]  # within an app
    detail: Callable[[Cvm, Links], Json]
    added: Callable[[Cvm, Links], Json]  # one more of an app, by the call that made it
    id: Callable[[Any], int | str]  # of a VM's row, in actions and the checks of allowance
    kms: Callable[[Kms], Json]

    def action(self, cvm: Cvm, links: Links) -> Json:
        """A VM as the calls that do something to it answer it."""
        return {**_action(cvm), "id": self.id(cvm.row)}


# Parts -------------------------------------------------------------------------------------------


def kms_info(kms: Kms) -> Json:
    """A KMS as the older versions write it everywhere."""
    return {
        "id": kms.id,
        "slug": kms.slug,
        "url": kms.url,
        "version": "",
        "chain_id": kms.chain_id,
        "kms_contract_address": kms.contract_address,
        "gateway_app_id": kms.gateway_app_id,
    }


def node_ref(catalog: Catalog) -> Json:
    """The node as a reference."""
    return {
        "object_type": "node",
        "id": catalog.config.apps.node_id,
        "name": catalog.node_name,
        "region": catalog.config.apps.region,
        "device_id": catalog.device_id,
        "ppid": None,
        "status": "ONLINE",
        "version": VERSION,
    }


def user_ref(user: Ref | None) -> Json | None:
    """A user as a reference."""
    if user is None:
        return None
    return {
        "object_type": "user",
        "id": hashed("user", user.id),
        "username": user.name,
        "avatar_url": None,
    }


def workspace_ref(project: Ref) -> Json:
    """A project as a reference."""
    return {
        "object_type": "workspace",
        "id": hashed("ws", project.id),
        "name": project.name,
        "slug": project.name,
        "avatar_url": None,
    }


def cvm_ref(vm_id: str, name: str, app_id: str) -> Json:
    """A VM, there or gone, as a reference."""
    return {
        "object_type": "cvm",
        "id": hashed("cvm", vm_id),
        "name": name,
        "app_id": app_id,
        "vm_uuid": vm_id,
    }


def teepod(catalog: Catalog) -> Json:
    """The node as the first version writes it within others."""
    return {
        "id": catalog.config.apps.node_id,
        "name": catalog.node_name,
        "region_identifier": catalog.config.apps.region,
    }


def _machine(cvm: Cvm) -> Json:
    return {
        "vcpu": cvm.row.vcpu,
        "memory": cvm.row.memory_mb,
        "disk_size": cvm.row.disk_gb,
        "gpu_count": cvm.gpus,
    }


def public_urls(cvm: Cvm) -> list[Json]:
    """Where the app is reached from outside: each port that it publishes, on a port of the host."""
    urls = [(_url(lease), lease.vm_port) for lease in cvm.ports]
    return [{"app": url, "instance": url, "port": port} for url, port in urls]


def _url(lease: PortLease) -> str:
    address = lease.host_address
    host = "127.0.0.1" if address in ("0.0.0.0", "::") else address
    return (
        f"http://[{host}]:{lease.host_port}" if ":" in host else f"http://{host}:{lease.host_port}"
    )


def promise_of(promise: Promise, catalog: Catalog) -> Json:
    """What a client is told of a deployment that it can commit."""
    return {
        "compose_hash": promise.compose_hash,
        "app_id": promise.app_id,
        "app_env_encrypt_pubkey": promise.env_key,
        "kms_info": kms_info(promise.kms),
        "fmspc": None,
        "device_id": catalog.device_id,
        "os_image_hash": promise.image.digest,
        "instance_type": promise.instance_type,
        "teepod_id": catalog.config.apps.node_id,
        "node_id": catalog.config.apps.node_id,
        "kms_id": promise.kms.id,
        "kms_contract_id": promise.kms.id,
    }


# 2025-10-28 --------------------------------------------------------------------------------------


def _me_flat(me: Me) -> Json:
    return {
        "username": me.name,
        "email": me.email,
        "credits": 0,
        "granted_credits": 0,
        "avatar": "",
        "team_name": me.workspace.name,
        "team_tier": "self-hosted",
    }


def _hosted(cvm: Cvm) -> Json:
    told = cvm.told
    return {
        "id": cvm.uuid,
        "name": cvm.row.name,
        "status": cvm.status,
        "uptime": told["uptime"],
        "app_url": told["app_url"],
        "app_id": cvm.row.app_id,
        "instance_id": cvm.row.instance_id,
        "exited_at": told["exited_at"],
        "boot_progress": told["boot_progress"],
        "boot_error": told["boot_error"],
        "shutdown_progress": told["shutdown_progress"],
        "image_version": cvm.row.image_version,
    }


def _flat(cvm: Cvm, links: Links) -> Json:
    """What list row and detail of the first version have in common."""
    return {
        "name": cvm.row.name,
        "status": cvm.status,
        "in_progress": cvm.target is not None,
        "listed": bool(cvm.row.listed),
        "dapp_dashboard_url": None,
        "syslog_endpoint": links.vm_log(cvm.uuid),
        "project_id": hashed("ws", cvm.project.id),
        "project_type": None,
        "kms_info": kms_info(cvm.kms),
        "vcpu": cvm.row.vcpu,
        "memory": cvm.row.memory_mb,
        "disk_size": cvm.row.disk_gb,
        "gateway_domain": _gateway(cvm)["base_domain"],
        "public_urls": public_urls(cvm),
        "machine_info": _machine(cvm),
        "updated_at": moment(cvm.changed_ms),
    }


def _list_row(cvm: Cvm, links: Links) -> Json:
    return {
        **_flat(cvm, links),
        "hosted": _hosted(cvm),
        "managed_user": None,  # its ids are numbers, those of our users are not
        "node": teepod(cvm.catalog),
        "allow_upgrade": True,
        "billing_period": None,
    }


def _flat_detail(cvm: Cvm, links: Links) -> Json:
    return {
        **_flat(cvm, links),
        **_action(cvm),
        "listed": bool(cvm.row.listed),
        "instance_type": cvm.instance_type,
        "public_sysinfo": cvm.flag("public_sysinfo", False),
        "public_logs": cvm.flag("public_logs", False),
        "public_tcbinfo": cvm.flag("public_tcbinfo", True),
        "contract_address": _contract(cvm),
        "deployer_address": cvm.row.deployer,
        "scheduled_delete_at": None,
    }


def _action(cvm: Cvm) -> Json:
    return {
        "id": cvm.number,
        "name": cvm.row.name,
        "status": cvm.status,
        "teepod_id": cvm.catalog.config.apps.node_id,
        "teepod": teepod(cvm.catalog),
        "user_id": None,
        "app_id": cvm.row.app_id,
        "vm_uuid": cvm.uuid,
        "instance_id": cvm.row.instance_id,
        "app_url": cvm.told["app_url"],
        "base_image": cvm.row.image,
        "vcpu": cvm.row.vcpu,
        "memory": cvm.row.memory_mb,
        "disk_size": cvm.row.disk_gb,
        "manifest_version": cvm.manifest_version,
        "version": cvm.row.image_version,
        "runner": cvm.text("runner"),
        "docker_compose_file": cvm.text("docker_compose_file"),
        "features": cvm.features,
        "created_at": moment(cvm.row.created_ms),
        "encrypted_env_pubkey": cvm.row.env_key,
        "app_auth_contract_address": _contract(cvm),
        "deployer_address": cvm.row.deployer,
    }


def _basic(cvm: Cvm, links: Links) -> Json:
    return {
        "vm_uuid": cvm.uuid,
        "app_id": cvm.row.app_id,
        "name": cvm.row.name,
        "status": cvm.status,
        "vcpu": cvm.row.vcpu,
        "memory": cvm.row.memory_mb,
        "disk_size": cvm.row.disk_gb,
        "teepod_id": cvm.catalog.config.apps.node_id,
        "teepod_name": cvm.catalog.node_name,
        "region_identifier": cvm.catalog.config.apps.region,
        "kms_type": cvm.kms.type,
        "instance_type": cvm.instance_type,
        "listed": bool(cvm.row.listed),
        "base_image": cvm.row.image,
        "kms_slug": cvm.kms.slug,
        "kms_id": cvm.kms.id,
        "instance_id": cvm.row.instance_id,
        "machine_info": _machine(cvm),
        "updated_at": moment(cvm.changed_ms),
    }


# 2026-01-21 --------------------------------------------------------------------------------------


def _me_nested(me: Me) -> Json:
    return {
        "user": {
            "username": me.name,
            "email": me.email,
            "role": "admin" if me.is_admin else "user",
            "avatar": "",
            "email_verified": False,
            "totp_enabled": False,
            "has_backup_codes": False,
            "flag_has_password": False,
        },
        "workspace": {
            "id": hashed("ws", me.workspace.id),
            "name": me.workspace.name,
            "slug": me.workspace.name,
            "tier": "self-hosted",
            "role": me.role,
            "avatar": None,
        },
        "credits": {
            "balance": "0",
            "granted_balance": "0",
            "is_post_paid": False,
            "outstanding_amount": None,
        },
    }


def _nested(cvm: Cvm, links: Links) -> Json:
    told: Json = {
        "id": cvm.id,
        "name": cvm.row.name,
        "app_id": cvm.row.app_id,
        "vm_uuid": cvm.uuid,
        "instance_id": cvm.row.instance_id,
        "resource": {
            "instance_type": cvm.instance_type,
            "vcpu": cvm.row.vcpu,
            "memory_in_gb": cvm.row.memory_mb / 1024,
            "disk_in_gb": cvm.row.disk_gb,
            "gpus": cvm.gpus,
            "compute_billing_price": RATE,
            "billing_period": None,
        },
        "node_info": node_ref(cvm.catalog),
        "os": _os(cvm),
        "kms_type": cvm.kms.type,
        "kms_info": _cvm_kms(cvm),
        "status": cvm.status,
        "progress": _progress(cvm),
        "compose_hash": cvm.compose_hash,
        "gateway": _gateway(cvm),
        "services": [],
        "endpoints": public_urls(cvm),
        "public_logs": cvm.flag("public_logs", False),
        "public_sysinfo": cvm.flag("public_sysinfo", False),
        "public_tcbinfo": cvm.flag("public_tcbinfo", True),
        "gateway_enabled": cvm.has_gateway,
        "secure_time": cvm.flag("secure_time", False),
        "listed": bool(cvm.row.listed),
        "workspace": workspace_ref(cvm.project),
        "creator": user_ref(cvm.creator),
    }
    storage = cvm.text("storage_fs")
    return told | ({"storage_fs": storage} if storage else {})


def _nested_detail(cvm: Cvm, links: Links) -> Json:
    return {**_nested(cvm, links), "compose_file": dict(cvm.compose) or None}


def _os(cvm: Cvm) -> Json:
    image = cvm.image
    return {
        "name": cvm.row.image,
        "version": cvm.row.image_version,
        "is_dev": None if image is None else image.is_dev,
        "os_image_hash": None if image is None else image.digest,
    }


def _cvm_kms(cvm: Cvm) -> Json:
    return {
        "chain_id": cvm.kms.chain_id,
        "dstack_kms_address": cvm.kms.contract_address,
        "dstack_app_address": _contract(cvm),
        "deployer_address": cvm.row.deployer,
        "rpc_endpoint": None,  # it may hold a key of the operator's
        "encrypted_env_pubkey": cvm.row.env_key,
    }


def _contract(cvm: Cvm) -> str | None:
    return f"0x{cvm.row.app_id}" if cvm.kms.is_onchain else None


def _progress(cvm: Cvm) -> Json | None:
    if cvm.target is None:
        return None
    return {"target": cvm.target, "started_at": None, "correlation_id": None}


def _gateway(cvm: Cvm) -> Json:
    domain = cvm.catalog.config.gateway.base_domain if cvm.has_gateway else None
    return {"base_domain": domain, "cname": None}


# 2026-05-22 and 2026-06-23 -----------------------------------------------------------------------


def _newer(cvm: Cvm, links: Links) -> Json:
    told = _nested(cvm, links)
    device = {"device_id": cvm.catalog.device_id, "algorithm_version": "1", "enabled": True}
    told["node_info"] = {**told["node_info"], "device_ids": [device]}
    return told | {
        "in_progress": cvm.target is not None,
        "docker_compose_hash": _digest(cvm.text("docker_compose_file")),
        "pre_launch_script_hash": _digest(cvm.text("pre_launch_script")),
        "logs": links.logs(cvm.uuid),
        "created_at": moment(cvm.row.created_ms),
        "updated_at": moment(cvm.changed_ms),
        "base_image": cvm.row.image,
        "hourly_rate": {"total": RATE, "compute": RATE, "disk": RATE},
    }


def _newer_detail(cvm: Cvm, links: Links) -> Json:
    return {**_newer(cvm, links), "compose_file": dict(cvm.compose) or None}


def _acted(cvm: Cvm, _: Links) -> Json:
    return {**_action(cvm), "id": _number(cvm.row)}


def _digest(text: str | None) -> str | None:
    return None if text is None else hashlib.sha256(text.encode()).hexdigest()


def _contract_of(kms: Kms) -> Json:
    return {
        "id": kms.id,
        "slug": kms.slug,
        "label": kms.slug,
        "contract_address": kms.contract_address or "phala",
        "chain_id": kms.chain_id or 0,
        "k256_pubkey": None,
        "ca_pubkey": None,
        "node_count": 1,
    }


def _number(row: Any) -> int:
    return int(row.number)


def _name(row: Any) -> str:
    return hashed("cvm", row.id)


# The table ---------------------------------------------------------------------------------------

# PyPI phala-cloud reads an added VM of the newer ones as it reads one of a list.
VERSIONS: Mapping[str, Version] = {
    each.name: each
    for each in (
        Version("2025-10-28", _me_flat, _list_row, _basic, _flat_detail, _acted, _number, kms_info),
        Version(
            "2026-01-21", _me_nested, _nested, _nested, _nested_detail, _acted, _number, kms_info
        ),
        Version("2026-05-22", _me_nested, _newer, _newer, _newer_detail, _newer, _name, kms_info),
        Version(
            "2026-06-23", _me_nested, _newer, _newer, _newer_detail, _newer, _name, _contract_of
        ),
    )
}
NEWEST = max(VERSIONS)


def version_of(header: str | None) -> Version:
    """The version that a client asks for; the newest known for any other word, or none."""
    return VERSIONS.get(header or "", VERSIONS[NEWEST])
