"""Ten thousand things that a guest may say to its host: refused or kept within limits, in bounded memory."""

from __future__ import annotations

import json
import random
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest

from core.config import Config
from core.errors import CasemateError
from models.base import Database
from models.vm import Vm
from tests.common import rows
from tests.common.waiting import until
from tests.unit.vmm.test_channel import Machine
from vmm.hostapi import HostApi
from vmm.lifecycle import Observed, Wished
from vmm.workdir import WorkDir

CASES = 10_000
MOST_GROWTH = 20 * 1024 * 1024
NAMES = ("boot.progress", "boot.error", "shutdown.progress", "instance.info", "vmm.start", "x")
TEXTS = ("", "\0", "\x1b[2J\x1b]0;x\x07", "</script><script>", "\ud800", "ü" * 3000, "a" * 5000)


def value(chance: random.Random) -> Any:
    """Something JSON, seldom what is asked for."""
    choices = (None, True, -1, 2**70, 1.5, [], {}, [[[]]], chance.choice(TEXTS))
    return chance.choice((*choices, json.dumps({"app_id": chance.choice(TEXTS)})))


def params(chance: random.Random) -> Any:
    """Parameters of Notify, some of them well formed and some in the name of another VM."""
    if chance.random() < 0.6:
        return value(chance)
    names = chance.choice((*NAMES, *TEXTS, value(chance)))
    forged = {"id": "vm-2", "vm_id": "vm-2", "cid": 4}
    return {**forged, "event": names, "payload": value(chance)}


@pytest.fixture
def api(config: Config, database: Database) -> HostApi:
    with database.writing() as session:
        session.add(rows.vm(id="vm-1", wished=Wished.RUNNING, observed=Observed.ALIVE))
        session.add(rows.vm(id="vm-2"))
    WorkDir(config.run_path / "vm-1").make()
    return HostApi("vm-1", config, database)


def test_ten_thousand_notifications_are_refused_or_kept_within_limits(api: HostApi) -> None:
    chance = random.Random(7)
    seen: Counter[str] = Counter()
    memory = psutil.Process().memory_info
    settled = 0
    for number in range(CASES):
        if number == CASES // 10:
            settled = memory().rss
        method = "Notify" if chance.random() < 0.95 else chance.choice(TEXTS)
        try:
            api.answer(method, params(chance))
            seen["kept"] += 1
        except CasemateError:
            seen["refused"] += 1
    grown = memory().rss - settled

    assert seen["kept"] > 100 and seen["refused"] > 1000 and seen.total() == CASES
    assert grown < MOST_GROWTH
    with api.database.reading() as session:
        kept = session.get_one(Vm, "vm-1").events
        assert len(kept) <= api.config.event_buffer_size
        assert all(len(event.body.encode()) <= 4096 for event in kept)
        assert session.get_one(Vm, "vm-2").events == []


def test_after_ten_thousand_pieces_of_garbage_the_port_still_answers(data_dir: Path) -> None:
    chance = random.Random(11)
    pieces = (b"\n", b"{", bytes(100), b"\xff" * 1000, b'{"id":1}\n', b"a" * 20_000, b"[" * 5000)
    machine = Machine(data_dir)
    tracemalloc.start()
    try:
        for _ in range(CASES):
            machine.say(chance.choice(pieces))
            machine.port.wait_until = 0
            assert machine.port.serve()
        grown = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert machine.asked == []
    assert grown < MOST_GROWTH

    machine.say(b"\n" + json.dumps({"id": 9, "method": "Info", "params": {}}).encode() + b"\n")

    def answered() -> bool:
        machine.port.wait_until = 0
        assert machine.port.serve()
        return bool(machine.asked)

    until(answered)
    assert [method for method, _ in machine.asked] == ["Info"]
    assert machine.heard() == [{"id": 9, "result": {"name": "casemate"}}]
    machine.close()
