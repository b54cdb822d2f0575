"""The KMS, its onboarding and its admin service through Flask's test client."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import bcrypt
import pytest
from flask.testing import FlaskClient
from gunicorn.http.errors import ParseException

from core import protobuf
from core.errors import Upstream
from kms import admin_routes, onboard_routes, routes, schemas
from kms.onboard import Onboarding
from kms.service import KmsService
from kms.settings import AdminSettings, MetricsSettings, Settings
from tests.unit.kms.conftest import (
    APP_ID,
    Deciding,
    Guest,
    deciding,
    guest,
    kms,
    open_kms,
    platform,
    settings,
)

__all__ = ["deciding", "guest", "kms", "open_kms", "platform", "settings"]

OCTETS = {"Content-Type": "application/octet-stream"}


class Peer:
    """Stands in for the socket of a connection with a client certificate."""

    def __init__(self, certificate: bytes | None) -> None:
        self._certificate = certificate

    def getpeercert(self, binary_form: bool) -> bytes | None:
        assert binary_form
        return self._certificate


@pytest.fixture
def client(kms: KmsService) -> FlaskClient:
    return routes.create_app(kms, "1.2.3").test_client()


def shown(certificate: bytes | None) -> dict[str, Any]:
    return {"environ_overrides": {"gunicorn.socket": Peer(certificate)}}


def test_an_attested_caller_gets_keys_in_json_and_protobuf(
    kms: KmsService, client: FlaskClient, guest: Guest
) -> None:
    peer = shown(guest.certificate(kms))

    said = client.post("/prpc/KMS.GetAppKey", json={"api_version": 1}, **peer)
    body = protobuf.encode(schemas.GetAppKeyRequest, {"api_version": 1, "vm_config": ""})
    packed = client.post("/prpc/GetAppKey", data=body, headers=OCTETS, **peer)

    assert said.status_code == packed.status_code == 200
    given = said.get_json()
    assert given["gateway_app_id"] == given["tproxy_app_id"] == "gateway"
    assert protobuf.decode(schemas.AppKeyResponse, packed.data)["k256_key"] == given["k256_key"]
    assert said.headers["X-App-Version"] == "v1.2.3"


def test_another_kms_gets_the_root_keys(kms: KmsService, client: FlaskClient, guest: Guest) -> None:
    said = client.post("/prpc/GetKmsKey", json={}, **shown(guest.certificate(kms))).get_json()

    assert len(bytes.fromhex(said["keys"][0]["k256_key"])) == 32
    assert said["keys"][0]["ca_key"].startswith("-----BEGIN PRIVATE KEY-----")


def test_bad_evidence_is_refused_even_where_none_is_needed(
    kms: KmsService, client: FlaskClient, guest: Guest
) -> None:
    broken = replace(guest, events=guest.events[2:])
    peer = shown(broken.certificate(kms))

    for method in ("GetMeta", "GetTempCaCert", "GetAppKey", "SignCert"):
        said = client.post(f"/prpc/{method}", json={}, **peer)
        assert said.status_code == 400
        assert said.get_json()["error"].startswith("invalid quote: ")


def test_public_calls_need_no_certificate(client: FlaskClient) -> None:
    meta = client.get("/prpc/GetMeta", **shown(None)).get_json()
    temp = client.get("/prpc/GetTempCaCert").get_json()
    key = client.get(f"/prpc/GetAppEnvEncryptPubKey?app_id={APP_ID.hex()}").get_json()

    assert meta["ca_cert"] == temp["ca_cert"]
    assert set(meta["bootstrap_info"]) == {"ca_pubkey", "k256_pubkey", "attestation"}
    assert set(key) == {"public_key", "signature", "timestamp", "signature_v1"}


@pytest.mark.parametrize(
    ("verb", "path", "body", "status", "text"),
    [
        ("POST", "/prpc/Nope", b"", 404, "unknown method: Nope"),
        ("GET", "/", b"", 404, "/"),
        ("PUT", "/prpc/GetMeta", b"", 405, "/prpc/GetMeta"),
        ("POST", "/prpc/GetMeta", b"{", 400, "not valid JSON"),
        ("POST", "/prpc/GetAppEnvEncryptPubKey", b'{"app_id": 5}', 400, "app_id"),
        ("POST", "/prpc/GetAppEnvEncryptPubKey", b"{}", 400, "app_id must be 20 bytes"),
        ("GET", "/prpc/GetAppEnvEncryptPubKey?app_id=%ff", b"", 400, "query string"),
        ("POST", "/prpc/SignCert", b"{}", 400, "api_version"),
        ("POST", "/prpc/SignCert", b'{"api_version": 2, "csr": "00"}', 400, "certificate request"),
        ("POST", "/prpc/GetKmsKey", b"{}", 400, "No attestation provided"),
    ],
)
def test_a_refusal_is_a_json_error(
    client: FlaskClient, verb: str, path: str, body: bytes, status: int, text: str
) -> None:
    said = client.open(path, method=verb, data=body)

    assert said.status_code == status
    assert list(said.get_json()) == ["error"]
    assert text in said.get_json()["error"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("OPTIONS", "/prpc/GetMeta", 405), ("PUT", "/health", 405), ("GET", "/prpc//GetMeta", 404)],
)
def test_no_answer_is_html(client: FlaskClient, method: str, path: str, status: int) -> None:
    answer = client.open(path, method=method)

    assert answer.status_code == status
    assert list(answer.get_json()) == ["error"]
    assert ("GET" in answer.allow) == (status == 405)


def test_a_body_too_large_is_refused(client: FlaskClient) -> None:
    said = client.post("/prpc/GetMeta", data=b"x" * (routes.MAX_BODY + 1))

    assert (said.status_code, list(said.get_json())) == (413, ["error"])


@pytest.mark.parametrize("headers", [{}, OCTETS])
def test_a_body_in_chunks_is_read_whole_or_refused(
    client: FlaskClient, headers: dict[str, str]
) -> None:
    def post(body: bytes) -> int:
        environ = {"wsgi.input_terminated": True, "wsgi.input": io.BytesIO(body)}
        chunked = {"Transfer-Encoding": "chunked", **headers}
        said = client.post("/prpc/GetMeta", headers=chunked, environ_overrides=environ)
        return said.status_code

    assert post(b"{}" if not headers else b"") == 200
    # What is beyond the limit is no part of the message: without it the rest would be one.
    assert post(b"{}".ljust(routes.MAX_BODY) + b"}") == 413


def test_a_caller_that_leaves_in_the_middle_is_refused(client: FlaskClient) -> None:
    class Broken:
        def read(self, size: int = -1) -> bytes:
            raise ParseException("half a chunk")

    environ = {"wsgi.input": Broken(), "wsgi.input_terminated": True}
    said = client.post("/prpc/GetMeta", data=b"12345", environ_overrides=environ)

    assert said.status_code == 400
    assert "the request body cannot be read" in said.get_json()["error"]


def test_a_refusal_in_protobuf_is_one(client: FlaskClient) -> None:
    said = client.post("/prpc/GetAppKey", headers=OCTETS)

    assert said.status_code == 400
    assert protobuf.decode(routes.Refusal, said.data) == {"error": "No attestation provided"}


def test_an_authoriser_that_is_gone_is_a_bad_gateway(
    client: FlaskClient, deciding: Deciding, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone() -> None:
        raise Upstream("gone")

    monkeypatch.setattr(deciding, "policy", gone)

    assert client.get("/prpc/GetMeta").status_code == 502


def test_a_fault_of_ours_is_logged_and_not_shown(
    client: FlaskClient,
    deciding: Deciding,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken() -> None:
        raise RuntimeError("inner words")

    monkeypatch.setattr(deciding, "policy", broken)

    said = client.get("/prpc/GetMeta")

    assert said.status_code == 500
    assert "inner words" not in said.text and "internal error" in said.text
    assert "inner words" in caplog.text


def test_health_and_counters(kms: KmsService, client: FlaskClient, guest: Guest) -> None:
    client.post("/prpc/GetAppKey", json={}, **shown(guest.certificate(kms)))
    client.post("/prpc/KMS.SignCert", json={})
    client.post("/prpc/GetMeta", json={})

    assert client.get("/health").data == b"OK"
    text = client.get("/metrics").text
    assert "dstack_kms_attestation_requests_total 2\n" in text
    assert "dstack_kms_attestation_failures_total 1\n" in text


def test_metrics_can_be_switched_off(open_kms: Callable[..., KmsService]) -> None:
    kms = open_kms(metrics=MetricsSettings(enabled=False))

    assert routes.create_app(kms, "1").test_client().get("/metrics").status_code == 404


# Onboarding


def test_a_new_kms_is_bootstrapped_by_its_page(settings: Settings, deciding: Deciding) -> None:
    ended: list[str] = []
    onboarding = Onboarding(settings, "1", lambda: ended.append("end"))
    client = onboard_routes.create_app(onboarding, "1").test_client()

    page = client.get("/")
    early = client.get("/finish")
    info = client.post("/prpc/Onboard.GetAttestationInfo", json={})
    made = client.post("/prpc/Onboard.Bootstrap", json={"domain": "kms.example"})
    again = client.post("/prpc/Bootstrap", json={"domain": "kms.example"})
    nowhere = client.post("/prpc/Onboard", json={"source_url": "x", "domain": "kms.example"})
    done = client.post("/prpc/Finish", json={})
    by_path = client.get("/finish")

    assert page.status_code == 200 and "This KMS has no keys yet" in page.text
    assert (early.status_code, again.status_code, nowhere.status_code) == (400, 400, 400)
    assert info.get_json()["tee_variant"] == "dstack-tdx"
    assert len(made.get_json()["k256_pubkey"]) == 66
    assert "has its keys already" in again.get_json()["error"]
    assert (done.get_json(), by_path.data) == ({}, b"OK")
    assert client.get("/health").data == b"OK"
    assert ended == ["end", "end"]


# Admin


@pytest.fixture
def admin(settings: Settings, tmp_path: Path) -> FlaskClient:
    users = tmp_path / "htpasswd"
    hashed = bcrypt.hashpw(b"pass word", bcrypt.gensalt(4)).decode()
    users.write_text(f"operator:{hashed}\nother:$apr1$x$y\n")
    given = AdminSettings(enabled=True, token="secret-token", htpasswd_file=users)
    core = replace(settings.core, admin=given)
    return admin_routes.create_app(replace(settings, core=core), "1").test_client()


def clear(admin: FlaskClient, message: dict[str, str] | None = None, **headers: str) -> int:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    path = "/prpc/Admin.ClearImageCache"
    return admin.post(path, json=message or {}, headers=sent).status_code


def basic(user: str, password: str) -> str:
    import base64

    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def test_the_credential_comes_in_four_ways(admin: FlaskClient) -> None:
    for headers in (
        {"Authorization": "Bearer secret-token"},
        {"Authorization": basic("anybody", "secret-token")},
        {"Authorization": basic("operator", "pass word")},
        {"X_Admin_Token": "secret-token"},
    ):
        assert clear(admin, **headers) == 200


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "Bearer",
        "Bearer secret-toke",
        "Basic",
        "Basic ???",
        "Basic /w==",
        "Digest secret-token",
        basic("operator", "wrong"),
        basic("operator", ""),
        basic("operator", "x" * 73),
        basic("other", "pass word"),
        basic("nobody", "pass word"),
    ],
)
def test_any_other_is_refused(admin: FlaskClient, authorization: str) -> None:
    assert clear(admin, Authorization=authorization) == 401


def test_without_a_token_an_empty_one_opens_nothing(settings: Settings) -> None:
    closed = admin_routes.create_app(settings, "1").test_client()

    assert clear(closed, X_Admin_Token="") == clear(closed, Authorization="Bearer ") == 401


def test_only_named_images_leave_the_cache(admin: FlaskClient, settings: Settings) -> None:
    cache = settings.core.image.cache_dir
    one, other = cache / "images" / ("aa" * 32), cache / "images" / ("bb" * 32)
    measured = cache / "configs" / ("cc" * 32)
    for folder in (one, other, measured):
        folder.mkdir(parents=True)
    token = {"X_Admin_Token": "secret-token"}

    for bad in ("../images", "AA" * 32, "aa", "/", "*", "aa" * 32 + "\n"):
        assert clear(admin, {"image_hash": bad}, **token) == 400
        assert clear(admin, {"config_hash": bad}, **token) == 400
    assert one.exists() and other.exists() and measured.exists()
    assert clear(admin, {"image_hash": "aa" * 32}, **token) == 200
    assert not one.exists() and other.exists() and measured.exists()
    assert clear(admin, {"image_hash": "all", "config_hash": "all"}, **token) == 200
    assert not other.exists() and not measured.exists()
