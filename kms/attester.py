"""How a KMS proves itself: through the guest agent of the VM it runs in, or with a simulated TEE of its own.

Sources: guest-agent.md section 6 (Attest), kms.md section 8 (`simulate`).
"""

from __future__ import annotations

import hashlib
import json
import logging
import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from attest import envelope, eventlog, ratls
from attest.evidence import Attestation, TdxEvidence
from attest.verified import Trust
from core import certs, files, http
from core.errors import CasemateError, Invalid, Upstream
from kms.settings import Settings

logger = logging.getLogger(__name__)

CALL_S = 10.0
# Hex of an attestation, which has at most 10 MiB.
MAX_ANSWER = 21 * 1024 * 1024
SEED = "seed"
ROOT_CA = "tee-root-ca.pem"
COLLATERAL = "tee-collateral.json"
COLLATERAL_S = 6 * 3600.0
# What a simulated KMS says it is; the real one is the app that its VM boots.
_SIMULATED_APP = hashlib.sha256(b"casemate kms, simulated").digest()
SIMULATED_IMAGE = hashlib.sha256(b"image of a simulated casemate kms").digest()


class Attester(Protocol):
    """Whoever signs evidence for this KMS."""

    def attestation(self, report_data: bytes) -> Attestation:
        """Evidence over 64 bytes."""
        ...

    def trust(self, others: Trust) -> Trust:
        """What our own evidence is judged by, given what that of others is judged by."""
        ...


@dataclass(frozen=True)
class Agent:
    """The guest agent on its socket."""

    socket: Path

    def attestation(self, report_data: bytes) -> Attestation:
        """The agent's Attest; Upstream when it does not give any."""
        asked = json.dumps({"report_data": report_data.hex()}).encode()
        agent = http.Peer("http://agent/Attest", "the guest agent", unix=self.socket)
        try:
            answer = agent.ask("POST", asked, within_s=CALL_S, limit=MAX_ANSWER)
            raw = bytes.fromhex(json.loads(answer.body)["attestation"])
        except (CasemateError, ValueError, RecursionError, KeyError, TypeError):
            raise Upstream(f"the guest agent at {self.socket} gives no attestation") from None
        return envelope.decode(raw)

    def trust(self, others: Trust) -> Trust:
        """The same as for others."""
        return others


class Simulated:
    """A simulated TEE whose seed is kept in a folder, beside the root and collateral that verifiers need."""

    def __init__(self, folder: Path) -> None:
        from attest_sim.tdx import SIMULATED_MRTD, SimulatedPlatform, boot_events

        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        seed = files.write_once(folder / SEED, secrets.token_bytes(32))
        self._platform = SimulatedPlatform.from_seed(seed)
        self._mrtd = SIMULATED_MRTD
        self._events = (*boot_events(), *_runtime_events(hashlib.sha256(seed).digest()[:20]))
        self._rtmrs = tuple(eventlog.replay(self._events, imr) for imr in range(4))
        files.write_atomic(folder / ROOT_CA, self._platform.root_ca_pem, 0o644)
        self._collateral_file = folder / COLLATERAL
        files.write_atomic(self._collateral_file, self._collateral(), 0o644)

    def attestation(self, report_data: bytes) -> Attestation:
        """Evidence in the real layout under the simulated root."""
        self._renew_collateral()
        quote = self._platform.quote(report_data, mrtd=self._mrtd, rtmrs=self._rtmrs)
        runtime = tuple(event for event in self._events if event.is_runtime)
        config = json.dumps({"os_image_hash": SIMULATED_IMAGE.hex()})
        return Attestation(TdxEvidence(quote, self._events), runtime, report_data, config)

    def trust(self, others: Trust) -> Trust:
        """Our own root: this is about who we are, not about who may have keys."""
        now = int(time.time())
        return Trust(
            now=now,
            collateral=lambda claim: self._collateral(),
            tdx_root=self._platform.root_ca_der,
            check_image=False,
        )

    def _renew_collateral(self) -> None:
        # It is valid for days, and a KMS runs for years.
        if time.time() - self._collateral_file.stat().st_mtime > COLLATERAL_S:
            files.write_atomic(self._collateral_file, self._collateral(), 0o644)

    def _collateral(self) -> str:
        return self._platform.collateral_json(int(time.time()))


def _runtime_events(instance_id: bytes) -> tuple[eventlog.Event, ...]:
    provider = json.dumps({"name": "none", "id": ""}, separators=(",", ":")).encode()
    # guest-agent.md section 10: the order in which every guest measures itself.
    measured = (
        ("system-preparing", b""),
        ("app-id", _SIMULATED_APP[:20]),
        ("compose-hash", _SIMULATED_APP),
        ("instance-id", instance_id),
        ("boot-mr-done", b""),
        ("key-provider", provider),
        ("storage-fs", b"ext4"),
        ("system-ready", b""),
    )
    return tuple(eventlog.runtime_event(name, payload) for name, payload in measured)


def of(settings: Settings) -> Attester | None:
    """Who attests this KMS; None for one without a TEE, which must not claim to need one (else Invalid)."""
    core = settings.core
    if core.simulate:
        logger.warning("this KMS attests itself with a simulated TEE, which proves nothing")
        return Simulated(settings.tee_dir)
    if core.agent_socket.exists():
        return Agent(core.agent_socket)
    if core.attest_rpc_cert or core.enforce_self_authorization:
        raise Invalid(
            f"there is no guest agent at {core.agent_socket}, so this KMS cannot prove what it is: run it in "
            "a confidential VM, or set core.attest_rpc_cert and core.enforce_self_authorization to false"
        )
    logger.warning("this KMS runs outside of a TEE: whoever controls this machine has its keys")
    return None


def extension(attester: Attester, key: ec.EllipticCurvePublicKey) -> x509.UnrecognizedExtension:
    """The certificate extension that attests a key."""
    report_data = ratls.report_data_for_key(certs.spki_der(key))
    return ratls.attestation_extension(attester.attestation(report_data))
