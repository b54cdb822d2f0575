from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.base import Database
from models.cluster import ClusterCount, ClusterSlot
from secretvm import traffic
from secretvm.balancer import Balancer
from secretvm.traffic import Reader, Tally, Totals
from tests.common.backends import add_cluster
from vmm.service import Vms

LINE = "c1 n1 200 1234 56 0 7 9 --"


def counted(*lines: str) -> Tally:
    tally: Tally = {}
    for line in lines:
        traffic.count(tally, line)
    return tally


def totals_of(*milliseconds: int) -> Totals:
    lines = [f"c1 n1 200 10 10 0 {ms} {ms} --" for ms in milliseconds]
    counts = counted(*lines).get("c1", Counter())
    return Totals(
        requests=counts["requests"],
        bytes_in=0,
        bytes_out=0,
        answered=counts["answered"],
        milliseconds=counts["ms"],
        codes={},
        buckets={each: counts[f"le:{each}"] for each in traffic.BUCKETS_MS},
    )


def test_a_line_is_counted() -> None:
    counts = counted(LINE, LINE, "c1 n2 404 100 50 0 7 9 --")["c1"]

    assert counts["requests"] == counts["answered"] == 3
    assert (counts["out"], counts["in"], counts["ms"]) == (2568, 162, 27)
    assert (counts["code:200"], counts["code:404"]) == (2, 1)
    assert sum(count for name, count in counts.items() if name.startswith("le:")) == 3


def test_an_aborted_request_has_neither_code_nor_latency() -> None:
    counts = counted("c1 n1 -1 0 56 0 -1 12 CH")["c1"]

    assert counts == {"requests": 1, "in": 56, "out": 0}


def test_sizes_that_were_still_growing_count() -> None:
    assert counted("c1 n1 200 +1234 56 0 +7 +9 --")["c1"]["out"] == 1234


@pytest.mark.parametrize("line", ["", "x", "c1 n1 200", LINE + " more", LINE.replace("200", "?")])
def test_what_is_no_line_of_ours_is_passed_over(line: str) -> None:
    assert counted(line) == {}


@given(st.text())
def test_no_text_breaks_the_counting(text: str) -> None:
    counted(text)


def test_before_the_first_request_there_is_no_latency() -> None:
    empty = totals_of()

    assert (empty.average_ms, empty.percentile_ms(0.95)) == (None, None)


def test_a_percentile_is_right_to_a_tenth() -> None:
    totals = totals_of(*range(1, 1001))

    assert totals.average_ms == 500.5
    for share in (0.5, 0.9, 0.95, 0.99):
        found = totals.percentile_ms(share)
        assert found is not None and found == pytest.approx(share * 1000, rel=0.1)


@given(st.lists(st.integers(0, 400_000), min_size=1, max_size=50))
def test_a_percentile_lies_between_none_and_all(milliseconds: list[int]) -> None:
    totals = totals_of(*milliseconds)

    found = totals.percentile_ms(0.95)

    assert found is not None and 0 <= found <= max(milliseconds) * 1.26 + 1


def test_buckets_grow_and_end_with_all() -> None:
    finite = traffic.BUCKETS_MS[:-1]

    assert list(finite) == sorted(set(finite))
    assert traffic.BUCKETS_MS[-1] == math.inf and finite[-1] > 300_000


@pytest.fixture
def reader(vms: Vms, database: Database) -> Reader:
    found = Reader(Balancer(vms))
    found.balancer.folder.mkdir(parents=True)
    return found


def requests_of(database: Database, cluster_id: str) -> int:
    with database.reading() as session:
        return traffic.read(session, cluster_id).requests


def line_of(cluster_id: str) -> bytes:
    return f"{cluster_id} n1 200 10 10 0 5 5 --\n".encode()


@pytest.mark.parametrize("size", [1, 7, 4096])
def test_each_line_is_counted_once_however_the_log_grows_and_whoever_reads(
    reader: Reader, database: Database, size: int
) -> None:
    cluster = add_cluster(database, [])
    data = line_of(cluster.id) * 5
    log = reader.balancer.folder / traffic.LOG
    assert not reader.read()
    for at in range(0, len(data), size):
        with log.open("ab") as file:
            file.write(data[at : at + size])
        Reader(reader.balancer).read_all()  # each knows only what is in the database

    assert requests_of(database, cluster.id) == 5


def test_what_failed_to_be_added_is_read_again(
    reader: Reader, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = add_cluster(database, [])
    (reader.balancer.folder / traffic.LOG).write_bytes(line_of(cluster.id) * 3)
    with monkeypatch.context() as patched:
        patched.setattr(traffic, "_add_slots", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            reader.read()

    reader.read_all()

    assert requests_of(database, cluster.id) == 3


def test_a_new_or_shortened_log_is_read_from_its_beginning(
    reader: Reader, database: Database
) -> None:
    cluster = add_cluster(database, [])
    log = reader.balancer.folder / traffic.LOG
    log.write_bytes(line_of(cluster.id) * 3)
    reader.read_all()
    log.write_bytes(line_of(cluster.id))
    reader.read_all()
    log.rename(log.with_suffix(".old"))
    log.write_bytes(line_of(cluster.id) * 4)
    reader.read_all()

    assert requests_of(database, cluster.id) == 8


def test_what_is_no_line_and_never_ends_does_not_stop_the_counting(
    reader: Reader, database: Database
) -> None:
    cluster = add_cluster(database, [])
    log = reader.balancer.folder / traffic.LOG
    log.write_bytes(b"x" * 5000)
    reader.read_all()
    with log.open("ab") as file:
        file.write(b"\n" + line_of(cluster.id))
    reader.read_all()

    assert requests_of(database, cluster.id) == 1


def test_the_room_of_counted_lines_is_given_back(
    reader: Reader, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(traffic, "_COUNTED_MOST", 64 * 1024)
    cluster = add_cluster(database, [])
    log = reader.balancer.folder / traffic.LOG
    line = line_of(cluster.id)
    log.write_bytes(line * (256 * 1024 // len(line)))
    reader.read_all()
    with log.open("ab") as file:
        file.write(line)
    reader.read_all()

    assert requests_of(database, cluster.id) == 256 * 1024 // len(line) + 1
    assert log.stat().st_blocks * 512 < 64 * 1024


def test_totals_add_up_and_those_of_a_gone_cluster_are_forgotten(database: Database) -> None:
    cluster = add_cluster(database, [])

    for _ in range(2):
        traffic.add(database, {cluster.id: {"requests": 3, "in": 5}, "gone": {"requests": 1}})

    with database.reading() as session:
        found = traffic.read(session, cluster.id)
        rows = session.query(ClusterCount).count()
    assert (found.requests, found.bytes_in, rows) == (6, 10, 2)


def test_a_chart_has_a_point_for_each_stretch_of_the_last_hour(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster, slot = add_cluster(database, []), traffic.SLOT_MS
    first = 100_000 * slot

    def answers_at(moment: int, **counts: int) -> None:
        monkeypatch.setattr(traffic, "_now_ms", lambda: moment)
        traffic.add(database, {cluster.id: counts, "gone": {"requests": 1}})

    answers_at(first, requests=10, answered=10, ms=50)
    answers_at(first + slot - 1, requests=20, answered=10, ms=150)
    answers_at(first + 3 * slot, requests=45, answered=0, ms=0)
    monkeypatch.setattr(traffic, "_now_ms", lambda: first + 4 * slot)
    with database.reading() as session:
        rates, times = traffic.history(session, cluster.id)

    assert (rates.now, rates.top) == (3.0, 3.0)  # 45 in 15 s
    (line,) = rates.pieces
    ends = [float(point.split(",")[1]) for point in line.split()[-4:]]
    assert ends == [10.0, 30.0, 30.0, 0.0]  # 2 a second, nothing twice, and the most there was
    assert times.pieces and times.now == 10.0

    answers_at(first + 3_600_000 + slot, requests=1)
    with database.reading() as session:
        (kept,) = [row.at_ms for row in session.query(ClusterSlot) if row.at_ms < first + 3_600_000]
    assert kept == first + 3 * slot, "what is older than an hour goes"


def test_a_cluster_without_traffic_has_a_flat_line_and_no_latency(database: Database) -> None:
    cluster = add_cluster(database, [])
    with database.reading() as session:
        rates, times = traffic.history(session, cluster.id)

    assert (rates.now, times.now, times.pieces) == (0.0, 0.0, ())
    assert len(rates.pieces) == 1
