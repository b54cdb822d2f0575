"""The verbs of the KMS over real simulated evidence: who gets what, what is refused, what is recorded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from attest import envelope, mr_config, ratls, snp_launch
from attest.csr import CertRequest
from attest.evidence import Attestation, SnpEvidence
from attest_sim.tdx import SimulatedPlatform
from core import certs
from core.certs import Leaf
from core.errors import Invalid, Unavailable
from core.kdf import pkcs8_pem
from kms import derive, rootkeys
from kms.authz import Decision
from kms.schemas import AppKeyRequest, CertificateRequest
from kms.service import Caller, KmsService
from kms.settings import AttestationSettings, Settings
from tests.common import evidence
from tests.unit.kms.conftest import (
    APP_ID,
    COMPOSE_HASH,
    EVENTS,
    INSTANCE_ID,
    OS_IMAGE,
    VM_CONFIG,
    Deciding,
    Guest,
    leaf_under,
)

ASKED = AppKeyRequest(1, "")


def test_an_attested_app_gets_the_keys_of_its_evidence(
    kms: KmsService, guest: Guest, deciding: Deciding, settings: Settings
) -> None:
    given = kms.get_app_key(kms.caller(guest.certificate(kms)), ASKED)

    expected = derive.app_keys(rootkeys.load(settings.core.cert_dir), APP_ID, INSTANCE_ID)
    for name in ("disk_crypt_key", "env_crypt_key", "k256_key", "k256_signature"):
        assert given[name] == getattr(expected, name)
    assert (given["gateway_app_id"], given["tproxy_app_id"]) == ("gateway", "gateway")
    assert given["os_image_hash"] == OS_IMAGE
    (boot,) = deciding.asked
    assert (boot.app_id, boot.compose_hash, boot.instance_id) == (APP_ID, COMPOSE_HASH, INSTANCE_ID)
    assert boot.tcb_status == "UpToDate" and len(boot.device_id) == 32


def test_the_vm_config_of_the_request_wins_over_that_in_the_certificate(
    kms: KmsService, guest: Guest
) -> None:
    other = hashlib.sha256(b"another image").digest()
    asked = AppKeyRequest(1, json.dumps({"os_image_hash": other.hex()}))

    given = kms.get_app_key(kms.caller(guest.certificate(kms)), asked)

    assert given["os_image_hash"] == other


def test_each_release_is_recorded_before_it_and_holds_no_key(
    kms: KmsService, guest: Guest, settings: Settings
) -> None:
    given = kms.get_app_key(kms.caller(guest.certificate(kms)), ASKED)

    text = settings.audit_log.read_text()
    record = json.loads(text)
    assert (record["method"], record["root"]) == ("GetAppKey", "simulated")
    assert (record["appId"], record["composeHash"]) == (APP_ID.hex(), COMPOSE_HASH.hex())
    assert settings.audit_log.stat().st_mode & 0o777 == 0o600
    for name in ("disk_crypt_key", "env_crypt_key", "k256_key", "k256_signature"):
        assert given[name].hex() not in text


def test_nothing_is_released_when_the_record_cannot_be_written(
    kms: KmsService, guest: Guest, settings: Settings
) -> None:
    settings.audit_log.mkdir()

    with pytest.raises(Unavailable, match="the audit record cannot be written"):
        kms.get_app_key(kms.caller(guest.certificate(kms)), ASKED)


def test_a_denied_app_gets_the_reason_and_no_record(
    kms: KmsService, guest: Guest, deciding: Deciding, settings: Settings
) -> None:
    deciding.answer = Decision(False, "compose hash not allowed")

    with pytest.raises(Invalid, match="^Boot denied: compose hash not allowed$"):
        kms.get_app_key(kms.caller(guest.certificate(kms)), ASKED)

    assert not settings.audit_log.exists()


def test_a_decision_is_asked_for_anew_each_time(
    kms: KmsService, guest: Guest, deciding: Deciding
) -> None:
    caller = kms.caller(guest.certificate(kms))
    kms.get_app_key(caller, ASKED)
    deciding.answer = Decision(False, "no more")

    with pytest.raises(Invalid, match="no more"):
        kms.get_app_key(caller, ASKED)

    assert len(deciding.asked) == len(deciding.asked_of_kms) == 2


def test_a_stranger_without_evidence_gets_no_keys(kms: KmsService) -> None:
    for ask in (
        lambda: kms.get_app_key(kms.caller(None), ASKED),
        lambda: kms.get_kms_key(kms.caller(None), ""),
    ):
        with pytest.raises(Invalid, match="^No attestation provided$"):
            ask()


@pytest.mark.parametrize("version", [2, 2**32 - 1])
def test_an_unknown_api_version_is_refused(kms: KmsService, version: int) -> None:
    with pytest.raises(Invalid, match="api_version"):
        kms.get_app_key(Caller(), AppKeyRequest(version))


def test_a_kms_that_is_not_allowed_itself_gives_nothing(
    kms: KmsService, guest: Guest, deciding: Deciding
) -> None:
    deciding.of_kms = Decision(False, "aggregated MR not allowed")
    caller = kms.caller(guest.certificate(kms))

    for ask in (
        lambda: kms.get_app_key(caller, ASKED),
        lambda: kms.get_kms_key(caller, ""),
        lambda: kms.sign_cert(CertificateRequest(2)),
    ):
        with pytest.raises(Invalid, match="this KMS is not allowed: aggregated MR not allowed"):
            ask()


def test_self_authorisation_can_be_switched_off(
    open_kms: Callable[..., KmsService], guest: Guest, deciding: Deciding
) -> None:
    kms = open_kms(enforce_self_authorization=False)
    deciding.of_kms = Decision(False, "no")

    assert kms.get_app_key(kms.caller(guest.certificate(kms)), ASKED)["k256_key"]
    assert not deciding.asked_of_kms


def test_another_kms_gets_the_root_keys(
    kms: KmsService, guest: Guest, deciding: Deciding, settings: Settings
) -> None:
    given = kms.get_kms_key(kms.caller(guest.certificate(kms)), "")

    root = rootkeys.load(settings.core.cert_dir)
    assert given["keys"] == [{"ca_key": pkcs8_pem(root.ca), "k256_key": root.k256}]
    assert given["temp_ca_key"] == kms.get_temp_ca_cert()["temp_ca_key"]
    assert deciding.asked_of_kms[-1].app_id == APP_ID
    assert json.loads(settings.audit_log.read_text())["method"] == "GetKmsKey"
    deciding.of_kms = Decision(True)


def test_a_platform_whose_gate_is_closed_gets_no_keys(
    kms: KmsService, guest: Guest, deciding: Deciding
) -> None:
    # No such evidence is supported yet; the gate must hold when it is.
    boot = replace(_boot(kms, guest, deciding), tee_variant="dstack-aws-nitro-tpm")

    with pytest.raises(Invalid, match="aws_nitro_tpm_key_release is off"):
        kms._check_gates(boot)


def snp_evidence(report_data: bytes) -> Attestation:
    fields = {
        "measurement": snp_launch.digest(evidence.SNP_MEASURED, 2, "EPYC-v4", 1),
        "host_data": mr_config.host_data(evidence.DOCUMENT),
    }
    made, processor = evidence.snp_attestation(), evidence.processor()
    raw = processor.report(report_data, **fields)
    shown = SnpEvidence(raw, processor.chain_der, evidence.DOCUMENT)
    return replace(made, platform=shown, report_data=report_data)


@pytest.fixture
def trusts_snp(settings: Settings, tmp_path: Path) -> AttestationSettings:
    """The attestation settings of a KMS that believes the simulated processor too."""
    (tmp_path / "snp.pem").write_text(evidence.processor().root_ca_pem)
    given = settings.core.attestation
    return replace(given, root_ca=replace(given.root_ca, snp=tmp_path / "snp.pem"))


@pytest.mark.parametrize("is_open", [False, True])
def test_sev_snp_gets_keys_and_certificates_only_through_its_gate(
    open_kms: Callable[..., KmsService],
    trusts_snp: AttestationSettings,
    key: ec.EllipticCurvePrivateKey,
    is_open: bool,
) -> None:
    kms = open_kms(attestation=trusts_snp, sev_snp_key_release=is_open)
    spki = certs.spki_der(key.public_key())
    shown = snp_evidence(ratls.report_data_for_key(spki))
    request = signed(key, CertRequest(spki, shown).encode())
    wishes: tuple[Callable[[], object], ...] = (
        lambda: kms.get_app_key(Caller(shown), ASKED)["k256_key"],
        lambda: kms.get_kms_key(Caller(shown), "")["keys"],
        lambda: kms.sign_cert(request)["certificate_chain"],
    )

    for wish in wishes:
        if is_open:
            assert wish()
        else:
            with pytest.raises(Invalid, match="sev_snp_key_release is off"):
                wish()
    log = kms.settings.audit_log
    assert len(log.read_text().splitlines() if log.exists() else []) == (3 if is_open else 0)


def _boot(kms: KmsService, guest: Guest, deciding: Deciding):  # type: ignore[no-untyped-def] # BootInfo
    kms.get_app_key(kms.caller(guest.certificate(kms)), ASKED)
    return deciding.asked[-1]


def test_meta_tells_what_the_authoriser_says_and_how_the_keys_were_made(kms: KmsService) -> None:
    meta = kms.get_meta()

    assert (meta["gateway_app_id"], meta["kms_contract_address"]) == ("gateway", "0xabc")
    assert (meta["chain_id"], meta["app_auth_implementation"]) == (7, "0xdef")
    assert meta["is_dev"] is meta["allow_any_upgrade"] is False
    assert meta["bootstrap_info"]["k256_pubkey"] == meta["k256_pubkey"]
    attested = envelope.decode(meta["bootstrap_info"]["attestation"])
    assert attested.report_data.endswith(bytes(32))


# SignCert


def csr(guest: Guest, key: ec.EllipticCurvePrivateKey, **fields: object) -> CertRequest:
    spki = certs.spki_der(key.public_key())
    evidence = guest.attestation(ratls.report_data_for_key(spki))
    return CertRequest(spki, evidence, **fields)  # type: ignore[arg-type] # by name


def signed(key: ec.EllipticCurvePrivateKey, raw: bytes, version: int = 2) -> CertificateRequest:
    return CertificateRequest(version, raw, key.sign(raw, ec.ECDSA(hashes.SHA256())), "")


@pytest.fixture
def key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def test_a_certificate_says_what_was_asked_under_the_apps_own_ca(
    kms: KmsService, guest: Guest, key: ec.EllipticCurvePrivateKey
) -> None:
    request = csr(
        guest,
        key,
        subject="app.example",
        org_name="An app",
        alt_names=("app.example", "10.0.0.1"),
        server_auth=True,
        ext_quote=True,
        ext_app_info=True,
        not_before=1000,
        not_after=4_000_000_000,
    )

    chain = kms.sign_cert(signed(key, request.encode()))["certificate_chain"]

    leaf, ca, root = (x509.load_pem_x509_certificate(text.encode()) for text in chain)
    leaf.verify_directly_issued_by(ca)
    ca.verify_directly_issued_by(root)
    assert leaf.public_key() == key.public_key()
    assert leaf.subject.rfc4514_string() == "CN=app.example,O=An app"
    assert leaf.not_valid_before_utc.timestamp() == 1000
    found, of_ca = ratls.read(leaf), ratls.read(ca)
    assert (found.app_id, found.usage) == (APP_ID, "app:custom")
    assert (of_ca.app_id, of_ca.usage) == (APP_ID, "app:ca")
    assert ca.subject.rfc4514_string() == "CN=Dstack App CA,O=Dstack"
    assert ca.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length == 0
    assert found.app_info is not None and found.app_info.compose_hash == COMPOSE_HASH
    evidence = found.evidence()
    assert evidence is not None
    assert evidence.report_data == ratls.report_data_for_key(certs.spki_der(key.public_key()))


def test_a_plain_certificate_has_no_evidence_and_every_one_is_of_one_ca(
    kms: KmsService, guest: Guest, key: ec.EllipticCurvePrivateKey
) -> None:
    chains = [
        kms.sign_cert(signed(key, csr(guest, key).encode()))["certificate_chain"] for _ in range(2)
    ]

    leaf = ratls.read(x509.load_pem_x509_certificate(chains[0][0].encode()))
    assert (leaf.attestation, leaf.app_info) == (None, None)
    cas = [x509.load_pem_x509_certificate(chain[1].encode()).public_key() for chain in chains]
    assert cas[0] == cas[1]


def test_a_certificate_is_asked_for_with_what_the_guest_was_at_boot(
    kms: KmsService, guest: Guest, key: ec.EllipticCurvePrivateKey, deciding: Deciding
) -> None:
    later = replace(guest, events=(*EVENTS, ("key-provider", b'{"name":"kms","id":""}')))

    kms.sign_cert(signed(key, csr(guest, key).encode()))
    kms.sign_cert(signed(key, csr(later, key).encode()))

    assert deciding.asked[0] == deciding.asked[1]


def test_a_request_that_its_key_did_not_sign_is_refused(
    kms: KmsService, guest: Guest, key: ec.EllipticCurvePrivateKey
) -> None:
    raw = csr(guest, key).encode()
    other = ec.generate_private_key(ec.SECP256R1())

    with pytest.raises(Invalid, match="signature"):
        kms.sign_cert(signed(other, raw))
    with pytest.raises(Invalid, match="signature"):
        kms.sign_cert(CertificateRequest(2, raw, b"no signature", ""))


def test_evidence_for_another_key_certifies_nothing(
    kms: KmsService, guest: Guest, key: ec.EllipticCurvePrivateKey
) -> None:
    other = ec.generate_private_key(ec.SECP256R1())
    request = replace(csr(guest, other), spki=certs.spki_der(key.public_key()))

    with pytest.raises(Invalid, match="invalid quote: it was not made for the key"):
        kms.sign_cert(signed(key, request.encode()))


def test_only_p256_keys_are_certified(kms: KmsService, guest: Guest) -> None:
    p384 = ec.generate_private_key(ec.SECP384R1())
    spki = (
        rsa.generate_private_key(65537, 2048)
        .public_key()
        .public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    )
    evidence = guest.attestation(bytes(64))
    for given in (certs.spki_der(p384.public_key()), spki, b"no key"):
        raw = CertRequest(given, evidence).encode()
        with pytest.raises(Invalid, match="csr"):
            kms.sign_cert(CertificateRequest(2, raw, b"", ""))


@pytest.mark.parametrize("version", [0, 3])
def test_a_request_of_an_unknown_version_is_refused(kms: KmsService, version: int) -> None:
    with pytest.raises(Invalid, match="api_version"):
        kms.sign_cert(CertificateRequest(version))


def test_a_denied_app_gets_no_certificate(
    kms: KmsService, guest: Guest, key: ec.EllipticCurvePrivateKey, deciding: Deciding
) -> None:
    deciding.answer = Decision(False, "app not registered")

    with pytest.raises(Invalid, match="Boot denied: app not registered"):
        kms.sign_cert(signed(key, csr(guest, key).encode()))


# The OS image


@pytest.fixture
def calls(
    open_kms: Callable[..., KmsService],
    settings: Settings,
    guest: Guest,
    key: ec.EllipticCurvePrivateKey,
) -> list[Callable[[], object]]:
    """The three calls that need evidence, of a KMS that wants to know the image and a guest whose image nobody has."""
    kms = open_kms(image=replace(settings.core.image, verify=True))
    caller = kms.caller(guest.certificate(kms))
    request = signed(key, csr(guest, key).encode())
    return [
        lambda: kms.get_app_key(caller, ASKED),
        lambda: kms.sign_cert(request),
        lambda: kms.get_kms_key(caller, ""),
    ]


def test_nothing_is_released_to_an_image_that_nobody_knows(
    calls: list[Callable[[], object]], settings: Settings
) -> None:
    for call in calls:
        with pytest.raises(Invalid, match="^invalid quote: the os image cannot be checked: "):
            call()

    assert not settings.audit_log.exists()


def test_the_image_is_looked_for_only_when_the_app_is_allowed(
    calls: list[Callable[[], object]], deciding: Deciding
) -> None:
    deciding.answer = Decision(False, "app not registered")

    for call in calls[:2]:
        with pytest.raises(Invalid, match="^Boot denied: app not registered$"):
            call()


# Client certificates


def shown(kms: KmsService, extensions: list[x509.UnrecognizedExtension]) -> bytes:
    """A client certificate with these extensions, in DER."""
    key = ec.generate_private_key(ec.SECP256R1())
    return leaf_under(kms._authority.root, key, Leaf("x", extensions=extensions)).public_bytes(
        Encoding.DER
    )


def test_a_certificate_without_evidence_is_a_strangers(kms: KmsService) -> None:
    assert kms.caller(shown(kms, [])) == Caller(None)


def test_bad_evidence_is_refused_whatever_is_asked(
    kms: KmsService, guest: Guest, platform: SimulatedPlatform
) -> None:
    good = guest.attestation(bytes(64))
    raw = envelope.encode(good)
    swapped = replace(guest, events=(*EVENTS[:2], ("compose-hash", bytes(32)), *EVENTS[3:]))
    cases: dict[str, tuple[x509.UnrecognizedExtension, str]] = {
        "another key": (ratls.attestation_extension(good), "not made for the key"),
        "cut short": (ratls._extension(ratls.ATTESTATION, raw[:100]), "cut short"),
        "trailing bytes": (ratls._extension(ratls.ATTESTATION, raw + b"x"), "followed by"),
        "no DER": (x509.UnrecognizedExtension(ratls.ATTESTATION, b"\xff"), "DER"),
    }
    for extension, reason in cases.values():
        with pytest.raises(Invalid, match=f"invalid quote: .*{reason}"):
            kms.caller(shown(kms, [extension]))
    for other, reason in (
        (replace(guest, platform=SimulatedPlatform.from_seed(bytes(32))), "trusted root"),
        (Mixed(guest.platform, EVENTS, told=swapped.events), "RTMR3"),
    ):
        caller = kms.caller(other.certificate(kms))
        with pytest.raises(Invalid, match=f"invalid quote: .*{reason}"):
            kms.check(caller)


class Mixed(Guest):
    """A guest whose log is not the one that was quoted."""

    def __init__(
        self, platform: SimulatedPlatform, events: tuple[tuple[str, bytes], ...], told: object
    ) -> None:
        super().__init__(platform, events, VM_CONFIG)
        object.__setattr__(self, "told", told)

    def attestation(self, report_data: bytes):  # type: ignore[no-untyped-def] # as the base
        real = super().attestation(report_data)
        told = Guest(self.platform, self.told).attestation(report_data)  # type: ignore[attr-defined] # set above
        return replace(
            told,
            platform=replace(told.platform, quote=real.platform.quote),  # type: ignore[arg-type,union-attr,call-arg] # TDX
        )


def test_good_evidence_and_none_at_all_may_ask_for_what_is_public(
    kms: KmsService, guest: Guest
) -> None:
    kms.check(kms.caller(guest.certificate(kms)))
    kms.check(kms.caller(None))


def test_evidence_under_a_key_of_another_kind_is_refused(kms: KmsService, guest: Guest) -> None:
    public: Any = rsa.generate_private_key(65537, 2048).public_key()
    builder = (
        x509.CertificateBuilder()
        .subject_name(certs.name("x"))
        .issuer_name(certs.name("x"))
        .public_key(public)
        .serial_number(1)
        .not_valid_before(certs.NOT_BEFORE)
        .not_valid_after(kms._authority.root.certificate.not_valid_after_utc)
        .add_extension(ratls.attestation_extension(guest.attestation(bytes(64))), critical=False)
    )
    made = builder.sign(kms._authority.root.key, hashes.SHA256())

    with pytest.raises(Invalid, match="invalid quote: the certificate's key is not"):
        kms.caller(made.public_bytes(Encoding.DER))


def test_bytes_that_are_no_certificate_are_refused(kms: KmsService) -> None:
    with pytest.raises(Invalid, match="invalid quote"):
        kms.caller(b"no certificate")


def test_the_own_leaf_carries_evidence_unless_that_is_off(
    open_kms: Callable[..., KmsService], settings: Settings
) -> None:
    def evidence() -> object:
        text = (settings.core.cert_dir / "rpc.crt").read_bytes()
        return ratls.read(x509.load_pem_x509_certificate(text)).attestation

    open_kms()
    assert evidence() is not None
    open_kms(attest_rpc_cert=False, enforce_self_authorization=False)
    assert evidence() is None


def test_how_the_keys_were_made_is_told_while_it_is_known(
    kms: KmsService, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    path = settings.core.cert_dir / "bootstrap-info.json"
    assert kms.get_meta()["bootstrap_info"] is not None
    for content in ("broken", "[]", "{}", '{"ca_pubkey": "zz"}'):
        path.write_text(content)
        assert kms.get_meta()["bootstrap_info"] is None
    assert "cannot be read and is left out" in caplog.text
    path.unlink()
    assert kms.get_meta()["bootstrap_info"] is None
