from __future__ import annotations

import os
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


def test_a_killed_process_holds_nobody_up() -> None:
    tally = Tally(["a"])
    ready, told = os.pipe()
    pid = os.fork()
    if not pid:
        import fcntl

        fcntl.lockf(tally._file, fcntl.LOCK_EX)
        os.write(told, b"x")
        while True:
            os.read(ready, 0)
    os.read(ready, 1)
    os.kill(pid, 9)
    os.waitpid(pid, 0)

    tally.add("a")

    assert tally.counts() == {"a": 1}
    os.close(ready)
    os.close(told)
