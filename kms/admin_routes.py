"""The operator's own listener: the image cache, behind a credential.

Source: kms.md section 3 ("Admin").
"""

from __future__ import annotations

import base64
import binascii
import hmac

import bcrypt
from flask import Flask, request

from core.errors import Unauthenticated
from core.prpc import Service
from kms import images, schemas
from kms.routes import add_service, new_app
from kms.settings import NONE, AdminSettings, Settings

# bcrypt looks at no more; a longer password is refused rather than cut.
MAX_PASSWORD = 72


def create_app(settings: Settings, version: str) -> Flask:
    """`/prpc/Admin.<Method>` for whoever shows the credential."""
    app = new_app("kms admin", version)
    service = Service("Admin")
    service.method("ClearImageCache", schemas.ClearImageCacheRequest)(
        lambda asked: images.clear(
            settings.core.image.cache_dir, asked.image_hash, asked.config_hash
        )
    )
    add_service(app, service)
    app.before_request(lambda: check(settings.core.admin))
    return app


def check(admin: AdminSettings) -> None:
    """Raises Unauthenticated unless the current request shows the token or a user's password."""
    if admin.token and any(hmac.compare_digest(admin.token.encode(), each) for each in _tokens()):
        return
    if admin.htpasswd_file != NONE and _has_password(admin.htpasswd_file.read_text()):
        return
    raise Unauthenticated("the admin token is missing or wrong")


def _tokens() -> list[bytes]:
    authorization = request.headers.get("Authorization", "")
    given = [request.headers.get("X-Admin-Token", ""), _basic()[1]]
    if authorization.lower().startswith("bearer "):
        given.append(authorization[7:].strip())
    return [token.encode() for token in given if token]


def _basic() -> tuple[str, str]:
    kind, _, rest = request.headers.get("Authorization", "").partition(" ")
    if kind.lower() != "basic":
        return "", ""
    try:
        name, _, password = base64.b64decode(rest, validate=True).decode().partition(":")
    except (binascii.Error, ValueError):
        return "", ""
    return name, password


def _has_password(htpasswd: str) -> bool:
    name, password = _basic()
    if not name or not 0 < len(password.encode()) <= MAX_PASSWORD:
        return False
    users = dict(line.strip().split(":", 1) for line in htpasswd.splitlines() if ":" in line)
    try:
        return bcrypt.checkpw(password.encode(), users.get(name, "").encode())
    except ValueError:  # no such user, or a hash that is not bcrypt's
        return False
