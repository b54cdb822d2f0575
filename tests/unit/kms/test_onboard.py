"""Giving a KMS its keys: new ones, and what is refused on the way to another's."""

from __future__ import annotations

import contextlib
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from attest import envelope, ratls
from attest.evidence import SnpEvidence
from attest.verified import verify_evidence
from core import certs, files, k256, kms_client
from core.certs import Issuer, Leaf
from core.errors import Conflict, Invalid, Upstream
from core.kdf import pkcs8_pem
from core.prpc import Message, instance
from kms import attester, onboard, rootkeys, schemas
from kms.authz import Decision
from kms.derive import RootKeys
from kms.judge import Judge
from kms.onboard import Onboarding
from kms.service import KmsService
from kms.settings import AttestationSettings, RootCas, Settings
from kms.trust import Trusting
from tests.unit.kms.conftest import Deciding, Guest, leaf_under


@pytest.fixture
def ended() -> list[str]:
    return []


@pytest.fixture
def onboarding(settings: Settings, deciding: Deciding, ended: list[str]) -> Onboarding:
    return Onboarding(settings, "1", lambda: ended.append("end"))


def test_bootstrap_makes_keys_and_proves_their_public_halves(
    onboarding: Onboarding, settings: Settings
) -> None:
    said = onboarding.bootstrap("kms.example")

    root = rootkeys.load(settings.core.cert_dir)
    assert said["ca_pubkey"] == certs.spki_der(root.ca.public_key())
    assert said["k256_pubkey"] == root.k256_public
    text = f"dstack-kms-genereted-keys-v1:{said['ca_pubkey'].hex()};{said['k256_pubkey'].hex()};"
    evidence = envelope.decode(said["attestation"])
    assert evidence.report_data == k256.keccak256(text.encode()) + bytes(32)
    own = attester.Simulated(settings.tee_dir).trust(Trusting(settings).now())
    assert verify_evidence(evidence, own).is_valid
    kept = json.loads((settings.core.cert_dir / "bootstrap-info.json").read_text())
    assert kept == {name: value.hex() for name, value in said.items()}
    assert (settings.core.cert_dir / "rpc-domain").read_text() == "kms.example"


def test_bootstrap_is_done_once(onboarding: Onboarding) -> None:
    onboarding.bootstrap("kms.example")

    for again in (
        lambda: onboarding.bootstrap("kms.example"),
        lambda: onboarding.onboard("https://kms.example", "kms.example"),
    ):
        with pytest.raises(Conflict, match="has its keys already"):
            again()


def test_two_bootstraps_at_once_make_one_pair_of_keys(
    onboarding: Onboarding, monkeypatch: pytest.MonkeyPatch
) -> None:
    create, both = rootkeys.create, threading.Barrier(2)
    made: list[RootKeys] = []

    def slowly() -> RootKeys:
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait(timeout=0.5)
        made.append(create())
        return made[-1]

    monkeypatch.setattr(rootkeys, "create", slowly)
    with ThreadPoolExecutor(2) as pool:
        outcomes = [pool.submit(onboarding.bootstrap, "kms.example") for _ in range(2)]

    assert len(made) == 1
    assert sorted(type(outcome.exception()) for outcome in outcomes if outcome.exception()) == [
        Conflict
    ]


@pytest.mark.parametrize("step", range(5))
def test_a_crash_while_keys_are_made_costs_nothing(
    onboarding: Onboarding, settings: Settings, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    write, steps = files.write_atomic, iter(range(100))

    def dies(*given: Any, **how: Any) -> None:
        if next(steps) == step:
            raise KeyboardInterrupt
        write(*given, **how)

    with monkeypatch.context() as crash:
        crash.setattr(files, "write_atomic", dies)
        with pytest.raises(KeyboardInterrupt):
            onboarding.bootstrap("kms.example")
    assert not rootkeys.exist(settings.core.cert_dir)

    said = onboarding.bootstrap("kms.example")

    assert rootkeys.load(settings.core.cert_dir).k256_public == said["k256_pubkey"]


def test_a_bad_domain_makes_no_keys(onboarding: Onboarding, settings: Settings) -> None:
    for ask in (
        lambda: onboarding.bootstrap("no domain"),
        lambda: onboarding.onboard("https://kms.example", "no domain"),
    ):
        with pytest.raises(Invalid, match="domain"):
            ask()

    assert not rootkeys.exist(settings.core.cert_dir)


def test_finish_waits_for_keys(onboarding: Onboarding, ended: list[str]) -> None:
    with pytest.raises(Conflict, match="no keys yet"):
        onboarding.finish()
    assert not ended

    onboarding.bootstrap("kms.example")
    onboarding.finish()
    assert ended == ["end"]


def test_the_operator_is_told_what_to_allow(onboarding: Onboarding, settings: Settings) -> None:
    info = onboarding.attestation_info()

    assert info["tee_variant"] == "dstack-tdx"
    assert len(info["device_id"]) == len(info["mr_aggregated"]) == 32
    assert len(info["ppid"]) == 16
    assert info["os_image_hash"] == attester.SIMULATED_IMAGE
    assert (info["kms_contract_address"], info["eth_rpc_url"]) == ("0xabc", "https://chain")


@pytest.fixture
def without_tee(settings: Settings, deciding: Deciding) -> Onboarding:
    core = replace(
        settings.core, simulate=False, attest_rpc_cert=False, enforce_self_authorization=False
    )
    return Onboarding(replace(settings, core=core), "1", lambda: None)


def test_a_kms_without_a_tee_makes_keys_but_is_given_none(without_tee: Onboarding) -> None:
    with pytest.raises(Invalid, match="has no TEE"):
        without_tee.attestation_info()
    with pytest.raises(Invalid, match="has no TEE"):
        without_tee.onboard("https://kms.example", "kms.example")

    assert without_tee.bootstrap("kms.example")["attestation"] == b""


def test_a_kms_that_cannot_prove_what_it_must_does_not_start(
    settings: Settings, deciding: Deciding
) -> None:
    for wanted in ("attest_rpc_cert", "enforce_self_authorization"):
        off = {"attest_rpc_cert": False, "enforce_self_authorization": False, wanted: True}
        core = replace(settings.core, simulate=False, **off)
        with pytest.raises(Invalid, match="there is no guest agent at"):
            Onboarding(replace(settings, core=core), "1", lambda: None)


# Which server we take keys from


@pytest.fixture
def issuer() -> Issuer:
    key = ec.generate_private_key(ec.SECP256R1())
    text = certs.authority(key, certs.name("root"), path_length=1)
    return Issuer(key, x509.load_pem_x509_certificate(text.encode()))


def server(
    issuer: Issuer, guest: Guest, usage: str = "kms:rpc", bound: object = None
) -> x509.Certificate:
    key = ec.generate_private_key(ec.SECP256R1())
    attested: Any = bound or key.public_key()
    extensions = [ratls.usage_extension(usage), guest.extension(attested)]
    return leaf_under(issuer, key, Leaf("kms.example", extensions=extensions))


def test_a_kms_that_proves_itself_and_is_allowed_is_taken(
    onboarding: Onboarding, issuer: Issuer, guest: Guest, deciding: Deciding
) -> None:
    onboarding._check_source(server(issuer, guest))

    assert deciding.asked_of_kms[-1].app_id == guest.events[1][1]


def test_a_server_that_is_no_kms_of_ours_is_refused(
    onboarding: Onboarding, issuer: Issuer, guest: Guest, deciding: Deciding
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    other = ec.generate_private_key(ec.SECP256R1()).public_key()
    plain = leaf_under(issuer, key, Leaf("x", extensions=[ratls.usage_extension("kms:rpc")]))
    broken = leaf_under(
        issuer, key, Leaf("x", extensions=[x509.UnrecognizedExtension(ratls.USAGE, b"\xff")])
    )
    cut = replace(guest, events=guest.events[2:])
    cases = {
        "is not that of a KMS": server(issuer, guest, "app:custom"),
        "carries no attestation": plain,
        "cannot be read": broken,
        "not made for its key": server(issuer, guest, bound=other),
        "is not valid: .*app-id": server(issuer, cut),
    }
    for reason, certificate in cases.items():
        with pytest.raises(Upstream, match=reason):
            onboarding._check_source(certificate)
    assert not deciding.asked_of_kms

    deciding.of_kms = Decision(False, "aggregated MR not allowed")
    with pytest.raises(Upstream, match="not allowed: aggregated MR not allowed"):
        onboarding._check_source(server(issuer, guest))


def test_a_kms_with_another_kind_of_key_is_refused(onboarding: Onboarding, issuer: Issuer) -> None:
    public: Any = rsa.generate_private_key(65537, 2048).public_key()
    builder = (
        x509.CertificateBuilder()
        .subject_name(certs.name("x"))
        .issuer_name(issuer.certificate.subject)
        .public_key(public)
        .serial_number(1)
        .not_valid_before(certs.NOT_BEFORE)
        .not_valid_after(issuer.certificate.not_valid_after_utc)
        .add_extension(ratls.usage_extension("kms:rpc"), critical=False)
    )

    with pytest.raises(Upstream, match="not that of a KMS"):
        onboarding._check_source(builder.sign(issuer.key, hashes.SHA256()))


class InProcess:
    """A KMS that is asked without a network."""

    def __init__(self, kms: KmsService, other_root: str = "") -> None:
        self._kms = kms
        self._other_root = other_root

    def __call__(self, url: str, ca_cert: str = "", check_server: object = None) -> InProcess:
        return self

    def introduction(self) -> kms_client.Introduction:
        said = dict(self._kms.get_temp_ca_cert())
        return kms_client.Introduction(**{**said, "ca_cert": self._other_root or said["ca_cert"]})

    def call(self, method: str, params: dict[str, str], client: tuple[str, str]) -> Any:
        der = x509.load_pem_x509_certificate(client[0].encode()).public_bytes(Encoding.DER)
        given = self._kms.get_kms_key(self._kms.caller(der), **params)
        return load(schemas.KmsKeyResponse, given)


def load(schema: type[Message], answer: object) -> Any:
    """An answer as it is after its way over the wire."""
    return json.loads(json.dumps(instance(schema).dump(answer)))


def test_the_keys_of_a_running_kms_are_taken_over(
    kms: KmsService, settings: Settings, deciding: Deciding, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = replace(settings.core, cert_dir=settings.data_dir / "second")
    second = Onboarding(_same_machine(replace(settings, core=there)), "1", lambda: None)
    monkeypatch.setattr(kms_client, "Kms", InProcess(_believing_itself(kms)))

    said = second.onboard("https://first.example", "second.example")

    root = rootkeys.load(there.cert_dir)
    assert said == {
        "ca_pubkey": certs.spki_der(root.ca.public_key()),
        "k256_pubkey": kms.get_meta()["k256_pubkey"],
    }
    assert (there.cert_dir / "rpc-domain").read_text() == "second.example"
    assert not (there.cert_dir / "bootstrap-info.json").exists()


def test_keys_of_another_root_than_was_shown_are_not_taken(
    kms: KmsService, settings: Settings, deciding: Deciding, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = replace(settings.core, cert_dir=settings.data_dir / "second")
    second = Onboarding(_same_machine(replace(settings, core=there)), "1", lambda: None)
    stranger = certs.authority(rootkeys.create().ca, certs.name("x"), path_length=1)
    monkeypatch.setattr(kms_client, "Kms", InProcess(_believing_itself(kms), stranger))

    with pytest.raises(Upstream, match="are not those of its certificate"):
        second.onboard("https://first.example", "second.example")

    assert not rootkeys.exist(there.cert_dir)


def _same_machine(settings: Settings) -> Settings:
    """The simulated TEE of the KMS is the one that is believed."""
    tee = settings.tee_dir
    attester.Simulated(tee)
    trust = AttestationSettings(RootCas(tee / "tee-root-ca.pem"), True, tee / "tee-collateral.json")
    return replace(settings, core=replace(settings.core, attestation=trust))


def _believing_itself(kms: KmsService) -> KmsService:
    kms._judge = Judge(Trusting(_same_machine(kms.settings)).now)
    return kms


def test_a_platform_without_a_quote_has_no_ppid(guest: Guest) -> None:
    class Snp:
        def attestation(self, report_data: bytes) -> Any:
            return replace(guest.attestation(report_data), platform=SnpEvidence(b"", (), ""))

    assert onboard._ppid(Snp()) == b""  # type: ignore[arg-type] # as much as is used


# What it answers


def test_keys_are_read_out_of_the_answer() -> None:
    root, temp = rootkeys.create(), ec.generate_private_key(ec.SECP256R1())
    said = {
        "temp_ca_key": pkcs8_pem(temp),
        "keys": [{"ca_key": pkcs8_pem(root.ca), "k256_key": root.k256.hex()}],
    }

    keys, tmp_ca_key = onboard.read_keys(said)

    assert (pkcs8_pem(keys.ca), keys.k256) == (pkcs8_pem(root.ca), root.k256)
    assert pkcs8_pem(tmp_ca_key) == said["temp_ca_key"]


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"keys": []},
        {"keys": {}},
        {"keys": ["x"]},
        {"keys": [{"ca_key": 5, "k256_key": ""}]},
        {"keys": [{"ca_key": "no key", "k256_key": "00"}]},
    ],
)
def test_an_answer_without_keys_is_refused(said: dict[str, Any]) -> None:
    with pytest.raises(Upstream, match="holds no keys"):
        onboard.read_keys(said)
