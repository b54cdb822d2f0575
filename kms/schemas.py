"""The messages of the KMS, its onboarding and its admin service.

Names: kms.md section 3; field numbers: dstack's kms_rpc.proto (312dc605).
"""

from __future__ import annotations

from dataclasses import dataclass

from core.prpc import Flag, HexBytes, Message, Nested, Repeated, Text, UInt32, UInt64


@dataclass(frozen=True)
class AppKeyRequest:
    """Which keys an attested app asks for."""

    api_version: int = 0
    vm_config: str = ""


@dataclass(frozen=True)
class CertificateRequest:
    """An encoded request for a certificate, signed by the key to be certified."""

    api_version: int = 0
    csr: bytes = b""
    signature: bytes = b""
    vm_config: str = ""


class AppId(Message):
    """An app."""

    app_id = HexBytes(1)


class PublicKeyResponse(Message):
    """The key that an app's environment is encrypted to."""

    public_key = HexBytes(1)
    signature = HexBytes(2)
    timestamp = UInt64(3)
    signature_v1 = HexBytes(4)


class GetAppKeyRequest(Message):
    """The request of GetAppKey."""

    makes = AppKeyRequest
    api_version = UInt32(1)
    vm_config = Text(2)


class AppKeyResponse(Message):
    """An app's keys."""

    ca_cert = Text(1)
    disk_crypt_key = HexBytes(2)
    env_crypt_key = HexBytes(3)
    k256_key = HexBytes(4)
    k256_signature = HexBytes(5)
    tproxy_app_id = Text(6)
    gateway_app_id = Text(7)
    os_image_hash = HexBytes(8)


class BootstrapResponse(Message):
    """The public halves of new root keys, with evidence over them."""

    ca_pubkey = HexBytes(1)
    k256_pubkey = HexBytes(2)
    attestation = HexBytes(3)


class GetMetaResponse(Message):
    """What a KMS says of itself."""

    ca_cert = Text(1)
    allow_any_upgrade = Flag(2)
    k256_pubkey = HexBytes(3)
    bootstrap_info = Nested(4, BootstrapResponse)
    is_dev = Flag(5)
    gateway_app_id = Text(6)
    kms_contract_address = Text(7)
    chain_id = UInt64(8)
    app_auth_implementation = Text(9)


class GetTempCaCertResponse(Message):
    """The CA under which strangers present evidence."""

    temp_ca_cert = Text(1)
    temp_ca_key = Text(2)
    ca_cert = Text(3)


class GetKmsKeyRequest(Message):
    """The request of GetKmsKey."""

    vm_config = Text(1)


class KmsKeys(Message):
    """A pair of root keys."""

    ca_key = Text(1)
    k256_key = HexBytes(2)


class KmsKeyResponse(Message):
    """What one KMS gives another."""

    temp_ca_key = Text(1)
    keys = Repeated(2, KmsKeys)


class SignCertRequest(Message):
    """The request of SignCert."""

    makes = CertificateRequest
    api_version = UInt32(1)
    csr = HexBytes(2)
    signature = HexBytes(3)
    vm_config = Text(4)


class SignCertResponse(Message):
    """Leaf, app CA and root in PEM."""

    certificate_chain = Repeated(1, Text(0))


class BootstrapRequest(Message):
    """The request of Bootstrap."""

    domain = Text(1)


class OnboardRequest(Message):
    """The request of Onboard."""

    source_url = Text(1)
    domain = Text(2)


class OnboardResponse(Message):
    """The public halves of the keys that were taken over."""

    ca_pubkey = HexBytes(1)
    k256_pubkey = HexBytes(2)


class AttestationInfoResponse(Message):
    """What this KMS is, for whoever is to allow it."""

    device_id = HexBytes(1)
    mr_aggregated = HexBytes(2)
    os_image_hash = HexBytes(3)
    tee_variant = Text(4)
    site_name = Text(5)
    eth_rpc_url = Text(6)
    kms_contract_address = Text(7)
    ppid = HexBytes(8)


@dataclass(frozen=True)
class CacheNames:
    """What to remove from the image cache: a hex name, `all`, or nothing."""

    image_hash: str = ""
    config_hash: str = ""


class ClearImageCacheRequest(Message):
    """The request of ClearImageCache."""

    makes = CacheNames
    image_hash = Text(2)
    config_hash = Text(3)
