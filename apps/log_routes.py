"""/api/v1/logs: logs behind signed links, which need no key (apps.md section 5)."""

from __future__ import annotations

from collections.abc import Iterator

from flask import Response, request

from apps.inside import container_log, followed
from apps.routes import PREFIX, links, service
from core.errors import NotFound
from rest.access import public
from rest.blueprint import Blueprint
from vmm.log_routes import has_left, is_followed, lines, text, vm_log

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
    wanted, most = lines(), 100_000
    if not is_followed():
        return iter([container_log(service().vms, found[0], container, wanted)])
    return followed(
        lambda: container_log(service().vms, found[0], container, most), wanted, has_left()
    )
