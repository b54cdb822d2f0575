"""/api/v1/logs: logs behind signed links, which need no key (apms section 5)."""

from __future__ import annotations

from flask import Response, current_app, request

from apps.inside import container_log
from apps.routes import PREFIX, links, service
from rest.access import public
from rest.blueprint import Blueprint
from vmm.log_routes import Reading, streamed

blueprint = Blueprint("app_logs", __name__, url_prefix=PREFIX, description="Logs.")


@blueprint.get("/logs/<vm_id>")
@blueprint.response(200, description="The last lines of a log as text; with `follow` what comes, too.")
@public
def log(vm_id: str) -> Response:
    """Reads the log that a link of another answer leads to."""
    container = request.args.get("container", "")
    expires, signature = (request.args.get(name, "") for name in ("expires", "signature"))
    links().check(vm_id, container, expires, signature)
    return streamed()
