from __future__ import annotations

from types import SimpleNamespace

import pytest

from secretvm import vm_object
from secretvm.vm_object import Row


def row(
    word: str,
    *,
    started: int | None = 1000,
    quoted: int | None = None,
    held: bool = False,
    **flags: bool,
) -> Row:
    secret = SimpleNamespace(quoted_ms=quoted, flags=flags)
    return Row(SimpleNamespace(started_ms=started), secret, word, held)


@pytest.mark.parametrize(
    ("of", "status", "state"),
    [
        (row("stopped", started=None), "created", "created"),
        (row("stopped"), "stopped", "stopped"),
        (row("stopping"), "stopping", "stopping"),
        (row("starting"), "starting", "starting"),
        (row("running"), "running", "starting"),
        (row("running", quoted=1000), "running", "running"),
        (row("running", quoted=999), "running", "starting"),
        (row("running", skip_attest=True), "running", "running"),
        (row("exited"), "error", "error"),
        (row("unknown"), "error", "error"),
        (row("stopped", held=True), "updating", "updating"),
        (row("running", held=True, quoted=1000), "updating", "updating"),
    ],
)
def test_status_and_state_of_what_the_host_knows(of: Row, status: str, state: str) -> None:
    assert (vm_object.status_of(of), vm_object.state_of(of)) == (status, state)


def test_a_vm_made_elsewhere_is_not_waited_for() -> None:
    of = Row(SimpleNamespace(started_ms=1000), None, "running")

    assert vm_object.state_of(of) == "running"


def test_moments_are_iso_8601_with_milliseconds() -> None:
    assert vm_object.iso(1_700_000_000_007) == "2023-11-14T22:13:20.007Z"
