from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from core import files
from core.errors import Conflict, Invalid, TooLarge
from tests.common.waiting import until


def test_a_written_file_is_whole_and_closed_to_others(tmp_path: Path) -> None:
    files.write_atomic(tmp_path / "a", "ä")

    assert (tmp_path / "a").read_text() == "ä"
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o600


def test_a_file_is_replaced_with_the_mode_asked_for(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")

    files.write_atomic(tmp_path / "a", b"new", 0o644)

    assert (tmp_path / "a").read_bytes() == b"new"
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o644


@pytest.mark.parametrize("step", ["fsync", "replace", "fchmod"])
def test_a_write_that_fails_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    (tmp_path / "a").write_text("old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(OSError, match="No space left"):
        files.write_atomic(tmp_path / "a", "new")

    assert (tmp_path / "a").read_text() == "old"
    assert os.listdir(tmp_path) == ["a"]


def test_a_reader_sees_the_old_file_or_the_new_one_and_nothing_between(tmp_path: Path) -> None:
    path = tmp_path / "a"
    texts = {letter * 50_000 for letter in "abc"}
    files.write_atomic(path, "a" * 50_000)
    seen = set()
    writing = threading.Thread(
        target=lambda: [files.write_atomic(path, text) for text in sorted(texts) * 5]
    )

    writing.start()
    while writing.is_alive():
        seen.add(path.read_text())
    writing.join()

    assert seen <= texts


def test_a_file_written_once_stays_as_it_is(tmp_path: Path) -> None:
    assert files.write_once(tmp_path / "a", "first") == b"first"
    assert files.write_once(tmp_path / "a", "second") == b"first"

    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["a"]


def test_of_many_that_write_a_file_once_all_read_what_one_wrote(tmp_path: Path) -> None:
    read: list[bytes] = []
    together = threading.Barrier(20)

    def write(number: int) -> None:
        together.wait()
        read.append(files.write_once(tmp_path / "a", f"{number}" * 1000))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(read) == 20
    assert set(read) == {(tmp_path / "a").read_bytes()}
    assert len(read[0]) >= 1000


def test_a_regular_file_up_to_the_limit_is_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")

    assert files.read_capped(tmp_path / "a", 5) == b"12345"
    with pytest.raises(TooLarge, match="a is larger than 4 bytes"):
        files.read_capped(tmp_path / "a", 4)


def test_a_file_that_grows_or_does_not_say_its_size_is_read_to_its_end_and_capped() -> None:
    path = Path(f"/proc/{os.getpid()}/limits")
    whole = path.read_bytes()

    assert path.stat().st_size == 0 < len(whole)
    assert files.read_capped(path, len(whole)) == whole
    with pytest.raises(TooLarge):
        files.read_capped(path, len(whole) - 1)


def test_a_file_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        files.read_capped(tmp_path / "nothing", 1)
    with pytest.raises(FileNotFoundError):
        files.read_capped(tmp_path / "nothing/a", 1)


def test_a_link_is_followed_in_no_component_of_the_path(tmp_path: Path) -> None:
    (tmp_path / "one/two").mkdir(parents=True)
    (tmp_path / "one/two/a").write_text("x")
    (tmp_path / "one/link").symlink_to(tmp_path / "one/two/a")
    (tmp_path / "away").symlink_to(tmp_path / "one")
    (tmp_path / "one/up").symlink_to("two")

    assert files.read_capped(tmp_path / "one/two/a", 9) == b"x"
    for path in ("one/link", "away/two/a", "one/up/a"):
        with pytest.raises(Invalid, match="cannot be opened safely"):
            files.read_capped(tmp_path / path, 9)


def test_what_is_not_a_regular_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")

    for path, why in (
        (tmp_path / "fifo", "not a regular file"),
        (tmp_path, "not a regular file"),
        (Path("/dev/zero"), "not a regular file"),
    ):
        with pytest.raises(Invalid, match=why):
            files.read_capped(path, 9)


def test_a_link_that_is_swapped_in_while_we_read_is_never_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    path = tmp_path / "a"
    path.write_text("open")
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            (tmp_path / "link").symlink_to("secret")
            os.replace(tmp_path / "link", path)
            (tmp_path / "file").write_text("open")
            os.replace(tmp_path / "file", path)

    swapping = threading.Thread(target=swap)
    swapping.start()
    outcomes = set()
    try:
        for _ in range(2000):
            try:
                outcomes.add(files.read_capped(path, 99))
            except Invalid:
                outcomes.add(b"refused")
    finally:
        stop.set()
        swapping.join()

    assert outcomes <= {b"open", b"refused"}
    assert b"open" in outcomes


def test_no_descriptor_stays_open(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    (tmp_path / "link").symlink_to("a")
    (tmp_path / "folder").mkdir()
    before = len(os.listdir("/proc/self/fd"))

    for name in ("a", "link", "folder", "nothing"):
        for _ in range(10):
            try:
                files.read_capped(tmp_path / name, 9)
            except (Invalid, FileNotFoundError):
                continue

    assert len(os.listdir("/proc/self/fd")) == before


def test_a_lock_is_held_by_one_thread_at_a_time(tmp_path: Path) -> None:
    inside, most = [0], [0]

    def work() -> None:
        for _ in range(20):
            with files.locked(tmp_path / "lock"):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                time.sleep(0)
                inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert most == [1]


@pytest.mark.parametrize("timeout_s", [0, 0.05])
def test_a_lock_that_stays_held_is_a_conflict(tmp_path: Path, timeout_s: float) -> None:
    with (
        files.locked(tmp_path / "lock"),
        pytest.raises(Conflict, match="lock is held by another process"),
        files.locked(tmp_path / "lock", timeout_s=timeout_s),
    ):
        pytest.fail("held twice")

    with files.locked(tmp_path / "lock", timeout_s=0):
        pass


def test_a_lock_ends_with_the_process_that_held_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    program = (
        "import sys, time; from pathlib import Path; from core.files import locked\n"
        "with locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, path], stdout=subprocess.PIPE, cwd=Path(__file__).parents[3]
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(Conflict), files.locked(path, timeout_s=0):
            pytest.fail("held twice")

        holder.kill()

        with files.locked(path, timeout_s=10):
            pass


def test_a_lock_file_that_was_removed_while_we_waited_is_not_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    got = threading.Event()

    def wait() -> None:
        with files.locked(path) as fd:
            assert os.path.samestat(os.fstat(fd), os.stat(path))
            got.set()

    with files.locked(path):
        waiting = threading.Thread(target=wait)
        waiting.start()
        until(lambda: waiters(path) > 0)
        path.unlink()
        with files.locked(path, timeout_s=0):
            # The waiter wakes up with the lock of the old file, and waits for the new one.
            pass

    assert got.wait(30)
    waiting.join()


def test_a_lock_whose_directory_was_removed_while_we_waited_is_gone(tmp_path: Path) -> None:
    folder = tmp_path / "vm"
    folder.mkdir()
    ended: list[BaseException] = []

    def wait() -> None:
        try:
            with files.locked(folder / "lock"):
                pass
        except FileNotFoundError as error:
            ended.append(error)

    with files.locked(folder / "lock"):
        waiting = threading.Thread(target=wait)
        waiting.start()
        until(lambda: waiters(folder / "lock") > 0)
        (folder / "lock").unlink()
        folder.rmdir()
    waiting.join(10)

    assert len(ended) == 1


def waiters(path: Path) -> int:
    """How many wait for a file's lock, in the kernel's words."""
    inode = f":{path.stat().st_ino} "
    return sum("->" in line and inode in line for line in open("/proc/locks"))
