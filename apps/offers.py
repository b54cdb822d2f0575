"""What this host offers, as the interface writes it (apps.md section 5)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from accounts.roles import Caller
from apps.catalog import RATE, Catalog, Kms, version_numbers
from apps.cvms import Cvm
from apps.names import bare_app_id, hashed, moment
from apps.refusals import KMS_NOT_FOUND, coded
from apps.service import Apps, Page, page_of
from apps.versions import Json, kms_info, node_ref
from core.config_apps import InstanceTypeConfig
from core.errors import NotFound
from image.registry import Image
from rest.blueprint import BadArguments

TIER = "self-hosted"

# Workspaces --------------------------------------------------------------------------------------


def workspaces(service: Apps, caller: Caller) -> list[Json]:
    """The caller's workspaces, the first the default one."""
    home = service.accounts.home(caller)
    return [
        {
            "id": hashed("ws", project.id),
            "name": project.name,
            "slug": project.name,
            "tier": TIER,
            "role": role,
            "is_default": project.id == home,
            "created_at": moment(created_ms),
        }
        for project, role, created_ms in service.workspaces(caller)
    ]


def workspace(service: Apps, caller: Caller, slug: str) -> Json:
    """One workspace by its slug or id, or NotFound."""
    for each in workspaces(service, caller):
        if slug in (each["slug"], each["id"]):
            return each
    raise NotFound("Workspace not found")


def nodes(service: Apps, page: int, page_size: int) -> Page[Json]:
    """The nodes of any workspace: this host."""
    return page_of([node_ref(service.catalog)], page, page_size)


def quotas(service: Apps, of: Json) -> Json:
    """What all workspaces of this host share, and what of it is free."""
    limits, free = _limits(service), _free(service)
    metrics = {name: {"limit": limits[name], "remaining": free[name]} for name in limits}
    return {
        "team_slug": of["slug"],
        "tier": TIER,
        "quotas": metrics,
        "reserved_nodes": {"limit": 0, "remaining": 0},
        "reserved_gpu": {
            "gpus": {"limit": 0, "remaining": 0},
            "in_use": 0,
            "misconfigured": 0,
        },
        "as_of": moment(time.time_ns() // 1_000_000),
    }


def _limits(service: Apps) -> dict[str, int]:
    cvm = service.config.cvm
    return {
        "vm_slots": cvm.cid_pool_size,
        "vcpu": cvm.max_allocable_vcpu,
        "memory_mb": cvm.max_allocable_memory_in_mb,
        "disk_gb": service.free_disk_gb(),
    }


def _free(service: Apps) -> dict[str, int]:
    limits, used = _limits(service), service.used()
    return {name: max(0, limit - used.get(name, 0)) for name, limit in limits.items()}


# The node ----------------------------------------------------------------------------------------


def available(service: Apps) -> Json:
    """The node with what is free on it."""
    catalog, free = service.catalog, _free(service)
    return {
        "tier": TIER,
        "capacity": {
            "max_instances": free["vm_slots"],
            "max_vcpu": free["vcpu"],
            "max_memory": free["memory_mb"],
            "max_disk": free["disk_gb"],
        },
        "nodes": [_teepod(catalog, free)],
        "kms_list": [kms_info(each) for each in catalog.kms],
    }


def _teepod(catalog: Catalog, free: dict[str, int]) -> Json:
    apps = catalog.config.apps
    return {
        "teepod_id": apps.node_id,
        "name": catalog.node_name,
        "listed": True,
        "resource_score": 1,
        "remaining_vcpu": free["vcpu"],
        "remaining_memory": free["memory_mb"],
        "remaining_cvm_slots": free["vm_slots"],
        "images": [
            {
                "name": each.name,
                "is_dev": each.is_dev,
                "version": version_numbers(each.version),
                "os_image_hash": each.digest,
            }
            for each in catalog.images()
        ],
        "support_onchain_kms": any(each.is_onchain for each in catalog.kms),
        "fmspc": None,
        "device_id": catalog.device_id,
        "region_identifier": apps.region,
        "default_kms": catalog.kms[0].slug,
        "kms_list": [each.slug for each in catalog.kms],
    }


# Sizes and images --------------------------------------------------------------------------------


def families(sizes: Sequence[InstanceTypeConfig]) -> list[Json]:
    """The sizes by family."""
    names = dict.fromkeys(size.family for size in sizes)
    groups = {name: [_size(each) for each in sizes if each.family == name] for name in names}
    return [{"name": name, "items": items, "total": len(items)} for name, items in groups.items()]


def family(sizes: Sequence[InstanceTypeConfig], name: str) -> Json:
    """The sizes of one family, or NotFound."""
    items = [_size(each) for each in sizes if each.family == name]
    if not items:
        raise NotFound("Instance type family not found")
    return {"items": items, "total": len(items), "family": name}


def _size(size: InstanceTypeConfig) -> Json:
    return {
        "id": size.id,
        "name": size.id,
        "description": f"{size.vcpu} vCPU, {size.memory_mb} MB memory",
        "vcpu": size.vcpu,
        "memory_mb": size.memory_mb,
        "hourly_rate": RATE,
        "requires_gpu": False,
        "default_disk_size_gb": size.disk_gb,
        "family": size.family,
    }


def images(catalog: Catalog, page: int, page_size: int, is_dev: bool | None) -> Page[Image]:
    """A page of the images, the newest first."""
    found = [each for each in catalog.images() if is_dev in (None, each.is_dev)]
    return page_of(sorted(found, key=lambda i: i.version_key, reverse=True), page, page_size)


def image(image: Image) -> Json:
    """An image."""
    return {
        "name": image.name,
        "slug": image.name,
        "version": image.version,
        "os_image_hash": image.digest,
        "is_dev": image.is_dev,
        "requires_gpu": False,
    }


def images_for(catalog: Catalog, cvm: Cvm) -> list[Json]:
    """The images that a VM could be given, by version: the production one and the development one of each."""
    versions: dict[str, Json] = {}
    for each in sorted(catalog.images(), key=lambda i: i.version_key, reverse=True):
        entry = versions.setdefault(
            each.version, {"version": version_numbers(each.version), "prod": None, "dev": None}
        )
        entry["dev" if each.is_dev else "prod"] = {
            "name": each.name,
            "os_image_hash": each.digest,
            "is_current": each.name == cvm.row.image,
        }
    return list(versions.values())


# KMS ---------------------------------------------------------------------------------------------


def kms_page(catalog: Catalog, page: int, page_size: int, is_onchain: bool | None) -> Page[Kms]:
    """A page of the KMS entries."""
    found = [each for each in catalog.kms if is_onchain in (None, each.is_onchain)]
    return page_of(found, page, page_size)


def kms(catalog: Catalog, name: str) -> Kms:
    """One entry by its id or slug, or NotFound with the interface's code."""
    found = catalog.kms_named(name)
    if found is None:
        raise coded(NotFound(f"there is no KMS {name[:64]}"), KMS_NOT_FOUND)
    return found


def kms_node(kms: Kms) -> Json:
    """The server of a KMS."""
    return {
        "id": kms.id,
        "slug": kms.slug,
        "url": kms.url,
        "version": "",
        "kms_type": kms.type,
    }


def env_key(service: Apps, name: str, app_id: str) -> Json:
    """What a KMS says of the key for an app's variables, in hex."""
    entry, bare = kms(service.catalog, name), bare_app_id(app_id)
    if bare is None:
        raise BadArguments("path", {"app_id": ["must be 40 hex digits"]})
    told: Any = service.vms.env_key(bytes.fromhex(bare), url=entry.url)
    return {"public_key": told["public_key"].hex(), "signature": told["signature"].hex()}
