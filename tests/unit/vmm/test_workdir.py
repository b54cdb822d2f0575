from __future__ import annotations

import json
import stat
from pathlib import Path

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
    workdir.lock.touch()
    (workdir.path / "link").symlink_to(outside)
    (workdir.shared / "link").symlink_to(outside)
    (workdir.path / "deep/er").mkdir(parents=True)

    workdir.remove()

    assert not workdir.path.exists()
    assert (outside / "kept").exists()
    workdir.remove()  # once more is no harm


def test_the_lock_goes_last(workdir: WorkDir, monkeypatch: pytest.MonkeyPatch) -> None:
    workdir.lock.touch()
    workdir.share("a", "x")
    (workdir.path / "hda.img").touch()
    removed: list[str] = []
    real = Path.unlink
    monkeypatch.setattr(
        Path, "unlink", lambda self, **kw: (removed.append(self.name), real(self, **kw))
    )

    workdir.remove()

    assert removed[-1] == "op.lock"


def test_a_removal_cut_off_is_finished_by_the_next(
    workdir: WorkDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c"):
        (workdir.path / name).touch()
    workdir.lock.touch()
    real, left = Path.unlink, [2]

    def cut(self: Path, **kw: bool) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError("cut")
        real(self, **kw)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", cut)
        with pytest.raises(OSError, match="cut"):
            workdir.remove()
    assert workdir.lock.exists()

    workdir.remove()

    assert not workdir.path.exists()


def test_sockets_have_the_names_that_the_configuration_made_room_for(workdir: WorkDir) -> None:
    names = {workdir.host_socket.name, workdir.guest_socket.name, "qmp.sock"}

    assert max(map(len, names)) == len("guest.sock")
