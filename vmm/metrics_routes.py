"""/metrics: the service's own figures, for an operator's Prometheus."""

from __future__ import annotations

from itertools import product

from flask import Blueprint, Flask, Response, current_app, request
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from vmm.metrics import Figures
from vmm.routes import vms
from vmm.tally import Tally

blueprint = Blueprint("metrics", __name__)

# Answers with another status are counted under its class.
_STATUSES = (
    *("200", "302", "304", "400", "401", "403", "404", "405", "409", "413", "422", "429"),
    *("500", "501", "502", "503", "504", "1xx", "2xx", "3xx", "4xx", "5xx"),
)


def count_requests(app: Flask) -> None:
    """Counts what the application answers from now on; called once all its surfaces are there."""
    surfaces = ("static", "none", *app.blueprints)
    app.extensions["tally"] = Tally(map(" ".join, product(surfaces, _STATUSES)))
    app.after_request(_count)


@blueprint.get("/metrics")
def metrics() -> Response:
    """The figures in Prometheus's text format."""
    registry = CollectorRegistry()
    registry.register(Figures(vms(), current_app.extensions["tally"].counts()))
    return Response(generate_latest(registry), content_type=CONTENT_TYPE_PLAIN_0_0_4)


def _count(response: Response) -> Response:
    tally: Tally = current_app.extensions["tally"]
    surface = "static" if request.endpoint == "static" else request.blueprint or "none"
    code = str(response.status_code)
    name = f"{surface} {code}"
    tally.add(name if name in tally else f"{surface} {code[0]}xx")
    return response
