"""The messages of the guest agent's services: current, legacy, Worker and guest API.

Names from seed 000 and dstack's agent_rpc.proto and guest_api.proto (312dc605); guest-agent.md sections 4 to 9.
"""

from __future__ import annotations

from attest.csr import MAX_ALT_NAMES
from core.prpc import Flag, HexBytes, Message, Repeated, Text, UInt64


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
