from __future__ import annotations

import logging
import os
import threading
from pathlib import Path

import bcrypt
import pytest

from accounts import htpasswd
from accounts.htpasswd import Htpasswd
from core.errors import RateLimited


def line(user: str, password: str, prefix: str = "$2y$") -> str:
    """An entry as `htpasswd -B` writes it, at the lowest cost."""
    hashed = bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)).decode()
    return f"{user}:{prefix}{hashed.removeprefix('$2b$')}\n"


@pytest.fixture(autouse=True)
def _cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(htpasswd, "_NOBODY", line("", "nobody").strip(":\n"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "htpasswd"
    path.write_text("# people\n\n" + line("alice", "hunter2") + line("bob", "sécret", "$2b$"))
    return path


def test_a_right_password_is_taken_again_and_again(file: Path) -> None:
    entries = Htpasswd(file)

    for _ in range(2):
        assert entries.check("alice", "hunter2")
        assert entries.check("bob", "sécret")
    assert entries.check("alice", "hunter2") != entries.check("bob", "sécret")


@pytest.mark.parametrize(
    ("user", "password"),
    [
        ("alice", ""),
        ("alice", "hunter"),
        ("alice", "hunter2\0"),
        ("alice", "sécret"),
        ("carol", "hunter2"),
        ("", "nobody"),
        ("carol", "nobody"),
        ("# people", ""),
        ("alice", "\udcff"),
    ],
)
def test_a_wrong_one_is_not(file: Path, user: str, password: str) -> None:
    entries = Htpasswd(file)

    for _ in range(2):
        assert entries.check(user, password) is None


def test_a_password_that_bcrypt_would_cut_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "htpasswd"
    path.write_text(line("alice", "x" * 72))

    assert Htpasswd(path).check("alice", "x" * 72)
    assert Htpasswd(path).check("alice", "x" * 73) is None
    assert Htpasswd(path).check("alice", "x" * 71 + "é") is None


def test_a_right_password_is_hashed_once(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries, hashed = Htpasswd(file), []
    really = bcrypt.checkpw
    monkeypatch.setattr(bcrypt, "checkpw", lambda *a: hashed.append(a) or really(*a))

    for _ in range(5):
        assert entries.check("alice", "hunter2")
    assert len(hashed) == 1
    for _ in range(2):
        assert entries.check("alice", "wrong") is None
        assert entries.check("carol", "wrong") is None  # a name that is not there costs the same

    assert len(hashed) == 5


def test_neither_the_password_nor_its_plain_hash_is_remembered(file: Path) -> None:
    entries = Htpasswd(file)
    entries.check("alice", "hunter2")

    (remembered,) = entries._right
    assert remembered not in Htpasswd(file)._right
    other = Htpasswd(file)
    other.check("alice", "hunter2")
    assert {remembered} != other._right
    assert "hunter2" not in repr(entries)


def test_what_is_remembered_has_a_bound(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(htpasswd, "_REMEMBERED", 1)
    entries = Htpasswd(file)

    for _ in range(2):
        assert entries.check("alice", "hunter2")
        assert entries.check("bob", "sécret")
        assert len(entries._right) == 1


def test_a_changed_file_is_read_again(file: Path) -> None:
    entries = Htpasswd(file)
    digest = entries.check("alice", "hunter2")
    assert digest and entries.named(digest) == "alice"

    file.write_text(line("alice", "another"))
    os.utime(file, ns=(1, 1))  # the same second, the same size: only the time of the change differs

    assert entries.check("alice", "hunter2") is None
    assert entries.named(digest) is None
    assert entries.check("alice", "another")


def test_a_file_that_is_gone_lets_nobody_in_until_it_comes_back(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    entries, text = Htpasswd(file), file.read_text()
    assert entries.check("alice", "hunter2")

    file.unlink()
    for _ in range(3):
        assert entries.check("alice", "hunter2") is None
    assert caplog.text.count("lets nobody in") == 1
    file.write_text(text)

    assert entries.check("alice", "hunter2")


@pytest.mark.parametrize(
    "entry",
    [
        "alice:hunter2",
        "alice:{SHA}8YoPdyASZ2JOjTV9ZYQbNBuCWKo=",
        "alice:$apr1$abcdefgh$ijklmnopqrstuvwxyz0123",
        "alice:$2a$05$" + "a" * 53,
        "alice:$2y$05$" + "a" * 52,
        "alice:$2y$99$" + "a" * 53,
        "alice:",
        "alice",
    ],
)
def test_what_is_not_bcrypt_is_named_by_its_line_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, entry: str
) -> None:
    path = tmp_path / "htpasswd"
    path.write_text(f"\n{entry}\n{line('bob', 'right')}")
    entries = Htpasswd(path)

    with caplog.at_level(logging.WARNING):
        assert entries.check("alice", "hunter2") is None
    assert "line 2 is not bcrypt" in caplog.text
    assert "alice" not in caplog.text
    assert entries.check("bob", "right")


def test_passwords_that_cannot_be_checked_in_time_are_told_to_come_back(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(htpasswd, "WAIT_S", 0.01)
    entries = Htpasswd(file)
    assert entries.check("alice", "hunter2")
    begun, go_on = threading.Event(), threading.Event()

    def slow(*_: bytes) -> bool:
        begun.set()
        return not go_on.wait(10)

    monkeypatch.setattr(bcrypt, "checkpw", slow)
    other = threading.Thread(target=entries.check, args=("alice", "wrong"))
    other.start()
    assert begun.wait(30)

    with pytest.raises(RateLimited) as refusal:
        entries.check("bob", "wrong")
    assert entries.check("alice", "hunter2")  # known to be right: it waits for nobody
    go_on.set()
    other.join(10)

    assert refusal.value.retry_after_s == 1
