"""How a call is written and answered: JSON by any road, the query of a GET, protobuf, error bodies."""

from __future__ import annotations

import io
import json
import time
import tracemalloc
from typing import Any, BinaryIO

import pytest
from flask.testing import FlaskClient
from gunicorn.http.errors import InvalidChunkSize
from werkzeug.test import TestResponse

from core import protobuf
from core.prpc import Flag, HexBytes, Repeated, Text, UInt32, read_query
from tests.common import rows
from vmm import routes
from vmm.schemas import (
    Id,
    StatusRequest,
    StatusResponse,
    UpdateVmRequest,
    VersionResponse,
    VmConfiguration,
)
from vmm.version import VERSION

FORM = "application/x-www-form-urlencoded"


@pytest.mark.parametrize(
    "content_type",
    [None, FORM, "text/plain", "application/json", "application/json; charset=utf-8"],
)
@pytest.mark.parametrize("query", ["", "?json", "?json=1", "?json=true"])
def test_json_is_answered_by_json_whatever_its_type(
    client: FlaskClient, content_type: str | None, query: str
) -> None:
    # The seed's own example is `curl .../prpc/Status -d '{}'`: curl calls that a form.
    answer = client.post(f"/prpc/Status{query}", data=b"{}", content_type=content_type)

    assert answer.status_code == 200
    assert answer.content_type == "application/json"
    assert answer.json == {"vms": [], "port_mapping_enabled": True, "total": 0}
    assert answer.headers["X-App-Version"] == VERSION


@pytest.mark.parametrize("body", [b"", b"  \n", b"{}", b'{"unknown": 3, "ids": null}'])
def test_an_empty_body_is_the_empty_message(client: FlaskClient, body: bytes) -> None:
    assert client.post("/prpc/Status", data=body).status_code == 200


@pytest.mark.parametrize("prefix", ["", "Teepod.", "Vmm."])
def test_the_name_of_the_service_may_stand_before_a_method(
    client: FlaskClient, prefix: str
) -> None:
    answer = client.post(f"/prpc/{prefix}Version")

    assert answer.json is not None
    assert answer.json["version"] == VERSION
    assert answer.json["rev"].startswith("git:")
    guest = client.post("/guest/ProxiedGuestApi.Info", json={"id": "x"})
    assert guest.json == dict.fromkeys(("message", "error"), "VM x not found")


def test_a_get_takes_its_fields_from_the_query(client: FlaskClient) -> None:
    ids = [create(client, name=name, stopped=True) for name in ("a", "b", "c")]

    listed = client.get("/prpc/Status?brief=true&page=1&page_size=2")
    assert [vm["id"] for vm in body(listed)["vms"]] == ids[2:]
    listed = client.get(f"/prpc/Status?ids[0]={ids[0]}&ids[1]={ids[2]}&json")
    assert [vm["id"] for vm in body(listed)["vms"]] == [ids[0], ids[2]]
    assert body(client.get(f"/prpc/GetInfo?id={ids[1]}"))["info"]["name"] == "b"
    assert client.get("/prpc/Status?page=-1").status_code == 400


def test_the_public_clients_requests_are_taken(client: FlaskClient) -> None:
    # vmm-cli.py posts ?json with nulls and fields that we do not know.
    wanted = rows.request(
        app_id=None, stopped=True, swap_size=0, gpus=None, user_config="", hugepages=False
    )

    answer = client.post("/prpc/CreateVm?json", json=wanted)

    assert answer.status_code == 200, answer.text
    assert set(body(answer)) == {"id"}
    info = body(client.post("/prpc/GetInfo?json", json=body(answer)))
    assert info["info"]["configuration"]["compose_file"] == wanted["compose_file"]


def test_an_empty_answer_has_no_body(client: FlaskClient) -> None:
    vm_id = create(client, stopped=True)

    answer = client.post("/prpc/StopVm", json={"id": vm_id})

    assert (answer.status_code, answer.data) == (200, b"")


def test_every_field_is_printed(client: FlaskClient) -> None:
    create(client, stopped=True)

    (vm,) = body(client.post("/prpc/Status", json={"brief": True}))["vms"]

    assert vm["configuration"] is None
    assert vm["instance_id"] is None
    assert vm["app_url"] is None
    assert (vm["boot_error"], vm["events"]) == ("", [])


@pytest.mark.parametrize("names", [(), ("a",), ("a", "b")])
def test_a_list_is_the_same_message_as_json_and_as_protobuf(
    client: FlaskClient, names: tuple[str, ...]
) -> None:
    for name in names:
        create(client, name=name, stopped=True)

    text = client.post("/prpc/Status", json={}).text
    encoded = client.post("/prpc/Status", data=b"", content_type="application/octet-stream").data

    listed = json.loads(text)
    assert [vm["name"] for vm in listed["vms"]] == list(names)
    assert list(listed) == list(StatusResponse().fields)
    assert text == json.dumps(listed)  # spelled as any other answer
    assert encoded == protobuf.encode(StatusResponse, listed)


@pytest.mark.parametrize(
    "kind", ["application/octet-stream", "application/x-protobuf", "application/protobuf"]
)
def test_protobuf_is_answered_by_protobuf(client: FlaskClient, kind: str) -> None:
    wanted = protobuf.encode(VmConfiguration, rows.request(stopped=True))

    answer = client.post("/prpc/CreateVm", data=wanted, content_type=kind)

    assert (answer.status_code, answer.content_type) == (200, "application/octet-stream")
    vm_id = protobuf.decode(Id, answer.data)["id"]
    assert body(client.post("/prpc/GetInfo", json={"id": vm_id}))["found"] is True
    refusal = client.post("/prpc/StartVm", data=b"\n\x01x", content_type=kind)
    assert refusal.status_code == 404
    assert protobuf.decode(VersionResponse, refusal.data) == {"version": "VM x not found"}


def test_protobuf_gives_way_to_the_json_in_the_query(client: FlaskClient) -> None:
    answer = client.post("/prpc/Status?json", data=b"{}", content_type="application/octet-stream")

    assert answer.content_type == "application/json"
    assert answer.status_code == 200


@pytest.mark.parametrize("data", [b"{", b"\xff" * 20, b"\x0a\xff", b"[1]", b"3", b'{"a": NaN}'])
@pytest.mark.parametrize("kind", ["application/json", "application/octet-stream"])
def test_a_body_that_cannot_be_read_is_refused(client: FlaskClient, data: bytes, kind: str) -> None:
    answer = client.post("/prpc/CreateVm", data=data, content_type=kind)

    assert answer.status_code == 400


def test_both_error_keys_have_the_same_text(client: FlaskClient) -> None:
    answer = client.post("/prpc/CreateVm", json=rows.request(name=""))

    assert answer.status_code == 400
    assert answer.json == dict.fromkeys(("message", "error"), "name: must not be empty")


@pytest.mark.parametrize(
    "data", [b" " * (10 * 1024**2 + 1), json.dumps({"user_config": "x" * 11 * 1024**2}).encode()]
)
@pytest.mark.parametrize("kind", ["application/json", FORM, "application/octet-stream"])
def test_a_body_beyond_ten_mebibytes_is_refused(
    client: FlaskClient, data: bytes, kind: str
) -> None:
    answer = client.post("/prpc/CreateVm", data=data, content_type=kind)

    assert answer.status_code == 413


def in_chunks(client: FlaskClient, body: BinaryIO) -> TestResponse:
    """A POST as gunicorn gives it to the application when it came without a length."""
    return client.post(
        "/prpc/Status",
        headers={"Transfer-Encoding": "chunked"},
        environ_overrides={"wsgi.input_terminated": True, "wsgi.input": body},
    )


def test_a_body_in_chunks_is_read_whole_or_refused(client: FlaskClient) -> None:
    # What is beyond the limit is no part of the JSON: without it the rest would be a message.
    large = io.BytesIO(b"{}" + b" " * (10 * 1024**2))

    assert in_chunks(client, io.BytesIO(b"{}")).status_code == 200
    assert in_chunks(client, large).status_code == 413


def test_broken_chunks_are_the_callers_mistake(client: FlaskClient) -> None:
    class Broken(io.BytesIO):
        def readinto(self, buffer: Any) -> int:
            raise InvalidChunkSize(b"zz")

    answer = in_chunks(client, Broken())

    assert answer.status_code == 400
    assert answer.json["message"] == "the request body comes in broken chunks"


def test_a_body_just_below_the_limit_is_read(client: FlaskClient) -> None:
    padding = b" " * (10 * 1024**2 - 2)

    assert client.post("/prpc/Status", data=padding + b"{}").status_code == 200


@pytest.mark.parametrize("surface", ["/prpc", "/guest"])
@pytest.mark.parametrize("method", ["Nope", "status", "Status/", "Status/x", "%00", "..%2fStatus"])
def test_an_unknown_method_is_not_found(client: FlaskClient, surface: str, method: str) -> None:
    answer = client.post(f"{surface}/{method}", json={})

    assert answer.status_code == 404
    assert set(body(answer)) == {"message", "error"}


@pytest.mark.parametrize("name", sorted(routes.service.methods))
def test_every_call_takes_its_fields_from_a_query(client: FlaskClient, name: str) -> None:
    """The same fields, by a query and by a body, meet the same answer."""
    fields = routes.service.methods[name].request().fields
    query = [(key, _example(field)) for key, field in fields.items() if _example(field)]

    got = client.get(f"/prpc/{name}", query_string=query)
    posted = client.post(
        f"/prpc/{name}", json=read_query(routes.service.methods[name].request, query)
    )

    assert got.content_type == posted.content_type == "application/json"
    assert (got.status_code, got.data) == (posted.status_code, posted.data)


def _example(field: Any) -> str:
    kinds = {Text: "none", UInt32: "1", HexBytes: "0Xab", Flag: "true"}
    inner = field.inner if isinstance(field, Repeated) else field
    return next((text for kind, text in kinds.items() if isinstance(inner, kind)), "")


def test_a_head_is_a_get_without_its_body(client: FlaskClient) -> None:
    answer = client.head("/prpc/Version")

    assert (answer.status_code, answer.data) == (200, b"")


@pytest.mark.parametrize("query", ["json=false", "json=0", "json=no"])
def test_what_does_not_ask_for_json_leaves_protobuf(client: FlaskClient, query: str) -> None:
    answer = client.post(f"/prpc/Version?{query}", content_type="application/octet-stream")

    assert answer.content_type == "application/octet-stream"
    assert protobuf.decode(VersionResponse, answer.data)["version"] == VERSION


def test_null_is_absent_everywhere(client: FlaskClient) -> None:
    wanted = rows.request(stopped=True)
    for name in VmConfiguration().fields:
        wanted.setdefault(name, None)
    vm_id = create(client, **wanted)

    update = dict.fromkeys(UpdateVmRequest().fields) | {"id": vm_id}
    assert body(client.post("/prpc/UpdateVm", json=update)) == {"id": ""}
    assert (
        client.post("/prpc/Status", json=dict.fromkeys(StatusRequest().fields)).status_code == 200
    )
    nested = rows.request(stopped=True, ports=None, networking={"mode": None, "bridge_name": None})
    assert client.post("/prpc/CreateVm", json=nested).status_code == 200


@pytest.mark.parametrize(
    "data", [b"[" + b"{}," * 3_000_000 + b"{}]", b"[]", b'"x"', b"null", b"7", b"true"]
)
def test_a_body_that_is_no_object_is_refused_before_it_is_decoded(
    client: FlaskClient, data: bytes
) -> None:
    tracemalloc.start()
    answer = client.post("/prpc/Status", data=data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert answer.status_code == 400
    assert body(answer)["message"] == "the request body is not a JSON object"
    assert peak < 4 * len(data) + 10_000_000  # a decoded one takes 25 times its length


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("application/json", b'{"x": [' + b"{}," * 3_000_000 + b"{}]}"),
        ("application/octet-stream", b"\x3a\x00" * 4_000_000),
        ("application/octet-stream", b"\x6a\x00" * 4_000_000),
    ],
)
def test_a_body_of_millions_of_values_is_refused_soon(
    client: FlaskClient, kind: str, data: bytes
) -> None:
    began = time.process_time()

    assert client.post("/prpc/CreateVm", data=data, content_type=kind).status_code == 400

    assert time.process_time() - began < 3  # of 0.3 s; decoding them takes more than ten


def test_a_fault_is_told_by_a_reference_to_the_log(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a secret detail")

    monkeypatch.setattr("vmm.service.Vms.meta", broken)
    answer = client.post("/prpc/GetMeta", json={})

    assert answer.status_code == 500
    text = body(answer)["message"]
    assert "secret" not in text
    assert text.rpartition(" ")[2] in caplog.text


def create(client: FlaskClient, **fields: Any) -> str:
    answer = client.post("/prpc/CreateVm", json=rows.request(**fields))
    assert answer.status_code == 200, answer.text
    vm_id: str = body(answer)["id"]
    return vm_id


def body(answer: Any) -> dict[str, Any]:
    assert answer.json is not None, answer.text
    found: dict[str, Any] = answer.json
    return found


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("OPTIONS", "/prpc/Status", 405),
        ("OPTIONS", "/verify", 405),
        ("GET", "/prpc//Status", 404),
    ],
)
def test_what_is_no_call_is_refused_as_json(
    client: FlaskClient, method: str, path: str, status: int
) -> None:
    answer = client.open(path, method=method)

    assert (answer.status_code, answer.is_json) == (status, True)
