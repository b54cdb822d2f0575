"""The forms of what guests tell: containers, load, network, evidence (pure)."""

from __future__ import annotations

from typing import Any

from marshmallow import fields

from apps.answers import Endpoint
from apps.forms import (
    FLAG,
    NOTHING,
    OBJECT_OR_NONE,
    TEXT,
    TEXT_OR_NONE,
    WHOLE,
    WHOLE_OR_NONE,
    form,
    many,
    one,
    one_or_none,
    texts,
)

# What a guest tells -----------------------------------------------------------------------------

_HEARD: dict[str, fields.Field[Any]] = {
    "is_online": FLAG,
    "is_public": FLAG,
    "error": TEXT_OR_NONE,
}
Container = form(
    "Container",
    id=TEXT,
    names=texts(),
    image=TEXT,
    image_id=TEXT,
    created=WHOLE,
    state=TEXT,
    status=TEXT,
    command=NOTHING,
    log_endpoint=TEXT_OR_NONE,
)
Composition = form(
    "Composition",
    **_HEARD,
    docker_compose_file=TEXT_OR_NONE,
    manifest_version=WHOLE_OR_NONE,
    version=TEXT,
    runner=TEXT_OR_NONE,
    features=texts(),
    containers=many(Container, allow_none=True),
)
Disk = form("Disk", name=TEXT, mount_point=TEXT, total_size=WHOLE, free_size=WHOLE)
SystemInfo = form(
    "SystemInfo",
    **dict.fromkeys(("os_name", "os_version", "kernel_version", "cpu_model"), TEXT),
    **dict.fromkeys(("total_memory", "available_memory", "used_memory", "free_memory"), WHOLE),
    **dict.fromkeys(("total_swap", "used_swap", "free_swap", "num_cpus", "uptime"), WHOLE),
    **dict.fromkeys(("loadavg_one", "loadavg_five", "loadavg_fifteen"), WHOLE),
    disks=many(Disk),
)
Stats = form(
    "Stats",
    **_HEARD,
    sysinfo=one_or_none(SystemInfo),
    status=TEXT,
    in_progress=FLAG,
    boot_progress=TEXT_OR_NONE,
    boot_error=TEXT_OR_NONE,
)
Network = form(
    "Network",
    **_HEARD,
    internal_ip=TEXT_OR_NONE,
    latest_handshake=NOTHING,
    public_urls=many(Endpoint),
)
UserConfig = form(
    "UserConfig",
    hostname=TEXT_OR_NONE,
    ssh_authorized_keys=texts(),
    default_gateway_domain=NOTHING,
)

# Evidence ----------------------------------------------------------------------------------------

LoggedEvent = form(
    "LoggedEvent", imr=WHOLE, event_type=WHOLE, digest=TEXT, event=TEXT, event_payload=TEXT
)
TcbInfo = form(
    "TcbInfo",
    **dict.fromkeys(("mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3", "app_compose"), TEXT),
    event_log=many(LoggedEvent),
    rootfs_hash=TEXT_OR_NONE,
)
_NAME: dict[str, fields.Field[Any]] = dict.fromkeys(
    ("common_name", "organization", "country"), TEXT_OR_NONE
)
Subject = form("Subject", **_NAME, state=TEXT_OR_NONE, locality=TEXT_OR_NONE)
Issuer = form("Issuer", **_NAME)
Certificate = form(
    "Certificate",
    subject=one(Subject),
    issuer=one(Issuer),
    serial_number=TEXT,
    not_before=TEXT,
    not_after=TEXT,
    version=TEXT,
    fingerprint=TEXT,
    signature_algorithm=TEXT,
    sans=texts(allow_none=True),
    is_ca=FLAG,
    position_in_chain=WHOLE,
    quote=TEXT_OR_NONE,
    app_id=TEXT_OR_NONE,
    cert_usage=TEXT_OR_NONE,
)
InstanceAttestation = form(
    "InstanceAttestation",
    vm_uuid=TEXT,
    name=TEXT,
    instance_id=TEXT_OR_NONE,
    status=TEXT,
    image_version=TEXT,
    quote=TEXT_OR_NONE,
    ppid=TEXT,
    device_id=TEXT,
    tcb_info=one_or_none(TcbInfo),
    app_certificates=many(Certificate, allow_none=True),
    compose_file=TEXT_OR_NONE,
    error=TEXT_OR_NONE,
)
AttestedKms = form(
    "AttestedKms",
    contract_address=TEXT,
    chain_id=TEXT_OR_NONE,
    version=TEXT,
    url=TEXT,
    gateway_app_id=TEXT_OR_NONE,
    gateway_app_url=TEXT,
    kms_type=TEXT,
)
AppAttestation = form(
    "AppAttestation",
    app_id=TEXT,
    contract_address=TEXT,
    kms_info=one(AttestedKms),
    instances=many(InstanceAttestation),
    kms_guest_agent_info=OBJECT_OR_NONE,
    gateway_guest_agent_info=OBJECT_OR_NONE,
    qemu_version=TEXT_OR_NONE,
)
CvmAttestation = form(
    "CvmAttestation",
    name=TEXT,
    is_online=FLAG,
    is_public=FLAG,
    error=TEXT_OR_NONE,
    app_certificates=many(Certificate, allow_none=True),
    tcb_info=one_or_none(TcbInfo),
    compose_file=TEXT_OR_NONE,
)
