from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from models.cluster import Cluster, ClusterNode
from secretvm import cluster_object
from secretvm.cluster_object import Member, View
from secretvm.front import Front, Health, Server, Strategy, Traffic
from secretvm.traffic import BUCKETS_MS, Totals

FRONT = Front(
    id="c1",
    address="127.0.0.1",
    port=20000,
    strategy=Strategy.HRW,
    sticky=False,
    max_connections=10,
    password_hash=None,
    backend_scheme="http",
    health=Health("http", "/", 5, 5),
    servers=(Server(1, "127.0.0.1", 21001, 21002), Server(2, "127.0.0.1", 21003, 21004)),
)
WELL = {"status": "UP", "check_status": "L7OK", "check_desc": "Layer7 check passed", "scur": "3"}


def member(slot: int, word: str = "running") -> Member:
    node = ClusterNode(slot=slot, name=f"shop-{slot}", weight=slot, traffic=Traffic.OPEN)
    return Member(node, {"id": f"vm{slot}"}, word)


def view(**fields: Any) -> View:
    cluster = Cluster(
        id="c1",
        name="shop",
        vm_type="small",
        domain="",
        address="127.0.0.1",
        port=20000,
        strategy="hrw",
        sticky=False,
        max_connections=10,
        backend_scheme="http",
        backend_port=80,
        health_scheme="http",
        health_path="/",
        health_port=80,
        health_interval_s=5,
        health_timeout_s=5,
        error="",
        created_ms=1_700_000_000_000,
        updated_ms=1_700_000_000_000,
    )
    values: dict[str, Any] = {
        "cluster": cluster,
        "app": {"docker_compose_file": "services: {}"},
        "members": [member(1), member(2)],
        "job": "",
        "front": FRONT,
        "stat": {"FRONTEND": {"scur": "1", "smax": "4"}, "n1": WELL, "n2": WELL},
    }
    return View(**(values | fields))


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({}, "running"),
        ({"job": "cluster.create"}, "pending"),
        ({"job": "cluster.update"}, "updating"),
        ({"job": "cluster.remove"}, "updating"),
        ({"members": []}, "error"),
        ({"members": [member(1), member(2, "stopped")]}, "degraded"),
        ({"stat": {"n1": WELL, "n2": {"status": "DOWN"}}}, "degraded"),
        # Who says nothing says nothing bad.
        ({"stat": {}, "silence": "not installed"}, "running"),
    ],
)
def test_the_status_tells_how_a_cluster_is(fields: dict[str, Any], word: str) -> None:
    assert cluster_object.status(view(**fields)) == word


def test_a_cluster_that_could_not_be_made_is_an_error() -> None:
    failed = view()
    failed.cluster.error = "no room"

    told = cluster_object.listed(failed)

    assert (told["status"], told["error_message"]) == ("error", "no room")


@pytest.mark.parametrize(
    ("row", "word", "health"),
    [
        (WELL, "UP", "healthy"),
        ({**WELL, "check_status": "INI"}, "UP", "unknown"),
        ({**WELL, "status": "UP 1/2"}, "UP", "healthy"),
        ({"status": "DOWN 1/2"}, "DOWN", "unhealthy"),
        ({"status": "MAINT"}, "MAINT", "unknown"),
        ({"status": "DRAIN"}, "DRAIN", "unknown"),
        ({"status": "no check"}, "UNKNOWN", "unknown"),
        ({}, "UNKNOWN", "unknown"),
    ],
)
def test_a_backend_is_told_in_the_documented_words(
    row: dict[str, str], word: str, health: str
) -> None:
    one = view(members=[member(1)], stat={"n1": row})

    (told,) = cluster_object.backends(one)

    assert told["status"] == word
    assert cluster_object.health(one, one.members[0].node) == health
    assert told["healthy"] == (health == "healthy")


def test_a_backend_without_ports_has_no_address() -> None:
    (told,) = cluster_object.backends(view(members=[member(3)]))

    assert (told["url"], told["address"], told["port"]) == (None, None, None)


def test_the_balancer_is_null_with_the_reason_when_it_is_silent() -> None:
    told = cluster_object.listed(view(stat={}, silence="haproxy is not installed"))

    assert told["loadBalancer"] is None
    assert told["loadBalancerError"] == "haproxy is not installed"
    assert cluster_object.listed(view())["loadBalancer"] == {
        "engine": "haproxy+lua",
        "listen": "127.0.0.1:20000",
        "url": "http://127.0.0.1:20000",
        "healthy": 2,
        "total": 2,
    }


@pytest.mark.parametrize(
    ("address", "domain", "url"),
    [
        ("127.0.0.1", "", "http://127.0.0.1:20000"),
        ("::1", "", "http://[::1]:20000"),
        ("0.0.0.0", "", "http://localhost:20000"),
        ("0.0.0.0", "shop.example.com", "http://shop.example.com:20000"),
    ],
)
def test_the_url_leads_to_the_front(address: str, domain: str, url: str) -> None:
    cluster = view().cluster
    cluster.address, cluster.domain = address, domain

    assert cluster_object.url(cluster) == url


def test_figures_are_the_same_as_text_and_as_json() -> None:
    totals = Totals(
        requests=3,
        bytes_in=10,
        bytes_out=20,
        answered=3,
        milliseconds=6,
        codes={"200": 2, "404": 1},
        buckets={each: 3 if each == 2 else 0 for each in BUCKETS_MS},
    )
    one = replace(view(), members=[member(1)])

    series = cluster_object.series(list(cluster_object.figures(one, totals)))
    text = cluster_object.exposition(list(cluster_object.figures(one, totals))).decode()

    codes = {
        each["labels"]["code"]: each["value"] for each in series["casemate_cluster_requests_total"]
    }
    assert codes == {"200": 2, "404": 1}
    assert 'casemate_cluster_requests_total{cluster="c1",code="404"} 1.0' in text
    assert 'casemate_cluster_latency_seconds_bucket{cluster="c1",le="+Inf"} 3.0' in text
    assert 'casemate_cluster_backend_up{cluster="c1",node="shop-1",vm="vm1"} 1.0' in text
