"""The WSGI application: database, services, blueprints by URL prefix, and the one error handler."""

from __future__ import annotations

import logging
import secrets
import time
from threading import BoundedSemaphore

from flask import Flask, Response, current_app, request
from werkzeug.exceptions import HTTPException, MethodNotAllowed

import vmm.console
import vmm.guest_routes
import vmm.log_routes
import vmm.routes
import vmm.rpc
from accounts.service import Accounts
from accounts.tokens import session_key
from core.config import Config
from core.errors import CasemateError, Conflict, Unauthenticated, status_of
from models.base import Database, is_disk_full
from vmm.host import Host
from vmm.service import Vms
from vmm.version import VERSION

logger = logging.getLogger(__name__)

# The pages ask for the token themselves.
OPEN = {"console"}
BODY_LIMIT = 10 * 1024**2


def create_app(config: Config, host: Host) -> Flask:
    """The application for one data directory, whose database is migrated already."""
    app = Flask(__name__)
    app.config["MAX_CONTENT_LENGTH"] = BODY_LIMIT
    app.extensions["accounts"] = Accounts.of(config)
    app.extensions["stream_places"] = BoundedSemaphore(max(1, config.server.threads // 2))
    app.extensions["vms"] = Vms(config, Database(config.database), host)

    app.secret_key = session_key(config.data_dir)
    app.config.update(SESSION_COOKIE_HTTPONLY=True, SESSION_COOKIE_SAMESITE="Strict")
    app.add_template_filter(moment)

    app.register_blueprint(vmm.console.blueprint)
    app.register_blueprint(vmm.routes.blueprint)
    app.register_blueprint(vmm.guest_routes.blueprint)
    app.register_blueprint(vmm.log_routes.blueprint)

    app.before_request(_authenticate)
    app.after_request(_sign)
    app.register_error_handler(Exception, _refuse)
    return app


def moment(seconds: float) -> str:
    """A time as people write it, in UTC."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))


def _authenticate() -> None:
    # Runs before any body is read: a stranger's upload is not taken in.
    if request.blueprint in OPEN or request.endpoint == "static":
        return
    if request.blueprint in vmm.console.READ_WITH_SESSION and vmm.console.signed_in():
        return
    accounts: Accounts = current_app.extensions["accounts"]
    accounts.authenticate(
        request.headers.get("Authorization", ""), request.headers.get("X-Admin-Token", "")
    )


def _sign(response: Response) -> Response:
    response.headers["X-App-Version"] = VERSION
    # What a guest wrote is never taken for a page, whatever it looks like.
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response


def _refuse(error: Exception) -> Response:
    """Any error as the body of the surface that the path belongs to."""
    if isinstance(error, CasemateError):
        # On the VMM a clash of names, ports or states is a bad request (vmm.md section 2).
        status = 400 if isinstance(error, Conflict) else status_of(error)
        message = error.message
    elif isinstance(error, HTTPException) and error.code is not None:
        status = error.code
        message = f"{request.path}: {error.description or error.name}"
    elif is_disk_full(error):
        logger.error("the disk is full: %s", error)
        status, message = 503, "the disk of this host is full; nothing was changed"
    else:
        reference = secrets.token_hex(6)
        logger.error("request failed, reference %s", reference, exc_info=error)
        status, message = 500, f"internal error; the service log has it under {reference}"
    response = vmm.rpc.refusal(message, status)
    if isinstance(error, Unauthenticated):
        response.headers["WWW-Authenticate"] = 'Basic realm="casemate"'
    if isinstance(error, MethodNotAllowed):
        response.allow.update(error.valid_methods or ())
    return response
