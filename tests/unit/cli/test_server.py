"""gunicorn as all our servers run it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from gunicorn.arbiter import Arbiter

from cli.server import Master, Server


def application(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
    return []


def test_what_is_given_is_added_to_what_all_have() -> None:
    settings = Server({"workers": 3, "timeout": 7}, lambda: application, None).cfg

    assert (settings.workers, settings.timeout) == (3, 7)
    assert settings.preload_app and settings.graceful_timeout == 3


def test_the_application_is_made_when_it_is_loaded_and_not_before() -> None:
    made: list[int] = []

    def make() -> Any:
        made.append(1)
        return application

    server = Server({}, make, None)
    assert made == []
    assert server.wsgi() is application


@pytest.mark.parametrize("parent", ["its own", "another", "none"])
def test_it_ends_in_order_when_its_parent_is_another(
    monkeypatch: pytest.MonkeyPatch, parent: str
) -> None:
    looked: list[Arbiter] = []
    monkeypatch.setattr(Arbiter, "manage_workers", lambda self: looked.append(self))
    pids = {"its own": os.getppid(), "another": os.getpid(), "none": None}
    master = Master(Server({}, lambda: application, pids[parent]))

    if parent == "another":
        with pytest.raises(StopIteration):
            master.manage_workers()
    else:
        master.manage_workers()

    assert looked == ([] if parent == "another" else [master])
