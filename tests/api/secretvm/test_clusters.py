"""Clusters over HTTP: VMs whose QEMU is the stand-in, behind a real HAProxy where one is installed."""

from __future__ import annotations

import base64
import shutil
import threading
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import select
from sqlalchemy import update as change
from werkzeug.test import TestResponse

from accounts.service import Accounts
from core.config import Config
from models.app import Revision
from models.base import Database
from models.cluster import Cluster, ClusterNode
from models.job import Job
from models.vm import Vm
from secretvm import balancer as balancing
from secretvm import duties, jobs
from secretvm.cluster_nodes import Nodes
from secretvm.front import Traffic
from secretvm.service import SecretVms
from tests.api.secretvm.conftest import COMPOSE, Tenant
from tests.common import rows
from tests.common.backends import Client
from tests.common.waiting import until
from vmm import process
from vmm.background import Background
from vmm.service import Vms

HAS_HAPROXY = shutil.which("haproxy") is not None
needs_haproxy = pytest.mark.skipif(
    not HAS_HAPROXY, reason="haproxy is not installed: apt-get install haproxy"
)
OTHER = COMPOSE.replace(b"hello:1", b"hello:2")


@pytest.fixture(autouse=True)
def guests(config: Config) -> Iterator[None]:
    """Guests that give a quote and serve pages half a second after their start; HAProxy ends with the test."""
    rows.behave(config.run_path, http=0.5, guest={"Quote": {"result": {"text": "00"}}})
    yield
    folder = config.data_dir / balancing.FOLDER
    if (found := process.find(folder)) is not None:
        process.end(folder, found, grace_s=0)


@pytest.fixture
def working(app: Flask) -> Iterator[None]:
    """What the background process does: it notices VMs that end, and has the duties of this interface."""
    background, ended = Background(app.extensions["vms"], []), threading.Event()

    def sweep() -> None:
        while not ended.is_set():
            background.sweep()
            background.serve(0.1)

    sweeper, of_clusters = threading.Thread(target=sweep), duties.of(app.extensions["vms"])
    sweeper.start()
    for duty in of_clusters:
        duty.start()
    yield
    for duty in of_clusters:
        duty.stop()
    ended.set()
    sweeper.join()
    background.pool.shutdown()


def cluster_form(**fields: Any) -> dict[str, Any]:
    """The fields of a cluster that is accepted."""
    wanted = {"clusterName": "shop", "vmTypeId": "small", "vmCount": "2", "backendScheme": "http"}
    wanted |= {"backendPort": "80", "healthCheckScheme": "http", "healthCheckInterval": "1"}
    form = {"dockercompose": COMPOSE, **wanted, **fields}
    compose = form.pop("dockercompose")
    form |= {"dockercompose": (BytesIO(compose), "compose.yml")} if compose else {}
    return {name: value for name, value in form.items() if value is not None}


def ask(tenant: Tenant, **fields: Any) -> TestResponse:
    """POST /api/cluster/create-background."""
    return tenant.post("/cluster/create-background", data=cluster_form(**fields))


def done(tenant: Tenant, answer: TestResponse) -> dict[str, Any]:
    """The job that a call began, once it has ended."""
    assert answer.status_code == 200, answer.text
    path = f"/background-job/{answer.json['jobId']}"
    finished = ("completed", "failed")
    until(lambda: tenant.get(path).json["status"] in finished, seconds=25, what="the job")
    job: dict[str, Any] = tenant.get(path).json
    return job


def made(tenant: Tenant, **fields: Any) -> dict[str, Any]:
    """A cluster whose job is done."""
    job = done(tenant, ask(tenant, **fields))
    assert job["status"] == "completed", job
    told: dict[str, Any] = tenant.get(f"/cluster/{job['result']['clusterId']}").json
    return told


def written(tenant: Tenant, database: Database, **fields: Any) -> str:
    """The id of a cluster that nobody has begun to make."""
    assert ask(tenant, **fields).status_code == 200
    with database.reading() as session:
        return session.scalars(select(Cluster.id).order_by(Cluster.created_ms.desc())).first()  # type: ignore[return-value]


def base64_of(text: bytes) -> str:
    return base64.b64encode(text).decode()


@needs_haproxy
def test_a_cluster_is_made_and_serves(working: None, alice: Tenant) -> None:
    cluster = made(alice, strategy="leastconn", stickySession="0", description="a shop")

    port = int(cluster["loadBalancer"]["listen"].rpartition(":")[2])
    client = Client(port).ask_often(20)
    ids = {vm["id"] for vm in cluster["vms"]}
    assert set(client.names) == ids and client.statuses == {200: 20}
    assert cluster["status"] == "running"
    assert cluster["loadBalancer"]["engine"] == "haproxy"
    assert (cluster["loadBalancer"]["healthy"], cluster["loadBalancer"]["total"]) == (2, 2)
    assert [vm["nameFromUser"] for vm in cluster["vms"]] == ["shop-1", "shop-2"]
    assert {vm["lbHealth"] for vm in cluster["vms"]} == {"healthy"}
    assert {vm["lbClusterId"] for vm in cluster["vms"]} == {cluster["id"]}
    assert cluster["docker_file"] == COMPOSE.decode()
    assert alice.get("/cluster").json == [{k: v for k, v in cluster.items() if k != "vms"}]


@needs_haproxy
def test_no_request_is_lost_in_a_rolling_update(
    working: None, alice: Tenant, database: Database
) -> None:
    cluster = made(alice)
    before = compose_files(database)
    client, stop = Client(int(cluster["url"].rpartition(":")[2])), threading.Event()

    def load() -> None:
        while not stop.is_set():
            client.ask()
            client.ask(method="POST", body=b"x")

    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    body = {"dockerComposeBase64": base64_of(OTHER)}
    job = done(alice, alice.post(f"/cluster/{cluster['id']}/update-vms-background", json=body))
    stop.set()
    for thread in threads:
        thread.join()

    assert job["status"] == "completed", job
    assert job["result"]["updated"] == [vm["id"] for vm in cluster["vms"]]
    assert (client.failed, set(client.statuses)) == ([], {200})
    assert set(client.names) == {vm["id"] for vm in cluster["vms"]}
    after = compose_files(database)
    assert all("hello:2" in text for text in after.values())
    assert all("hello:1" in text for text in before.values())
    shown = alice.get(f"/cluster/{cluster['id']}").json
    assert (shown["docker_file"], shown["status"]) == (OTHER.decode(), "running")
    with database.reading() as session:
        makers = session.scalars(select(Revision.user_id)).all()
        owner = session.scalars(select(Cluster.user_id)).one()
    assert owner and makers == [owner] * 4


def compose_files(database: Database) -> dict[str, str]:
    """What each VM is measured with."""
    with database.reading() as session:
        return dict(session.execute(select(Vm.id, Vm.compose_file)).all())  # type: ignore[arg-type]


@needs_haproxy
def test_nodes_come_and_go(working: None, alice: Tenant) -> None:
    cluster = made(alice, vmCount="1")
    path = f"/cluster/{cluster['id']}"
    body = {"dockerComposeBase64": base64_of(COMPOSE)}

    second = done(alice, alice.post(f"{path}/vms/add-background", json=body))
    named = alice.post(f"{path}/vms/add-background", json={**body, "vmName": "extra"})
    third = done(alice, named)
    full = alice.post(f"{path}/vms/add-background", json=body)
    three = alice.get(path).json
    removed = alice.call("DELETE", f"{path}/vms/{second['result']['vmId']}")
    until(lambda: alice.get(path).json["status"] == "running", seconds=20, what="the removal")
    two = alice.get(path).json

    assert named.json["vmName"] == "extra"
    assert [vm["nameFromUser"] for vm in three["vms"]] == ["shop-1", "shop-2", "extra"]
    assert full.status_code == 409 and "3 nodes" in full.json["message"]
    assert removed.json == {"deleted": True, "vmId": second["result"]["vmId"]}
    assert [vm["id"] for vm in two["vms"]] == [cluster["vms"][0]["id"], third["result"]["vmId"]]
    assert alice.get(f"/vm/{second['result']['vmId']}").status_code == 404


@needs_haproxy
def test_a_deleted_cluster_is_gone_at_once_and_soon_altogether(
    working: None, alice: Tenant, database: Database
) -> None:
    cluster = made(alice)

    answer = alice.call("DELETE", f"/cluster/{cluster['id']}")

    assert answer.json == {"deleted": True, "id": cluster["id"]}
    assert alice.get(f"/cluster/{cluster['id']}").status_code == 404
    assert alice.get("/vm/instances").json == []
    gone = Client(int(cluster["url"].rpartition(":")[2]))
    gone.ask()
    assert gone.failed
    until(lambda: count(database, Cluster) == 0, what="the end of its row")
    assert made(alice)["clusterName"] == "shop"


def count(database: Database, table: type[Any]) -> int:
    """How many rows there are."""
    with database.reading() as session:
        return len(session.scalars(select(table)).all())


@needs_haproxy
def test_a_cluster_is_counted_and_measured(working: None, alice: Tenant) -> None:
    cluster = made(alice, weights="3,1", password_plaintext="open sesame")
    path, port = f"/cluster/{cluster['id']}", int(cluster["url"].rpartition(":")[2])
    empty = alice.get(f"{path}/traffic").json
    friend = Client(port, headers={"Authorization": "Basic YWRtaW46b3BlbiBzZXNhbWU="})
    friend.ask_often(8)
    Client(port).ask_often(2)

    until(
        lambda: alice.get(f"{path}/traffic").json["total_requests"] == 10,
        what="the count",
    )
    traffic, stats = alice.get(f"{path}/traffic").json, alice.get(f"{path}/stats").json
    backends = alice.get(f"{path}/backends").json["backends"]
    metrics = alice.get(f"{path}/metrics", headers={"Accept": "text/plain"})
    series = alice.get(f"{path}/metrics").json["series"]

    assert (empty["total_requests"], empty["avg_latency_ms"], empty["p95_latency_ms"]) == (
        0,
        None,
        None,
    )
    assert traffic["status_codes"] == {"200": 8, "401": 2}
    assert traffic["avg_latency_ms"] >= 0 and traffic["bandwidth_out_bytes"] > 0
    assert [each["requests"] for each in stats["backends"]] == [6, 2]
    assert [(each["status"], each["weight"]) for each in backends] == [("UP", 3), ("UP", 1)]
    assert {each["checkStatus"] for each in backends} == {"L7OK"}
    assert metrics.mimetype == "text/plain"
    assert (
        f'casemate_cluster_requests_total{{cluster="{cluster["id"]}",code="200"}} 8.0'
        in metrics.text
    )
    ended = series["casemate_cluster_latency_seconds_count"]
    assert ended == [{"labels": {"cluster": cluster["id"]}, "value": 10.0}]


@needs_haproxy
def test_without_haproxy_the_reads_of_the_balancer_are_503_and_say_why(
    working: None, alice: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = made(alice, vmCount="1")
    path = f"/cluster/{cluster['id']}"
    monkeypatch.setattr(balancing, "missing", lambda: "haproxy is not installed on this host")

    for read in ("traffic", "stats", "metrics"):
        answer = alice.get(f"{path}/{read}")
        assert (answer.status_code, answer.json["statusCode"]) == (503, 503)
        assert "not installed" in answer.json["message"]
    assert [each["status"] for each in alice.get(f"{path}/backends").json["backends"]] == [
        "UNKNOWN"
    ]
    shown = alice.get(path).json
    assert shown["loadBalancer"] is None and "not installed" in shown["loadBalancerError"]


def test_a_cluster_is_made_without_haproxy(
    working: None, alice: Tenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(balancing.shutil, "which", lambda name: None)

    cluster = made(alice)

    assert cluster["status"] == "running"
    assert cluster["loadBalancer"] is None
    assert "apt-get install haproxy" in cluster["loadBalancerError"]
    assert {vm["lbHealth"] for vm in cluster["vms"]} == {"unknown"}


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"clusterName": None}, "clusterName"),
        ({"clusterName": "x" * 61}, "clusterName"),
        ({"clusterName": "a;b"}, "clusterName"),
        ({"dockercompose": None}, "dockercompose"),
        ({"dockercompose": b"no: services"}, "dockercompose"),
        ({"vmTypeId": "huge"}, "vmTypeId"),
        ({"vmCount": "0"}, "vmCount"),
        ({"vmCount": "4"}, "vmCount"),
        ({"vmCount": "two"}, "vmCount"),
        ({"vmCount": "1e9"}, "vmCount"),
        ({"strategy": "random"}, "strategy"),
        ({"stickySession": "maybe"}, "stickySession"),
        ({"weights": "[0,1]"}, "weights"),
        ({"weights": "11"}, "weights"),
        ({"weights": "1,2,3"}, "weights"),
        ({"weights": "a"}, "weights"),
        ({"weights": "2,1", "strategy": "hrw"}, "weights"),
        ({"backendScheme": "ftp"}, "backendScheme"),
        ({"backendPort": "65536"}, "backendPort"),
        ({"healthCheckPath": "cpu"}, "healthCheckPath"),
        ({"healthCheckPath": "/a b"}, "healthCheckPath"),
        ({"healthCheckPath": "/\n  server x 1.2.3.4"}, "healthCheckPath"),
        ({"healthCheckPort": "-1"}, "healthCheckPort"),
        ({"healthCheckInterval": "0"}, "healthCheckInterval"),
        ({"healthCheckTimeout": "61"}, "healthCheckTimeout"),
        ({"maxConnections": "0"}, "maxConnections"),
        ({"custom_domain": "not a domain"}, "custom_domain"),
        ({"password_plaintext": "two\nlines"}, "password_plaintext"),
        ({"password_plaintext": "x" * 129}, "password_plaintext"),
        ({"enable_app_cert": "1"}, "enable_app_cert"),
        ({"secrets_encrypted": "AAAA"}, "secrets_key"),
    ],
)
def test_a_bad_field_is_named_and_leaves_nothing(
    alice: Tenant, database: Database, fields: dict[str, Any], named: str
) -> None:
    answer = ask(alice, **fields)

    assert answer.status_code == 400, answer.text
    assert answer.json["statusCode"] == 400 and named in answer.json["message"]
    assert count(database, Cluster) == count(database, Job) == 0


def test_weights_come_in_three_forms(alice: Tenant, database: Database) -> None:
    forms: list[Any] = ["[3, 1]", "3,1", ["3", "1"]]

    ids = [written(alice, database, clusterName=f"c{n}", weights=w) for n, w in enumerate(forms)]

    for cluster_id in ids:
        assert alice.get(f"/cluster/{cluster_id}").json["weights"] == [3, 1]


def test_a_name_is_taken_within_its_project(alice: Tenant, bob: Tenant) -> None:
    assert ask(alice).status_code == 200

    again, elsewhere = ask(alice), ask(bob)

    assert again.status_code == 400 and "clusterName" in again.json["message"]
    assert elsewhere.status_code == 200


def test_of_many_clusters_with_one_name_one_is_made(alice: Tenant, database: Database) -> None:
    answers: list[int] = []

    def one() -> None:
        answers.append(ask(Tenant(alice.client.application.test_client(), alice.key)).status_code)

    threads = [threading.Thread(target=one) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(answers) == [200] + [400] * 9
    assert count(database, Cluster) == 1


def test_a_new_cluster_is_pending_with_the_documented_defaults(
    alice: Tenant, database: Database
) -> None:
    defaults = dict.fromkeys(
        ("vmCount", "backendScheme", "backendPort", "healthCheckScheme", "healthCheckInterval")
    )
    cluster_id = written(alice, database, **defaults)

    told = alice.get(f"/cluster/{cluster_id}").json

    assert told["status"] == "pending"
    assert (told["strategy"], told["stickySession"], told["weights"]) == (
        "roundrobin",
        False,
        [1, 1],
    )
    assert (told["backendScheme"], told["backendPort"]) == ("https", 443)
    check = {"scheme": "https", "path": "/cpu", "port": 29343, "interval": 5, "timeout": 5}
    assert told["healthCheck"] == check
    assert (told["maxVms"], told["vms"], told["sslExpiry"]) == (3, [], None)


def test_the_front_has_a_port_that_nobody_else_gets(
    alice: Tenant, database: Database, config: Config
) -> None:
    first = alice.get(f"/cluster/{written(alice, database)}").json["url"]
    port = int(first.rpartition(":")[2])

    answer = alice.client.post(
        "/prpc/CreateVm",
        json=rows.request(ports=[rows.port(port)], stopped=True),
        headers={"Authorization": "Bearer cm_admin-of-the-tests"},
    )

    assert config.cluster.ports[0] <= port <= config.cluster.ports[1]
    assert answer.status_code == 400 and str(port) in answer.json["message"]


def test_a_cluster_that_a_job_holds_takes_no_other(alice: Tenant, database: Database) -> None:
    path = f"/cluster/{written(alice, database)}"
    body = {"dockerComposeBase64": base64_of(COMPOSE)}

    answers = [
        alice.post(f"{path}/vms/add-background", json=body),
        alice.post(f"{path}/update-vms-background", json=body),
        alice.call("PUT", f"{path}/docker-compose", json={"dockerCompose": COMPOSE.decode()}),
    ]

    assert [answer.status_code for answer in answers] == [409] * 3
    assert all("cluster.create" in answer.json["message"] for answer in answers)


def test_a_stored_compose_is_for_nodes_to_come(
    working: None, alice: Tenant, database: Database
) -> None:
    cluster = made(alice, vmCount="1", skip_attest="1")
    path = f"/cluster/{cluster['id']}"

    bad = alice.call("PUT", f"{path}/docker-compose", json={"dockerCompose": "no: services"})
    empty = alice.call("PUT", f"{path}/docker-compose", json={"dockerCompose": ""})
    stored = alice.call("PUT", f"{path}/docker-compose", json={"dockerCompose": OTHER.decode()})

    assert (bad.status_code, empty.status_code) == (400, 400)
    assert stored.json == {"updated": True, "clusterId": cluster["id"]}
    assert alice.get(path).json["docker_file"] == OTHER.decode()
    assert alice.get(path).json["vms"][0]["docker_file"] == COMPOSE.decode()


def test_the_last_node_cannot_be_removed(working: None, alice: Tenant) -> None:
    cluster = made(alice, vmCount="1", skip_attest="1")

    answer = alice.call("DELETE", f"/cluster/{cluster['id']}/vms/{cluster['vms'][0]['id']}")
    stranger = alice.call("DELETE", f"/cluster/{cluster['id']}/vms/{alice.made()['id']}")

    assert answer.status_code == 409 and "last" in answer.json["message"]
    assert stranger.status_code == 404


def test_a_node_that_is_terminated_elsewhere_leaves_the_cluster(
    working: None, alice: Tenant
) -> None:
    cluster = made(alice, vmCount="1", skip_attest="1")
    path = f"/cluster/{cluster['id']}"

    alice.call("DELETE", f"/vm/{cluster['vms'][0]['id']}/terminate")
    alone = alice.get(path).json
    body = {"dockerComposeBase64": base64_of(COMPOSE)}
    update = alice.post(f"{path}/update-vms-background", json=body)
    again = done(alice, alice.post(f"{path}/vms/add-background", json=body))

    assert (alone["status"], alone["vms"]) == ("error", [])
    assert update.status_code == 409
    assert again["status"] == "completed"
    assert alice.get(path).json["vmCount"] == 1


def test_another_projects_cluster_is_not_there(
    alice: Tenant, bob: Tenant, database: Database
) -> None:
    cluster_id = written(alice, database)
    body = {"dockerComposeBase64": base64_of(COMPOSE)}
    calls: list[tuple[str, str, Any]] = [
        ("GET", "", None),
        ("DELETE", "", None),
        ("PUT", "/docker-compose", {"dockerCompose": COMPOSE.decode()}),
        ("GET", "/traffic", None),
        ("GET", "/stats", None),
        ("GET", "/metrics", None),
        ("GET", "/backends", None),
        ("POST", "/vms/add-background", body),
        ("DELETE", "/vms/vm-1", None),
        ("POST", "/update-vms-background", body),
    ]

    for method, rest, message in calls:
        for given in (cluster_id, "no-such-cluster"):
            answer = bob.call(method, f"/cluster/{given}{rest}", json=message)
            assert answer.status_code == 404, (method, rest, answer.text)
            assert answer.json["message"] == f"cluster {given} not found"
    assert bob.get("/cluster").json == []
    assert [each["id"] for each in alice.get("/cluster").json] == [cluster_id]


def test_a_job_that_was_interrupted_makes_no_node_twice(
    alice: Tenant, app: Flask, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster_id = written(alice, database, skip_attest="1")
    vms: Vms = app.extensions["vms"]
    worker = jobs.Worker(vms)
    link = "secretvm.cluster_nodes.update"

    # Killed between making a VM and writing down whose it is.
    with monkeypatch.context() as patched:
        patched.setattr(link, _killed)
        with pytest.raises(KeyboardInterrupt):
            worker.run(pending(database))
    assert count(database, Vm) == 1
    worker.take_over()
    worker.run(pending(database))

    nodes = alice.get(f"/cluster/{cluster_id}").json["vms"]
    assert len(nodes) == 2
    with database.reading() as session:
        live = session.scalars(select(Vm.id).where(Vm.wished != "removed")).all()
    assert sorted(live) == sorted(vm["id"] for vm in nodes)


def _killed(*_: Any) -> Any:
    raise KeyboardInterrupt


def pending(database: Database) -> str:
    """The one job that waits."""
    with database.reading() as session:
        return session.scalars(select(Job.id).where(Job.status == "pending")).one()


def test_what_a_failed_job_left_is_tidied(alice: Tenant, app: Flask, database: Database) -> None:
    cluster_id = written(alice, database)
    with database.writing() as session:
        session.execute(change(Job).values(status="failed"))

    vms: Vms = app.extensions["vms"]
    Nodes(SecretVms(vms, Accounts.of(vms.config, vms.database))).tend()

    assert count(database, ClusterNode) == 0
    assert alice.get(f"/cluster/{cluster_id}").json["status"] == "error"


def test_a_node_that_a_failed_update_left_closed_is_served_again(
    working: None, alice: Tenant, database: Database
) -> None:
    made(alice, vmCount="1", skip_attest="1")
    with database.writing() as session:
        session.execute(change(ClusterNode).values(traffic=Traffic.CLOSED))

    def traffic() -> str:
        with database.reading() as session:
            return session.scalars(select(ClusterNode.traffic)).one()

    until(lambda: traffic() == Traffic.OPEN, what="the opening")


def test_the_password_is_kept_only_as_a_hash(
    alice: Tenant, database: Database, config: Config
) -> None:
    written(alice, database, password_plaintext="xyzzy-plugh-42")

    kept = b"".join(p.read_bytes() for p in config.data_dir.rglob("*") if p.is_file())

    assert b"xyzzy-plugh-42" not in kept
    with database.reading() as session:
        assert session.scalars(select(Cluster.password_hash)).one().startswith("$6$")  # type: ignore[union-attr]


def test_no_call_goes_without_a_key(app: Flask) -> None:
    client, seen = app.test_client(), 0
    for rule in app.url_map.iter_rules():
        if rule.endpoint.startswith("clusters."):
            path = rule.rule.replace("<cluster_id>", "x").replace("<vm_id>", "y")
            for method in {"GET", "POST", "PUT", "DELETE"} & set(rule.methods or ()):
                answer = client.open(path, method=method, headers={"x-api-key": "wrong"})
                assert (answer.status_code, set(answer.json)) == (401, {"statusCode", "message"})
                seen += 1
    assert seen == 12
