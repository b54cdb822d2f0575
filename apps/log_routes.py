"""/api/v1/logs: logs behind signed links, which need no key (apps.md section 5)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from flask import Response, request

from apps.inside import LINES_MOST, container_log, followed
from apps.routes import PREFIX, links, service
from core.errors import NotFound
from core.messages import LogsOrder
from rest.access import public
from rest.blueprint import Blueprint
from vmm.log_routes import flag, has_left, is_followed, lines, text, vm_log

# Longer than any moment that a guest reads.
MOMENT_MOST = 32

blueprint = Blueprint("app_logs", __name__, url_prefix=PREFIX, description="Logs.")


@blueprint.get("/logs/<vm_id>")
@blueprint.response(
    200, description="The last lines of a log as text; with `follow` what comes, too."
)
@public
def log(vm_id: str) -> Response:
    """Reads the log that a link in another answer leads to."""
    container = request.args.get("container", "")
    expires, signature = (request.args.get(name, "") for name in ("expires", "signature"))
    links().check(vm_id, container, expires, signature)
    return text(_of_container(vm_id, container) if container else vm_log(vm_id))


def _of_container(vm_id: str, container: str) -> Iterator[str]:
    found = service().cvms([vm_id])
    if not found:
        raise NotFound("CVM not found")
    given = request.args
    wanted = LogsOrder(
        service=container,
        lines=lines(),
        since=given.get("since", "")[:MOMENT_MOST],
        until=given.get("until", "")[:MOMENT_MOST],
        timestamps=flag("timestamps"),
    )
    if not is_followed():
        return iter([container_log(service().vms, found[0], wanted)])
    whole = replace(wanted, lines=LINES_MOST)
    return followed(lambda: container_log(service().vms, found[0], whole), wanted.lines, has_left())
