"""The forms of the answers about the caller and this host in the newest version (pure).

Older versions write VMs, users and KMS entries otherwise (apps/versions.py).
"""

from __future__ import annotations

from typing import Any

from marshmallow import fields

from apps.answers import KmsInfo, NodeRef
from apps.forms import (
    FLAG,
    NOTHING,
    NUMBER,
    TEXT,
    TEXT_OR_NONE,
    WHOLE,
    form,
    many,
    one,
    one_or_none,
    page,
    texts,
)

# Who, and where -----------------------------------------------------------------------------------

Person = form(
    "Person",
    username=TEXT,
    email=TEXT,
    role=TEXT,
    avatar=TEXT,
    email_verified=FLAG,
    totp_enabled=FLAG,
    has_backup_codes=FLAG,
    flag_has_password=FLAG,
)
Home = form("Home", id=TEXT, name=TEXT, slug=TEXT, tier=TEXT, role=TEXT, avatar=TEXT_OR_NONE)
Credit = form(
    "Credit",
    balance=TEXT,
    granted_balance=TEXT,
    is_post_paid=FLAG,
    outstanding_amount=TEXT_OR_NONE,
)
Me = form("Me", user=one(Person), workspace=one(Home), credits=one(Credit))
Workspace = form(
    "Workspace",
    **dict.fromkeys(("id", "name", "slug", "tier", "role", "created_at"), TEXT),
    is_default=FLAG,
)
Pagination = form("Pagination", has_more=FLAG, next_cursor=NOTHING, total=WHOLE)
Workspaces = form("Workspaces", data=many(Workspace), pagination=one(Pagination))
NodeList = page("NodeList", NodeRef)
Quota = form("Quota", limit=WHOLE, remaining=WHOLE)
Metrics = form("Metrics", **dict.fromkeys(("vm_slots", "vcpu", "memory_mb", "disk_gb"), one(Quota)))
ReservedGpus = form("ReservedGpus", gpus=one(Quota), in_use=WHOLE, misconfigured=WHOLE)
Quotas = form(
    "Quotas",
    team_slug=TEXT,
    tier=TEXT,
    quotas=one(Metrics),
    reserved_nodes=one(Quota),
    reserved_gpu=one(ReservedGpus),
    as_of=TEXT,
)
# The node -----------------------------------------------------------------------------------------

Capacity = form(
    "Capacity",
    **dict.fromkeys(("max_instances", "max_vcpu", "max_memory", "max_disk"), WHOLE),
)
NodeImage = form(
    "NodeImage",
    name=TEXT,
    is_dev=FLAG,
    version=fields.List(fields.Integer(), required=True),
    os_image_hash=TEXT_OR_NONE,
)
AvailableNode = form(
    "AvailableNode",
    teepod_id=WHOLE,
    name=TEXT,
    listed=FLAG,
    resource_score=NUMBER,
    remaining_vcpu=WHOLE,
    remaining_memory=WHOLE,
    remaining_cvm_slots=WHOLE,
    images=many(NodeImage),
    support_onchain_kms=FLAG,
    fmspc=TEXT_OR_NONE,
    device_id=TEXT,
    region_identifier=TEXT,
    default_kms=TEXT,
    kms_list=texts(),
)
AvailableNodes = form(
    "AvailableNodes",
    tier=TEXT,
    capacity=one(Capacity),
    nodes=many(AvailableNode),
    kms_list=many(KmsInfo),
)
# Sizes, images and KMS ----------------------------------------------------------------------------

InstanceType = form(
    "InstanceType",
    id=TEXT,
    name=TEXT,
    description=TEXT,
    vcpu=WHOLE,
    memory_mb=WHOLE,
    hourly_rate=TEXT,
    requires_gpu=FLAG,
    default_disk_size_gb=WHOLE,
    family=TEXT,
)
_SIZES: dict[str, fields.Field[Any]] = {"items": many(InstanceType), "total": WHOLE}
Family = form("Family", **_SIZES, name=TEXT)
InstanceTypes = form("InstanceTypes", result=many(Family))
FamilyTypes = form("FamilyTypes", **_SIZES, family=TEXT)
OsImage = form(
    "OsImage",
    name=TEXT,
    slug=TEXT,
    version=TEXT,
    os_image_hash=TEXT_OR_NONE,
    is_dev=FLAG,
    requires_gpu=FLAG,
)
OfferedImage = form("OfferedImage", name=TEXT, os_image_hash=TEXT_OR_NONE, is_current=FLAG)
ImagesOfVersion = form(
    "ImagesOfVersion",
    version=fields.List(fields.Integer(), required=True),
    prod=one_or_none(OfferedImage),
    dev=one_or_none(OfferedImage),
)
OsImageList = page("OsImageList", OsImage)
Kms = form(
    "Kms",
    id=TEXT,
    slug=TEXT,
    label=TEXT,
    contract_address=TEXT,
    chain_id=WHOLE,
    k256_pubkey=TEXT_OR_NONE,
    ca_pubkey=TEXT_OR_NONE,
    node_count=WHOLE,
)
KmsList = page("KmsList", Kms)
AppKey = form("AppKey", public_key=TEXT, signature=TEXT)
KmsNode = form("KmsNode", **dict.fromkeys(("id", "slug", "url", "version", "kms_type"), TEXT))
KmsNodes = form("KmsNodes", items=many(KmsNode), total=WHOLE)
NextId = form("NextId", app_id=TEXT, nonce=WHOLE)
NextIds = form("NextIds", app_ids=many(NextId))
