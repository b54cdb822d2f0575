from __future__ import annotations

import contextlib
import json
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from vmm.workdir import WorkDir


@pytest.fixture
def workdir(tmp_path: Path) -> WorkDir:
    made = WorkDir(tmp_path / "vm/id")
    made.make()
    return made


def test_a_folder_is_closed_to_others_and_kept_when_it_is_there(workdir: WorkDir) -> None:
    workdir.share("a", "x")

    workdir.make()

    assert [stat.S_IMODE(path.stat().st_mode) for path in (workdir.path, workdir.shared)] == [
        0o700,
        0o700,
    ]
    assert (workdir.shared / "a").read_text() == "x"


def test_files_for_the_guest_come_and_go(workdir: WorkDir) -> None:
    workdir.share_json("a.json", {"ä": 1})
    workdir.mirror("b.json", [1])
    assert json.loads((workdir.shared / "a.json").read_text()) == {"ä": 1}
    assert json.loads((workdir.path / "b.json").read_text()) == [1]
    assert stat.S_IMODE((workdir.shared / "a.json").stat().st_mode) == 0o600

    workdir.unshare("a.json")
    workdir.unshare("a.json")

    assert list(workdir.shared.iterdir()) == []


def test_removal_takes_everything_and_nothing_else(workdir: WorkDir, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("x")
    workdir.share("a", "x")
    (workdir.path / "link").symlink_to(outside)
    (workdir.shared / "link").symlink_to(outside)
    (workdir.path / "deep/er").mkdir(parents=True)

    workdir.remove()

    assert not workdir.path.exists()
    assert (outside / "kept").exists()
    workdir.remove()  # once more is no harm


def test_a_removal_cut_off_is_finished_by_the_next(
    workdir: WorkDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c"):
        workdir.share(name, "x")
    real, left = os.unlink, [2]

    def cut(*args: Any, **kwargs: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError("cut")
        real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", cut)
        with pytest.raises(OSError, match="cut"):
            workdir.remove()

    workdir.remove()

    assert not workdir.path.exists()


def test_what_is_written_while_the_folder_goes_goes_too(workdir: WorkDir) -> None:
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            with contextlib.suppress(FileNotFoundError):
                workdir.share(".instance_info", "x")

    writing = threading.Thread(target=write)
    writing.start()
    try:
        for _ in range(20):
            workdir.make()
            workdir.remove()
    finally:
        stop.set()
        writing.join()

    assert not workdir.path.exists()


def test_a_folder_that_cannot_be_deleted_is_told(
    workdir: WorkDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "rmdir", denied)

    with pytest.raises(PermissionError):
        workdir.remove()


def test_sockets_have_the_names_that_the_configuration_made_room_for(workdir: WorkDir) -> None:
    names = {workdir.host_socket.name, workdir.guest_socket.name, "qmp.sock"}

    assert max(map(len, names)) == len("guest.sock")


def test_what_a_killed_writer_left_is_not_for_the_guest(workdir: WorkDir) -> None:
    workdir.make()
    program = (
        "import os, sys\nfrom pathlib import Path\nfrom core import files\n"
        "os.replace = lambda *_: os.kill(os.getpid(), 9)\n"
        "files.write_atomic(Path(sys.argv[1]), 'half')\n"
    )
    for path in (workdir.shared / ".encrypted-env", workdir.path / "vm-manifest.json"):
        done = subprocess.run([sys.executable, "-c", program, path], check=False, timeout=60)
        assert done.returncode == -9
    assert len([path for path in workdir.path.rglob("*") if path.is_file()]) == 2

    workdir.drop_unfinished()

    assert [path for path in workdir.path.rglob("*") if path.is_file()] == []
