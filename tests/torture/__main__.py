"""`make torture`: kills parts of a busy service again and again, and counts the promises it breaks.

    python -m tests.torture [CYCLES] [--seed N]

Each cycle lets clients create, start, stop, change and remove VMs (of the stand-in for QEMU), kills something at a
random moment, starts the service again if it is gone, and gives it ten seconds (more is `late`).  What is then not as promised is
counted, and the exit code is 1 unless all counts are 0.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import requests
from requests.exceptions import ChunkedEncodingError

from tests.common import rows
from tests.common.promises import AT_REST, Seen, breaches, is_settled, look
from tests.common.service import RunningService, end_processes
from tests.common.waiting import free_port, until

FAKE_QEMU = Path(__file__).parents[1] / "common/fake_qemu.py"
# How soon all must be as promised, and when it is taken for hopeless rather than slow.
CONVERGE_S = 10.0
PATIENCE_S = 60.0
CLIENTS = 3
MOST_VMS = 8  # with two processors each they stay within the default limit
COUNTED = ("lost", "doubled", "orphaned", "restarted", "late", "stuck", "other")
VICTIMS = ("worker", "background", "master", "everything", "qemu", "runner", "nothing")


@dataclass
class Torture:
    """One service and what its clients were told."""

    service: RunningService
    dice: random.Random
    kept: set[str] = field(default_factory=set)
    removed: set[str] = field(default_factory=set)
    untouched: str = ""
    broken: Counter[str] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)
    guard: threading.Lock = field(default_factory=threading.Lock)

    def cycle(self) -> None:
        """Calls, a kill, and a look at what is left."""
        over = threading.Event()
        seeds = [self.dice.random() for _ in range(CLIENTS)]
        clients = [threading.Thread(target=self._call, args=(seed, over)) for seed in seeds]
        before = look(self.service)[self.untouched].process
        for client in clients:
            client.start()
        time.sleep(self.dice.uniform(0, 0.6))
        victim = self.dice.choice(VICTIMS)
        self._kill(victim)
        over.set()
        for client in clients:
            client.join()
        master = self.service.process
        if master is None or master.poll() is not None:
            self.service.start()
        self._judge(victim, before)

    def _judge(self, victim: str, before: object) -> None:
        with contextlib.suppress(AssertionError):
            began = time.monotonic()
            until(self._is_well, seconds=PATIENCE_S)
            self.broken["late"] += time.monotonic() - began > CONVERGE_S
        found = breaches(self.service, self.kept, self.removed)
        if not is_settled(self.service):
            found.append(f"stuck: {_moving(self.service)}")
        if look(self.service)[self.untouched].process != before:
            found.append(f"restarted: {before}")
        for breach in found:
            kind = breach.partition(":")[0]
            self.broken[kind if kind in COUNTED else "other"] += 1
            print(f"after {victim}: {breach}", file=sys.stderr)
        if found:
            print(self.service.log.read_text(errors="replace")[-4000:], file=sys.stderr)

    def _is_well(self) -> bool:
        return is_settled(self.service) and not breaches(self.service, self.kept, self.removed)

    def _call(self, seed: float, over: threading.Event) -> None:
        dice = random.Random(seed)
        while not over.is_set():
            # A part of the service that is down, or goes down within an answer, is what this is about.
            with contextlib.suppress(requests.ConnectionError, ChunkedEncodingError):
                self._one_call(dice)

    def _one_call(self, dice: random.Random) -> None:
        with self.guard:
            mine = sorted(self.kept - {self.untouched})
        if not mine or (len(mine) < MOST_VMS and dice.random() < 0.3):
            stopped = dice.random() < 0.3
            made = self._ask(
                "CreateVm", **rows.request(ports=[rows.port(free_port())], stopped=stopped)
            )
            if made.status_code == 200:
                with self.guard:
                    self.kept.add(made.json()["id"])
            return
        vm_id = dice.choice(mine)
        verb = dice.choice(("StartVm", "StopVm", "ShutdownVm", "UpdateVm", "ResizeVm", "RemoveVm"))
        fields: dict[str, Any] = {"UpdateVm": {"user_config": "x"}, "ResizeVm": {"vcpu": 2}}.get(
            verb, {}
        )
        if verb == "RemoveVm":
            with self.guard:
                self.kept.discard(vm_id)  # from now on it may be gone or not
        answer = self._ask(verb, id=vm_id, **fields)
        if verb == "RemoveVm" and answer.status_code == 200:
            with self.guard:
                self.removed.add(vm_id)

    def _ask(self, verb: str, **message: Any) -> requests.Response:
        answer = self.service.request("POST", f"/prpc/{verb}", json=message)
        with self.guard:
            self.calls[verb] += 1
            if answer.status_code >= 500 and answer.status_code != 503:
                self.broken["other"] += 1
                print(f"{verb}: {answer.status_code} {answer.text}", file=sys.stderr)
        return answer

    def _kill(self, victim: str) -> None:
        if victim in ("master", "everything"):
            self.service.kill(everything=victim == "everything")
            return
        for each in self._found(victim)[:1]:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()

    def _found(self, victim: str) -> list[psutil.Process]:
        if victim in ("worker", "background"):
            children = self.service.children()
            found = [each for each in children if _listens(each) == (victim == "worker")]
        elif victim in ("qemu", "runner"):
            spared = self.untouched
            found = self.service.qemus() if victim == "qemu" else self.service.runners()
            found = [each for each in found if not any(spared in word for word in each.cmdline())]
        else:
            found = []
        self.dice.shuffle(found)
        return found


def _moving(service: RunningService) -> dict[str, Seen]:
    return {
        vm_id: vm
        for vm_id, vm in look(service).items()
        if vm.status not in AT_REST or (vm.status == "running") != (vm.process is not None)
    }


def _listens(child: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return any(each.status == psutil.CONN_LISTEN for each in child.net_connections("tcp"))
    return False


def main() -> int:
    """Runs the cycles and prints one line of promises."""
    parser = argparse.ArgumentParser(prog="python -m tests.torture")
    parser.add_argument("cycles", type=int, nargs="?", default=1000)
    parser.add_argument("--seed", type=int, default=1)
    wanted = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="cm-", dir="/tmp"))
    qemu = folder / "qemu-system-x86_64"
    qemu.write_text(f"#!{sys.executable} -SI\n{FAKE_QEMU.read_text()}")
    qemu.chmod(0o755)
    rows.image(folder / "images")
    service = RunningService(
        folder / "data",
        folder / "images",
        extra=f'qemu_path = "{qemu}"\naccel = "tcg"\n[server]\nworkers = 2\nthreads = 8\n',
    )
    service.start()
    torture = Torture(service, random.Random(wanted.seed))
    torture.untouched = service.call("prpc/CreateVm", **rows.request())["id"]
    torture.kept.add(torture.untouched)
    began = time.monotonic()
    try:
        for _ in range(wanted.cycles):
            torture.cycle()
    finally:
        service.stop()
        end_processes(service.data_dir)
    counts = ", ".join(f"{torture.broken[kind]} {kind}" for kind in COUNTED)
    print(
        f"torture: {wanted.cycles} cycles (seed {wanted.seed}), {sum(torture.calls.values())} calls, "
        f"{time.monotonic() - began:.0f} s: {counts}"
    )
    if not any(torture.broken.values()):
        shutil.rmtree(folder)
    return 1 if any(torture.broken.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
