"""The verbs of the KMS: who asks is known by evidence, what he gets is derived, and that he got it is recorded.

Source: kms.md sections 2 to 5.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import multiprocessing
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_der_public_key

from attest import csr, ratls
from attest.boot_info import SEV_SNP, BootInfo
from attest.csr import CertRequest
from attest.evidence import Attestation
from attest.verified import Trust, Verified, verify_evidence
from core import certs
from core.certs import Leaf
from core.errors import Invalid
from core.kdf import pkcs8_pem
from kms import attester as attesters
from kms import audit, authz, derive, envkeys, judge, rootkeys
from kms import certs as kms_certs
from kms.attester import Attester
from kms.certs import Authority
from kms.decision import Authorizer, Decision
from kms.derive import RootKeys
from kms.envkeys import EnvKey
from kms.judge import Judge
from kms.schemas import AppKeyRequest, CertificateRequest
from kms.settings import Settings
from kms.trust import Trusting

logger = logging.getLogger(__name__)

AWS_NITRO_TPM = "dstack-aws-nitro-tpm"
BOOTSTRAP_INFO = "bootstrap-info.json"


class Counters:
    """Two numbers that all worker processes share."""

    def __init__(self) -> None:
        self.requests = multiprocessing.Value("Q", 0)
        self.failures = multiprocessing.Value("Q", 0)

    def count(self, *, failed: bool) -> None:
        """One call that needs evidence has ended."""
        for counter in (self.requests, self.failures) if failed else (self.requests,):
            with counter.get_lock():
                counter.value += 1


@dataclass(frozen=True)
class Caller:
    """Who asks: the evidence in his client certificate; None for one that shows none."""

    evidence: Attestation | None = None


class KmsService:
    """A KMS that has its keys."""

    def __init__(
        self,
        settings: Settings,
        keys: RootKeys,
        authority: Authority,
        authorizer: Authorizer,
        attester: Attester | None,
        trusting: Trusting,
    ) -> None:
        self.settings = settings
        self.counters = Counters()
        self._keys = keys
        self._authority = authority
        self._authorizer = authorizer
        self._attester = attester
        self._trusting = trusting
        self._judge = Judge(trusting.now)
        self._audit = audit.AuditLog(settings.audit_log)
        self._own_boot: BootInfo | None = None
        self._finding_out = threading.Lock()

    @classmethod
    def opened(cls, settings: Settings, version: str) -> KmsService:
        """The KMS of a data directory with keys; its certificates are prepared and its own leaf made anew."""
        folder = settings.core.cert_dir
        keys = rootkeys.load(folder)
        authority = kms_certs.prepare(folder, keys)
        attester = attesters.of(settings)
        own = kms_certs.rpc_key(folder)
        shown = []
        if attester is not None and settings.core.attest_rpc_cert:
            shown.append(attesters.extension(attester, own.public_key()))
        kms_certs.issue_rpc(folder, authority.root, shown, own)
        authorizer = authz.of(settings.core.auth_api, version)
        kms = cls(settings, keys, authority, authorizer, attester, Trusting(settings))
        if settings.core.enforce_self_authorization:
            # What the operator must allow for this KMS to do anything.
            logger.info("this KMS is %s", json.dumps(kms._own_boot_info().to_json()))
        return kms

    # For anyone

    def get_meta(self) -> Mapping[str, Any]:
        """GetMeta."""
        policy = self._authorizer.policy()
        return {
            "ca_cert": self._authority.ca_cert,
            "allow_any_upgrade": self._authorizer.is_dev,
            "k256_pubkey": self._keys.k256_public,
            "bootstrap_info": bootstrap_info(self.settings.core.cert_dir),
            "is_dev": self._authorizer.is_dev,
            "gateway_app_id": policy.gateway_app_id,
            "kms_contract_address": policy.kms_contract,
            "chain_id": policy.chain_id,
            "app_auth_implementation": policy.app_implementation,
        }

    def get_temp_ca_cert(self) -> Mapping[str, str]:
        """GetTempCaCert."""
        return {
            "temp_ca_cert": self._authority.tmp_ca_cert,
            "temp_ca_key": self._authority.tmp_ca_key,
            "ca_cert": self._authority.ca_cert,
        }

    def get_app_env_encrypt_pub_key(self, app_id: bytes) -> EnvKey:
        """GetAppEnvEncryptPubKey."""
        return envkeys.env_key(self._keys, app_id, int(time.time()))

    # For whom the evidence speaks

    def get_app_key(self, caller: Caller, asked: AppKeyRequest) -> Mapping[str, Any]:
        """GetAppKey: the keys of the app that the caller's evidence shows it to be."""
        if asked.api_version > 1:
            raise Invalid.field("api_version", "must be 0 or 1")
        self._check_self()
        evidence = _shown(caller, asked.vm_config)
        shown = self._judge.verified_of_caller(evidence)
        boot, decision = self._allowed(self._authorizer.app, shown.boot_info)
        self._judge.check_image(evidence)
        keys = derive.app_keys(self._keys, boot.app_id, boot.instance_id)
        self._check_gates(boot)
        self._audit.record("GetAppKey", boot, shown)
        return {
            "ca_cert": self._authority.ca_cert,
            "disk_crypt_key": keys.disk_crypt_key,
            "env_crypt_key": keys.env_crypt_key,
            "k256_key": keys.k256_key,
            "k256_signature": keys.k256_signature,
            "gateway_app_id": decision.gateway_app_id,
            "tproxy_app_id": decision.gateway_app_id,
            "os_image_hash": boot.os_image_hash,
        }

    def get_kms_key(self, caller: Caller, vm_config: str) -> Mapping[str, Any]:
        """GetKmsKey: everything, to another KMS."""
        self._check_self()
        evidence = _shown(caller, vm_config)
        shown = self._judge.verified_of_caller(evidence)
        boot, _ = self._allowed(self._authorizer.kms, shown.boot_info)
        self._judge.check_image(evidence)
        self._check_gates(boot)
        self._audit.record("GetKmsKey", boot, shown)
        pair = {"ca_key": pkcs8_pem(self._keys.ca), "k256_key": self._keys.k256}
        return {"temp_ca_key": self._authority.tmp_ca_key, "keys": [pair]}

    def sign_cert(self, asked: CertificateRequest) -> Mapping[str, Any]:
        """SignCert: a leaf for a key of the app that the evidence in the request shows."""
        if asked.api_version not in (1, 2):
            raise Invalid.field("api_version", "must be 1 or 2")
        self._check_self()
        request = csr.decode(asked.csr, asked.api_version)
        public_key = signed_by(request, asked.csr, asked.signature)
        evidence = _with_config(request.attestation, asked.vm_config)
        judge.check_bound(evidence, request.spki)
        shown = self._judge.verified(evidence)
        # The app asks while it boots and after: only what it was then stays the same.
        boot, _ = self._allowed(self._authorizer.app, shown.boot_time_info)
        self._judge.check_image(evidence)
        # A certificate of the app's CA says as much of its holder as the app's keys do.
        self._check_gates(boot)
        issuer = kms_certs.app_ca(self._authority.root, self._keys, boot.app_id)
        leaf = issuer.issue(public_key, leaf_of(request, shown))
        self._audit.record("SignCert", boot, shown)
        return {"certificate_chain": [leaf, certs.pem(issuer.certificate), self._authority.ca_cert]}

    def caller(self, certificate_der: bytes | None) -> Caller:
        """Who the client certificate of a connection says he is; Invalid when its evidence is no good."""
        return Caller() if certificate_der is None else Caller(judge.shown(certificate_der))

    def check(self, caller: Caller) -> None:
        """Verifies the evidence of a caller who asks for nothing that it is needed for."""
        if caller.evidence is not None:
            self._judge.verified_of_caller(caller.evidence)

    # Steps

    def _check_self(self) -> None:
        """Self-authorisation: whether we may hold keys at all, asked anew each time."""
        if not self.settings.core.enforce_self_authorization:
            return
        decision = self._authorizer.kms(self._own_boot_info())
        if not decision.is_allowed:
            raise Invalid(f"this KMS is not allowed: {decision.reason}")

    def _own_boot_info(self) -> BootInfo:
        with self._finding_out:
            if self._own_boot is None:
                assert self._attester is not None  # attesters.of() has seen to it
                self._own_boot = own_boot_info(self._attester, self._trusting.now())
            return self._own_boot

    def _allowed(
        self, ask: Callable[[BootInfo], Decision], boot: BootInfo | None
    ) -> tuple[BootInfo, Decision]:
        assert boot is not None  # valid evidence has one
        decision = ask(boot)
        if not decision.is_allowed:
            raise Invalid(f"Boot denied: {decision.reason}")
        return boot, decision

    def _check_gates(self, boot: BootInfo) -> None:
        core = self.settings.core
        gates = {
            SEV_SNP: ("sev_snp_key_release", core.sev_snp_key_release),
            AWS_NITRO_TPM: ("aws_nitro_tpm_key_release", core.aws_nitro_tpm_key_release),
        }
        name, is_open = gates.get(boot.tee_variant, ("", True))
        if not is_open:
            raise Invalid(f"keys are not released to {boot.tee_variant} ({name} is off)")


def _shown(caller: Caller, config: str) -> Attestation:
    if caller.evidence is None:
        raise Invalid("No attestation provided")
    return _with_config(caller.evidence, config)


def _with_config(evidence: Attestation, config: str) -> Attestation:
    # Neither is believed: what it says of the image is compared with the measurements.
    return dataclasses.replace(evidence, config=config) if config else evidence


def own_boot_info(attester: Attester, others: Trust) -> BootInfo:
    """What this KMS is, from evidence of its own; Invalid when that does not hold."""
    trust = dataclasses.replace(attester.trust(others), check_image=False)
    boot = judge.valid(verify_evidence(attester.attestation(bytes(64)), trust)).boot_info
    assert boot is not None  # valid evidence has one
    return boot


def signed_by(request: CertRequest, raw: bytes, signature: bytes) -> ec.EllipticCurvePublicKey:
    """The key of a certificate request that signed its bytes; Invalid when it did not or is no P-256 key."""
    try:
        key = load_der_public_key(request.spki)
    except (ValueError, UnsupportedAlgorithm):
        raise Invalid.field("csr", "its public key cannot be read") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise Invalid.field("csr", "its public key is not of P-256")
    try:
        key.verify(signature, raw, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        raise Invalid.field("signature", "is not the key's over the request") from None
    return key


def leaf_of(request: CertRequest, shown: Verified) -> Leaf:
    """What the certificate is to say: what was asked, the app that asked, and his evidence where he wants it."""
    info = shown.app_info
    assert info is not None  # valid evidence has one
    extensions = [
        ratls.app_id_extension(info.app_id),
        ratls.usage_extension(kms_certs.USAGE_APP),
    ]
    if request.ext_quote:
        extensions.append(ratls.attestation_extension(request.attestation))
    if request.ext_app_info:
        extensions.append(ratls.app_info_extension(_app_info(shown)))
    return Leaf(
        subject=request.subject,
        alt_names=request.alt_names,
        server_auth=request.server_auth,
        client_auth=request.client_auth,
        not_before=request.not_before,
        not_after=request.not_after,
        extensions=extensions,
        organization=request.org_name or "",
    )


def _app_info(shown: Verified) -> ratls.AppInfo:
    info = shown.app_info
    assert info is not None  # as above
    return ratls.AppInfo(
        app_id=info.app_id,
        compose_hash=info.compose_hash,
        instance_id=info.instance_id,
        device_id=info.device_id,
        mr_system=info.mr_system,
        mr_aggregated=info.mr_aggregated,
        os_image_hash=info.os_image_hash,
        key_provider_info=info.key_provider_info,
    )


def bootstrap_info(folder: Path) -> Mapping[str, bytes] | None:
    """What Bootstrap answered when the keys were made; None where they came from elsewhere."""
    try:
        given = json.loads((folder / BOOTSTRAP_INFO).read_text())
        return {
            name: bytes.fromhex(given[name]) for name in ("ca_pubkey", "k256_pubkey", "attestation")
        }
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        logger.warning("%s cannot be read and is left out", BOOTSTRAP_INFO)
        return None
