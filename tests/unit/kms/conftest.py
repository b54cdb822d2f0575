"""A KMS in a folder, evidence of a simulated guest, and the published answers."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from attest import eventlog, ratls
from attest.boot_info import BootInfo
from attest.evidence import Attestation, TdxEvidence
from attest_sim.tdx import SIMULATED_MRTD, SimulatedPlatform, boot_events
from core import certs, kms_client
from core.certs import Issuer, Leaf
from kms import authz, rootkeys
from kms.decision import Decision, Policy
from kms.onboard import Onboarding
from kms.service import KmsService
from kms.settings import (
    AttestationSettings,
    AuthSettings,
    CoreSettings,
    ImageSettings,
    RootCas,
    Settings,
)
from tests.unit.guest.conftest import known_answers, vectors

__all__ = ["known_answers", "vectors"]

SEED = bytes(range(32))
APP_ID = bytes.fromhex("5bb4ff9a3837357f19dc176407a5709c62eb6c56")
COMPOSE_HASH = hashlib.sha256(b"compose").digest()
INSTANCE_ID = bytes.fromhex("1691ed1b47506cad7d08834668691d88246f5b1f")
OS_IMAGE = hashlib.sha256(b"image").digest()
VM_CONFIG = json.dumps({"os_image_hash": OS_IMAGE.hex()})


@dataclass(frozen=True)
class Guest:
    """A simulated guest that shows evidence for whatever key it is given."""

    platform: SimulatedPlatform
    events: tuple[tuple[str, bytes], ...]
    config: str = VM_CONFIG

    def attestation(self, report_data: bytes) -> Attestation:
        """Evidence over 64 bytes."""
        runtime = tuple(eventlog.runtime_event(*event) for event in self.events)
        events = (*boot_events(), *runtime)
        rtmrs = tuple(eventlog.replay(events, imr) for imr in range(4))
        quote = self.platform.quote(report_data, mrtd=SIMULATED_MRTD, rtmrs=rtmrs)
        return Attestation(TdxEvidence(quote, events), runtime, report_data, self.config)

    def extension(self, key: ec.EllipticCurvePublicKey) -> x509.UnrecognizedExtension:
        """The certificate extension that attests a key."""
        data = ratls.report_data_for_key(certs.spki_der(key))
        return ratls.attestation_extension(self.attestation(data))

    def certificate(self, kms: KmsService) -> bytes:
        """A client certificate under the temporary CA of a KMS, in DER."""
        met = kms_client.Introduction(**_renamed(kms))
        chain, _ = kms_client.client_certificate(met, self.extension)
        return x509.load_pem_x509_certificate(chain.encode()).public_bytes(Encoding.DER)


def _renamed(kms: KmsService) -> dict[str, str]:
    return dict(kms.get_temp_ca_cert())


EVENTS = (
    ("system-preparing", b""),
    ("app-id", APP_ID),
    ("compose-hash", COMPOSE_HASH),
    ("instance-id", INSTANCE_ID),
    ("boot-mr-done", b""),
)


@pytest.fixture(scope="session")
def platform() -> SimulatedPlatform:
    return SimulatedPlatform.from_seed(SEED)


@pytest.fixture
def guest(platform: SimulatedPlatform) -> Guest:
    """A guest that has measured who it is and asks for keys."""
    return Guest(platform, EVENTS)


class Deciding:
    """An authoriser that says what a test wants, and keeps what it was asked."""

    is_dev = False

    def __init__(self) -> None:
        self.answer = Decision(True, gateway_app_id="gateway")
        self.of_kms = Decision(True)
        self.asked: list[BootInfo] = []
        self.asked_of_kms: list[BootInfo] = []

    def app(self, boot: BootInfo) -> Decision:
        self.asked.append(boot)
        return self.answer

    def kms(self, boot: BootInfo) -> Decision:
        self.asked_of_kms.append(boot)
        return self.of_kms

    def policy(self) -> Policy:
        return Policy("gateway", "0xabc", 7, "0xdef", "https://chain")


@pytest.fixture
def settings(tmp_path: Path, platform: SimulatedPlatform) -> Settings:
    """A KMS that believes the simulated platform, in a folder without keys."""
    (tmp_path / "root.pem").write_text(platform.root_ca_pem)
    (tmp_path / "collateral.json").write_text(platform.collateral_json(int(time.time())))
    core = CoreSettings(
        cert_dir=tmp_path / "certs",
        simulate=True,
        image=ImageSettings(verify=False, cache_dir=tmp_path / "cache"),
        auth_api=AuthSettings(type="dev"),
        attestation=AttestationSettings(
            RootCas(tmp_path / "root.pem"), True, tmp_path / "collateral.json"
        ),
    )
    return Settings(data_dir=tmp_path, core=core)


@pytest.fixture
def deciding(monkeypatch: pytest.MonkeyPatch) -> Deciding:
    """The authoriser of every KMS that the test opens."""
    made = Deciding()
    monkeypatch.setattr(authz, "of", lambda auth, version: made)
    return made


@pytest.fixture
def open_kms(settings: Settings, deciding: Deciding) -> Callable[..., KmsService]:
    """Opens the KMS of `settings`, bootstrapped the first time, with changes to its [core]."""

    def opened(**core: object) -> KmsService:
        given = replace(settings, core=replace(settings.core, **core))  # type: ignore[arg-type] # by name
        if not rootkeys.exist(given.core.cert_dir):
            Onboarding(given, "1", lambda: None).bootstrap("kms.example")
        return KmsService.opened(given, "1")

    return opened


@pytest.fixture
def kms(open_kms: Callable[..., KmsService]) -> KmsService:
    """A running KMS."""
    return open_kms()


def leaf_under(issuer: Issuer, key: ec.EllipticCurvePrivateKey, leaf: Leaf) -> x509.Certificate:
    """A certificate as a value."""
    return x509.load_pem_x509_certificate(issuer.issue(key.public_key(), leaf).encode())
