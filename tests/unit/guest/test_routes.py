"""The wire rules, on each listener's application."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from guest import guest_routes, http_routes, legacy_routes, routes
from guest.service import Agent
from tests.unit.guest.test_containers import StandIn


@pytest.fixture
def client(agent: Agent) -> FlaskClient:
    return routes.create_app(agent).test_client()


@pytest.fixture
def legacy(agent: Agent) -> FlaskClient:
    return legacy_routes.create_app(agent).test_client()


@pytest.fixture
def public(agent: Agent) -> FlaskClient:
    return http_routes.create_app(agent).test_client()


@pytest.fixture
def host(agent: Agent) -> FlaskClient:
    return guest_routes.create_app(agent).test_client()


@pytest.fixture
def engine(folder: Path, agent: Agent) -> Iterator[StandIn]:
    made = StandIn(folder / "engine.sock")
    yield made
    made.sock.close()


def is_error(response: TestResponse, status: int) -> bool:
    body = json.loads(response.data)
    return (
        response.status_code == status
        and response.content_type == "application/json"
        and int(response.headers["Content-Length"]) == len(response.data)
        and list(body) == ["error"]
        and isinstance(body["error"], str)
    )


@pytest.mark.parametrize("path", ["/Version", "/prpc/Version", "/DstackGuest.Version"])
def test_both_methods_and_all_forms_of_a_name_answer(client: FlaskClient, path: str) -> None:
    for response in (client.get(path), client.post(path), client.post(path, data="{}")):
        assert response.status_code == 200
        assert response.content_type == "application/json"
        assert response.headers["Content-Length"] == str(len(response.data))
        assert response.json["version"].count(".") == 2


def test_a_form_type_as_curl_sends_it_is_read_as_json(client: FlaskClient) -> None:
    response = client.post(
        "/GetKey",
        data='{"path": "p", "unknown": [1], "purpose": null}',
        content_type="application/x-www-form-urlencoded",
    )

    assert len(response.json["key"]) == 64
    assert [len(link) for link in response.json["signature_chain"]] == [130, 130]


def test_get_and_post_give_the_same_key(client: FlaskClient) -> None:
    posted = client.post("/GetKey", json={"path": "my/key ü", "purpose": "signing"})
    got = client.get("/GetKey?path=my/key+%C3%BC&purpose=signing&algorithm=k256")

    assert posted.json == got.json


def test_lists_and_flags_come_in_a_query(client: FlaskClient) -> None:
    for names in ("alt_names[0]=a&alt_names[1]=b", "alt_names[]=a&alt_names[]=b", "alt_names=a"):
        response = client.get(f"/GetTlsKey?subject=x&{names}&usage_server_auth&usage_ra_tls=0")
        assert len(response.json["certificate_chain"]) == 2


BAD = [
    ("GetKey", {"path": 5}),
    ("GetKey", {"algorithm": "rsa"}),
    ("GetKey", {"path": ["a"]}),
    ("GetTlsKey", {"alt_names": "a"}),
    ("GetTlsKey", {"usage_ra_tls": "true"}),
    ("GetTlsKey", {"usage_ra_tls": 1}),
    ("GetTlsKey", {"not_after": -1}),
    ("GetTlsKey", {"not_after": 1.5}),
    ("GetTlsKey", {"not_after": "5"}),
    ("GetTlsKey", {"not_after": 2**64}),
    ("GetTlsKey", {"not_before": 9, "not_after": 9}),
    ("GetQuote", {"report_data": "0"}),
    ("GetQuote", {"report_data": "00 00"}),
    ("GetQuote", {"report_data": "zz"}),
    ("GetQuote", {"report_data": "00" * 65}),
    ("Attest", {"report_data": "00" * 65}),
    ("EmitEvent", {"event": ""}),
    ("EmitEvent", {"event": "a", "payload": 1}),
    ("Sign", {"algorithm": "", "data": ""}),
    ("Sign", {"algorithm": "secp256k1_prehashed", "data": "00"}),
    ("Verify", {"algorithm": "ed25519"}),
]


@pytest.mark.parametrize(("method", "body"), BAD)
def test_a_wrong_request_is_400_with_a_reason(
    client: FlaskClient, method: str, body: dict[str, object]
) -> None:
    assert is_error(client.post(f"/{method}", json=body), 400)


@pytest.mark.parametrize(
    "body", [b"{", b"[]", b"null", b'"x"', b"\xff", b'{"path": NaN}', b"[" * 50_000]
)
def test_a_body_that_is_no_json_object_is_400(client: FlaskClient, body: bytes) -> None:
    assert is_error(client.post("/GetKey", data=body), 400)


@pytest.mark.parametrize(
    "query", ["path=%ff", "path=\xff", "usage_ra_tls=maybe", "not_after=x", "not_after=-1"]
)
def test_a_query_that_cannot_be_read_is_400(client: FlaskClient, query: str) -> None:
    assert is_error(client.get(f"/GetTlsKey?subject=a&{query}&alt_names[0]=%ff"), 400)


@pytest.mark.parametrize(
    "path", ["/", "/Nope", "/prpc/", "/prpc/Nope", "/a/b", "/Tappd.Info", "/GetKey/", "/../etc"]
)
def test_an_unknown_path_is_404(client: FlaskClient, path: str) -> None:
    assert is_error(client.get(path), 404)
    assert is_error(client.post(path, data="junk"), 404)


@pytest.mark.parametrize("method", ["DELETE", "PUT", "OPTIONS"])
def test_other_http_methods_are_refused_in_json(
    client: FlaskClient, public: FlaskClient, method: str
) -> None:
    refused = client.open("/Info", method=method)

    assert is_error(refused, 405)
    assert set(refused.allow) == {"GET", "HEAD", "POST"}
    assert is_error(public.open("/metrics", method=method), 405)


@pytest.mark.parametrize("path", ["/prpc//Info", "/prpc//GetKey", "/logs//web-1"])
def test_a_doubled_slash_is_no_redirect(
    client: FlaskClient, public: FlaskClient, path: str
) -> None:
    assert is_error(client.get(path), 404)
    assert is_error(public.get(path), 404)


def test_a_body_over_ten_mebibytes_is_413(client: FlaskClient) -> None:
    assert is_error(client.post("/GetKey", data=b" " * (10 * 1024 * 1024 + 1)), 413)


def test_a_body_in_chunks_is_read_whole_or_refused(client: FlaskClient) -> None:
    def post(body: bytes) -> TestResponse:
        environ = {"wsgi.input_terminated": True, "wsgi.input": io.BytesIO(body)}
        chunked = {"Transfer-Encoding": "chunked"}
        return client.post("/Version", headers=chunked, environ_overrides=environ)

    assert post(b"{}").status_code == 200
    # What is beyond the limit is no part of the JSON: without it the rest would be a message.
    assert is_error(post(b"{}".ljust(routes.MAX_BODY) + b"}"), 413)


def test_a_fault_of_ours_is_500_and_tells_no_more_than_a_reference(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault() -> None:
        raise RuntimeError("secret inside")

    monkeypatch.setattr(agent, "version", fault)
    response = routes.create_app(agent).test_client().get("/Version")

    assert is_error(response, 500) and b"secret" not in response.data


def test_hex_is_read_in_either_case_and_written_in_lower(client: FlaskClient) -> None:
    response = client.post("/GetQuote", json={"report_data": "0xDEADbeef"})

    assert response.json["report_data"] == "deadbeef" + "00" * 60


def test_what_has_no_result_answers_an_empty_object(client: FlaskClient) -> None:
    assert client.post("/EmitEvent", json={"event": "e"}).data == b"{}"
    assert client.post("/GpuInfo").json == {"attestation": ""}


def test_sign_and_verify_close_the_circle(client: FlaskClient) -> None:
    for algorithm in ("ed25519", "secp256k1", "k256"):
        signed = client.post("/Sign", json={"algorithm": algorithm, "data": "beef"}).json
        assert signed["signature_chain"][0] == signed["signature"]
        assert len(signed["signature_chain"]) == 3
        question = {**signed, "algorithm": algorithm, "data": "beef"}
        assert client.post("/Verify", json=question).json == {"valid": True}
        assert client.post("/Verify", json={**question, "data": ""}).json == {"valid": False}


def test_info_shows_the_whole_picture(client: FlaskClient, agent: Agent) -> None:
    info = client.get("/Info").json
    tcb = json.loads(info["tcb_info"])

    assert info["app_id"] == agent.vm().instance.app_id.hex()
    assert info["compose_hash"] == tcb["compose_hash"] == agent.vm().app.compose_hash.hex()
    assert (info["device_id"], info["mr_aggregated"]) == (tcb["device_id"], tcb["mr_aggregated"])
    assert tcb["app_compose"] == agent.settings.app_compose.read_text()
    assert [entry["event"] for entry in tcb["event_log"] if entry["imr"] == 3] == [
        "system-preparing",
        "app-id",
        "compose-hash",
        "instance-id",
        "boot-mr-done",
        "key-provider",
        "storage-fs",
        "system-ready",
    ]
    assert json.loads(info["key_provider_info"]) == {"name": "none", "id": ""}


def test_the_legacy_api_answers_under_its_paths(legacy: FlaskClient) -> None:
    assert legacy.get("/Info").status_code == 200
    assert is_error(legacy.get("/Version"), 404)
    for path in ("/prpc/Tappd.DeriveKey", "/prpc/DeriveKey"):
        assert len(legacy.post(path, json={"path": "/"}).json["certificate_chain"]) == 2
    derived = legacy.post("/prpc/Tappd.DeriveK256Key", json={"path": "a", "purpose": "b"}).json
    assert len(derived["k256_key"]) == 64 and len(derived["k256_signature_chain"]) == 2


@pytest.mark.parametrize(
    ("request_body", "expected"),
    [
        ({}, "sha512"),
        ({"hash_algorithm": "sha256"}, "sha256"),
        ({"hash_algorithm": "sha3-384"}, "sha3_384"),
    ],
)
def test_a_legacy_quote_binds_the_hash_of_prefix_and_data(
    legacy: FlaskClient, request_body: dict[str, str], expected: str
) -> None:
    import hashlib

    from attest import quote

    given = {"report_data": "beef", **request_body}
    answer = legacy.post("/prpc/Tappd.TdxQuote", json=given).json

    digest = hashlib.new(expected, b"app-data:\xbe\xef").digest()
    report = quote.parse(bytes.fromhex(answer["quote"])).report
    assert report.report_data == digest.ljust(64, b"\0")
    assert answer["prefix"] == "app-data"


def test_a_raw_legacy_quote_takes_exactly_64_bytes(legacy: FlaskClient) -> None:
    raw = {"hash_algorithm": "raw", "report_data": "ab" * 64}
    assert legacy.post("/prpc/TdxQuote", json=raw).json["prefix"] == ""
    assert legacy.post("/prpc/RawQuote", json={"report_data": "ab" * 64}).status_code == 200
    for path in ("/prpc/TdxQuote", "/prpc/RawQuote"):
        response = legacy.post(path, json={**raw, "report_data": "ab" * 63})
        assert is_error(response, 400) and response.json["error"] == "invalid content length"
    unknown = {"hash_algorithm": "md5", "report_data": ""}
    assert is_error(legacy.post("/prpc/TdxQuote", json=unknown), 400)


@pytest.mark.parametrize(
    "method",
    ["GetKey", "GetTlsKey", "GetQuote", "Sign", "Verify", "EmitEvent", "Attest", "DeriveKey"]
    + ["Tappd.DeriveKey", "TdxQuote", "DstackGuest.GetKey", "SysInfo", "Shutdown"],
)
def test_the_public_listener_never_serves_the_apps_calls(
    public: FlaskClient, ended: list[str], method: str
) -> None:
    for path in (f"/{method}", f"/prpc/{method}", f"/api/{method}"):
        assert is_error(public.post(path, json={"path": "a"}), 404)
        assert is_error(public.get(path), 404)
    assert ended == []


def test_every_public_answer_names_the_version(public: FlaskClient) -> None:
    for path in ("/", "/metrics", "/prpc/Version", "/prpc/Worker.Info", "/nope"):
        assert public.get(path).headers["X-App-Version"].startswith("v0.")


def test_an_app_key_attestation_binds_the_signing_key(
    public: FlaskClient, client: FlaskClient
) -> None:
    import base64

    signed = client.post("/Sign", json={"algorithm": "ed25519", "data": ""}).json
    text = base64.urlsafe_b64encode(bytes.fromhex(signed["public_key"])).rstrip(b"=")

    answer = public.get("/prpc/GetAttestationForAppKey?algorithm=ed25519").json

    bound = (b"dip1::ed25519-pk:" + text).ljust(64, b"\0")
    assert answer["report_data"] == bound.hex()


def set_public(folder: Path, agent: Agent, **flags: bool) -> None:
    compose = json.loads((folder / "app-compose.json").read_text())
    (folder / "app-compose.json").write_text(json.dumps({**compose, **flags}))
    agent._vm = None  # read again


def test_what_the_app_did_not_make_public_is_not_found(
    public: FlaskClient, client: FlaskClient, folder: Path, agent: Agent, engine: StandIn
) -> None:
    off = {"public_logs": False, "public_sysinfo": False, "public_tcbinfo": False}
    set_public(folder, agent, **off)

    assert is_error(public.get("/logs/web"), 404)
    assert is_error(public.get("/metrics"), 404)
    assert engine.asked == []
    seen = public.get("/prpc/Info").json
    assert (seen["tcb_info"], seen["vm_config"]) == ("", "")
    assert client.get("/Info").json["tcb_info"]


def test_logs_come_in_four_forms(public: FlaskClient, engine: StandIn) -> None:
    from tests.unit.guest.test_containers import frame

    engine.log = frame(1, b"\x1b[31mred\x1b[0m\n") + frame(2, b"\xff\n")

    lines = [json.loads(line) for line in public.get("/logs/web?text").data.splitlines()]
    assert lines == [
        {"channel": "stdout", "message": "\x1b[31mred\x1b[0m\n"},
        {"channel": "stderr", "message": "�\n"},
    ]
    coded = json.loads(public.get("/logs/web").data.splitlines()[0])
    assert coded["message"] == "G1szMW1yZWQbWzBtCg=="
    assert public.get("/logs/web?text&bare").data.decode() == "red\n�\n"
    assert public.get("/logs/web?text=1&bare=yes&ansi=on").data.startswith(b"\x1b[31m")


def test_what_is_cut_by_a_frames_end_is_put_together_for_each_channel(
    public: FlaskClient, engine: StandIn
) -> None:
    from tests.unit.guest.test_containers import frame

    red = "\x1b[31mrouge é\x1b[0m\n".encode()
    cut = [(1, red[:3]), (2, b"\x1b]0;ti"), (1, red[3:12]), (2, b"tle\x07e\x9b"), (1, red[12:])]
    engine.log = b"".join(frame(stream, data) for stream, data in cut) + frame(2, b"\xc3")

    assert public.get("/logs/web?text&bare").data.decode() == "rouge e\ufffdé\n\ufffd"
    lines = [json.loads(line) for line in public.get("/logs/web?text").data.splitlines()]
    out = "".join(line["message"] for line in lines if line["channel"] == "stdout")
    assert out == red.decode()


def test_a_terminals_log_is_one_stream(public: FlaskClient, engine: StandIn) -> None:
    engine.is_tty, engine.log = True, b"\x1b[31mtty\x1b[0m\r\n" + b"\1\0\0\0\0\0\0\2no"

    (line,) = public.get("/logs/web?text").data.splitlines()

    assert json.loads(line)["channel"] == "stdout"
    assert public.get("/logs/web?text&bare").data.startswith(b"tty\r\n\1\0")


@pytest.mark.parametrize("value", ["", "=", "=true", "=1", "=on", "=yes", "=TRUE"])
def test_a_flag_is_set_in_many_ways(public: FlaskClient, engine: StandIn, value: str) -> None:
    assert public.get(f"/logs/web?bare{value}&text{value}").data == b"out\nerr\n"
    assert public.get("/logs/web?bare=no&text=0").data.startswith(b'{"channel"')


@pytest.mark.parametrize("query", ["since=x", "until=1w", "tail=-1"])
def test_a_wrong_log_query_is_400(public: FlaskClient, engine: StandIn, query: str) -> None:
    assert is_error(public.get(f"/logs/web?{query}"), 400)


@pytest.mark.parametrize("name", ["other", "..%2fetc", "%2e%2e", "a b", "-x"])
def test_other_containers_are_not_found(public: FlaskClient, engine: StandIn, name: str) -> None:
    assert is_error(public.get(f"/logs/{name}"), 404)


def test_without_an_engine_logs_fail_and_the_dashboard_does_not(public: FlaskClient) -> None:
    assert is_error(public.get("/logs/web"), 502)
    assert b"None is known." in public.get("/").data


def test_the_dashboard_escapes_what_others_chose(
    public: FlaskClient, folder: Path, agent: Agent, engine: StandIn, monkeypatch: Any
) -> None:
    from tests.unit.guest import test_containers

    evil = "<script>alert(1)</script>"
    monkeypatch.setitem(test_containers.LISTED, "Names", [f"/{evil}"])
    set_public(folder, agent, name=evil)  # type: ignore[arg-type] # a text, for once

    page = public.get("/").data.decode()

    assert evil not in page and page.count("&lt;script&gt;") >= 2
    assert "/logs/%3Cscript%3E" in page


def test_the_hosts_five_calls_answer(host: FlaskClient, engine: StandIn, ended: list[str]) -> None:
    info = host.get("/api/Info").json
    assert list(info) == ["version", "app_id", "instance_id", "app_cert", "tcb_info", "device_id"]
    assert host.post("/api/SysInfo", json={}).json["num_cpus"] > 0
    assert host.get("/api/NetworkInfo").json["wg_info"] == ""
    assert host.get("/api/ListContainers").json["containers"][0]["names"] == ["dstack-web-1"]
    assert is_error(host.get("/api/GetKey"), 404)
    assert ended == []


def test_shutdown_answers_and_then_ends_the_vm(host: FlaskClient, ended: list[str]) -> None:
    from tests.common.waiting import until

    assert host.post("/api/Shutdown").data == b"{}"
    until(lambda: ended == ["power off"])


def test_before_the_keys_are_there_the_agent_says_why(agent: Agent) -> None:
    agent.settings.app_keys.unlink()
    client = routes.create_app(agent).test_client()
    assert is_error(client.get("/Info"), 503)

    agent.settings.boot_error.write_text("no such disk")

    response = client.get("/GetKey")
    assert is_error(response, 503) and "no such disk" in response.json["error"]
    assert client.get("/Version").status_code == 200
