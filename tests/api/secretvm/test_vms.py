"""The calls on VMs, one after the other as a client makes them; QEMU is the stand-in."""

from __future__ import annotations

import base64
import json
import re
from io import BytesIO
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from sqlalchemy import select

from core import faults
from guest import env
from models.app import Revision
from models.base import Database
from models.job import Job
from models.vm import Vm
from secretvm import document, tasks
from secretvm.jobs import Worker
from secretvm.service import SecretVms
from tests.api.secretvm.conftest import COMPOSE, Tenant
from tests.common import rows
from vmm.service import Vms

# What the public client reads of the object (secretvm.md section 2).
KEYS = """id vmId name nameFromUser vm_uid vmDomain user ownerSub userRole teamId teamName teamInfo vmTypeId vmType
vmType_type vmType_cpu vmType_ram vmType_disk vmType_traffic vmType_pricePerHour host_host host_port hostId host
memory vcpus disk_size status state ip_address gateway network_bridge network_is_tap network_ports docker_file
secret_fs_persistent kmsProvider platform environment private upgradeability description itaJwtEnabled pocJwtEnabled
dev_token_name dev_token_hint isCluster clusterName lbClusterId k8sCluster k8sWorker artifacts_version skip_launch
createdAt updatedAt created_at updated_at"""


@pytest.fixture(autouse=True)
def no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in for QEMU does not power off when it is asked."""
    monkeypatch.setattr(tasks, "SHUTDOWN_S", 0.1)


def work(vms: Vms) -> None:
    """Does all jobs that wait, as the background process would."""
    with vms.database.reading() as session:
        waiting = session.scalars(select(Job.id).where(Job.status == "pending")).all()
    for job_id in waiting:
        Worker(vms).run(job_id)


def row(database: Database, vm_id: str) -> Vm:
    with database.reading() as session:
        vm = session.get_one(Vm, vm_id)
        assert vm.compose_file is not None
        assert vm.encrypted_env is not None
        assert vm.user_config is not None
        return vm


def measured(database: Database, vm_id: str) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(row(database, vm_id).compose_file)
    return told


def test_a_vm_is_made_from_a_compose_file(alice: Tenant) -> None:
    vm = alice.made()

    assert set(KEYS.split()) <= set(vm)
    assert vm["nameFromUser"] == "my vm"
    assert re.fullmatch(r"[a-z]+-[a-z]+(-\d+)?", vm["name"])
    assert vm["vmDomain"] == f"{vm['name']}.localhost"
    assert vm["vm_uid"] == vm["id"].replace("-", "")
    assert vm["status"] == vm["state"] == "created"
    assert vm["docker_file"] == COMPOSE.decode()
    assert (vm["vcpus"], vm["memory"], vm["disk_size"], vm["vmTypeId"]) == (1, 2, 20, "small")
    assert vm["vmType"]["pricePerHour"] == vm["vmType_pricePerHour"] == 0
    assert (vm["user"], vm["userRole"], vm["teamInfo"]) == ("alice", "admin", None)
    assert {port["to"] for port in vm["network_ports"]} == {29343, 8080}
    assert {port["host_address"] for port in vm["network_ports"]} == {"127.0.0.1"}


class Killed(BaseException):
    """The process is gone."""


def test_a_kill_after_the_rows_are_there_leaves_a_whole_vm_of_this_interface(
    alice: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(name: str) -> None:
        if name == "create.committed":
            raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr("core.faults.point", die)
        alice.made(description="whole", kms_provider="google")

    (vm,) = alice.get("/vm/instances").json
    assert (vm["nameFromUser"], vm["description"]) == ("my vm", "whole")
    assert (vm["vmTypeId"], vm["kmsProvider"]) == ("small", "google")


def test_it_is_found_by_its_id_and_by_its_short_id_and_is_listed(alice: Tenant) -> None:
    first, second = alice.made(name="first"), alice.made(name="second")

    for vm in (first, second):
        assert alice.get(f"/vm/{vm['id']}").json == vm
        assert alice.get(f"/vm/{vm['vmId']}").json == vm
    assert alice.get("/vm/instances").json == [second, first]


def test_the_compose_text_is_kept_byte_for_byte(alice: Tenant, database: Database) -> None:
    text = "# ünïcode \t\r\nservices: {web: {image: x}}  \n\n"

    vm = alice.made(text.encode())

    assert vm["docker_file"] == text
    assert alice.get(f"/vm/{vm['id']}").json["docker_file"] == text
    assert measured(database, vm["id"])["docker_compose_file"] == text


def test_two_tenants_with_one_text_have_two_app_ids(
    alice: Tenant, bob: Tenant, database: Database
) -> None:
    ids = {row(database, each.made()["id"]).app_id for each in (alice, alice, bob)}

    assert len(ids) == 3


def test_a_vm_that_waits_for_nothing_is_started(alice: Tenant) -> None:
    vm = alice.made(skip_launch=None)

    assert (vm["status"], vm["state"]) == ("running", "starting")
    assert alice.made(skip_launch=None, skip_attest="1")["state"] == "running"


def test_a_vm_with_a_domain_waits_for_its_dns_record(alice: Tenant) -> None:
    vm = alice.made(skip_launch=None, custom_domain="vm.example.com")

    assert (vm["status"], vm["vmDomain"]) == ("created", "vm.example.com")


def test_the_flags_are_measured_and_told(alice: Tenant, database: Database) -> None:
    vm = alice.made(
        fs_persistence="1",
        upgradeability="true",
        private="YES",
        environment="dev",
        description="what it is for",
        dev_token="a-long-token-of-a-developer",
        kms_provider="secret-network",
        platform="tdx",
        enable_ita_jwt=["1", "0"],
        enable_poc_jwt="0",
        inviteCode="",
        unknown="field",
    )

    told = {key: vm[key] for key in ("secret_fs_persistent", "upgradeability", "private")}
    assert set(told.values()) == {True}
    assert (vm["environment"], vm["description"]) == ("dev", "what it is for")
    assert (vm["kmsProvider"], vm["platform"]) == ("secret-network", "tdx")
    assert (vm["itaJwtEnabled"], vm["pocJwtEnabled"]) == (True, False)
    assert (vm["dev_token_name"], vm["dev_token_hint"]) == ("a-lo", "oper")
    app = measured(database, vm["id"])
    assert app["key_provider"] == "kms"
    assert app["secretvm"]["persistent"] and app["secretvm"]["private"]
    assert len(app["secretvm"]["dev_token_sha256"]) == 64
    assert "a-long-token" not in json.dumps(vm) + json.dumps(app)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"name": None}, "name"),
        ({"name": ""}, "name"),
        ({"name": "x" * 61}, "name"),
        ({"name": "a/b"}, "name"),
        ({"name": "naïve"}, "name"),
        ({"vmTypeId": None}, "vmTypeId"),
        ({"vmTypeId": "huge"}, "vmTypeId"),
        ({"private": "maybe"}, "private"),
        ({"fs_persistence": "2"}, "fs_persistence"),
        ({"environment": "test"}, "environment"),
        ({"platform": "sgx"}, "platform"),
        ({"kms_provider": "other"}, "kms_provider"),
        ({"kms_provider": "gramine", "platform": "sev"}, "kms_provider"),
        ({"custom_domain": "no domain"}, "custom_domain"),
        ({"cloudflareApiKey": "k", "custom_domain": "a.example.com"}, "cloudflareApiKey"),
        ({"cloud": "google"}, "cloud"),
        ({"description": "x" * 2001}, "description"),
        ({"description": "a\0b"}, "description"),
        ({"secrets_plaintext": "no variable"}, "secrets_plaintext"),
        ({"secrets_plaintext": "A=1", "secrets_cipher": "00"}, "secrets_cipher"),
        ({"secrets_cipher": "00"}, "secrets_cipher"),
        ({"secrets_encrypted": "00"}, "secrets_key"),
        ({"eip8004_registration": "{}"}, "eip8004_registration"),
        ({"eip8004_registration": "[1]"}, "eip8004_registration"),
        ({"eip8004_registration": '{"name": ' + "[" * 500 + "]" * 500 + "}"}, "eip8004"),
        ({"dockerfiles": (BytesIO(b"no tar"), "files.tar")}, "dockerfiles"),
        ({"dockerfiles": "no file"}, "dockerfiles"),
    ],
)
def test_a_field_that_breaks_its_rule_is_named(
    alice: Tenant, fields: dict[str, Any], named: str
) -> None:
    answer = alice.create(**fields)

    assert answer.status_code == 400, answer.text
    assert answer.json["statusCode"] == 400
    assert named in answer.json["message"]
    assert alice.get("/vm/instances").json == []


@pytest.mark.parametrize("compose", [b"", b"services: {}", b"services: [", b"\xff\xfe"])
def test_what_is_no_compose_file_makes_no_vm(alice: Tenant, compose: bytes) -> None:
    answer = alice.create(compose)

    assert answer.status_code == 400
    assert "dockercompose" in answer.json["message"]


def test_a_size_that_this_host_has_no_room_for_is_listed_and_refused(
    alice: Tenant, vms: Vms
) -> None:
    sizes = {each["id"]: each for each in alice.get("/vm/types").json}

    assert list(sizes) == ["small", "medium", "large", "xlarge"]
    assert all(each["available"] for each in sizes.values())
    assert sizes["large"]["ram"] == 8


def test_a_body_that_is_too_large_is_refused(alice: Tenant) -> None:
    answer = alice.create(b"x" * (17 * 1024**2))

    assert answer.status_code == 413
    assert set(answer.json) == {"statusCode", "message"}


# Power -----------------------------------------------------------------------------------------


def test_a_vm_that_is_asked_to_stop_twice_is_not_ended_by_force(alice: Tenant, vms: Vms) -> None:
    vm = alice.made(skip_launch=None)

    for _ in range(2):
        told = alice.post(f"/vm/{vm['id']}/stop").json
        assert told["details"]["vm_status"] == "stopping"

    work(vms)
    assert alice.get(f"/vm/{vm['id']}").json["status"] == "stopped"


def test_a_vm_is_launched_stopped_started_and_terminated(alice: Tenant, vms: Vms) -> None:
    vm = alice.made()

    launched = alice.post(f"/vm/{vm['vmId']}/launch")
    told = {"id": vm["id"], "vm_status": "running", "vm_name": vm["name"]}
    assert launched.json == {"status": "success", "vm": told}
    assert alice.post(f"/vm/{vm['id']}/launch").status_code == 400
    assert alice.post(f"/vm/{vm['id']}/start").json == {"status": "success", "vm": told}

    stopped = alice.post(f"/vm/{vm['id']}/stop")
    assert stopped.json["status"] == "success"
    assert stopped.json["details"]["vm_status"] in ("stopping", "stopped")
    work(vms)
    vms.reconciler.one(vm["id"])
    assert alice.get(f"/vm/{vm['id']}").json["status"] == "stopped"
    assert alice.post(f"/vm/{vm['id']}/stop").status_code == 200

    assert alice.post(f"/vm/{vm['id']}/start").json["vm"]["vm_status"] == "running"
    gone = alice.call("DELETE", f"/vm/{vm['id']}/terminate")
    assert gone.json == {"status": "success", "vm": {"id": vm["id"], "vm_name": vm["name"]}}
    assert alice.get(f"/vm/{vm['id']}").status_code == 404
    assert alice.call("DELETE", f"/vm/{vm['id']}/terminate").status_code == 404
    assert alice.get("/vm/instances").json == []


def test_a_launch_may_bring_another_compose_file(alice: Tenant, database: Database) -> None:
    vm, text = alice.made(), "services: {other: {image: y, ports: ['9000:9']}}"
    before = measured(database, vm["id"])

    form = {"dockercompose": (BytesIO(text.encode()), "c.yml"), "description": "newer"}
    assert alice.post(f"/vm/{vm['id']}/launch", data=form).status_code == 200

    now = alice.get(f"/vm/{vm['id']}").json
    assert (now["docker_file"], now["description"], now["status"]) == (text, "newer", "running")
    assert {port["to"] for port in now["network_ports"]} == {29343, 9000}
    after = measured(database, vm["id"])
    assert after == {**before, "docker_compose_file": text}


@pytest.mark.parametrize(
    "call",
    [
        ("GET", ""), ("POST", "/launch"), ("POST", "/start"), ("POST", "/stop"),
        ("DELETE", "/terminate"), ("GET", "/docker_logs"), ("GET", "/cpu"), ("GET", "/eip8004"),
    ],
)  # fmt: skip
def test_a_vm_that_is_not_there_is_not_found_and_no_id_is_bad(
    alice: Tenant, bob: Tenant, call: tuple[str, str]
) -> None:
    theirs, (method, path) = bob.made(), call
    ids = (theirs["id"], theirs["vmId"], "vm-99", "vm-x", "0" * 36, "vm-" + "9" * 30)

    answers = [alice.call(method, f"/vm/{each}{path}") for each in ids]

    assert {answer.status_code for answer in answers} == {404}
    for given, answer in zip(ids, answers, strict=True):
        assert answer.json == {"statusCode": 404, "message": f"VM {given} not found"}
    assert alice.call(method, f"/vm/{'x' * 65}{path}").status_code == 400
    assert alice.call(method, f"/vm/a.b{path}").status_code == 400
    assert bob.get(f"/vm/{theirs['id']}").json["status"] == "created"


def test_a_member_terminates_their_own_and_a_manager_everything(
    alice: Tenant, bob: Tenant, admin: Tenant, database: Database
) -> None:
    from accounts import directory
    from accounts.roles import ProjectRole

    def let_in(role: ProjectRole) -> None:
        with database.writing() as session:
            project = directory.project_named(session, "alice")
            directory.set_member(session, project, directory.user_named(session, "bob"), role)

    let_in(ProjectRole.USER)
    vm = alice.made()
    shared = bob.get(f"/vm/{vm['id']}").json
    assert (shared["userRole"], shared["teamName"]) == ("user", "alice")
    assert shared["teamInfo"] == {"id": shared["teamId"], "name": "alice"}
    assert bob.post(f"/vm/{vm['id']}/start").status_code == 200

    refused = bob.call("DELETE", f"/vm/{vm['id']}/terminate")
    assert refused.status_code == refused.json["statusCode"] == 403
    assert bob.post("/vm/batch/delete", json={"ids": [vm["id"]]}).status_code == 404
    let_in(ProjectRole.MANAGER)
    assert bob.call("DELETE", f"/vm/{vm['id']}/terminate").status_code == 200
    other = alice.made()
    assert admin.call("DELETE", f"/vm/{other['id']}/terminate").status_code == 200


# Reads -----------------------------------------------------------------------------------------


def test_logs_are_those_of_the_boot_until_containers_have_some(alice: Tenant, vms: Vms) -> None:
    vm = alice.made()
    assert alice.get(f"/vm/{vm['id']}/docker_logs").text == ""

    alice.post(f"/vm/{vm['id']}/start")
    (vms.reconciler.workdir(vm["id"]).path / "serial.log").write_text("one\ntwo\nthree\n")
    answer = alice.get(f"/vm/{vm['id']}/docker_logs?lines=2")

    assert (answer.text, answer.mimetype) == ("two\nthree\n", "text/plain")
    assert alice.get(f"/vm/{vm['id']}/docker_logs?service=web").text == ""
    assert alice.get(f"/vm/{vm['id']}/docker_logs?lines=0").status_code == 400


def test_a_vm_that_does_not_run_has_no_quote_and_one_that_boots_has_none_yet(
    alice: Tenant,
) -> None:
    vm = alice.made()
    assert alice.get(f"/vm/{vm['id']}/cpu").status_code == 409

    alice.post(f"/vm/{vm['id']}/start")
    answer = alice.get(f"/vm/{vm['id']}/cpu")

    assert answer.status_code == answer.json["statusCode"] == 503


def test_the_newest_image_version_of_ones_own_vms(alice: Tenant, bob: Tenant) -> None:
    assert alice.get("/vm/latest-artifacts").status_code == 404
    bob.made()
    assert alice.get("/vm/latest-artifacts").status_code == 404
    alice.made()

    told = {"artifacts_version": "0.5.4", "status": "success"}
    assert alice.get("/vm/latest-artifacts").json == told


def test_templates_are_whole_and_each_could_be_made(alice: Tenant) -> None:
    told = alice.get("/vm/templates").json

    assert (told["status"], told["count"]) == ("success", len(told["templates"]))
    assert told["templates"] == alice.get("/templates").json
    assert len(told["templates"]) >= 3
    for each in told["templates"]:
        assert alice.made(each["docker"].encode(), vmTypeId=each["defaultVmSize"])


def test_a_vm_made_elsewhere_is_shown_too(admin: Tenant, vms: Vms) -> None:
    from core import prpc
    from vmm.schemas import VmConfiguration

    wanted = prpc.load(VmConfiguration, rows.request(stopped=True, name="from the VMM"))
    vm_id = vms.create(wanted)

    told = admin.get(f"/vm/{vm_id}").json
    assert set(KEYS.split()) <= set(told)
    assert told["nameFromUser"] == told["name"] == "from the VMM"
    assert (told["status"], told["docker_file"]) == ("created", "services: {}")
    assert admin.get("/vm/instances").json == [told]
    text = base64.b64encode(COMPOSE).decode()
    changed = admin.post(f"/vm/{vm_id}/update-background", json={"dockerComposeBase64": text})
    assert changed.status_code == 200, changed.text
    assert admin.get(f"/vm/{vm_id}").json["docker_file"] == COMPOSE.decode()


# EIP-8004 --------------------------------------------------------------------------------------


def test_metadata_is_completed_and_public(alice: Tenant) -> None:
    given = {
        "name": "agent",
        "image": "https://$DOMAIN_NAME/a.png",
        "services": [{"name": "web", "endpoint": "https://$DOMAIN_NAME"}],
        "further": 1,
    }
    vm = alice.made(eip8004_registration=json.dumps(given))

    told = alice.get(f"/vm/{vm['id']}/eip8004").json
    host = vm["vmDomain"]
    assert told["metadata"] == {
        "name": "agent",
        "image": f"https://{host}/a.png",
        "services": [
            {"name": "web", "endpoint": f"https://{host}"},
            {"name": "teequote", "endpoint": f"https://{host}:29343/cpu"},
            {"name": "workload", "endpoint": f"https://{host}:29343/docker-compose"},
        ],
        "further": 1,
    }
    assert told["agentUri"] == f"http://localhost/api/public/eip8004/{vm['id']}.json"
    assert "not configured" in told["error"]
    assert alice.client.get(f"/api/public/eip8004/{vm['id']}.json").json == told["metadata"]


def test_a_vm_without_metadata_has_none(alice: Tenant) -> None:
    vm = alice.made()

    told = alice.get(f"/vm/{vm['id']}/eip8004").json

    assert told["metadata"] is None
    assert alice.client.get(f"/api/public/eip8004/{vm['id']}.json").status_code == 404


# Secrets ---------------------------------------------------------------------------------------


class Kms:
    """Gives the key of any app."""

    def __init__(self) -> None:
        self.key = X25519PrivateKey.generate()

    def env_key(self, *_: Any, **__: Any) -> dict[str, bytes]:
        return {"public_key": self.key.public_key().public_bytes_raw()}

    def opened(self, sealed: bytes) -> dict[str, str]:
        plain = env.decrypt(self.key.private_bytes_raw(), sealed)
        return env.variables(plain, [each["key"] for each in json.loads(plain)["env"]])


@pytest.fixture
def kms(monkeypatch: pytest.MonkeyPatch) -> Kms:
    made = Kms()
    monkeypatch.setattr(Vms, "env_key", made.env_key)
    return made


def test_secrets_are_sealed_to_the_guest_and_are_nowhere_in_the_clear(
    alice: Tenant, database: Database, kms: Kms
) -> None:
    vm = alice.made(secrets_plaintext="PASSWORD=hunter2-of-the-tests\nB=2")

    assert kms.opened(row(database, vm["id"]).encrypted_env) == {
        "PASSWORD": "hunter2-of-the-tests",
        "B": "2",
    }
    app = measured(database, vm["id"])
    assert (app["allowed_envs"], app["key_provider"]) == (["B", "PASSWORD"], "kms")
    folder = database.path.parent
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".sock"]
    assert not [path for path in files if b"hunter2-of-the-tests" in path.read_bytes()]
    assert "hunter2" not in json.dumps(alice.get("/vm/instances").json)


def test_without_a_kms_nothing_is_made_and_nothing_is_kept(
    alice: Tenant, database: Database
) -> None:
    answer = alice.create(secrets_plaintext="A=1")

    assert answer.status_code == answer.json["statusCode"] == 503
    assert "kms_url" in answer.json["message"]
    assert alice.get("/vm/instances").json == []
    assert alice.made(fs_persistence="1")["secret_fs_persistent"]


def test_secrets_and_credentials_are_replaced_together(
    alice: Tenant, database: Database, kms: Kms
) -> None:
    from tests.unit.secretvm.test_secrets import siv

    keys = alice.client.application.extensions["secret_vms"].keys
    sign_in = {
        "kms_docker_cipher": siv(keys, b"password"),
        "kms_docker_username": "u",
        "kms_docker_repository": "ghcr.io",
    }
    vm = alice.made(secrets_cipher=siv(keys, b"A=1"), **sign_in)
    assert set(kms.opened(row(database, vm["id"]).encrypted_env)) == {
        "A", "DSTACK_DOCKER_REGISTRY", "DSTACK_DOCKER_USERNAME", "DSTACK_DOCKER_PASSWORD",
    }  # fmt: skip

    path = f"/vm/{vm['id']}/update-background"
    alone = alice.post(path, json={"secrets_cipher": siv(keys, b"A=2")})
    assert alone.status_code == 400
    assert "again" in alone.json["message"]
    both = alice.post(path, json={"secrets_cipher": siv(keys, b"A=2"), **sign_in})
    assert both.status_code == 200
    assert kms.opened(row(database, vm["id"]).encrypted_env)["A"] == "2"


def test_docker_files_travel_in_the_user_config_and_their_hash_is_measured(
    alice: Tenant, database: Database
) -> None:
    from tests.unit.secretvm.test_document import tar

    raw = tar(("Dockerfile", b"FROM x\n"))
    vm = alice.made(dockerfiles=(BytesIO(raw), "files.tar"))

    kept = row(database, vm["id"])
    assert base64.b64decode(json.loads(kept.user_config)["docker_files"]) == raw
    hashed = measured(database, vm["id"])["secretvm"]["docker_files_sha256"]
    assert hashed == document.check_docker_files(raw)


# In the background -----------------------------------------------------------------------------


def test_an_update_changes_a_stopped_vm_and_leaves_it_stopped(
    alice: Tenant, bob: Tenant, vms: Vms
) -> None:
    vm = alice.made()
    text = "services: {other: {image: y}}"
    body = {
        "name": "renamed",
        "dockerComposeBase64": base64.b64encode(text.encode()).decode(),
        "fs_persistence": True,
        "unknown": [1],
    }

    queued = alice.post(f"/vm/{vm['id']}/update-background", json=body)

    job_id = queued.json["jobId"]
    assert queued.json == {"jobId": job_id, "status": "pending"}
    held = alice.get(f"/vm/{vm['id']}").json
    assert held["status"] == "updating"
    assert alice.post(f"/vm/{vm['id']}/update-background", json=body).status_code == 409
    work(vms)
    job = alice.get(f"/background-job/{job_id}").json
    assert (job["status"], job["progress"], job["error"]) == ("completed", 100, None)
    assert (job["id"], job["result"]) == (job_id, {"vmId": vm["id"]})
    now = alice.get(f"/vm/{vm['id']}").json
    assert (now["status"], now["nameFromUser"], now["docker_file"]) == ("created", "renamed", text)
    assert now["secret_fs_persistent"]
    assert bob.get(f"/background-job/{job_id}").status_code == 404


def test_an_update_restarts_a_vm_that_runs(alice: Tenant, vms: Vms, database: Database) -> None:
    vm = alice.made(skip_launch=None, skip_attest="1")
    before = row(database, vm["id"]).pid

    queued = alice.post(f"/vm/{vm['id']}/update-background", json={"description": "newer"})
    work(vms)

    job = alice.get(f"/background-job/{queued.json['jobId']}").json
    assert job["status"] == "completed", job
    assert row(database, vm["id"]).pid != before
    assert alice.get(f"/vm/{vm['id']}").json["status"] == "running"


@pytest.mark.parametrize(
    "body",
    [
        {"dockerComposeBase64": "%"}, {"dockerComposeBase64": base64.b64encode(b"x").decode()},
        {"dockerComposeBase64": 1}, {"dockerfilesBase64": "AAAA"}, {"name": "a/b"},
        {"name": "\ud800"}, {"fs_persistence": 2}, {"secrets_cipher": "zz"}, [],
    ],
)  # fmt: skip
def test_an_update_that_breaks_a_rule_changes_nothing(alice: Tenant, body: Any) -> None:
    vm = alice.made()

    answer = alice.post(f"/vm/{vm['id']}/update-background", json=body)

    assert answer.status_code == 400, answer.text
    assert alice.get(f"/vm/{vm['id']}").json == vm


def test_of_two_updates_at_the_same_time_one_is_refused_and_changes_nothing(
    alice: Tenant, vms: Vms, monkeypatch: pytest.MonkeyPatch
) -> None:
    vm, prepare = alice.made(), SecretVms.changed
    path, statuses = f"/vm/{vm['id']}/update-background", []

    def meanwhile(*given: Any) -> Any:
        monkeypatch.setattr(SecretVms, "changed", prepare)
        statuses.append(alice.post(path, json={"name": "first"}).status_code)
        return prepare(*given)

    monkeypatch.setattr(SecretVms, "changed", meanwhile)
    statuses.append(alice.post(path, json={"name": "second"}).status_code)

    assert statuses == [200, 409]
    assert alice.get(f"/vm/{vm['id']}").json["nameFromUser"] == "first"
    with vms.database.reading() as session:
        assert len(session.scalars(select(Job)).all()) == 1


@pytest.mark.parametrize(
    ("verb", "given"),
    [
        ("update-background", {"json": {"fs_persistence": True}}),
        ("launch", {"data": {"fs_persistence": "1"}}),
    ],
)
def test_a_change_that_began_before_another_was_over_does_not_undo_it(
    alice: Tenant, vms: Vms, monkeypatch: pytest.MonkeyPatch, verb: str, given: Any
) -> None:
    vm, prepare = alice.made(), SecretVms.changed
    text = "services: {other: {image: y}}"
    body = {"dockerComposeBase64": base64.b64encode(text.encode()).decode()}

    def meanwhile(*of: Any) -> Any:
        monkeypatch.setattr(SecretVms, "changed", prepare)
        alice.post(f"/vm/{vm['id']}/update-background", json=body)
        work(vms)
        return prepare(*of)

    monkeypatch.setattr(SecretVms, "changed", meanwhile)
    late = alice.post(f"/vm/{vm['id']}/{verb}", **given)

    assert (late.status_code, "changed meanwhile" in late.json["message"]) == (409, True)
    now = alice.get(f"/vm/{vm['id']}").json
    assert (now["docker_file"], now["status"]) == (text, "created")
    assert not now["secret_fs_persistent"]
    assert alice.post(f"/vm/{vm['id']}/{verb}", **given).status_code == 200


def test_an_update_that_is_cut_off_leaves_neither_a_change_nor_a_job(
    alice: Tenant, vms: Vms, monkeypatch: pytest.MonkeyPatch
) -> None:
    vm = alice.made()
    before = alice.get(f"/vm/{vm['id']}").json

    def killed(name: str) -> None:
        if name == "update.assigned":
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(faults, "point", killed)
        alice.post(f"/vm/{vm['id']}/update-background", json={"name": "new", "description": "new"})

    assert alice.get(f"/vm/{vm['id']}").json == before
    with vms.database.reading() as session:
        assert session.scalars(select(Job)).all() == []


def test_a_change_is_told_with_who_made_it(alice: Tenant, database: Database) -> None:
    vm = alice.made()
    text = base64.b64encode(b"services: {other: {image: y}}").decode()

    alice.post(f"/vm/{vm['id']}/update-background", json={"dockerComposeBase64": text})

    with database.reading() as session:
        makers = session.scalars(select(Revision.user_id)).all()
    assert makers == [row(database, vm["id"]).user_id] * 2


def test_a_batch_is_one_job_a_vm_and_leaves_out_what_is_not_there(
    alice: Tenant, bob: Tenant, vms: Vms
) -> None:
    mine, other, theirs = alice.made(skip_attest="1"), alice.made(skip_attest="1"), bob.made()

    asked = [mine["vmId"], theirs["id"], other["id"], "nonsense", mine["vmId"]]
    queued = alice.post("/vm/batch/start", json={"ids": asked}).json

    assert queued["success"]
    told = [(each["vmId"], each["vmInstanceId"]) for each in queued["jobs"]]
    assert told == [(mine["vmId"], mine["id"]), (other["id"], other["id"])]
    for verb, status in (
        ("start", "running"),
        ("restart", "running"),
        ("stop", "stopped"),
        ("delete", "terminated"),
    ):
        jobs = alice.post(f"/vm/batch/{verb}", json={"ids": [mine["id"]]}).json["jobs"]
        work(vms)
        job = alice.get(f"/background-job/{jobs[0]['jobId']}").json
        assert (job["status"], job["error"]) == ("completed", None)
        assert job["result"] == {"vmId": mine["id"], "status": status}
    assert alice.get(f"/vm/{mine['id']}").status_code == 404


def test_a_vm_that_a_batch_names_by_both_ids_gets_one_job(alice: Tenant) -> None:
    vm = alice.made()

    queued = alice.post("/vm/batch/start", json={"ids": [vm["vmId"], vm["id"]]}).json

    assert [each["vmId"] for each in queued["jobs"]] == [vm["vmId"]]


@pytest.mark.parametrize(
    ("ids", "status"), [([], 400), ("x", 400), ([1], 400), (None, 400), (["nonsense"], 404)]
)
def test_a_batch_of_nothing_is_refused(alice: Tenant, ids: Any, status: int) -> None:
    assert alice.post("/vm/batch/stop", json={"ids": ids}).status_code == status


def test_a_job_that_is_not_there_is_not_found(alice: Tenant) -> None:
    assert alice.get("/background-job/nonsense").status_code == 404
