"""The verification calls over HTTP, open to everybody; the seed's own commands run by curl against a real listener."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from app import create_app
from attest import artifacts
from core.config import AttestationConfig, Config, KnownMachine
from secretvm import builds
from tests.common import evidence
from tests.common.evidence import TdxVm, platform, processor, snp_attestation
from tests.common.served import served
from tests.common.tls_server import TlsServer
from tests.unit.attest.test_artifacts import COMPOSE, REGISTERS, ROOTFS, sev_json, tdx_csv
from vmm.host import Host

NOW = int(time.time())
NAMES = ("MRTD", "RTMR0", "RTMR1", "RTMR2")
REGISTER_FIELDS = {name: value.hex() for name, value in zip(NAMES, REGISTERS, strict=True)}
GETS = ("/api/gateway-attestation", "/api/secretvm-cert-check")
POSTS = (
    "/api/verify-docker",
    "/api/verify-docker-sev",
    "/api/resolve-attestation",
    "/api/quote-parse",
    "/api/quote-parse-sev",
)


@pytest.fixture
def config(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """Trusts the simulated roots, knows one machine, and has registry files of its own alone."""
    (tmp_path / "root.pem").write_text(platform().root_ca_pem + processor().root_ca_pem)
    (tmp_path / "collateral.json").write_text(platform().collateral_json(NOW))
    monkeypatch.setattr(builds, "PUBLISHED", tmp_path / "none")
    folder = builds.imported(config.data_dir)
    folder.mkdir()
    (folder / "tdx.csv").write_bytes(
        tdx_csv({}, {"artifacts_ver": "v0.0.26", "rootfs_data": "06" * 32})
    )
    (folder / "sev.json").write_bytes(sev_json())
    attestation = AttestationConfig(
        tmp_path / "root.pem",
        tmp_path / "collateral.json",
        known_machines=(KnownMachine(platform().ppid.hex(), "rack 3"),),
        outbound="any",
    )
    return dataclasses.replace(config, attestation=attestation)


def verify_docker(client: FlaskClient, **changes: Any) -> TestResponse:
    fields = {
        **REGISTER_FIELDS,
        "rtmr3": artifacts.rtmr3(COMPOSE, ROOTFS).hex(),
        "dockercompose": (io.BytesIO(COMPOSE), "docker-compose.yml"),
        **changes,
    }
    form = {name: value for name, value in fields.items() if value is not None}
    return client.post("/api/verify-docker", data=form)


def is_refusal(answer: TestResponse, status: int, field: str = "") -> bool:
    body = answer.json
    assert body is not None
    return (
        answer.status_code == body["statusCode"] == status
        and set(body) == {"statusCode", "message"}
        and field in body["message"]
    )


def test_a_compose_file_that_was_measured_is_a_success(client: FlaskClient) -> None:
    answer = verify_docker(client)

    assert answer.status_code == 200
    said = answer.json
    assert said.pop("message")
    assert said == {
        "status": "success",
        "vm_type": "small",
        "artifacts_ver": "v0.0.25",
        "environment": "prod",
        "rtmr3": artifacts.rtmr3(COMPOSE, ROOTFS).hex(),
        "dockerFilesSha256Used": None,
        "artifactsLink": None,
        "host_id": "ab" * 48,
    }


def test_registers_may_have_0x_and_capitals_and_the_file_may_be_a_field(
    client: FlaskClient,
) -> None:
    shouted = {name: "0x" + value.upper() for name, value in REGISTER_FIELDS.items()}

    assert verify_docker(client, **shouted).json["status"] == "success"
    assert verify_docker(client, dockercompose=COMPOSE.decode()).json["status"] == "success"


def test_another_compose_file_is_an_error_with_200(client: FlaskClient) -> None:
    answer = verify_docker(client, dockercompose=(io.BytesIO(b"another"), "c.yml"))

    assert (answer.status_code, answer.json["status"], answer.json["code"]) == (
        200,
        "error",
        "MISMATCH",
    )
    # The newest of the builds with these registers.
    assert answer.json["expected_rtmr3"] == artifacts.rtmr3(b"another", b"\x06" * 32).hex()


@pytest.mark.parametrize("name", [*NAMES, "rtmr3", "dockercompose"])
def test_every_field_of_verify_docker_is_needed_and_named(client: FlaskClient, name: str) -> None:
    assert is_refusal(verify_docker(client, **{name: None}), 400, name)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MRTD", "ab"),
        ("rtmr3", "zz" * 48),
        ("dockerFilesSha256", "ab"),
        ("dstack_app_id", "ab" * 32),
        ("event_log", "[]"),
        ("dockercompose", "x" * (1024**2 + 1)),
    ],
)
def test_a_bad_field_of_verify_docker_is_named(client: FlaskClient, name: str, value: str) -> None:
    answer = verify_docker(client, **{name: value})

    assert answer.status_code == 400, answer.json
    assert ("app_compose" if name == "event_log" else name) in answer.json["message"]


def test_a_launch_with_the_compose_file_is_a_success(client: FlaskClient) -> None:
    build = artifacts.parse("sev.json", sev_json()).sev[0]
    form = {
        "family_id": "prod-small-sev##",
        "image_id": b"v0.0.25".ljust(16, b"\0").hex(),
        "measurement": next(build.measurements(COMPOSE, b"", 1)).hex(),
    }

    def post(**changes: str) -> TestResponse:
        files = {"dockercompose": (io.BytesIO(COMPOSE), "c.yml")}
        return client.post("/api/verify-docker-sev", data={**form, **files, **changes})

    said = post().json
    assert (said["status"], said["vm_type"], said["host_id"]) == ("success", "small", None)
    assert post(measurement="00" * 48).json["code"] == "MISMATCH"
    assert post(family_id="prod-tiny-sev").json["code"] == "UNKNOWN_IMAGE"
    assert is_refusal(post(measurement="00"), 400, "measurement")
    assert is_refusal(post(image_id=""), 400, "image_id")


def test_registers_resolve_to_the_newest_build_and_all_candidates(client: FlaskClient) -> None:
    answer = client.post("/api/resolve-attestation", json=REGISTER_FIELDS)

    assert answer.status_code == 200
    assert answer.json["artifacts_ver"] == "v0.0.26"
    assert [each["artifacts_ver"] for each in answer.json["candidates"]] == ["v0.0.26", "v0.0.25"]
    unknown = {**REGISTER_FIELDS, "RTMR2": "00" * 48}
    assert is_refusal(client.post("/api/resolve-attestation", json=unknown), 404)
    assert is_refusal(client.post("/api/resolve-attestation", json={}), 400, "MRTD")


def test_a_quote_is_parsed_with_its_status(client: FlaskClient) -> None:
    quote = TdxVm().attestation().platform.quote  # type: ignore[union-attr]
    answer = client.post("/api/quote-parse", json={"quote": quote.hex()})

    said = answer.json
    assert answer.status_code == 200
    assert said["status"] == {
        "attestation_type": "tdx",
        "result": "0",
        "exp_status": "0",
        "tcb_status": "UpToDate",
        "advisory_ids": [],
        "debug": False,
        "message": None,
    }
    assert (said["quote"]["version"], said["quote"]["tee_type"]) == (4, 0x81)
    assert said["quote"]["report_data"] == evidence.REPORT_DATA.hex()
    assert len(said["quote"]["machine_id"]) == 32
    assert (said["proof_of_cloud"], said["origin"]) == (True, "rack 3")
    assert json.loads(bytes.fromhex(said["collateral"]))["tcb_info"]
    assert abs(said["checked_at"] - NOW) < 3600


def test_a_quote_that_nothing_vouches_for_is_of_no_known_machine(client: FlaskClient) -> None:
    quote = bytearray(TdxVm().attestation().platform.quote)  # type: ignore[union-attr]
    quote[48 + 520] ^= 1  # of its report data

    said = client.post("/api/quote-parse", json={"quote": quote.hex()}).json

    assert said["status"]["result"] == "40964"
    assert (said["proof_of_cloud"], said["origin"]) == (False, None)


def test_old_evidence_is_judged_by_its_own_time_and_collateral(client: FlaskClient) -> None:
    quote = TdxVm().attestation().platform.quote  # type: ignore[union-attr]
    old = evidence.NOW
    body = {"quote": base64.b64encode(quote).decode(), "at": old}

    with_collateral = {**body, "collateral": json.loads(evidence.collateral())}
    said = client.post("/api/quote-parse", json=with_collateral).json
    assert (said["status"]["result"], said["checked_at"]) == ("0", old)
    alone = client.post("/api/quote-parse", json=body).json
    assert alone["checked_at"] != old
    strange = client.post("/api/quote-parse", json={**body, "collateral": {"a": 1}}).json
    assert strange["status"]["result"] == "40966"
    assert "error" in strange["collateral"]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"quote": ""},
        {"quote": 5},
        {"quote": "zz"},
        {"quote": "00" * 700},
        {"quote": "00", "at": "x"},
    ],
)
def test_what_is_no_quote_is_a_bad_request(client: FlaskClient, body: dict[str, Any]) -> None:
    for path in ("/api/quote-parse", "/api/quote-parse-sev"):
        if "at" not in body or path.endswith("parse"):
            assert is_refusal(client.post(path, json=body), 400)


def test_a_body_that_is_no_json_or_too_deep_is_a_bad_request(client: FlaskClient) -> None:
    for text in ("{", "[1]", '"x"', "[" * 100_000, '{"a":' * 100_000):
        answer = client.post("/api/quote-parse", data=text, content_type="application/json")
        assert is_refusal(answer, 400)


def test_a_report_is_parsed_with_its_checks(client: FlaskClient) -> None:
    report = snp_attestation().platform.report  # type: ignore[union-attr]
    body = {
        "quote": base64.b64encode(report).decode(),
        "vcek": base64.b64encode(processor().vcek.public_bytes(Encoding.DER)).decode(),
        "cert_chain": processor().chain_pem,
    }
    answer = client.post(
        "/api/quote-parse-sev", json=body, headers={"Authorization": "Bearer nobody"}
    )

    said = answer.json
    assert answer.status_code == 200
    assert said["status"]["attestation_type"] == "sev"
    assert said["status"]["result"] != "0"
    assert said["status"]["checks"]["report_signature_valid"] is True
    assert said["status"]["checks"]["crl_check_passed"] is None
    assert said["quote"]["measurement"] == report[0x90:0xC0].hex()
    assert len(said["quote"]["machine_id"]) == 32
    alone = client.post("/api/quote-parse-sev", json={"quote": body["quote"]})
    assert (alone.status_code, "error" in alone.json["collateral"]) == (200, True)
    named = {**body, "processor_model": "Rome"}
    assert is_refusal(client.post("/api/quote-parse-sev", json=named), 400, "processor_model")


def test_a_live_host_is_checked(client: FlaskClient, tmp_path: Path) -> None:
    with TlsServer(tmp_path, {}) as server:
        vm = TdxVm(report_data=hashlib.sha256(server.spki).digest().ljust(64, b"\0"))
        server.pages["/cpu"] = vm.attestation().platform.quote.hex().encode()  # type: ignore[union-attr]

        said = client.get(f"/api/secretvm-cert-check?host=127.0.0.1&port={server.port}")
        assert (said.status_code, said.json["ok"]) == (200, True), said.json
        gateway = client.get(f"/api/gateway-attestation?domain=127.0.0.1&port={server.port}")
        assert (gateway.status_code, gateway.json["evidence_type"]) == (200, None)


@pytest.mark.parametrize("path", GETS)
def test_hosts_that_cannot_be_asked_are_400_or_502(client: FlaskClient, path: str) -> None:
    for query in ("", "?domain=", "?domain=a b", "?domain=x.test&port=22", "?domain=x.test&port=z"):
        assert is_refusal(client.get(path + query), 400)
    from tests.common.waiting import free_port

    assert is_refusal(client.get(f"{path}?domain=127.0.0.1&port={free_port()}"), 502)


@pytest.mark.parametrize("outbound", ["public", "off"])
def test_where_strangers_may_not_be_sent_they_are_refused(
    config: Config, host: Host, database: object, outbound: str
) -> None:
    attestation = dataclasses.replace(config.attestation, outbound=outbound)
    client = create_app(dataclasses.replace(config, attestation=attestation), host).test_client()

    for path in GETS:
        answer = client.get(f"{path}?domain=127.0.0.1&port=8443")
        assert is_refusal(answer, 503 if outbound == "off" else 400)


@pytest.mark.parametrize("path", [*GETS, *POSTS])
def test_another_method_is_405_in_this_surfaces_body(client: FlaskClient, path: str) -> None:
    for method in {"GET", "POST", "PUT", "DELETE", "PATCH"} - {"GET" if path in GETS else "POST"}:
        assert is_refusal(client.open(path, method=method), 405)


@pytest.fixture
def listener(app: Flask) -> Iterator[str]:
    """The service on a real port."""
    with served(app) as url:
        yield url


def curl(*arguments: str) -> tuple[int, dict[str, Any]]:
    done = subprocess.run(
        ["curl", "-s", "-w", "\n%{http_code}", *arguments],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    body, _, status = done.stdout.rpartition("\n")
    answer: dict[str, Any] = json.loads(body)
    return int(status), answer


def test_the_documented_commands_work_as_printed(listener: str, tmp_path: Path) -> None:
    (tmp_path / "docker-compose.yml").write_bytes(COMPOSE)
    compose = f"dockercompose=@{tmp_path}/docker-compose.yml"
    registers = [part for each in REGISTER_FIELDS.items() for part in ("-F", "=".join(each))]
    json_type = ("-H", "Content-Type: application/json", "-d")
    rtmr3 = artifacts.rtmr3(COMPOSE, ROOTFS).hex()

    url = f"{listener}/api/verify-docker"
    status, said = curl("-X", "POST", url, "-F", compose, *registers, "-F", f"rtmr3={rtmr3}")
    assert (status, said["status"]) == (200, "success")

    build = artifacts.parse("sev.json", sev_json()).sev[0]
    measurement = next(build.measurements(COMPOSE, b"", 1)).hex()
    names = ("-F", "family_id=prod-small-sev", "-F", "image_id=v0.0.25")
    status, said = curl(
        "-X", "POST", f"{url}-sev", "-F", compose, *names, "-F", f"measurement={measurement}"
    )
    assert (status, said["status"]) == (200, "success")

    url = f"{listener}/api/resolve-attestation"
    status, said = curl("-X", "POST", url, *json_type, json.dumps(REGISTER_FIELDS))
    assert (status, said["vm_type"]) == (200, "small")

    quote = TdxVm().attestation().platform.quote.hex()  # type: ignore[union-attr]
    url = f"{listener}/api/quote-parse"
    status, said = curl("-X", "POST", url, *json_type, json.dumps({"quote": quote}))
    assert (status, said["status"]["result"]) == (200, "0")

    report = base64.b64encode(snp_attestation().platform.report).decode()  # type: ignore[union-attr]
    bearer = ("-H", "Authorization: Bearer …")
    status, said = curl(
        "-X", "POST", f"{url}-sev", *bearer, *json_type, json.dumps({"quote": report})
    )
    assert (status, said["status"]["attestation_type"]) == (200, "sev")

    with TlsServer(tmp_path, {}) as server:
        for path, key in (("gateway-attestation", "checks"), ("secretvm-cert-check", "ok")):
            status, said = curl(f"{listener}/api/{path}?domain=127.0.0.1&port={server.port}")
            assert status == 200
            assert key in said
