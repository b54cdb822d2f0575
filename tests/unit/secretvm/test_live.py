from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from attest import artifacts, collateral, eventlog
from attest.artifacts import Registry, TdxBuild
from core.errors import Invalid, Unavailable, Upstream
from core.outbound import Outbound, Reach
from secretvm import live
from secretvm.builds import Builds
from secretvm.live import Live
from secretvm.quotes import Quotes
from tests.common import evidence
from tests.common.evidence import NOW, TdxVm, platform, processor, snp_attestation
from tests.common.tls_server import TlsServer
from tests.unit.attest.test_artifacts import COMPOSE, ROOTFS
from verify.service import Verifier


@pytest.fixture
def quotes(tmp_path: Path) -> Quotes:
    """Trusts the simulated roots and has their collateral."""
    (tmp_path / "root.pem").write_text(platform().root_ca_pem + processor().root_ca_pem)
    return Quotes(Verifier(tmp_path / "root.pem", collateral.given(evidence.collateral())))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[TlsServer]:
    with TlsServer(tmp_path, {}) as running:
        yield running


def checks_of(quotes: Quotes, *known: TdxBuild, reach: Reach = Reach.ANY, crt_sh: str = "") -> Live:
    builds = Builds(lambda: Registry(known), Path("/nowhere"), {})
    return Live(Outbound(reach), quotes, builds, lambda: NOW, crt_sh or live.CRT_SH)


def quote_over(report_data: bytes) -> str:
    vm = TdxVm(report_data=report_data.ljust(64, b"\0"))
    quote: bytes = vm.attestation().platform.quote  # type: ignore[union-attr]
    return quote.hex()


def build(rtmr3_compose: bytes) -> tuple[TdxBuild, bytes]:
    """A build with the registers of a simulated VM that measured only a compose file, and that VM's quote."""
    registers = [bytes([n]) * 48 for n in range(4)]
    rtmr3 = artifacts.rtmr3(rtmr3_compose, ROOTFS)
    known = TdxBuild("small", "prod", "v1.0.0", tuple(registers), ROOTFS)  # type: ignore[arg-type]
    return known, rtmr3


def test_a_key_that_its_quote_binds_is_ok(quotes: Quotes, server: TlsServer) -> None:
    server.pages["/cpu"] = quote_over(hashlib.sha256(server.spki).digest()).encode()

    said = checks_of(quotes).check_certificate("127.0.0.1", server.port)

    assert said["ok"], said["errors"]
    assert (said["binding"], said["cpu_type"], said["port"]) == ("spki", "tdx", server.port)
    assert said["certificate"]["sha256"] == hashlib.sha256(server.der).hexdigest()
    assert said["certificate"]["spkiSha256"] == hashlib.sha256(server.spki).hexdigest()
    expected = {
        "tls_cert_fetched": True,
        "tls_chain_valid": False,
        "tls_not_expired": True,
        "tls_hostname_match": True,
        "cpu_quote_fetched": True,
        "cpu_quote_parsed": True,
        "cpu_quote_verified": True,
        "tls_binding_verified": True,
        "gpu_quote_fetched": False,
        "workload_fetched": False,
        "workload_binding_verified": None,
    }
    assert said["checks"] == expected


def test_everything_is_asked_on_the_connection_whose_certificate_was_read(
    quotes: Quotes, server: TlsServer
) -> None:
    server.pages |= {"/cpu": b"x", "/docker-compose": COMPOSE}

    checks_of(quotes).check_certificate("127.0.0.1", server.port)

    assert server.asked == ["/cpu", "/docker-compose", "/gpu"]
    assert server.connections == 2  # one of them did not get beyond the certificate


def test_older_guests_bind_the_certificate_and_answer_with_an_object(
    quotes: Quotes, server: TlsServer
) -> None:
    quote = quote_over(hashlib.sha256(server.der).digest())
    server.pages["/cpu"] = json.dumps({"quote": quote}).encode()

    said = checks_of(quotes).check_certificate("127.0.0.1", server.port)
    assert (said["ok"], said["binding"], said["quote"]) == (True, "certificate", quote)


def test_a_report_is_told_from_a_quote(quotes: Quotes, server: TlsServer) -> None:
    import base64

    report = snp_attestation().platform.report  # type: ignore[union-attr]
    server.pages["/cpu"] = base64.b64encode(report)

    said = checks_of(quotes).check_certificate("127.0.0.1", server.port)
    assert (said["cpu_type"], said["checks"]["cpu_quote_parsed"]) == ("sev", True)


def test_a_quote_for_another_key_is_not_ok(quotes: Quotes, server: TlsServer) -> None:
    server.pages["/cpu"] = quote_over(bytes(32)).encode()

    said = checks_of(quotes).check_certificate("127.0.0.1", server.port)
    assert (said["ok"], said["binding"]) == (False, None)
    assert any("another key" in error for error in said["errors"])


def test_a_quote_that_nobody_vouches_for_is_not_ok(tmp_path: Path, server: TlsServer) -> None:
    stranger = Quotes(Verifier(Path(), collateral.nowhere))
    server.pages["/cpu"] = quote_over(hashlib.sha256(server.spki).digest()).encode()

    said = checks_of(stranger).check_certificate("127.0.0.1", server.port)
    assert (said["ok"], said["binding"]) == (False, "spki")
    assert said["checks"]["cpu_quote_verified"] is False


@pytest.mark.parametrize("page", [b"", b"no quote", b"{}", b"00ff", b"[1]", (500, b""), (302, b"")])
def test_what_is_no_quote_is_told_and_not_a_fault(
    quotes: Quotes, server: TlsServer, page: Any
) -> None:
    server.pages["/cpu"] = page

    said = checks_of(quotes).check_certificate("127.0.0.1", server.port)
    assert (said["ok"], said["cpu_type"]) == (False, None)
    assert said["errors"] or said["checks"]["cpu_quote_parsed"] is None


def test_the_workload_is_checked_against_the_quote(quotes: Quotes, server: TlsServer) -> None:
    known, rtmr3 = build(COMPOSE)
    raw = platform().quote(
        hashlib.sha256(server.spki).digest().ljust(64, b"\0"),
        mrtd=known.registers[0],
        rtmrs=[*known.registers[1:], rtmr3],
    )
    server.pages |= {"/cpu": raw.hex().encode(), "/docker-compose": COMPOSE}

    said = checks_of(quotes, known).check_certificate("127.0.0.1", server.port)
    assert said["checks"]["workload_binding_verified"] is True
    assert said["workload"] == COMPOSE.decode()
    server.pages["/docker-compose"] = b"another"
    said = checks_of(quotes, known).check_certificate("127.0.0.1", server.port)
    assert said["checks"]["workload_binding_verified"] is False
    assert said["ok"]  # the key is bound all the same


def test_hostile_pages_beside_the_quote_do_no_harm(quotes: Quotes, server: TlsServer) -> None:
    server.pages |= {
        "/cpu": quote_over(bytes(32)).encode(),
        "/docker-compose": b"\xff\xfe",
        "/info": b'{"dstack_app_id": "zz", "event_log": 5, "app_compose": ["x"]}',
    }

    said = checks_of(quotes).check_certificate("127.0.0.1", server.port)
    assert said["checks"]["workload_binding_verified"] is False


def test_without_a_port_the_older_one_is_tried_too(
    quotes: Quotes, server: TlsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.common.waiting import free_port

    monkeypatch.setattr(live, "GUEST_PORTS", (free_port(), server.port))

    assert checks_of(quotes).check_certificate("127.0.0.1", None)["port"] == server.port


def test_a_host_that_cannot_be_asked_is_refused(quotes: Quotes, server: TlsServer) -> None:
    with pytest.raises(Upstream):
        checks_of(quotes).check_certificate("127.0.0.1", 65000)
    with pytest.raises(Invalid):
        checks_of(quotes, reach=Reach.PUBLIC).check_certificate("127.0.0.1", server.port)
    with pytest.raises(Unavailable):
        checks_of(quotes, reach=Reach.OFF).check_gateway("127.0.0.1", server.port, False)
    assert server.connections == 0


# Gateways


def acme_info(key: bytes, uri: str = "https://acme.test/1") -> dict[str, Any]:
    """What dstack's gateway tells of its keys."""
    account = hashlib.sha512(b"acme-account:" + uri.encode()).digest()
    return {
        "account_uri": uri,
        "hist_keys": [key.hex()],
        "account_quote": quote_over(account),
        "quoted_hist_keys": [
            {
                "public_key": key.hex(),
                "quote": json.dumps(
                    {"quote": quote_over(hashlib.sha512(b"zt-cert:" + key).digest())}
                ),
                "attestation": "",
            }
        ],
    }


def test_a_gateway_whose_key_is_quoted_is_found_out(quotes: Quotes, server: TlsServer) -> None:
    server.pages[live.ACME_INFO] = json.dumps(acme_info(server.spki)).encode()

    said = checks_of(quotes).check_gateway("127.0.0.1", server.port, False)

    assert said["errors"] == []
    assert said["evidence_type"] == "dstack-gateway"
    assert said["checks"] == {
        "tls_cert_fetched": True,
        "evidence_fetched": True,
        "quote_parsed": True,
        "quote_verified": True,
        "account_bound": True,
        "key_bound": True,
        "caa_matches": None,
        "ct_keys_known": None,
    }


def test_a_gateway_with_another_key_or_account_is_found_out(
    quotes: Quotes, server: TlsServer
) -> None:
    other = acme_info(b"another key")
    server.pages[live.ACME_INFO] = json.dumps(other).encode()
    said = checks_of(quotes).check_gateway("127.0.0.1", server.port, False)
    assert (said["checks"]["account_bound"], said["checks"]["key_bound"]) == (True, False)

    forged = {**acme_info(server.spki), "account_uri": "https://acme.test/2"}
    server.pages[live.ACME_INFO] = json.dumps(forged).encode()
    said = checks_of(quotes).check_gateway("127.0.0.1", server.port, False)
    assert (said["checks"]["account_bound"], said["checks"]["key_bound"]) == (False, True)


def test_an_ingress_whose_certificate_is_listed_is_found_out(
    quotes: Quotes, server: TlsServer
) -> None:
    account, name = b'{"uri": "x"}', "cert-127.0.0.1.pem"
    lines = {"acme-account.json": account, name: server.pem.encode()}
    sums = "".join(f"{hashlib.sha256(raw).hexdigest()}  {file}\n" for file, raw in lines.items())
    report_data = hashlib.sha256(sums.encode()).digest()
    server.pages |= {
        "/evidences/quote.json": json.dumps({"quote": quote_over(report_data)}).encode(),
        "/evidences/sha256sum.txt": sums.encode(),
        "/evidences/acme-account.json": account,
        f"/evidences/{name}": server.pem.encode(),
    }

    said = checks_of(quotes).check_gateway("127.0.0.1", server.port, False)
    assert (said["evidence_type"], said["errors"]) == ("dstack-ingress", [])
    assert said["checks"]["key_bound"] and said["checks"]["account_bound"]
    server.pages["/evidences/sha256sum.txt"] = sums.encode() + b"\n"
    said = checks_of(quotes).check_gateway("127.0.0.1", server.port, False)
    assert not said["checks"]["key_bound"] and not said["checks"]["account_bound"]


@pytest.mark.parametrize(
    "page", [b"[]", b"{}", b'{"quoted_hist_keys": [1, {"public_key": 5}]}', b"\xff"]
)
def test_evidence_that_says_nothing_proves_nothing(
    quotes: Quotes, server: TlsServer, page: bytes
) -> None:
    server.pages[live.ACME_INFO] = page

    said = checks_of(quotes).check_gateway("127.0.0.1", server.port, False)
    assert (said["checks"]["key_bound"], said["checks"]["account_bound"]) == (False, False)


def test_a_host_without_evidence_is_told_so(quotes: Quotes, server: TlsServer) -> None:
    said = checks_of(quotes).check_gateway("127.0.0.1", server.port, False)

    assert (said["evidence_type"], said["checks"]["evidence_fetched"]) == (None, False)
    assert said["checks"]["key_bound"] is None


def test_certificates_that_transparency_knows_must_be_quoted(
    quotes: Quotes, server: TlsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.pages[live.ACME_INFO] = json.dumps(acme_info(server.spki)).encode()
    entries = [
        {"id": 1, "not_after": "2020-01-01T00:00:00"},
        {"id": 2, "not_after": "2090-01-01T00:00:00"},
        {"id": 2, "not_after": "2090-01-01T00:00:00"},
        "noise",
    ]
    answers = {"q": json.dumps(entries).encode(), "d=2": server.pem.encode()}

    def ask(self: Live, query: str, deadline: float) -> bytes:
        return next(answer for key, answer in answers.items() if f"?{key}" in query)

    monkeypatch.setattr(Live, "_ask_crt_sh", ask)
    said = checks_of(quotes).check_gateway("127.0.0.1", server.port, True)
    assert said["crtSh"] == {"certificates": 1, "unknown": [], "complete": True}
    assert said["checks"]["ct_keys_known"] is True
    answers["d=2"] = b"no certificate"
    said = checks_of(quotes).check_gateway("127.0.0.1", server.port, True)
    assert (said["crtSh"]["unknown"], said["checks"]["ct_keys_known"]) == ([2], False)


def test_where_transparency_cannot_be_asked_the_check_is_left_open(
    quotes: Quotes, server: TlsServer
) -> None:
    server.pages[live.ACME_INFO] = json.dumps(acme_info(server.spki)).encode()

    asking = checks_of(quotes, crt_sh="http://127.0.0.1:1/")
    said = asking.check_gateway("127.0.0.1", server.port, True)
    assert "cannot be reached" in said["crtSh"]["error"]
    assert said["checks"]["ct_keys_known"] is None


def test_the_log_and_document_that_a_guest_tells_are_used(
    quotes: Quotes, server: TlsServer
) -> None:
    vm = TdxVm(report_data=hashlib.sha256(server.spki).digest().ljust(64, b"\0"))
    attestation = vm.attestation()
    log = eventlog.to_json(attestation.platform.event_log)  # type: ignore[union-attr]
    server.pages |= {
        "/cpu": attestation.platform.quote.hex().encode(),  # type: ignore[union-attr]
        "/docker-compose": b"x",
        "/info": json.dumps({"event_log": log, "app_compose": "{}"}).encode(),
    }

    said = checks_of(quotes).check_certificate("127.0.0.1", server.port)
    # No image of this host measures so.
    assert said["checks"]["workload_binding_verified"] is False
    assert any("no known build" in error for error in said["errors"])
