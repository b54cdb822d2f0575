"""VMs that are there: names, power, changes, what their guests say, logs behind links."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from flask import Flask
from flask.testing import FlaskClient

from models.base import Database
from models.vm import Vm
from tests.api.apps.conftest import COMPOSE, VERSIONS, Api
from tests.common import rows
from tests.common.waiting import until

TCB = {
    **{name: "ab" * 48 for name in ("mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3")},
    "app_compose": "{}",
    "event_log": [
        {"imr": 3, "event_type": 1, "digest": "00", "event": "app-id", "event_payload": "01"},
        {"imr": "three"},
    ],
}


def listen(app: Flask, **answers: Any) -> None:
    """Lets the guests of all VMs answer so."""
    told = {method: {"result": result} for method, result in answers.items()}
    rows.behave(app.extensions["vms"].config.run_path, guest=told)


def test_a_vm_has_many_names(ann: Api) -> None:
    vm = ann.deploy()
    shown = ann.get(f"/cvms/{vm['vm_uuid']}")
    dashless = vm["vm_uuid"].replace("-", "")

    for name in (
        dashless,
        shown["id"],
        str(vm["id"]),
        "app_" + vm["app_id"],
        vm["app_id"],
        "web-app",
    ):
        assert ann.get(f"/cvms/{name}")["vm_uuid"] == vm["vm_uuid"], name


def test_a_name_of_several_vms_is_refused(ann: Api) -> None:
    vm = ann.deploy()
    ann.post("/cvms/web-app/replicas")

    refused = ann.get(f"/cvms/{vm['app_id']}", 409)

    assert refused["error_code"] == "ERR-03-002"
    assert len(refused["details"][0]["value"]) == 2


def test_power(ann: Api, app: Flask) -> None:
    vm_id = ann.deploy()["vm_uuid"]
    reconciler = app.extensions["vms"].reconciler

    assert ann.post("/cvms/web-app/stop")["status"] == "stopped"
    assert ann.post("/cvms/web-app/stop")["status"] == "stopped"
    assert ann.post("/cvms/web-app/shutdown")["status"] == "stopped"
    assert ann.post("/cvms/web-app/start")["status"] == "running"
    assert ann.post("/cvms/web-app/restart", {"force": True})["status"] == "running"
    assert ann.post("/cvms/web-app/restart")["status"] == "running"
    assert ann.post("/cvms/web-app/shutdown")["status"] in ("stopping", "stopped")

    def is_stopped() -> bool:
        reconciler.one(vm_id)  # what the background process does all the time
        return bool(ann.get("/cvms/web-app/state")["status"] == "stopped")

    until(is_stopped)
    (made,) = ann.get("/apps")["dstack_apps"]
    assert ann.get(f"/apps/{made['app_id']}/revisions")["total"] == 1


def test_a_change_starts_a_running_vm_anew(ann: Api) -> None:
    ann.deploy()
    before = ann.get("/cvms/web-app")

    told = ann.patch("/cvms/web-app", {"docker_compose_file": COMPOSE + "# 2\n", "vcpu": 2})
    after = ann.get("/cvms/web-app")

    assert told["status"] == "in_progress" and told["correlation_id"]
    assert (before["status"], after["status"]) == ("running", "running")
    assert after["compose_hash"] != before["compose_hash"]
    assert after["resource"]["vcpu"] == 2
    assert ann.get("/cvms/web-app/compose_file")["docker_compose_file"].endswith("# 2\n")


def test_a_stopped_vm_stays_stopped(ann: Api) -> None:
    ann.deploy()
    ann.post("/cvms/web-app/stop")

    ann.patch("/cvms/web-app", {"public_logs": True})

    shown = ann.get("/cvms/web-app")
    assert (shown["status"], shown["public_logs"]) == ("stopped", True)


def test_each_change_of_what_boots_is_a_revision(ann: Api) -> None:
    vm = ann.deploy()
    ann.patch("/cvms/web-app", {"public_logs": True})
    ann.patch("/cvms/web-app", {"encrypted_env": "ab" * 60})
    ann.patch("/cvms/web-app", {"user_config": '{"hostname": "box"}'})
    ann.patch("/cvms/web-app", {"user_config": '{"hostname": "box"}'})
    ann.patch("/cvms/web-app", {"memory": 4096})
    (*_, first) = ann.get(f"/apps/{vm['app_id']}/revisions")["revisions"]
    ann.post(f"/apps/{vm['app_id']}/revisions/{first['revision_id']}/redeploy", status=202)

    told = ann.get(f"/apps/{vm['app_id']}/revisions")["revisions"]

    assert [each["operation_type"] for each in told] == [
        "redeploy", "update_user_config", "update_envs", "compose_update", "deploy",
    ]  # fmt: skip
    assert told[0]["compose_hash"] == first["compose_hash"]
    assert {each["triggered_by"]["username"] for each in told} == {"ann"}
    assert ann.get("/cvms/web-app/user_config")["hostname"] == "box"
    page = ann.get(f"/apps/{vm['app_id']}/revisions?page=2&page_size=3")
    assert (len(page["revisions"]), page["total_pages"]) == (2, 2)
    ann.get("/apps/" + "11" * 20 + f"/revisions/{first['revision_id']}", 404)


def test_the_older_calls_change_one_thing_each(ann: Api) -> None:
    ann.deploy()
    text = {"data": COMPOSE + "# 3\n", "content_type": "text/yaml"}
    ann.ask("PATCH", "/cvms/web-app/docker-compose", 202, **text)
    ann.ask("PATCH", "/cvms/web-app/pre-launch-script", 202, data="echo", content_type="text/plain")
    envs = ann.patch("/cvms/web-app/envs", {"encrypted_env": "ab" * 60, "env_keys": ["A"]})
    seen = ann.patch("/cvms/web-app/visibility", {"public_sysinfo": True, "public_logs": True}, 200)
    # As PyPI phala-cloud writes numbers.
    ann.ask("PATCH", "/cvms/web-app/resources", 204, json={"vcpu": 2.0, "memory": 4096.0})
    ann.ask("PATCH", "/cvms/web-app/resources", 422, json={"vcpu": 1.5})
    ann.ask("PATCH", "/cvms/web-app/os-image", 204, json={"os_image_name": rows.IMAGE})

    shown, document = ann.get("/cvms/web-app"), ann.get("/cvms/web-app/compose_file")
    assert envs["allowed_envs_changed"] is True
    assert seen["public_logs"] is True and isinstance(seen["id"], int)
    assert shown["resource"]["instance_type"] == "tdx.medium"
    assert document["docker_compose_file"].endswith("# 3\n")
    assert (document["pre_launch_script"], document["allowed_envs"]) == ("echo", ["A"])


def test_one_more_vm_is_told_as_the_clients_of_each_version_read_it(ann: Api) -> None:
    path = f"/apps/{ann.deploy()['app_id']}/instances"

    told = {version: ann.speaking(version).post(path) for version in VERSIONS}

    assert [version for version in VERSIONS if "resource" in told[version]] == list(VERSIONS[2:])
    assert all("teepod_id" in told[version] for version in VERSIONS[:2])


def test_a_prepared_text_is_committed_by_its_hash(ann: Api) -> None:
    ann.deploy()
    prepared = ann.post(
        "/cvms/web-app/compose_file/provision", {"docker_compose_file": COMPOSE + "#"}
    )
    given = {"compose_hash": prepared["compose_hash"]}

    ann.ask("PATCH", "/cvms/web-app/compose_file", 204, json=given)
    again = ann.patch("/cvms/web-app/compose_file", given, 466)

    assert ann.get("/cvms/web-app")["compose_hash"] == prepared["compose_hash"]
    assert again["error_code"] == "ERR-01-006"


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"docker_compose_file": "no: services"}, 400, "ERR-01-003"),
        ({"image": "none-1"}, 404, "ERR-02-010"),
        ({"vcpu": 100}, 409, "ERR-02-003"),
        ({"disk_size": 1}, 422, ""),
        ({"encrypted_env": "abc"}, 422, ""),
    ],
)
def test_a_change_that_cannot_be_made_changes_nothing(
    ann: Api, change: dict[str, Any], status: int, code: str
) -> None:
    ann.deploy()
    before = ann.get("/cvms/web-app")

    refused = ann.patch("/cvms/web-app", change, status)

    after = ann.get("/cvms/web-app")
    assert refused.get("error_code", "") == code
    assert (after["compose_hash"], after["status"]) == (before["compose_hash"], "running")


def test_instance_ids_are_those_that_guests_told(ann: Api, bob: Api, database: Database) -> None:
    told, silent = ann.deploy("told-app"), ann.deploy("silent-app")
    bob.deploy("other-app")
    with database.writing() as session:
        session.get_one(Vm, told["vm_uuid"]).instance_id = "ab" * 20

    one = ann.patch("/cvms/told-app/instance-id", {}, 200)
    everything = ann.patch("/cvms/instance-ids", {"dry_run": True}, 200)
    missing = ann.patch("/cvms/instance-ids", {"missing_only": True, "running_only": True}, 200)
    named = ann.patch("/cvms/instance-ids", {"cvm_ids": ["told-app", "other-app"]}, 200)

    assert (one["status"], one["new_instance_id"], one["cvm_id"]) == (
        "unchanged",
        "ab" * 20,
        told["id"],
    )
    counts = [everything[each] for each in ("total", "scanned", "unchanged", "skipped", "updated")]
    assert counts == [2, 2, 1, 1, 0]
    assert [each["identifier"] for each in missing["items"]] == [silent["vm_uuid"]]
    assert missing["items"][0]["reason"]
    assert [each["identifier"] for each in named["items"]] == [told["vm_uuid"]]


def test_states_come_as_a_stream_to_who_accepts_one(ann: Api) -> None:
    ann.deploy()
    stream = {"headers": {"Accept": "text/event-stream"}}

    told = ann.ask("GET", "/cvms/web-app/state?target=running", 200, **stream)
    refused = ann.get("/cvms/web-app/state?interval=4", 422, **stream)

    assert told.mimetype == "text/event-stream"
    events = [each.split("\n")[0] for each in told.text.strip().split("\n\n")]
    assert events == ["event: state", "event: complete"]
    assert refused["detail"][0]["loc"] == ["query", "interval"]
    ann.get("/cvms/nobody/state", 404, **stream)


# Guests ------------------------------------------------------------------------------------------


def test_attestations_ask_every_guest_and_tell_who_does_not_answer(ann: Api, app: Flask) -> None:
    info = {"tcb_info": json.dumps(TCB), "device_id": "dd" * 32, "app_cert": "no certificate"}
    listen(app, Info=info)
    vm = ann.deploy()
    ann.post("/cvms/web-app/replicas")
    (other,) = {each["name"] for each in ann.get("/cvms/paginated")["items"]} - {"web-app"}
    ann.post(f"/cvms/{other}/stop")

    first, second = ann.get(f"/apps/{vm['app_id']}/attestations")["instances"]

    assert first["error"] == "the guest shows no certificate"
    assert first["tcb_info"]["rtmr3"] == TCB["rtmr3"]
    assert [each["event"] for each in first["tcb_info"]["event_log"]] == ["app-id"]
    assert (first["device_id"], first["ppid"], first["app_certificates"]) == ("dd" * 32, "", None)
    assert second["error"] == "the CVM is stopped"
    assert (second["tcb_info"], second["device_id"], second["ppid"]) == (None, "", "")


@pytest.mark.parametrize("info", [{}, {"tcb_info": "5"}, {"tcb_info": '{"mrtd": 5}'}])
def test_a_guest_that_hides_its_measurements_is_told_so(ann: Api, app: Flask, info: Any) -> None:
    listen(app, Info=info)
    app_id = ann.deploy()["app_id"]

    (instance,) = ann.get(f"/apps/{app_id}/attestations")["instances"]

    assert instance["tcb_info"] is None
    assert instance["error"] == "the guest shows no TCB info"


def test_a_guest_that_does_not_answer_costs_three_seconds_at_most(ann: Api, app: Flask) -> None:
    rows.behave(app.extensions["vms"].config.run_path, guest="hang")
    app_id = ann.deploy()["app_id"]
    for _ in range(2):
        ann.post(f"/apps/{app_id}/instances")
    began = time.monotonic()
    told = ann.get(f"/apps/{app_id}/attestations")["instances"]

    # One after the other they would cost nine.
    assert time.monotonic() - began < 8.5
    assert [bool(each["error"]) for each in told] == [True] * 3


def test_containers_and_load_are_shown_where_the_app_allows_it(ann: Api, app: Flask) -> None:
    container = {"id": "c1", "names": ["web"], "image": "nginx", "image_id": "i", "created": 1,
                 "state": "running", "status": "Up"}  # fmt: skip
    system = {
        "os_name": "linux",
        "num_cpus": 2,
        "disks": [{"name": "a", "mount_point": "/", "total_size": 1}],
    }
    listen(app, ListContainers={"containers": [container]}, SysInfo=system, NetworkInfo={})
    ann.deploy("open-app", compose_file={"public_logs": True, "public_sysinfo": True})
    ann.deploy("shut-app")

    (shown,) = ann.get("/cvms/open-app/composition")["containers"]
    (hidden,) = ann.get("/cvms/shut-app/composition")["containers"]

    assert (shown["names"], bool(shown["log_endpoint"])) == (["web"], True)
    assert hidden["log_endpoint"] is None
    assert ann.get("/cvms/open-app/stats")["sysinfo"]["num_cpus"] == 2
    assert ann.get("/cvms/shut-app/stats")["sysinfo"] is None
    assert ann.get("/cvms/open-app/network")["is_online"] is True


# Logs --------------------------------------------------------------------------------------------


def endpoint(ann: Api, name: str = "web-app") -> str:
    """The link to a VM's logs, as a path of the test client."""
    url = urlsplit(ann.speaking("2025-10-28").get(f"/cvms/{name}")["syslog_endpoint"])
    return f"{url.path}?{url.query}"


def test_a_link_leads_to_the_log_without_a_key(ann: Api, client: FlaskClient) -> None:
    ann.deploy()

    answer = client.get(endpoint(ann) + "&ch=serial&tail=5&lines=5&ansi")

    assert (answer.status_code, answer.mimetype) == (200, "text/plain")
    assert "hello from" in answer.text


@pytest.mark.parametrize(
    "change", [("signature=", "signature=0"), ("expires=", "expires=9"), ("&", "&container=x&")]
)
def test_a_link_that_was_changed_is_worth_nothing(
    ann: Api, client: FlaskClient, change: tuple[str, str]
) -> None:
    ann.deploy()

    answer = client.get(endpoint(ann).replace(*change, 1))

    assert answer.status_code == 401
    assert set(answer.json or {}) == {"detail"}


def test_a_link_is_for_one_vm_and_ends(
    ann: Api, client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann.deploy("one-app")
    ann.deploy("two-app")
    one, two = endpoint(ann, "one-app"), endpoint(ann, "two-app")
    borrowed = two.partition("?")[0] + "?" + one.partition("?")[2]
    monkeypatch.setattr("apps.links.VALID_S", -10)

    assert client.get(borrowed).status_code == 401
    assert client.get(endpoint(ann, "one-app")).status_code == 401
    assert client.get(one).status_code == 200


CONTAINER = {"id": "c1", "names": ["web"], "image": "nginx", "image_id": "i", "state": "running"}


def test_a_containers_log_comes_from_its_guest(ann: Api, app: Flask, client: FlaskClient) -> None:
    listen(app, ListContainers={"containers": [CONTAINER]}, Logs={"text": "one\ntwo\n"})
    ann.deploy(compose_file={"public_logs": True})
    link = urlsplit(ann.get("/cvms/web-app/composition")["containers"][0]["log_endpoint"])
    ann.ask("GET", "/cvms/web-app", 200)

    shown = client.get(f"{link.path}?{link.query}&text&bare&tail=10&lines=10&ansi")
    ann.patch("/cvms/web-app", {"public_logs": False})
    hidden = client.get(f"{link.path}?{link.query}")

    assert shown.text == "one\ntwo\n"
    assert hidden.status_code == 403


def test_which_part_of_a_containers_log_is_wanted_reaches_the_guest(
    ann: Api, app: Flask, client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def ask(folder: Path, method: str, params: Any, **_: Any) -> Any:
        asked.append(params)
        return {"text": "one\n"}

    listen(app, ListContainers={"containers": [CONTAINER]})
    ann.deploy(compose_file={"public_logs": True})
    link = ann.get("/cvms/web-app/composition")["containers"][0]["log_endpoint"]
    monkeypatch.setattr("vmm.channel.ask", ask)

    told = client.get(f"{link}&lines=9&since=10m&until=1700000000&timestamps")
    refused = client.get(f"{link}&timestamps=perhaps")

    assert (told.text, refused.status_code) == ("one\n", 422)
    assert asked == [
        {"service": "web", "lines": 9, "since": "10m", "until": "1700000000", "timestamps": True}
    ]
