"""The forms of the answers in the newest version, for the document alone: what writes them is elsewhere (pure).

Older versions write VMs, users and KMS entries otherwise (apps/versions.py).
"""

from __future__ import annotations

from typing import Any

import marshmallow as ma
from marshmallow import fields


class Answer(ma.Schema):
    """Documents an answer, which goes out as it is."""

    def dump(self, obj: Any, *, many: bool | None = None) -> Any:
        """The answer itself."""
        return obj


def _form(called: str, /, **parts: fields.Field[Any]) -> type[Answer]:
    made: type[Answer] = Answer.from_dict(parts, name=called)  # type: ignore[assignment] # a subclass of its own class
    return made


def _one(form: type[Answer]) -> fields.Nested:
    return fields.Nested(form, required=True)


def _one_or_none(form: type[Answer]) -> fields.Nested:
    return fields.Nested(form, required=True, allow_none=True)


def _many(form: type[Answer], *, allow_none: bool = False) -> fields.List[Any]:
    return fields.List(fields.Nested(form), required=True, allow_none=allow_none)


def _texts(*, allow_none: bool = False) -> fields.List[Any]:
    return fields.List(fields.String(), required=True, allow_none=allow_none)


_TEXT = fields.String(required=True)
_TEXT_OR_NONE = fields.String(required=True, allow_none=True)
_TEXT_MAYBE = fields.String()
_WHOLE = fields.Integer(required=True)
_WHOLE_OR_NONE = fields.Integer(required=True, allow_none=True)
_NUMBER = fields.Float(required=True)
_FLAG = fields.Boolean(required=True)
_FLAG_OR_NONE = fields.Boolean(required=True, allow_none=True)
_OBJECT = fields.Dict(required=True)
_OBJECT_OR_NONE = fields.Dict(required=True, allow_none=True)
_NOTHING = fields.Raw(required=True, allow_none=True)

# Parts -------------------------------------------------------------------------------------------

KmsInfo = _form(
    "KmsInfo",
    id=_TEXT,
    slug=_TEXT,
    url=_TEXT,
    version=_TEXT,
    chain_id=_WHOLE_OR_NONE,
    kms_contract_address=_TEXT_OR_NONE,
    gateway_app_id=_TEXT_OR_NONE,
)
Device = _form("Device", device_id=_TEXT, algorithm_version=_TEXT, enabled=_FLAG)
NodeRef = _form(
    "NodeRef",
    object_type=_TEXT,
    id=_WHOLE,
    name=_TEXT,
    region=_TEXT,
    device_id=_TEXT,
    ppid=_TEXT_OR_NONE,
    status=_TEXT,
    version=_TEXT,
    device_ids=fields.List(fields.Nested(Device)),
)
UserRef = _form("UserRef", object_type=_TEXT, id=_TEXT, username=_TEXT, avatar_url=_TEXT_OR_NONE)
WorkspaceRef = _form(
    "WorkspaceRef", object_type=_TEXT, id=_TEXT, name=_TEXT, slug=_TEXT, avatar_url=_TEXT_OR_NONE
)
CvmRef = _form("CvmRef", object_type=_TEXT, id=_TEXT, name=_TEXT, app_id=_TEXT, vm_uuid=_TEXT)
Teepod = _form("Teepod", id=_WHOLE, name=_TEXT, region_identifier=_TEXT)
Endpoint = _form("Endpoint", app=_TEXT, instance=_TEXT, port=_WHOLE)
Resource = _form(
    "Resource",
    instance_type=_TEXT_OR_NONE,
    vcpu=_WHOLE,
    memory_in_gb=_NUMBER,
    disk_in_gb=_NUMBER,
    gpus=_WHOLE,
    compute_billing_price=_TEXT,
    billing_period=_TEXT_OR_NONE,
)
Os = _form("Os", name=_TEXT, version=_TEXT, is_dev=_FLAG_OR_NONE, os_image_hash=_TEXT_OR_NONE)
CvmKms = _form(
    "CvmKms",
    chain_id=_WHOLE_OR_NONE,
    dstack_kms_address=_TEXT_OR_NONE,
    dstack_app_address=_TEXT_OR_NONE,
    deployer_address=_TEXT_OR_NONE,
    rpc_endpoint=_TEXT_OR_NONE,
    encrypted_env_pubkey=_TEXT_OR_NONE,
)
Progress = _form("Progress", target=_TEXT, started_at=_TEXT_OR_NONE, correlation_id=_TEXT_OR_NONE)
Gateway = _form("Gateway", base_domain=_TEXT_OR_NONE, cname=_TEXT_OR_NONE)
LogLinks = _form(
    "LogLinks", serial=_TEXT, stdout=_TEXT, stderr=_TEXT, container_log_base=_TEXT_OR_NONE
)
Rate = _form("Rate", total=_TEXT, compute=_TEXT, disk=_TEXT)

# VMs ---------------------------------------------------------------------------------------------

_CVM: dict[str, fields.Field[Any]] = {
    "id": _TEXT,
    "name": _TEXT,
    "app_id": _TEXT,
    "vm_uuid": _TEXT,
    "instance_id": _TEXT_OR_NONE,
    "resource": _one(Resource),
    "node_info": _one(NodeRef),
    "os": _one(Os),
    "kms_type": _TEXT,
    "kms_info": _one(CvmKms),
    "status": _TEXT,
    "progress": _one_or_none(Progress),
    "compose_hash": _TEXT,
    "gateway": _one(Gateway),
    "services": fields.List(fields.Dict(), required=True),
    "endpoints": _many(Endpoint),
    "public_logs": _FLAG,
    "public_sysinfo": _FLAG,
    "public_tcbinfo": _FLAG,
    "gateway_enabled": _FLAG,
    "secure_time": _FLAG,
    "listed": _FLAG,
    "storage_fs": _TEXT_MAYBE,
    "workspace": _one(WorkspaceRef),
    "creator": _one_or_none(UserRef),
    "in_progress": _FLAG,
    "docker_compose_hash": _TEXT_OR_NONE,
    "pre_launch_script_hash": _TEXT_OR_NONE,
    "logs": _one(LogLinks),
    "created_at": _TEXT,
    "updated_at": _TEXT,
    "base_image": _TEXT,
    "hourly_rate": _one(Rate),
}
Cvm = _form("Cvm", **_CVM)
CvmDetail = _form("CvmDetail", **_CVM, compose_file=_OBJECT_OR_NONE)
CvmActed = _form(
    "CvmActed",
    id=_TEXT,
    name=_TEXT,
    status=_TEXT,
    teepod_id=_WHOLE,
    teepod=_one(Teepod),
    user_id=_NOTHING,
    app_id=_TEXT,
    vm_uuid=_TEXT,
    instance_id=_TEXT_OR_NONE,
    app_url=_TEXT_OR_NONE,
    base_image=_TEXT,
    vcpu=_WHOLE,
    memory=_WHOLE,
    disk_size=_WHOLE,
    manifest_version=_WHOLE_OR_NONE,
    version=_TEXT,
    runner=_TEXT_OR_NONE,
    docker_compose_file=_TEXT_OR_NONE,
    features=_texts(),
    created_at=_TEXT,
    encrypted_env_pubkey=_TEXT_OR_NONE,
    app_auth_contract_address=_TEXT_OR_NONE,
    deployer_address=_TEXT_OR_NONE,
)
State = _form(
    "State",
    id=_TEXT,
    name=_TEXT,
    status=_TEXT,
    instance_id=_TEXT_MAYBE,
    uptime=_TEXT_MAYBE,
    exited_at=_TEXT_MAYBE,
    boot_progress=_TEXT_MAYBE,
    boot_error=_TEXT_MAYBE,
    shutdown_progress=_TEXT_MAYBE,
)
InstanceId = _form(
    "InstanceId",
    cvm_id=_TEXT,
    identifier=_TEXT,
    status=_TEXT,
    old_instance_id=_TEXT_OR_NONE,
    new_instance_id=_TEXT_OR_NONE,
    source=_TEXT,
    verified_with_gateway=_FLAG,
    reason=_TEXT_OR_NONE,
)
InstanceIdList = _form(
    "InstanceIdList",
    total=_WHOLE,
    scanned=_WHOLE,
    updated=_WHOLE,
    unchanged=_WHOLE,
    skipped=_WHOLE,
    conflicts=_WHOLE,
    errors=_WHOLE,
    items=_many(InstanceId),
)
Accepted = _form("Accepted", status=_TEXT, message=_TEXT, correlation_id=_TEXT)
Promised = _form(
    "Promised",
    compose_hash=_TEXT,
    app_id=_TEXT_OR_NONE,
    app_env_encrypt_pubkey=_TEXT_OR_NONE,
    kms_info=_one(KmsInfo),
    fmspc=_TEXT_OR_NONE,
    device_id=_TEXT,
    os_image_hash=_TEXT_OR_NONE,
    instance_type=_TEXT_OR_NONE,
    teepod_id=_WHOLE,
    node_id=_WHOLE,
    kms_id=_TEXT,
    kms_contract_id=_TEXT,
)

# Apps --------------------------------------------------------------------------------------------

App = _form(
    "App",
    id=_TEXT,
    name=_TEXT,
    app_id=_TEXT,
    app_provision_type=_TEXT_OR_NONE,
    app_icon_url=_TEXT_OR_NONE,
    created_at=_TEXT,
    kms_type=_TEXT,
    profile=_OBJECT_OR_NONE,
    current_cvm=_one(Cvm),
    cvms=_many(Cvm),
    cvm_count=_WHOLE,
)
_REVISION: dict[str, fields.Field[Any]] = {
    "revision_id": _TEXT,
    "app_id": _TEXT,
    "vm_uuid": _TEXT,
    "compose_hash": _TEXT,
    "created_at": _TEXT,
    "operation_type": _TEXT,
    "trace_id": _TEXT_OR_NONE,
    "triggered_by": _one_or_none(UserRef),
    "cvm": _one(CvmRef),
    "workspace": _one(WorkspaceRef),
}
Revision = _form("Revision", **_REVISION)
RevisionDetail = _form(
    "RevisionDetail",
    **_REVISION,
    compose_file=fields.Raw(
        required=True, allow_none=True, metadata={"type": ["object", "string", "null"]}
    ),
    encrypted_env=_TEXT,
    user_config=_TEXT,
)
FilterOptions = _form(
    "FilterOptions",
    statuses=_texts(),
    image_versions=_texts(),
    instance_types=_texts(),
    kms_slugs=_texts(),
    kms_types=_texts(),
    regions=_texts(),
    nodes=_texts(),
)


def _own_page(name: str, items: str, form: type[Answer]) -> type[Answer]:
    """A page as apps and revisions are listed."""
    counts = dict.fromkeys(("total", "page", "page_size", "total_pages"), _WHOLE)
    return _form(name, **{items: _many(form)}, **counts)


def _page(name: str, form: type[Answer]) -> type[Answer]:
    """A page as most lists are written."""
    counts = dict.fromkeys(("total", "page", "page_size", "pages"), _WHOLE)
    return _form(name, items=_many(form), **counts)


AppList = _own_page("AppList", "dstack_apps", App)
RevisionList = _own_page("RevisionList", "revisions", Revision)
CvmList = _page("CvmList", Cvm)

# Evidence ----------------------------------------------------------------------------------------

LoggedEvent = _form(
    "LoggedEvent", imr=_WHOLE, event_type=_WHOLE, digest=_TEXT, event=_TEXT, event_payload=_TEXT
)
TcbInfo = _form(
    "TcbInfo",
    **dict.fromkeys(("mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3", "app_compose"), _TEXT),
    event_log=_many(LoggedEvent),
    rootfs_hash=_TEXT_OR_NONE,
)
_NAME: dict[str, fields.Field[Any]] = dict.fromkeys(
    ("common_name", "organization", "country"), _TEXT_OR_NONE
)
Subject = _form("Subject", **_NAME, state=_TEXT_OR_NONE, locality=_TEXT_OR_NONE)
Issuer = _form("Issuer", **_NAME)
Certificate = _form(
    "Certificate",
    subject=_one(Subject),
    issuer=_one(Issuer),
    serial_number=_TEXT,
    not_before=_TEXT,
    not_after=_TEXT,
    version=_TEXT,
    fingerprint=_TEXT,
    signature_algorithm=_TEXT,
    sans=_texts(allow_none=True),
    is_ca=_FLAG,
    position_in_chain=_WHOLE,
    quote=_TEXT_OR_NONE,
    app_id=_TEXT_OR_NONE,
    cert_usage=_TEXT_OR_NONE,
)
InstanceAttestation = _form(
    "InstanceAttestation",
    vm_uuid=_TEXT,
    name=_TEXT,
    instance_id=_TEXT_OR_NONE,
    status=_TEXT,
    image_version=_TEXT,
    quote=_TEXT_OR_NONE,
    ppid=_TEXT,
    device_id=_TEXT,
    tcb_info=_one_or_none(TcbInfo),
    app_certificates=_many(Certificate, allow_none=True),
    compose_file=_TEXT_OR_NONE,
    error=_TEXT_OR_NONE,
)
AttestedKms = _form(
    "AttestedKms",
    contract_address=_TEXT,
    chain_id=_TEXT_OR_NONE,
    version=_TEXT,
    url=_TEXT,
    gateway_app_id=_TEXT_OR_NONE,
    gateway_app_url=_TEXT,
    kms_type=_TEXT,
)
AppAttestation = _form(
    "AppAttestation",
    app_id=_TEXT,
    contract_address=_TEXT,
    kms_info=_one(AttestedKms),
    instances=_many(InstanceAttestation),
    kms_guest_agent_info=_OBJECT_OR_NONE,
    gateway_guest_agent_info=_OBJECT_OR_NONE,
    qemu_version=_TEXT_OR_NONE,
)
CvmAttestation = _form(
    "CvmAttestation",
    name=_TEXT,
    is_online=_FLAG,
    is_public=_FLAG,
    error=_TEXT_OR_NONE,
    app_certificates=_many(Certificate, allow_none=True),
    tcb_info=_one_or_none(TcbInfo),
    compose_file=_TEXT_OR_NONE,
)

# Contracts ---------------------------------------------------------------------------------------

AllowedDevice = _form(
    "AllowedDevice",
    device_id=_TEXT,
    node_name=_TEXT_OR_NONE,
    cvm_ids=_texts(),
    allowed_onchain=_FLAG,
    status=_TEXT,
)
DeviceAllowlist = _form(
    "DeviceAllowlist",
    is_onchain_kms=_FLAG,
    allow_any_device=_FLAG_OR_NONE,
    chain_id=_WHOLE_OR_NONE,
    app_contract_address=_TEXT_OR_NONE,
    devices=_many(AllowedDevice),
)
_VERDICT: dict[str, fields.Field[Any]] = {
    "app_contract_address": _TEXT,
    "compose_hash": _TEXT,
    "device_id": _TEXT,
    "compose_hash_allowed": _FLAG,
    "allow_any_device": _FLAG,
    "device_id_allowed": _FLAG_OR_NONE,
    "is_allowed": _FLAG,
    "error": _TEXT_OR_NONE,
}
Verdict = _form("Verdict", **_VERDICT)
CvmVerdict = _form("CvmVerdict", **_VERDICT, cvm_id=_TEXT)
CvmVerdicts = _form(
    "CvmVerdicts",
    is_onchain=_FLAG,
    results=_many(CvmVerdict),
    total=_WHOLE,
    allowed_count=_WHOLE,
    denied_count=_WHOLE,
    error_count=_WHOLE,
    skipped_cvm_ids=_texts(),
)
OnChainDevice = _form(
    "OnChainDevice", device_id=_TEXT, node_name=_TEXT_OR_NONE, on_chain_allowed=_FLAG_OR_NONE
)
OnChainImage = _form(
    "OnChainImage",
    name=_TEXT,
    version=_TEXT,
    os_image_hash=_TEXT_OR_NONE,
    on_chain_allowed=_FLAG_OR_NONE,
)
KmsContract = _form(
    "KmsContract",
    contract_address=_TEXT,
    chain_id=_WHOLE,
    chain_name=_TEXT,
    devices=_many(OnChainDevice),
    os_images=_many(OnChainImage),
    error=_TEXT_OR_NONE,
)
KmsContracts = _form(
    "KmsContracts", chain_name=_TEXT, chain_id=_WHOLE, contracts=_many(KmsContract)
)

# The host ----------------------------------------------------------------------------------------

Person = _form(
    "Person",
    username=_TEXT,
    email=_TEXT,
    role=_TEXT,
    avatar=_TEXT,
    email_verified=_FLAG,
    totp_enabled=_FLAG,
    has_backup_codes=_FLAG,
    flag_has_password=_FLAG,
)
Home = _form("Home", id=_TEXT, name=_TEXT, slug=_TEXT, tier=_TEXT, role=_TEXT, avatar=_TEXT_OR_NONE)
Credit = _form(
    "Credit",
    balance=_TEXT,
    granted_balance=_TEXT,
    is_post_paid=_FLAG,
    outstanding_amount=_TEXT_OR_NONE,
)
Me = _form("Me", user=_one(Person), workspace=_one(Home), credits=_one(Credit))
Capacity = _form(
    "Capacity",
    **dict.fromkeys(("max_instances", "max_vcpu", "max_memory", "max_disk"), _WHOLE),
)
NodeImage = _form(
    "NodeImage",
    name=_TEXT,
    is_dev=_FLAG,
    version=fields.List(fields.Integer(), required=True),
    os_image_hash=_TEXT_OR_NONE,
)
AvailableNode = _form(
    "AvailableNode",
    teepod_id=_WHOLE,
    name=_TEXT,
    listed=_FLAG,
    resource_score=_NUMBER,
    remaining_vcpu=_WHOLE,
    remaining_memory=_WHOLE,
    remaining_cvm_slots=_WHOLE,
    images=_many(NodeImage),
    support_onchain_kms=_FLAG,
    fmspc=_TEXT_OR_NONE,
    device_id=_TEXT,
    region_identifier=_TEXT,
    default_kms=_TEXT,
    kms_list=_texts(),
)
AvailableNodes = _form(
    "AvailableNodes",
    tier=_TEXT,
    capacity=_one(Capacity),
    nodes=_many(AvailableNode),
    kms_list=_many(KmsInfo),
)
InstanceType = _form(
    "InstanceType",
    id=_TEXT,
    name=_TEXT,
    description=_TEXT,
    vcpu=_WHOLE,
    memory_mb=_WHOLE,
    hourly_rate=_TEXT,
    requires_gpu=_FLAG,
    default_disk_size_gb=_WHOLE,
    family=_TEXT,
)
_SIZES: dict[str, fields.Field[Any]] = {"items": _many(InstanceType), "total": _WHOLE}
Family = _form("Family", **_SIZES, name=_TEXT)
InstanceTypes = _form("InstanceTypes", result=_many(Family))
FamilyTypes = _form("FamilyTypes", **_SIZES, family=_TEXT)
OsImage = _form(
    "OsImage",
    name=_TEXT,
    slug=_TEXT,
    version=_TEXT,
    os_image_hash=_TEXT_OR_NONE,
    is_dev=_FLAG,
    requires_gpu=_FLAG,
)
OsImageList = _page("OsImageList", OsImage)
Kms = _form(
    "Kms",
    id=_TEXT,
    slug=_TEXT,
    label=_TEXT,
    contract_address=_TEXT,
    chain_id=_WHOLE,
    k256_pubkey=_TEXT_OR_NONE,
    ca_pubkey=_TEXT_OR_NONE,
    node_count=_WHOLE,
)
KmsList = _page("KmsList", Kms)
AppKey = _form("AppKey", public_key=_TEXT, signature=_TEXT)
