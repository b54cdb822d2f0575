"""Checks of gateways: a real TLS server whose pages a test gives, and crt.sh played by what the test says."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from core.errors import Unavailable
from core.outbound import Outbound, Reach
from secretvm import gateway
from secretvm.gateway import Gateways
from secretvm.quotes import Quotes
from secretvm.transparency import CRT_SH, Transparency
from tests.common.evidence import NOW
from tests.common.tls_server import TlsServer
from tests.unit.secretvm.conftest import quote_over


def gateways(quotes: Quotes, *, reach: Reach = Reach.ANY, crt_sh: str = CRT_SH) -> Gateways:
    return Gateways(Outbound(reach), quotes, lambda: NOW, crt_sh)


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
    server.pages[gateway.ACME_INFO] = json.dumps(acme_info(server.spki)).encode()

    said = gateways(quotes).check("127.0.0.1", server.port, False)

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
    server.pages[gateway.ACME_INFO] = json.dumps(other).encode()
    said = gateways(quotes).check("127.0.0.1", server.port, False)
    assert (said["checks"]["account_bound"], said["checks"]["key_bound"]) == (True, False)

    forged = {**acme_info(server.spki), "account_uri": "https://acme.test/2"}
    server.pages[gateway.ACME_INFO] = json.dumps(forged).encode()
    said = gateways(quotes).check("127.0.0.1", server.port, False)
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

    said = gateways(quotes).check("127.0.0.1", server.port, False)
    assert (said["evidence_type"], said["errors"]) == ("dstack-ingress", [])
    assert said["checks"]["key_bound"] and said["checks"]["account_bound"]
    server.pages["/evidences/sha256sum.txt"] = sums.encode() + b"\n"
    said = gateways(quotes).check("127.0.0.1", server.port, False)
    assert not said["checks"]["key_bound"] and not said["checks"]["account_bound"]


@pytest.mark.parametrize(
    "page", [b"[]", b"{}", b'{"quoted_hist_keys": [1, {"public_key": 5}]}', b"\xff"]
)
def test_evidence_that_says_nothing_proves_nothing(
    quotes: Quotes, server: TlsServer, page: bytes
) -> None:
    server.pages[gateway.ACME_INFO] = page

    said = gateways(quotes).check("127.0.0.1", server.port, False)
    assert (said["checks"]["key_bound"], said["checks"]["account_bound"]) == (False, False)


def test_a_host_without_evidence_is_told_so(quotes: Quotes, server: TlsServer) -> None:
    said = gateways(quotes).check("127.0.0.1", server.port, False)

    assert (said["evidence_type"], said["checks"]["evidence_fetched"]) == (None, False)
    assert said["checks"]["key_bound"] is None


def test_certificates_that_transparency_knows_must_be_quoted(
    quotes: Quotes, server: TlsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.pages[gateway.ACME_INFO] = json.dumps(acme_info(server.spki)).encode()
    entries = [
        {"id": 1, "not_after": "2020-01-01T00:00:00"},
        {"id": 2, "not_after": "2090-01-01T00:00:00"},
        {"id": 2, "not_after": "2090-01-01T00:00:00"},
        "noise",
    ]
    answers = {"q": json.dumps(entries).encode(), "d=2": server.pem.encode()}

    def ask(self: Transparency, query: str, deadline: float) -> bytes:
        return next(answer for key, answer in answers.items() if f"?{key}" in query)

    monkeypatch.setattr(Transparency, "_ask", ask)
    said = gateways(quotes).check("127.0.0.1", server.port, True)
    assert said["crtSh"] == {"certificates": 1, "unknown": [], "complete": True}
    assert said["checks"]["ct_keys_known"] is True
    answers["d=2"] = b"no certificate"
    said = gateways(quotes).check("127.0.0.1", server.port, True)
    assert (said["crtSh"]["unknown"], said["checks"]["ct_keys_known"]) == ([2], False)


def test_where_transparency_cannot_be_asked_the_check_is_left_open(
    quotes: Quotes, server: TlsServer
) -> None:
    server.pages[gateway.ACME_INFO] = json.dumps(acme_info(server.spki)).encode()

    asking = gateways(quotes, crt_sh="http://127.0.0.1:1/")
    said = asking.check("127.0.0.1", server.port, True)
    assert "cannot be reached" in said["crtSh"]["error"]
    assert said["checks"]["ct_keys_known"] is None


def test_where_nobody_may_be_asked_nobody_is(quotes: Quotes, server: TlsServer) -> None:
    with pytest.raises(Unavailable):
        gateways(quotes, reach=Reach.OFF).check("127.0.0.1", server.port, False)
    assert server.connections == 0
