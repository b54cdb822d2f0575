"""The host's folder as hostile input."""

from __future__ import annotations

import os
import stat
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from core import files
from core.errors import CasemateError, Invalid, TooLarge
from core.proc import run
from guest import share

SECRET = b"not for the host to move"


@pytest.fixture
def given(tmp_path: Path) -> Path:
    folder = tmp_path / "given"
    folder.mkdir()
    (folder / "app-compose.json").write_text("{}")
    return folder


def test_known_files_are_copied_closed_to_others_and_unknown_ones_left(
    given: Path, tmp_path: Path
) -> None:
    (given / ".user-config").write_text("hello")
    (given / "stranger").write_text("x")

    share.copy(given, tmp_path / "copy")

    copied = sorted(path.name for path in (tmp_path / "copy").iterdir())
    assert copied == [".user-config", "app-compose.json"]
    assert (tmp_path / "copy").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "copy/.user-config").stat().st_mode & 0o777 == 0o600


def test_names_of_before_0_5_become_todays_unless_those_are_there(
    given: Path, tmp_path: Path
) -> None:
    (given / "config.json").write_text("old")
    (given / "encrypted-env").write_text("old")
    (given / ".encrypted-env").write_text("new")

    share.copy(given, tmp_path / "copy")

    assert (tmp_path / "copy/.sys-config.json").read_text() == "old"
    assert (tmp_path / "copy/.encrypted-env").read_text() == "new"


def test_a_folder_without_an_app_is_refused(tmp_path: Path) -> None:
    (tmp_path / "given").mkdir()

    with pytest.raises(Invalid, match=r"app-compose\.json"):
        share.copy(tmp_path / "given", tmp_path / "copy")


def _link(path: Path) -> None:
    path.symlink_to("/etc/passwd")


def _dangling_link(path: Path) -> None:
    path.symlink_to("/nowhere")


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _folder(path: Path) -> None:
    path.mkdir()


def _too_large(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(10 * 1024**3)


@pytest.mark.parametrize("place", [_link, _dangling_link, _fifo, _folder, _too_large])
@pytest.mark.parametrize("name", [".instance_info", ".encrypted-env", ".tee-simulator.json"])
def test_what_is_no_plain_small_file_is_refused(
    given: Path, tmp_path: Path, name: str, place: Callable[[Path], None]
) -> None:
    place(given / name)

    with pytest.raises((Invalid, TooLarge)):
        share.copy(given, tmp_path / "copy")


def test_every_limit_is_exact(given: Path, tmp_path: Path) -> None:
    for name, limit in share.FILES.items():
        if limit > 1024 * 1024:
            continue
        (given / name).write_bytes(b" " * limit)
        share.copy(given, tmp_path / "copy")
        (given / name).write_bytes(b" " * (limit + 1))
        with pytest.raises(TooLarge):
            share.copy(given, tmp_path / "copy")
        (given / name).unlink()


def test_a_link_swapped_in_during_the_copy_is_never_followed(given: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(SECRET)
    target = given / ".instance_info"
    stop = threading.Event()

    def swap() -> None:
        plain, link = given / "plain", given / "link"
        while not stop.is_set():
            plain.write_text("plain")
            os.replace(plain, target)
            link.symlink_to(secret)
            os.replace(link, target)

    swapping = threading.Thread(target=swap)
    swapping.start()
    try:
        copied = 0
        for _ in range(300):
            try:
                share.copy(given, tmp_path / "copy")
            except CasemateError:
                continue
            found = (tmp_path / "copy/.instance_info").read_bytes()
            assert found != SECRET
            copied += found == b"plain"
    finally:
        stop.set()
        swapping.join()
    assert copied > 0


def test_a_link_in_any_component_of_the_path_is_refused(given: Path, tmp_path: Path) -> None:
    inner = tmp_path / "a/b/c"
    inner.mkdir(parents=True)
    (inner / "app-compose.json").write_text("{}")
    share.copy(inner, tmp_path / "copy")

    for number, part in enumerate((tmp_path / "a", tmp_path / "a/b", inner)):
        part.rename(away := tmp_path / f"away{number}")
        part.symlink_to(away)
        with pytest.raises(Invalid, match="cannot be opened safely"):
            share.copy(inner, tmp_path / f"copy{number}")
        part.unlink()
        away.rename(part)


def test_a_device_is_refused(given: Path, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can make a device")
    os.mknod(given / ".instance_info", stat.S_IFCHR | 0o666, os.makedev(1, 5))  # /dev/zero

    with pytest.raises(Invalid, match="not a regular file"):
        share.copy(given, tmp_path / "copy")


def test_of_ten_thousand_swaps_of_file_and_folder_none_is_followed(tmp_path: Path) -> None:
    secret, shared = tmp_path / "secret", tmp_path / "shared"
    for folder, text in ((secret, SECRET), (shared, b"plain")):
        folder.mkdir()
        (folder / "a").write_bytes(text)
    stop = threading.Event()

    def swap() -> None:
        kept, link, file = tmp_path / "kept", tmp_path / "link", shared / "link"
        while not stop.is_set():
            shared.rename(kept)
            link.symlink_to(secret)
            link.rename(shared)  # the folder is a link now
            shared.unlink()
            kept.rename(shared)
            file.symlink_to(secret / "a")
            file.replace(shared / "a")  # the file is one
            (shared / "b").write_bytes(b"plain")
            (shared / "b").replace(shared / "a")

    swapping = threading.Thread(target=swap)
    seen: Counter[str] = Counter()
    swapping.start()
    try:
        for _ in range(10_000):
            try:
                data = files.read_capped(shared / "a", 1024)
                seen["followed" if data == SECRET else "plain"] += 1
            except (FileNotFoundError, Invalid) as refusal:
                seen[type(refusal).__name__] += 1
    finally:
        stop.set()
        swapping.join()

    assert seen["followed"] == 0
    assert seen["plain"] and seen["Invalid"], seen


def test_the_disk_is_found_by_its_label_whatever_its_place(tmp_path: Path) -> None:
    for name in ("vda", "vdb", "vdc"):
        (tmp_path / "sys/class/block" / name).mkdir(parents=True)
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/vda").write_bytes(os.urandom(4096))
    (tmp_path / "dev/vdb").write_bytes(b"")
    assert share.find_disk(tmp_path) is None

    for kind in ([], ["-F"]):
        image = tmp_path / "dev/vdc"
        with image.open("wb") as file:
            file.truncate(64 * 1024 * 1024)
        run(["mformat", "-i", image, *kind, "-v", "DSTACKSHR", "::"])
        assert share.find_disk(tmp_path) == image
        run(["mformat", "-i", image, *kind, "-v", "OTHER", "::"])
        assert share.find_disk(tmp_path) is None
