"""Checks of VMs that are asked right now: a real TLS server whose pages a test gives."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from attest import artifacts, collateral, eventlog
from attest.artifacts import Registry, TdxBuild
from core.errors import Invalid, Upstream
from core.outbound import Outbound, Reach
from secretvm import live
from secretvm.builds import Builds
from secretvm.live import Live
from secretvm.quotes import Quotes
from tests.common.evidence import NOW, TdxVm, platform, snp_attestation
from tests.common.tls_server import TlsServer
from tests.unit.attest.test_artifacts import COMPOSE, ROOTFS
from tests.unit.secretvm.conftest import quote_over
from verify.service import Verifier


def checks_of(quotes: Quotes, *known: TdxBuild, reach: Reach = Reach.ANY) -> Live:
    builds = Builds(lambda: Registry(known), Path("/nowhere"), {})
    return Live(Outbound(reach), quotes, builds, lambda: NOW)


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
    assert server.connections == 0


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
