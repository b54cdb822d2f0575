"""A real HAProxy in front of plain HTTP backends: it spreads, checks, counts, survives and comes back."""

from __future__ import annotations

import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from sqlalchemy import update

from models.base import Database
from models.cluster import Cluster, ClusterNode
from secretvm import traffic
from secretvm.balancer import Balancer, Keeper
from secretvm.front import Strategy, Traffic
from secretvm.rounds import Round
from tests.common.backends import Backend, Client, add_cluster
from tests.common.waiting import until
from vmm import process
from vmm.service import Vms

pytestmark = pytest.mark.skipif(
    shutil.which("haproxy") is None, reason="haproxy is not installed: apt-get install haproxy"
)


@pytest.fixture
def balancer(vms: Vms) -> Iterator[Balancer]:
    balancer = Balancer(vms)
    yield balancer
    found = process.find(balancer.folder)
    if found is not None:
        process.end(balancer.folder, found, grace_s=0)


@pytest.fixture
def backends() -> Iterator[list[Backend]]:
    found = [Backend(name).start() for name in "abc"]
    yield found
    for backend in found:
        backend.stop()


@pytest.fixture
def serve(
    database: Database, balancer: Balancer, backends: list[Backend]
) -> Callable[..., Cluster]:
    """Serves a cluster of the backends and waits until all of them are known to be well."""

    def served(count: int = 3, **fields: object) -> Cluster:
        cluster = add_cluster(database, backends[:count], **fields)  # type: ignore[arg-type]
        balancer.settle()
        until(lambda: healthy(balancer, cluster) == count, what="the checks")
        return cluster

    return served


def healthy(balancer: Balancer, cluster: Cluster) -> int:
    """How many nodes were found well by a check."""
    told = balancer.stat(cluster.id)
    return sum(
        told[name]["status"] == "UP" and told[name]["check_status"] == "L7OK"
        for name in ("n1", "n2", "n3")
    )


def direct(database: Database, cluster: Cluster, name: str, traffic_: Traffic) -> None:
    """Says what a node is to get."""
    with database.writing() as session:
        session.execute(
            update(ClusterNode)
            .where(ClusterNode.cluster_id == cluster.id, ClusterNode.name == name)
            .values(traffic=traffic_)
        )


def test_round_robin_gives_every_node_its_weight(serve: Callable[..., Cluster]) -> None:
    cluster = serve(weights=(5, 3, 2))

    assert Client(cluster.port).ask_often(50).names == {"a": 25, "b": 15, "c": 10}


def test_leastconn_gives_a_slow_node_less(
    serve: Callable[..., Cluster], backends: list[Backend]
) -> None:
    cluster = serve(strategy=Strategy.LEASTCONN)
    backends[0].delay_s = 1  # slower than the others on any machine

    names = Client(cluster.port).ask_at_once(120, 6).names

    assert names["a"] < 20 < min(names["b"], names["c"])


def test_p2c_avoids_the_busy_one_of_two(
    serve: Callable[..., Cluster], backends: list[Backend]
) -> None:
    cluster = serve(strategy=Strategy.P2C)
    even = Client(cluster.port).ask_often(300).names
    backends[0].delay_s = 1

    busy = Client(cluster.port).ask_at_once(120, 6).names

    assert min(even.values()) > 60, even
    assert busy["a"] < 25 < min(busy["b"], busy["c"])


def test_hrw_moves_the_keys_of_a_removed_node_and_no_others(
    serve: Callable[..., Cluster], database: Database, balancer: Balancer
) -> None:
    cluster = serve(strategy=Strategy.HRW)
    clients = [f"127.0.{n // 200}.{n % 200 + 1}" for n in range(300)]

    def chosen() -> dict[str, str]:
        return {source: Client(cluster.port, source=source).ask() for source in clients}

    before, again = chosen(), chosen()
    direct(database, cluster, "b", Traffic.CLOSED)
    balancer.settle()
    without = chosen()
    direct(database, cluster, "b", Traffic.OPEN)
    balancer.settle()
    until(lambda: healthy(balancer, cluster) == 3, what="the check of who comes back")
    back = chosen()

    assert before == again == back
    assert min(Counter(before.values()).values()) > 70, Counter(before.values())
    assert {without[each] for each in clients if before[each] == "b"} == {"a", "c"}
    assert all(without[each] == before[each] for each in clients if before[each] != "b")


def test_leasttime_prefers_the_faster_node(
    serve: Callable[..., Cluster], backends: list[Backend]
) -> None:
    for backend, delay_s in zip(backends, (0.05, 0.2, 0.5), strict=True):
        backend.delay_s = delay_s
    cluster = serve(strategy=Strategy.LEASTTIME)

    names = Client(cluster.port).ask_at_once(180, 6).names

    assert names["a"] > names["b"] > names["c"] > 0, names


def test_a_client_of_a_sticky_front_stays_until_its_node_goes(
    serve: Callable[..., Cluster], database: Database, balancer: Balancer
) -> None:
    cluster = serve(sticky=True)
    clients = [Client(cluster.port) for _ in range(6)]
    firsts = [client.ask() for client in clients]
    assert set(firsts) == {"a", "b", "c"}

    for client in clients:
        client.ask_often(10)
    direct(database, cluster, "a", Traffic.DRAIN)
    balancer.settle()
    draining = [client.ask() for client in clients]
    fresh = Client(cluster.port).ask_often(20)
    direct(database, cluster, "a", Traffic.CLOSED)
    balancer.settle()
    closed = [client.ask() for client in clients]

    assert draining == firsts
    assert "a" not in fresh.names
    assert "a" not in closed
    assert all(was in ("a", now) for was, now in zip(firsts, closed, strict=True))


@pytest.mark.parametrize("strategy", [Strategy.HRW, Strategy.LEASTTIME])
def test_a_scripted_strategy_respects_stickiness_and_draining(
    serve: Callable[..., Cluster], database: Database, balancer: Balancer, strategy: Strategy
) -> None:
    cluster = serve(2, strategy=strategy, sticky=True)
    client = Client(cluster.port)
    first = client.ask()
    client.ask_often(10)
    assert client.names == {first: 11}

    direct(database, cluster, first, Traffic.DRAIN)
    balancer.settle()

    assert client.ask() == first
    assert first not in Client(cluster.port).ask_often(20).names


def test_a_sick_node_gets_nothing_until_it_is_well(
    serve: Callable[..., Cluster], backends: list[Backend], balancer: Balancer
) -> None:
    cluster = serve()

    backends[0].is_well = False
    until(lambda: balancer.stat(cluster.id)["n1"]["status"] == "DOWN", what="the failing checks")
    without = Client(cluster.port).ask_often(20).names
    backends[0].is_well = True
    until(lambda: healthy(balancer, cluster) == 3, what="the check that succeeds")

    assert without == {"b": 10, "c": 10}
    assert Client(cluster.port).ask_often(30).names["a"] == 10


def test_a_node_that_dies_under_load_loses_no_request_that_may_be_repeated(
    serve: Callable[..., Cluster], backends: list[Backend]
) -> None:
    cluster = serve()
    client = Client(cluster.port)
    load = threading.Thread(target=client.ask_at_once, args=(600, 4))
    load.start()
    until(lambda: sum(client.names.values()) > 100, what="some traffic")

    backends[0].stop()
    load.join()

    assert (client.failed, client.statuses) == ([], {200: 600})


def test_a_front_with_a_password_asks_for_it(
    serve: Callable[..., Cluster], balancer: Balancer
) -> None:
    from secretvm.clusters import password_hash

    cluster = serve(password_hash=password_hash("not a secret: xyzzy"))

    stranger, friend = Client(cluster.port).ask_often(2), Client(cluster.port)
    friend.headers["Authorization"] = "Basic YWRtaW46bm90IGEgc2VjcmV0OiB4eXp6eQ=="
    friend.ask_often(3)

    assert stranger.statuses == {401: 2}
    assert friend.statuses == {200: 3}
    assert "xyzzy" not in (balancer.folder / "haproxy.cfg").read_text()


def test_the_limit_of_connections_holds(
    serve: Callable[..., Cluster], backends: list[Backend]
) -> None:
    cluster = serve(1, max_connections=2)
    backends[0].delay_s = 0.1

    client = Client(cluster.port).ask_at_once(12, 6)

    assert client.statuses == {200: 12}
    assert backends[0].most == 2


def test_fronts_come_and_go_while_others_serve(
    serve: Callable[..., Cluster], database: Database, balancer: Balancer, backends: list[Backend]
) -> None:
    first = serve(2)
    client = Client(first.port)
    load = threading.Thread(target=client.ask_at_once, args=(900, 3))
    load.start()
    until(lambda: sum(client.names.values()) > 100, what="some traffic")

    other = Backend("other").start()
    second = add_cluster(database, [other], name="second")
    balancer.settle()
    answered = Client(second.port).ask()
    with database.writing() as session:
        session.execute(update(Cluster).where(Cluster.id == second.id).values(is_removed=True))
    balancer.settle()
    gone = Client(second.port)
    gone.ask()
    load.join()
    other.stop()

    assert answered == "other"
    assert gone.failed and not gone.names
    assert (client.failed, client.statuses) == ([], {200: 900})


def test_the_last_front_takes_haproxy_with_it(
    serve: Callable[..., Cluster], database: Database, balancer: Balancer
) -> None:
    serve()
    with database.writing() as session:
        session.execute(update(Cluster).values(is_removed=True))

    balancer.settle()

    assert process.find(balancer.folder) is None


def test_settling_again_starts_and_loads_nothing(
    serve: Callable[..., Cluster], balancer: Balancer
) -> None:
    serve()
    before = balancer.info()["Pid"], process.find(balancer.folder)

    for _ in range(3):
        balancer.settle()

    assert (balancer.info()["Pid"], process.find(balancer.folder)) == before


@pytest.mark.parametrize("victim", ["master", "worker"])
def test_a_killed_haproxy_comes_back(
    serve: Callable[..., Cluster], balancer: Balancer, victim: str
) -> None:
    cluster = serve(weights=(2, 1, 1))
    watching = Round("the balancer", 0.25, Keeper(balancer).look)
    watching.start()
    master = process.find(balancer.folder)
    assert master is not None

    psutil.Process(master.pid if victim == "master" else int(balancer.info()["Pid"])).kill()

    def is_back() -> bool:
        found = process.find(balancer.folder)
        return found not in (None, master) and Client(cluster.port).ask() in ("a", "b", "c")

    until(is_back, what="HAProxy's return")
    watching.stop()
    until(lambda: healthy(balancer, cluster) == 3, what="the checks")
    assert Client(cluster.port).ask_often(40).names == {"a": 20, "b": 10, "c": 10}


def test_a_haproxy_whose_runner_died_unrecorded_is_replaced(
    serve: Callable[..., Cluster], balancer: Balancer
) -> None:
    cluster = serve()
    (balancer.folder / "process.json").unlink()

    balancer.settle()

    assert process.find(balancer.folder) is not None
    assert Client(cluster.port).ask() in ("a", "b", "c")


def test_a_new_service_adopts_the_running_haproxy(
    serve: Callable[..., Cluster], vms: Vms, balancer: Balancer
) -> None:
    cluster = serve()
    before = process.find(balancer.folder), balancer.info()["Pid"]

    Keeper(Balancer(vms)).look()

    assert (process.find(balancer.folder), balancer.info()["Pid"]) == before
    assert Client(cluster.port).ask() in ("a", "b", "c")


def test_a_port_that_another_program_took_is_told(
    database: Database, balancer: Balancer, backends: list[Backend]
) -> None:
    from core.errors import Unavailable

    add_cluster(database, backends, port=backends[0].port)

    with pytest.raises(Unavailable, match="does not serve its configuration"):
        balancer.settle()


def reading(balancer: Balancer) -> Round:
    return Round("counting", 0.4, traffic.Reader(balancer).read_all, once_more=True)


def test_traffic_is_counted_exactly_and_soon(
    serve: Callable[..., Cluster], database: Database, balancer: Balancer
) -> None:
    cluster = serve()
    early = Client(cluster.port).ask_often(20)  # before anybody reads: it is in the file
    reader = reading(balancer)
    reader.start()

    client = Client(cluster.port).ask_at_once(2000, 8)
    for _ in range(5):
        client.ask("/status/404")
    client.ask("/", "POST", b"x" * 5000)

    def totals() -> traffic.Totals:
        with database.reading() as session:
            return traffic.read(session, cluster.id)

    asked = sum(client.statuses.values()) + sum(early.statuses.values())
    until(lambda: totals().requests == asked, seconds=20, what="the count")
    reader.stop()
    found = totals()
    assert found.codes == {"200": 2021, "404": 5}
    assert found.answered == 2026 and sum(found.buckets.values()) == 2026
    assert found.bytes_in > 5000 and found.bytes_out > 2026 * 30


def test_traffic_never_falls_over_restarts_of_reader_and_haproxy(
    serve: Callable[..., Cluster], database: Database, balancer: Balancer
) -> None:
    cluster = serve()

    def total() -> int:
        with database.reading() as session:
            return traffic.read(session, cluster.id).requests

    for turn in range(1, 4):
        reader = reading(balancer)
        reader.start()
        Client(cluster.port).ask_often(10)
        until(lambda: total() == turn * 10, what="the count")  # noqa: B023 - asked at once
        reader.stop()
        if turn == 2:
            master = process.find(balancer.folder)
            assert master is not None
            process.end(balancer.folder, master, grace_s=0)
            balancer.settle()


def test_the_folder_is_closed_to_others(serve: Callable[..., Cluster], balancer: Balancer) -> None:
    serve()

    def open_to_others(path: Path) -> bool:
        return bool(path.stat().st_mode & 0o077)

    assert not open_to_others(balancer.folder)
    assert [p for p in balancer.folder.iterdir() if p.is_socket() and open_to_others(p)] == []
