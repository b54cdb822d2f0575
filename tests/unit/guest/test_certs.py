"""The app's certificates, read back by cryptography and checked by openssl."""

from __future__ import annotations

import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from attest import eventlog, quote, ratls
from core.certs import spki_der
from core.proc import run
from guest.service import Agent


def test_openssl_accepts_the_chain_in_strict_mode(tmp_path: Path, agent: Agent) -> None:
    made = agent.get_tls_key("example.com", ["example.com"], True, True, False, None, None, True)
    leaf, root = made["certificate_chain"]  # type: ignore[misc] # a mapping of what the message holds
    (tmp_path / "leaf.pem").write_text(leaf)
    (tmp_path / "root.pem").write_text(root)

    command = ["openssl", "verify", "-x509_strict", "-CAfile", tmp_path / "root.pem"]
    done = run([*command, "-purpose", "sslserver", tmp_path / "leaf.pem"])

    assert done.stdout.strip().endswith(b": OK")


def test_an_ra_tls_leaf_attests_its_own_key(agent: Agent) -> None:
    made = agent.get_tls_key("", [], True, False, False, None, None, True)
    certificate = x509.load_pem_x509_certificate(made["certificate_chain"][0].encode())  # type: ignore[index] # as above

    found = ratls.read(certificate)

    public = certificate.public_key()
    assert isinstance(public, ec.EllipticCurvePublicKey)
    bound = ratls.report_data_for_key(spki_der(public))
    evidence = found.evidence()
    assert evidence is not None and evidence.report_data == bound
    report = quote.parse(evidence.platform.quote).report  # type: ignore[union-attr] # a TDX simulator
    assert report.report_data == bound
    assert report.rtmrs[3] == eventlog.replay(evidence.runtime_events, 3)
    assert all(event.digest == b"" for event in evidence.event_log if event.imr == 3)
    assert found.usage == "app:custom"
    assert found.app_info is not None
    assert found.app_info.app_id == agent.vm().instance.app_id
    assert found.app_info.compose_hash == agent.vm().app.compose_hash
    assert found.app_info.init_script_hashes is None


def test_a_plain_leaf_carries_no_evidence(agent: Agent) -> None:
    made = agent.get_tls_key("", [], False, False, False, None, None, False)
    certificate = x509.load_pem_x509_certificate(made["certificate_chain"][0].encode())  # type: ignore[index] # as above

    found = ratls.read(certificate)

    assert (found.attestation, found.app_info, found.usage) == (None, None, "app:custom")


def test_times_of_zero_as_the_document_shows_them_give_a_certificate_that_holds(
    agent: Agent,
) -> None:
    made = agent.get_tls_key("", [], False, True, False, 0, 0, False)
    leaf = x509.load_pem_x509_certificate(made["certificate_chain"][0].encode())  # type: ignore[index] # as above

    now = datetime.datetime.now(datetime.UTC)
    assert leaf.not_valid_before_utc.year == 1970
    assert (leaf.not_valid_after_utc - now).days in (3649, 3650)


def test_every_call_makes_a_new_key(agent: Agent) -> None:
    made = {
        agent.get_tls_key("", [], False, False, False, None, None, False)["key"] for _ in range(5)
    }

    assert len(made) == 5


def test_the_legacy_key_of_a_path_is_always_the_same(agent: Agent) -> None:
    def key(path: str, *, random_seed: bool = False) -> object:
        return agent.derive_key(path, "", [], False, False, False, random_seed)["key"]

    assert key("/") == key("/") != key("")
    assert key("/", random_seed=True) != key("/", random_seed=True)
