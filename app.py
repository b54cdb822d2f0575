"""The WSGI application: database, services, blueprints by URL prefix, and the one error handler."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from threading import BoundedSemaphore
from typing import Any

from flask import Flask, Request, Response, current_app, g, render_template, request, session
from flask.sessions import SecureCookieSession, SecureCookieSessionInterface
from gunicorn.http.errors import ParseException
from werkzeug.exceptions import HTTPException, MethodNotAllowed

import apps.console_routes
import apps.routes
import apps.surface_routes
import runs.console_routes
import runs.surface_routes
import secretvm.console_routes
import secretvm.surface_routes
import verify.routes
import vmm.console
import vmm.console_form_routes
import vmm.console_vm_routes
import vmm.guest_routes
import vmm.log_routes
import vmm.metrics_routes
import vmm.openapi_routes
import vmm.routes
import vmm.rpc
from accounts.credentials import Credentials
from accounts.roles import OPERATOR, Caller
from accounts.service import Accounts
from accounts.tokens import session_key
from core import prpc
from core.config import Config
from core.errors import (
    CasemateError,
    Conflict,
    Forbidden,
    RateLimited,
    Unauthenticated,
    status_of,
)
from models.base import Database, disk_trouble
from rest.access import is_public, is_signable
from verify.service import Verifier
from vmm.host import Host
from vmm.service import Vms
from vmm.version import VERSION

logger = logging.getLogger(__name__)

# The pages ask for the token themselves; evidence is for everybody.
OPEN = {"console", "secretvm_console", "apps_console", "runs_console", "verify"}
# What asks for no operator but only for a caller: it looks itself at what is the caller's, or it is nobody's
# (None: there is no such path).
FOR_ANY_CALLER = {"logs", "openapi", None}
BODY_LIMIT = 10 * 1024**2


@dataclass(frozen=True)
class Surface:
    """How the paths at and below some prefixes say no."""

    prefixes: tuple[str, ...]
    refusal: Callable[[str, int, Exception], Response]
    # Where its documents want another status than core/errors.py.
    statuses: Mapping[type[CasemateError], int] = field(default_factory=dict)
    # What a browser may ask the person for, and a program is told (WWW-Authenticate).
    challenge: str = 'Basic realm="casemate"'
    # For tenants: a credential of theirs is always needed, whatever [auth] says of the VMM's own interface.
    for_tenants: bool = False

    @cached_property
    def _below(self) -> tuple[str, ...]:
        return tuple(each + "/" for each in self.prefixes)

    def has(self, path: str) -> bool:
        """Whether a path is one of its."""
        return path.startswith(self._below) or path in self.prefixes


def create_app(config: Config, host: Host) -> Flask:
    """The application for one data directory, whose database is migrated already."""
    app = Flask(__name__)
    app.request_class = WholeRequest
    app.config["MAX_CONTENT_LENGTH"] = BODY_LIMIT
    # Werkzeug would answer both for itself, in HTML: a method that no view names, and a path with `//`.
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
    app.url_map.merge_slashes = False
    database = Database(config.database)
    app.extensions["accounts"] = Accounts.of(config, database)
    app.extensions["stream_places"] = BoundedSemaphore(max(1, config.server.threads // 2))
    app.extensions["verifier"] = Verifier.of(config)
    app.extensions["vms"] = Vms(config, database, host)

    app.secret_key = session_key(config.data_dir)
    app.session_interface = Sessions()
    app.config.update(SESSION_COOKIE_HTTPONLY=True, SESSION_COOKIE_SAMESITE="Strict")
    app.add_template_filter(moment)

    app.register_blueprint(vmm.console.blueprint)
    app.register_blueprint(vmm.routes.blueprint)
    app.register_blueprint(vmm.guest_routes.blueprint)
    app.register_blueprint(vmm.log_routes.blueprint)
    app.register_blueprint(vmm.openapi_routes.blueprint)
    app.extensions["documents"] = {"vmm": vmm.openapi_routes.VMM}
    apps.surface_routes.register(app)
    secretvm.surface_routes.register(app, VERSION)
    runs.surface_routes.register(app, VERSION)
    app.register_blueprint(apps.console_routes.blueprint)
    app.register_blueprint(secretvm.console_routes.blueprint)
    app.register_blueprint(runs.console_routes.blueprint)
    app.register_blueprint(verify.routes.blueprint)
    app.register_blueprint(vmm.metrics_routes.blueprint)

    app.before_request(_authenticate)
    app.after_request(_sign)
    vmm.metrics_routes.count_requests(app)
    app.register_error_handler(Exception, _refuse)
    return app


class WholeRequest(Request):
    """A request whose body is there whole or not at all, however it came."""

    def get_data(self, *args: Any, **kwargs: Any) -> Any:
        """The body, or TooLarge."""
        data = super().get_data(*args, **kwargs)
        return prpc.whole(data, self.content_length, self.max_content_length or BODY_LIMIT)


class Sessions(SecureCookieSessionInterface):
    """Session cookies that a browser gives back over TLS alone, where they came over TLS."""

    def open_session(self, app: Flask, request: Request) -> SecureCookieSession | None:
        """What the request's cookie says; programs send none, and pay for no look at keys."""
        if "Cookie" not in request.headers:
            return self.session_class()
        return super().open_session(app, request)

    def get_cookie_secure(self, app: Flask) -> bool:
        """Whether this request came over TLS, if need be to the proxy in front."""
        return request.is_secure


def moment(seconds: float) -> str:
    """A time as people write it, in UTC."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))


def _authenticate() -> None:
    # Runs before any body is read: a stranger's upload is not taken in.
    if request.endpoint == "static":
        return
    accounts: Accounts = current_app.extensions["accounts"]
    if _surface().for_tenants:
        g.caller = _tenant(accounts)
        return
    if request.blueprint in OPEN:
        g.caller = accounts.caller_of(session.get("caller", ""))
        return
    g.caller = _caller(accounts)
    if request.blueprint not in FOR_ANY_CALLER and not g.caller.is_operator:
        raise Forbidden(f"this is for operators, and {g.caller.name} is none")


def _surface() -> Surface:
    path = request.path
    return next((each for each in SURFACES if each.has(path)), VMM)


def _tenant(accounts: Accounts) -> Caller | None:
    view = current_app.view_functions.get(request.endpoint or "")
    # What is no call at all says so to everybody: it is in the documents.
    if request.routing_exception or is_public(view):
        return None
    if is_signable(view) and "X-Agent-Signature" in request.headers:
        return None  # the signature is over the body: its blueprint looks at both
    given = Credentials.of(
        request.headers.get("Authorization", ""), request.headers.get("X-Api-Key", "")
    )
    return accounts.authenticate(given)


def _caller(accounts: Accounts) -> Caller:
    if not accounts.enabled:
        return OPERATOR
    reads = request.method in ("GET", "HEAD")
    if reads and request.blueprint in {*vmm.console.READ_WITH_SESSION, None}:
        signed_in = accounts.caller_of(session.get("caller", ""))
        if signed_in is not None:
            return signed_in
    given = Credentials.of(
        request.headers.get("Authorization", ""),
        request.headers.get("X-Admin-Token", ""),
        request.args.get("token", "") if request.method == "GET" else "",
    )
    return accounts.authenticate(given)


def _sign(response: Response) -> Response:
    response.headers["X-App-Version"] = VERSION
    # What a guest wrote is never taken for a page, whatever it looks like.
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response


def _refuse(error: Exception) -> Response:
    """Any error as the body of the surface that the path belongs to."""
    surface = _surface()
    status, message = _told(error, surface)
    response = surface.refusal(message, status, error)
    if isinstance(error, Unauthenticated):
        response.headers["WWW-Authenticate"] = surface.challenge
    if isinstance(error, RateLimited):
        response.headers["Retry-After"] = str(error.retry_after_s)
    if isinstance(error, MethodNotAllowed):
        response.allow.update(error.valid_methods or ())
    return response


def _told(error: Exception, surface: Surface) -> tuple[int, str]:
    """The status of an error on a surface, and what its caller may know of it."""
    if isinstance(error, CasemateError):
        return surface.statuses.get(type(error), status_of(error)), error.message
    if isinstance(error, HTTPException) and error.code is not None:
        return error.code, f"{request.path}: {error.description or error.name}"
    if isinstance(error, ParseException):
        return 400, "the request body comes in broken chunks"
    if trouble := disk_trouble(error):
        logger.error("the disk %s: %s", trouble, error)
        return 503, f"the disk of this host {trouble}; nothing was changed"
    reference = secrets.token_hex(6)
    logger.error("request failed, reference %s", reference, exc_info=error)
    return 500, f"internal error; the service log has it under {reference}"


def _page(message: str, status: int, _: Exception) -> Response:
    node = current_app.extensions["vms"].config.node_name
    text = render_template(
        "refusal.html", node=node, version=VERSION, message=message, status=status
    )
    return Response(text, status, headers={"Content-Security-Policy": vmm.console.CSP})


# On the VMM a clash of names, ports or states is a bad request (vmm.md section 2).
VMM = Surface(
    ("/prpc", "/guest", "/logs", "/api-docs", "/metrics"), vmm.rpc.refusal, {Conflict: 400}
)
# A browser that is asked for Basic shows a window of its own; the pages have a form.
PAGES = Surface(
    ("/", "/v0", "/v1", "/beta", "/console", "/sign-in", "/static"),
    _page,
    challenge='Bearer realm="casemate"',
)
VERIFIER = Surface(("/verify", "/health"), verify.routes.refusal)
APPS = Surface(apps.surface_routes.PREFIXES, apps.routes.refusal, for_tenants=True)
# All its clients' own mistakes are bad requests; runs/refusals.py has the few that are not.
RUNS = Surface(
    runs.surface_routes.PREFIXES, runs.surface_routes.refusal, challenge="Bearer", for_tenants=True
)
SECRETVM = Surface(
    secretvm.surface_routes.PREFIXES,
    secretvm.surface_routes.refusal,
    challenge="Bearer",
    for_tenants=True,
)
# The first that has the path; the VMM speaks where none has.
SURFACES = (RUNS, APPS, SECRETVM, VMM, VERIFIER, PAGES)
