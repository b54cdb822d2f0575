"""/proxy/services/<project>/<run>/...: the services of runs; a token of the project's unless the run says `auth: false`."""

from __future__ import annotations

from threading import BoundedSemaphore
from typing import Any
from urllib.parse import urlsplit

from flask import Blueprint, Response, current_app, request

from accounts.credentials import Credentials
from core.errors import Unavailable
from rest.access import public
from runs import proxy

blueprint = Blueprint("runs_proxy", __name__, url_prefix=proxy.PREFIX)
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


@blueprint.route("/<project_name>/<run_name>/", methods=METHODS, defaults={"path": ""})
@blueprint.route("/<project_name>/<run_name>/<path:path>", methods=METHODS)
@public  # the service's own configuration says who may come in: Proxy.find looks
def service(project_name: str, run_name: str, path: str) -> Any:
    """Passes a request on to a service of a run, and its answer back as it comes."""
    extensions = current_app.extensions
    way = proxy.Proxy(extensions["runs"].database, extensions["vms"], extensions["accounts"])
    shown = Credentials.of(request.headers.get("Authorization", ""))
    return _streamed(way.find(project_name, run_name, shown), extensions["stream_places"])


def _streamed(endpoint: proxy.Endpoint, places: BoundedSemaphore) -> Response:
    # A stream holds a thread for as long as it likes: other calls keep the rest of them.
    if not places.acquire(blocking=False):
        raise Unavailable("too many answers are being streamed; try again later")
    try:
        answer = proxy.forward(endpoint, _received())
    except BaseException:
        places.release()
        raise
    response = Response(answer.pieces, answer.status, headers=answer.headers)
    response.call_on_close(places.release)
    return response


def _received() -> proxy.Request:
    written = urlsplit(request.environ["RAW_URI"])
    return proxy.Request(
        method=request.method,
        target=f"{written.path}?{written.query}" if written.query else written.path,
        headers=list(request.headers.items()),
        body=request.get_data(),
        client=request.remote_addr or "",
        scheme=request.scheme,
        host=request.host,
    )
