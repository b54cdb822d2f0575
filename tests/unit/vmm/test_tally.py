from __future__ import annotations

import os
import signal
import threading

from vmm.tally import Tally


def test_threads_and_forked_processes_add_to_one_count() -> None:
    tally = Tally(["a", "b"])
    children = []
    for _ in range(3):
        pid = os.fork()
        if not pid:
            for _ in range(500):
                tally.add("a")
            os._exit(0)
        children.append(pid)
    threads = [
        threading.Thread(target=lambda: [tally.add("a") for _ in range(500)]) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for pid in children:
        os.waitpid(pid, 0)

    assert tally.counts() == {"a": 3000, "b": 0}
    assert "b" in tally
    assert "c" not in tally


def test_a_killed_process_leaves_its_counts_and_its_row_to_the_next() -> None:
    tally = Tally(["a"])

    for _ in range(2):
        pid = os.fork()
        if not pid:
            tally.add("a")
            os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(pid, 0)
    tally.add("a")

    assert tally.counts() == {"a": 3}
    assert tally._row == 0


def test_a_living_process_keeps_its_row_to_itself() -> None:
    tally = Tally(["a"])
    tally.add("a")
    ready, told = os.pipe()
    pid = os.fork()
    if not pid:
        tally.add("a")
        os.write(told, bytes([tally._row]))
        os._exit(0)

    assert os.read(ready, 1) == b"\1"
    os.waitpid(pid, 0)
    assert tally.counts() == {"a": 2}
    os.close(ready)
    os.close(told)
