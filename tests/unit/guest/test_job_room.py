"""Who a job is, and what a process does to become one of its room."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from core.errors import Invalid
from guest.job_room import Account, Room, entrance


@pytest.mark.parametrize(
    ("user", "found"),
    [
        ("root", ("root", 0, 0)),
        ("0", ("root", 0, 0)),
        ("nobody", ("nobody", 65534, 65534)),
        ("nobody:root", ("nobody", 65534, 0)),
        ("12345:678", ("12345", 12345, 678)),
    ],
)
def test_a_user_is_a_name_or_a_number_with_or_without_a_group(
    user: str, found: tuple[str, int, int]
) -> None:
    account = Account.find(user)

    assert (account.name, account.uid, account.gid) == found


@pytest.mark.parametrize("user", ["no-such-user", "root:no-such-group", "-1", "root x"])
def test_an_unknown_user_is_named(user: str) -> None:
    with pytest.raises(Invalid, match="user"):
        Account.find(user)


def test_a_process_makes_the_folder_that_it_works_in(tmp_path: Path) -> None:
    me = Account(os.environ.get("USER", "me"), os.getuid(), os.getgid(), tuple(os.getgroups()), "/")
    folder = tmp_path / "made" / "here"
    child = os.fork()
    if not child:
        try:
            entrance("", me, str(folder))()
            os._exit(0 if os.getcwd() == str(folder) else 1)
        finally:
            os._exit(2)

    assert os.waitpid(child, 0)[1] == 0


def test_wiping_a_room_that_was_never_made_does_nothing(tmp_path: Path) -> None:
    Room(tmp_path / "room").wipe()

    assert list(tmp_path.iterdir()) == []
