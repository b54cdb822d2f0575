"""The initramfs archive: the kernel's format, and bytes that depend on the entries alone."""

from __future__ import annotations

import re
import stat

from image.cpio import Archive


def entries(archive: bytes) -> dict[str, tuple[int, bytes, tuple[int, int]]]:
    """Reads a newc archive by the kernel's description of it."""
    found, at = {}, 0
    while True:
        assert archive[at : at + 6] == b"070701"
        fields = [int(archive[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        _, mode, uid, gid, _, mtime, size, _, _, major, minor, name_size, check = fields
        assert (uid, gid, mtime, check) == (0, 0, 0, 0)
        name = archive[at + 110 : at + 110 + name_size - 1].decode()
        at += -(-(110 + name_size) // 4) * 4
        if name == "TRAILER!!!":
            assert re.fullmatch(rb"\0*", archive[at:])
            return found
        found[name] = (mode, archive[at : at + size], (major, minor))
        at += -(-size // 4) * 4


def sample(paths: list[str]) -> Archive:
    """Files named by their own paths."""
    archive = Archive()
    for path in paths:
        archive.add(path, path.encode(), 0o755)
    return archive


def test_what_goes_in_comes_out() -> None:
    archive = Archive()
    archive.add("bin/tool", b"12345", 0o755)
    archive.link("bin/sh", "tool")
    archive.folder("proc")
    archive.character_device("dev/console", 5, 1)

    found = entries(archive.to_bytes())

    assert found["bin/tool"] == (stat.S_IFREG | 0o755, b"12345", (0, 0))
    assert found["bin/sh"] == (stat.S_IFLNK | 0o777, b"tool", (0, 0))
    assert found["proc"] == (stat.S_IFDIR | 0o755, b"", (0, 0))
    assert found["dev/console"] == (stat.S_IFCHR | 0o600, b"", (5, 1))


def test_folders_stand_before_what_they_hold() -> None:
    order = list(entries(sample(["a/b/c", "a-b", "a/b!"]).to_bytes()))

    assert order.index("a") < order.index("a/b") < order.index("a/b/c")


def test_the_order_of_adding_does_not_show() -> None:
    paths = ["z", "a/b", "a/c", "m"]

    assert sample(paths).to_bytes() == sample(paths[::-1]).to_bytes()


def test_an_archive_ends_on_a_block() -> None:
    assert len(sample(["a"]).to_bytes()) % 512 == 0
