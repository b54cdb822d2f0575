"""The messages of the guest agent's services: current, legacy, Worker and guest API.

Names from seed 000 and dstack's agent_rpc.proto and guest_api.proto (312dc605); guest-agent.md sections 4 to 9.
"""

from __future__ import annotations

from core.prpc import Flag, HexBytes, Int64, Message, Repeated, Text, UInt32, UInt64

MAX_ALT_NAMES = 256


class GetTlsKeyRequest(Message):
    subject = Text(1)
    alt_names = Repeated(2, Text(0), most=MAX_ALT_NAMES)
    usage_ra_tls = Flag(3)
    usage_server_auth = Flag(4)
    usage_client_auth = Flag(5)
    not_before = UInt64(6, optional=True)
    not_after = UInt64(7, optional=True)
    with_app_info = Flag(8)


class GetTlsKeyResponse(Message):
    key = Text(1)
    certificate_chain = Repeated(2, Text(0))


class GetKeyRequest(Message):
    path = Text(1)
    purpose = Text(2)
    algorithm = Text(3)


class GetKeyResponse(Message):
    key = HexBytes(1)
    signature_chain = Repeated(2, HexBytes(0))


class ReportDataRequest(Message):
    report_data = HexBytes(1)


class GetQuoteResponse(Message):
    quote = HexBytes(1)
    event_log = Text(2)
    report_data = HexBytes(3)
    vm_config = Text(4)
    attestation = HexBytes(5)


class AttestResponse(Message):
    attestation = HexBytes(1)


class EmitEventRequest(Message):
    event = Text(1)
    payload = HexBytes(2)


class InfoResponse(Message):
    app_id = HexBytes(1)
    instance_id = HexBytes(2)
    app_cert = Text(3)
    tcb_info = Text(4)
    app_name = Text(5)
    device_id = HexBytes(6)
    mr_aggregated = HexBytes(7)
    os_image_hash = HexBytes(8)
    key_provider_info = Text(9)
    compose_hash = HexBytes(10)
    vm_config = Text(11)
    cloud_vendor = Text(12)
    cloud_product = Text(13)


class SignRequest(Message):
    algorithm = Text(1)
    data = HexBytes(2)


class SignResponse(Message):
    signature = HexBytes(1)
    signature_chain = Repeated(2, HexBytes(0))
    public_key = HexBytes(3)


class VerifyRequest(Message):
    algorithm = Text(1)
    data = HexBytes(2)
    signature = HexBytes(3)
    public_key = HexBytes(4)


class VerifyResponse(Message):
    valid = Flag(1)


class VersionResponse(Message):
    version = Text(1)
    rev = Text(2)


class GpuInfoResponse(Message):
    attestation = Text(1)


class AppKeyRequest(Message):
    algorithm = Text(1)


class DeriveKeyRequest(Message):
    path = Text(1)
    subject = Text(2)
    alt_names = Repeated(3, Text(0), most=MAX_ALT_NAMES)
    usage_ra_tls = Flag(4)
    usage_server_auth = Flag(5)
    usage_client_auth = Flag(6)
    random_seed = Flag(7)


class DeriveK256KeyRequest(Message):
    path = Text(1)
    purpose = Text(2)


class DeriveK256KeyResponse(Message):
    k256_key = HexBytes(1)
    k256_signature_chain = Repeated(2, HexBytes(0))


class TdxQuoteRequest(Message):
    report_data = HexBytes(1)
    hash_algorithm = Text(2)
    # Absent is not empty here: absent means `app-data`.
    prefix = Text(3, optional=True)


class TdxQuoteResponse(Message):
    quote = HexBytes(1)
    event_log = Text(2)
    hash_algorithm = Text(3)
    prefix = Text(4)


class GuestInfo(Message):
    version = Text(1)
    app_id = HexBytes(2)
    instance_id = HexBytes(3)
    app_cert = Text(4)
    tcb_info = Text(5)
    device_id = HexBytes(6)


class DiskInfo(Message):
    name = Text(1)
    mount_point = Text(2)
    total_size = UInt64(3)
    free_size = UInt64(5)


class SystemInfo(Message):
    os_name = Text(1)
    os_version = Text(2)
    kernel_version = Text(3)
    cpu_model = Text(4)
    num_cpus = UInt32(5)
    total_memory = UInt64(6)
    available_memory = UInt64(7)
    used_memory = UInt64(8)
    free_memory = UInt64(9)
    total_swap = UInt64(10)
    used_swap = UInt64(11)
    free_swap = UInt64(12)
    uptime = UInt64(13)
    loadavg_one = UInt32(14)
    loadavg_five = UInt32(15)
    loadavg_fifteen = UInt32(16)
    disks = Repeated(17, DiskInfo)


class IpAddress(Message):
    address = Text(1)
    prefix = UInt32(2)


class GatewayInfo(Message):
    address = Text(1)


class InterfaceInfo(Message):
    name = Text(1)
    addresses = Repeated(2, IpAddress)
    rx_bytes = UInt64(3)
    tx_bytes = UInt64(4)
    rx_errors = UInt64(5)
    tx_errors = UInt64(6)


class NetworkInformation(Message):
    dns_servers = Repeated(1, Text(0))
    gateways = Repeated(2, GatewayInfo)
    interfaces = Repeated(3, InterfaceInfo)
    wg_info = Text(4)


class ContainerInfo(Message):
    id = Text(1)
    names = Repeated(2, Text(0))
    image = Text(3)
    image_id = Text(4)
    created = Int64(6)
    state = Text(7)
    status = Text(8)


class ListContainersResponse(Message):
    containers = Repeated(1, ContainerInfo)
