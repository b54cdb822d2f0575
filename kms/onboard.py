"""How a KMS without keys comes by them: it makes its own, or takes over those of a running one.

Source: kms.md section 3 ("Onboarding service").
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from attest import envelope, pck, ratls
from attest.errors import VerificationError
from attest.evidence import TdxEvidence
from attest.quote import parse as parse_quote
from attest.verified import verify_evidence
from core import certs, files, k256, kms_client
from core.errors import Conflict, Invalid, Upstream
from kms import attester as attesters
from kms import authz, rootkeys
from kms import certs as kms_certs
from kms.attester import Attester
from kms.derive import RootKeys
from kms.service import BOOTSTRAP_INFO, own_boot_info
from kms.settings import Settings, check_domain
from kms.trust import Trusting

logger = logging.getLogger(__name__)


class Onboarding:
    """A KMS that has no keys yet; `finish` ends the service that asks the operator."""

    def __init__(self, settings: Settings, version: str, finish: Callable[[], None]) -> None:
        self._settings = settings
        self._folder = settings.core.cert_dir
        self._attester = attesters.of(settings)
        self._authorizer = authz.of(settings.core.auth_api, version)
        self._trusting = Trusting(settings)
        self._finish = finish
        # Two calls at once must not describe one pair of keys and keep another.
        self._taking_keys = threading.Lock()

    def bootstrap(self, domain: str) -> Mapping[str, Any]:
        """Bootstrap: new root keys for a KMS of this domain, with evidence over their public halves."""
        check_domain(domain)
        with self._taking_keys:
            self._check_empty()
            keys = rootkeys.create()
            info = self._describe(keys)
            said = json.dumps({name: value.hex() for name, value in info.items()})
            files.write_atomic(self._made_folder() / BOOTSTRAP_INFO, said, 0o644)
            self._keep(keys, ec.generate_private_key(ec.SECP256R1()), domain)
        logger.info("new root keys were made for %s", domain)
        return info

    def onboard(self, source_url: str, domain: str) -> Mapping[str, Any]:
        """Onboard: the keys of the KMS at an address, which must prove to be one that we may trust."""
        check_domain(domain)
        self._check_empty()
        if self._attester is None:
            raise Invalid(
                "this KMS has no TEE, and no other one gives its keys to one that has none"
            )
        attester = self._attester
        met = kms_client.Kms(source_url).introduction()
        client = kms_client.client_certificate(met, lambda key: attesters.extension(attester, key))
        source = kms_client.Kms(source_url, met.ca_cert, self._check_source)
        keys, tmp_ca_key = read_keys(source.call("GetKmsKey", {"vm_config": ""}, client))
        if (
            x509.load_pem_x509_certificate(met.ca_cert.encode()).public_key()
            != keys.ca.public_key()
        ):
            raise Upstream("the keys that the KMS gave are not those of its certificate")
        with self._taking_keys:
            self._check_empty()
            # What a bootstrap that was cut off left tells of other keys.
            (self._made_folder() / BOOTSTRAP_INFO).unlink(missing_ok=True)
            self._keep(keys, tmp_ca_key, domain)
        logger.info("the root keys of %s were taken over", source_url)
        return {"ca_pubkey": certs.spki_der(keys.ca.public_key()), "k256_pubkey": keys.k256_public}

    def attestation_info(self) -> Mapping[str, Any]:
        """GetAttestationInfo: what this KMS is, for whoever is to allow it."""
        if self._attester is None:
            raise Invalid("this KMS has no TEE, so there is nothing to attest")
        boot = own_boot_info(self._attester, self._trusting.now())
        policy = self._authorizer.policy()
        return {
            "device_id": boot.device_id,
            "mr_aggregated": boot.mr_aggregated,
            "os_image_hash": boot.os_image_hash,
            "tee_variant": boot.tee_variant,
            "site_name": self._settings.core.site_name,
            "eth_rpc_url": policy.eth_rpc_url,
            "kms_contract_address": policy.kms_contract,
            "ppid": _ppid(self._attester),
        }

    def finish(self) -> None:
        """Finish: the KMS goes on with the keys it has; Conflict while it has none."""
        if not rootkeys.exist(self._folder):
            raise Conflict("this KMS has no keys yet: bootstrap or onboard it first")
        self._finish()

    def _check_empty(self) -> None:
        if rootkeys.exist(self._folder):
            raise Conflict("this KMS has its keys already")

    def _made_folder(self) -> Any:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder.chmod(0o700)
        return self._folder

    def _keep(self, keys: RootKeys, tmp_ca_key: ec.EllipticCurvePrivateKey, domain: str) -> None:
        # The keys last: with them the KMS is one.
        files.write_atomic(self._made_folder() / kms_certs.DOMAIN, domain, 0o644)
        rootkeys.save(self._folder, keys, tmp_ca_key)

    def _describe(self, keys: RootKeys) -> dict[str, bytes]:
        ca_pubkey, k256_pubkey = certs.spki_der(keys.ca.public_key()), keys.k256_public
        attestation = b""
        if self._attester is not None:
            digest = k256.keccak256(bootstrap_text(ca_pubkey, k256_pubkey))
            attestation = envelope.encode(self._attester.attestation(digest.ljust(64, b"\0")))
        return {"ca_pubkey": ca_pubkey, "k256_pubkey": k256_pubkey, "attestation": attestation}

    def _check_source(self, certificate: x509.Certificate) -> None:
        """Refuses (Upstream) a server that is no KMS of ours, before anything is asked of it."""
        try:
            found = ratls.read(certificate)
            evidence = found.evidence()
        except VerificationError as error:
            raise Upstream(f"the certificate of that KMS cannot be read: {error}") from None
        public_key = certificate.public_key()
        if found.usage != kms_certs.USAGE_RPC or not isinstance(
            public_key, ec.EllipticCurvePublicKey
        ):
            raise Upstream("the server's certificate is not that of a KMS")
        if evidence is None:
            raise Upstream("the certificate of that KMS carries no attestation")
        if evidence.report_data != ratls.report_data_for_key(certs.spki_der(public_key)):
            raise Upstream("the attestation of that KMS was not made for its key")
        verified = verify_evidence(evidence, self._trusting.now())
        if verified.boot_info is None:
            raise Upstream(f"the attestation of that KMS is not valid: {verified.reason}")
        decision = self._authorizer.kms(verified.boot_info)
        if not decision.is_allowed:
            raise Upstream(f"that KMS is not allowed: {decision.reason}")


def bootstrap_text(ca_pubkey: bytes, k256_pubkey: bytes) -> bytes:
    """What the report data of Bootstrap's attestation hashes; the misspelling is on the wire."""
    return f"dstack-kms-genereted-keys-v1:{ca_pubkey.hex()};{k256_pubkey.hex()};".encode()


def read_keys(said: Mapping[str, Any]) -> tuple[RootKeys, ec.EllipticCurvePrivateKey]:
    """The root keys and the temporary CA's key out of GetKmsKey's answer; Upstream when they are not there."""
    try:
        pair = said["keys"][0]
        ca = rootkeys.read_key(pair["ca_key"].encode(), "ca_key")
        keys = rootkeys.from_bytes(ca, bytes.fromhex(pair["k256_key"]))
        return keys, rootkeys.read_key(said["temp_ca_key"].encode(), "temp_ca_key")
    except (KeyError, IndexError, TypeError, AttributeError, ValueError, Invalid):
        raise Upstream("the answer of that KMS holds no keys") from None


def _ppid(attester: Attester) -> bytes:
    platform = attester.attestation(bytes(64)).platform
    if not isinstance(platform, TdxEvidence):
        return b""
    return pck.platform(pck.certificates(parse_quote(platform.quote).pck_chain_pem)[0]).ppid
