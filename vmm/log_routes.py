"""/logs: the serial console and QEMU's own output of a VM (vmm.md section 11)."""

from __future__ import annotations

import select
import socket
from collections.abc import Callable, Iterator
from threading import BoundedSemaphore

from flask import Blueprint, Response, current_app, request

from core.errors import Forbidden, Invalid, Unavailable
from vmm.routes import caller, vms

blueprint = Blueprint("logs", __name__)

DEFAULT_LINES = 10_000


@blueprint.get("/logs")
def logs() -> Response:
    """The last lines of a log as text; with `follow` also what comes."""
    vm_id, accounts = request.args.get("id", ""), current_app.extensions["accounts"]
    project_id = None if caller().is_operator else vms().project_of(vm_id)
    if not accounts.may_see(caller(), project_id):
        raise Forbidden("there is no such VM in a project of yours")
    pieces = vm_log(vm_id)
    if is_followed():
        pieces = accounts.while_allowed(caller(), project_id, pieces)
    return text(pieces)


def vm_log(vm_id: str) -> Iterator[str]:
    """What the parameters of the request ask for of a VM's log."""
    return vms().log(
        vm_id,
        request.args.get("ch", "serial"),
        lines(),
        follow=is_followed(),
        keep_ansi=flag("ansi"),
        archived=_number("archived", 0),
        left=has_left(),
    )


def is_followed() -> bool:
    """Whether the request asks for what comes, too."""
    return flag("follow")


def lines() -> int:
    """How many of the last lines the request asks for."""
    return _number("lines", DEFAULT_LINES)


def has_left() -> Callable[[], bool]:
    """A question for a stream: has whoever made the request closed the connection?"""
    return reader_left(request.environ.get("gunicorn.socket"))


def text(pieces: Iterator[str]) -> Response:
    """Pieces of a log as they come."""
    response = Response(pieces, mimetype="text/plain", headers={"X-Accel-Buffering": "no"})
    return lasting(response) if is_followed() else response


def lasting(response: Response) -> Response:
    """A stream: it holds a thread for as long as it likes, and other calls keep the rest of them."""
    places: BoundedSemaphore = current_app.extensions["stream_places"]
    if not places.acquire(blocking=False):
        raise Unavailable("too many logs are being followed; try again later")
    response.call_on_close(places.release)
    return response


def reader_left(connection: socket.socket | None) -> Callable[[], bool]:
    """A question for a stream: has the other end of its connection been closed?

    Without it a reader of a silent log that left is noticed by the next heartbeat only.
    """
    if connection is None:
        return lambda: False
    poll = select.poll()
    poll.register(connection, select.POLLRDHUP | select.POLLHUP | select.POLLERR)
    return lambda: bool(poll.poll(0))


def flag(name: str) -> bool:
    """Whether the request sets a parameter; Invalid when it is neither true nor false."""
    value = request.args.get(name)
    if value is not None and value.lower() not in ("", "1", "0", "true", "false"):
        raise Invalid.field(name, "must be true or false")
    return value is not None and value.lower() in ("", "1", "true")


def _number(name: str, default: int) -> int:
    text = request.args.get(name, "")
    if text and not (text.isascii() and text.isdigit() and len(text) < 10):
        raise Invalid.field(name, "must be a whole number, 0 or more")
    return int(text) if text else default
