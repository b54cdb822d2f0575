"""The forms of the answers in the newest version, for the document alone: what writes them is elsewhere (pure).

Older versions write VMs, users and KMS entries otherwise (apps/versions.py).
"""

from __future__ import annotations

from typing import Any

from marshmallow import fields

from apps.forms import (
    FLAG,
    FLAG_OR_NONE,
    NOTHING,
    NUMBER,
    OBJECT_OR_NONE,
    TEXT,
    TEXT_MAYBE,
    TEXT_OR_NONE,
    WHOLE,
    WHOLE_OR_NONE,
    form,
    many,
    one,
    one_or_none,
    own_page,
    page,
    texts,
)

# Parts -------------------------------------------------------------------------------------------

KmsInfo = form(
    "KmsInfo",
    id=TEXT,
    slug=TEXT,
    url=TEXT,
    version=TEXT,
    chain_id=WHOLE_OR_NONE,
    kms_contract_address=TEXT_OR_NONE,
    gateway_app_id=TEXT_OR_NONE,
)
Device = form("Device", device_id=TEXT, algorithm_version=TEXT, enabled=FLAG)
NodeRef = form(
    "NodeRef",
    object_type=TEXT,
    id=WHOLE,
    name=TEXT,
    region=TEXT,
    device_id=TEXT,
    ppid=TEXT_OR_NONE,
    status=TEXT,
    version=TEXT,
    device_ids=fields.List(fields.Nested(Device)),
)
UserRef = form("UserRef", object_type=TEXT, id=TEXT, username=TEXT, avatar_url=TEXT_OR_NONE)
WorkspaceRef = form(
    "WorkspaceRef", object_type=TEXT, id=TEXT, name=TEXT, slug=TEXT, avatar_url=TEXT_OR_NONE
)
CvmRef = form("CvmRef", object_type=TEXT, id=TEXT, name=TEXT, app_id=TEXT, vm_uuid=TEXT)
Teepod = form("Teepod", id=WHOLE, name=TEXT, region_identifier=TEXT)
Endpoint = form("Endpoint", app=TEXT, instance=TEXT, port=WHOLE)
Resource = form(
    "Resource",
    instance_type=TEXT_OR_NONE,
    vcpu=WHOLE,
    memory_in_gb=NUMBER,
    disk_in_gb=NUMBER,
    gpus=WHOLE,
    compute_billing_price=TEXT,
    billing_period=TEXT_OR_NONE,
)
Os = form("Os", name=TEXT, version=TEXT, is_dev=FLAG_OR_NONE, os_image_hash=TEXT_OR_NONE)
CvmKms = form(
    "CvmKms",
    chain_id=WHOLE_OR_NONE,
    dstack_kms_address=TEXT_OR_NONE,
    dstack_app_address=TEXT_OR_NONE,
    deployer_address=TEXT_OR_NONE,
    rpc_endpoint=TEXT_OR_NONE,
    encrypted_env_pubkey=TEXT_OR_NONE,
)
Progress = form("Progress", target=TEXT, started_at=TEXT_OR_NONE, correlation_id=TEXT_OR_NONE)
Gateway = form("Gateway", base_domain=TEXT_OR_NONE, cname=TEXT_OR_NONE)
LogLinks = form("LogLinks", serial=TEXT, stdout=TEXT, stderr=TEXT, container_log_base=TEXT_OR_NONE)
Rate = form("Rate", total=TEXT, compute=TEXT, disk=TEXT)

# VMs ---------------------------------------------------------------------------------------------

_CVM: dict[str, fields.Field[Any]] = {
    "id": TEXT,
    "name": TEXT,
    "app_id": TEXT,
    "vm_uuid": TEXT,
    "instance_id": TEXT_OR_NONE,
    "resource": one(Resource),
    "node_info": one(NodeRef),
    "os": one(Os),
    "kms_type": TEXT,
    "kms_info": one(CvmKms),
    "status": TEXT,
    "progress": one_or_none(Progress),
    "compose_hash": TEXT,
    "gateway": one(Gateway),
    "services": fields.List(fields.Dict(), required=True),
    "endpoints": many(Endpoint),
    "public_logs": FLAG,
    "public_sysinfo": FLAG,
    "public_tcbinfo": FLAG,
    "gateway_enabled": FLAG,
    "secure_time": FLAG,
    "listed": FLAG,
    "storage_fs": TEXT_MAYBE,
    "workspace": one(WorkspaceRef),
    "creator": one_or_none(UserRef),
    "in_progress": FLAG,
    "docker_compose_hash": TEXT_OR_NONE,
    "pre_launch_script_hash": TEXT_OR_NONE,
    "logs": one(LogLinks),
    "created_at": TEXT,
    "updated_at": TEXT,
    "base_image": TEXT,
    "hourly_rate": one(Rate),
}
Cvm = form("Cvm", **_CVM)
CvmDetail = form("CvmDetail", **_CVM, compose_file=OBJECT_OR_NONE)
_ACTED: dict[str, fields.Field[Any]] = {
    "id": TEXT,
    "name": TEXT,
    "status": TEXT,
    "teepod_id": WHOLE,
    "teepod": one(Teepod),
    "user_id": NOTHING,
    "app_id": TEXT,
    "vm_uuid": TEXT,
    "instance_id": TEXT_OR_NONE,
    "app_url": TEXT_OR_NONE,
    "base_image": TEXT,
    "vcpu": WHOLE,
    "memory": WHOLE,
    "disk_size": WHOLE,
    "manifest_version": WHOLE_OR_NONE,
    "version": TEXT,
    "runner": TEXT_OR_NONE,
    "docker_compose_file": TEXT_OR_NONE,
    "features": texts(),
    "created_at": TEXT,
    "encrypted_env_pubkey": TEXT_OR_NONE,
    "app_auth_contract_address": TEXT_OR_NONE,
    "deployer_address": TEXT_OR_NONE,
}
CvmActed = form("CvmActed", **_ACTED)
Machine = form("Machine", **dict.fromkeys(("vcpu", "memory", "disk_size", "gpu_count"), WHOLE))
CvmOfFirstVersion = form(
    "CvmOfFirstVersion",
    **{**_ACTED, "id": WHOLE},
    in_progress=FLAG,
    listed=FLAG,
    dapp_dashboard_url=NOTHING,
    syslog_endpoint=TEXT,
    project_id=TEXT,
    project_type=NOTHING,
    kms_info=one(KmsInfo),
    gateway_domain=TEXT_OR_NONE,
    public_urls=many(Endpoint),
    machine_info=one(Machine),
    updated_at=TEXT,
    instance_type=TEXT_OR_NONE,
    public_sysinfo=FLAG,
    public_logs=FLAG,
    public_tcbinfo=FLAG,
    contract_address=TEXT_OR_NONE,
    scheduled_delete_at=NOTHING,
)
State = form(
    "State",
    id=TEXT,
    name=TEXT,
    status=TEXT,
    instance_id=TEXT_MAYBE,
    uptime=TEXT_MAYBE,
    exited_at=TEXT_MAYBE,
    boot_progress=TEXT_MAYBE,
    boot_error=TEXT_MAYBE,
    shutdown_progress=TEXT_MAYBE,
)
Status = form(
    "Status",
    vm_uuid=TEXT,
    status=TEXT,
    uptime=TEXT_OR_NONE,
    in_progress=FLAG,
    boot_progress=TEXT_OR_NONE,
    boot_error=TEXT_OR_NONE,
    operation_type=NOTHING,
    operation_started_at=NOTHING,
    correlation_id=NOTHING,
)
# By uuid.
STATUSES = {"type": "object", "additionalProperties": {"$ref": "#/components/schemas/Status"}}
# What its maker wrote.
DOCUMENT = {"type": "object"}
InstanceId = form(
    "InstanceId",
    cvm_id=TEXT,
    identifier=TEXT,
    status=TEXT,
    old_instance_id=TEXT_OR_NONE,
    new_instance_id=TEXT_OR_NONE,
    source=TEXT,
    verified_with_gateway=FLAG,
    reason=TEXT_OR_NONE,
)
InstanceIdList = form(
    "InstanceIdList",
    total=WHOLE,
    scanned=WHOLE,
    updated=WHOLE,
    unchanged=WHOLE,
    skipped=WHOLE,
    conflicts=WHOLE,
    errors=WHOLE,
    items=many(InstanceId),
)
_ACCEPTED = dict.fromkeys(("status", "message", "correlation_id"), TEXT)
Accepted = form("Accepted", **_ACCEPTED)
EnvsAccepted = form("EnvsAccepted", **_ACCEPTED, allowed_envs_changed=FLAG)
ComposePrepared = form(
    "ComposePrepared",
    app_id=TEXT,
    device_id=TEXT,
    compose_hash=TEXT,
    kms_info=one(KmsInfo),
    compose_hash_registered=FLAG,
)
Promised = form(
    "Promised",
    compose_hash=TEXT,
    app_id=TEXT_OR_NONE,
    app_env_encrypt_pubkey=TEXT_OR_NONE,
    kms_info=one(KmsInfo),
    fmspc=TEXT_OR_NONE,
    device_id=TEXT,
    os_image_hash=TEXT_OR_NONE,
    instance_type=TEXT_OR_NONE,
    teepod_id=WHOLE,
    node_id=WHOLE,
    kms_id=TEXT,
    kms_contract_id=TEXT,
)

# Apps --------------------------------------------------------------------------------------------

App = form(
    "App",
    id=TEXT,
    name=TEXT,
    app_id=TEXT,
    app_provision_type=TEXT_OR_NONE,
    app_icon_url=TEXT_OR_NONE,
    created_at=TEXT,
    kms_type=TEXT,
    profile=OBJECT_OR_NONE,
    current_cvm=one(Cvm),
    cvms=many(Cvm),
    cvm_count=WHOLE,
)
_REVISION: dict[str, fields.Field[Any]] = {
    "revision_id": TEXT,
    "app_id": TEXT,
    "vm_uuid": TEXT,
    "compose_hash": TEXT,
    "created_at": TEXT,
    "operation_type": TEXT,
    "trace_id": TEXT_OR_NONE,
    "triggered_by": one_or_none(UserRef),
    "cvm": one(CvmRef),
    "workspace": one(WorkspaceRef),
}
Revision = form("Revision", **_REVISION)
RevisionDetail = form(
    "RevisionDetail",
    **_REVISION,
    compose_file=fields.Raw(
        required=True, allow_none=True, metadata={"type": ["object", "string"]}
    ),
    encrypted_env=TEXT,
    user_config=TEXT,
)
FilterOptions = form(
    "FilterOptions",
    statuses=texts(),
    image_versions=texts(),
    instance_types=texts(),
    kms_slugs=texts(),
    kms_types=texts(),
    regions=texts(),
    nodes=texts(),
)


AppList = own_page("AppList", "dstack_apps", App)
RevisionList = own_page("RevisionList", "revisions", Revision)
CvmList = page("CvmList", Cvm)

# Contracts ---------------------------------------------------------------------------------------

AllowedDevice = form(
    "AllowedDevice",
    device_id=TEXT,
    node_name=TEXT_OR_NONE,
    cvm_ids=texts(),
    allowed_onchain=FLAG,
    status=TEXT,
)
DeviceAllowlist = form(
    "DeviceAllowlist",
    is_onchain_kms=FLAG,
    allow_any_device=FLAG_OR_NONE,
    chain_id=WHOLE_OR_NONE,
    app_contract_address=TEXT_OR_NONE,
    devices=many(AllowedDevice),
)
_VERDICT: dict[str, fields.Field[Any]] = {
    "app_contract_address": TEXT,
    "compose_hash": TEXT,
    "device_id": TEXT,
    "compose_hash_allowed": FLAG,
    "allow_any_device": FLAG,
    "device_id_allowed": FLAG_OR_NONE,
    "is_allowed": FLAG,
    "error": TEXT_OR_NONE,
}
Verdict = form("Verdict", **_VERDICT)
CvmVerdict = form("CvmVerdict", **_VERDICT, cvm_id=TEXT)
CvmVerdicts = form(
    "CvmVerdicts",
    is_onchain=FLAG,
    results=many(CvmVerdict),
    total=WHOLE,
    allowed_count=WHOLE,
    denied_count=WHOLE,
    error_count=WHOLE,
    skipped_cvm_ids=texts(),
)
OnChainDevice = form(
    "OnChainDevice", device_id=TEXT, node_name=TEXT_OR_NONE, on_chain_allowed=FLAG_OR_NONE
)
OnChainImage = form(
    "OnChainImage",
    name=TEXT,
    version=TEXT,
    os_image_hash=TEXT_OR_NONE,
    on_chain_allowed=FLAG_OR_NONE,
)
KmsContract = form(
    "KmsContract",
    contract_address=TEXT,
    chain_id=WHOLE,
    chain_name=TEXT,
    devices=many(OnChainDevice),
    os_images=many(OnChainImage),
    error=TEXT_OR_NONE,
)
KmsContracts = form("KmsContracts", chain_name=TEXT, chain_id=WHOLE, contracts=many(KmsContract))
