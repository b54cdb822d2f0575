"""The page and the calls by which an operator gives a new KMS its keys; served only while it has none.

Source: kms.md section 3 ("Onboarding service").
"""

from __future__ import annotations

from flask import Flask, Response, render_template

from core.prpc import Service
from kms import schemas
from kms.onboard import Onboarding
from kms.routes import add_service, new_app


def create_app(onboarding: Onboarding, version: str) -> Flask:
    """`/`, `/finish` and `/prpc/<Method>`."""
    app = new_app("kms", version)
    add_service(app, rpc_service(onboarding))
    app.add_url_rule("/", "page", lambda: render_template("onboard.html"))
    app.add_url_rule("/finish", "finish", lambda: _finish(onboarding))
    app.add_url_rule("/health", "health", lambda: Response("OK", mimetype="text/plain"))
    return app


def rpc_service(onboarding: Onboarding) -> Service:
    """Bootstrap, Onboard, GetAttestationInfo and Finish."""
    service = Service("Onboard")
    service.method("Bootstrap", schemas.BootstrapRequest, schemas.BootstrapResponse)(
        lambda asked: onboarding.bootstrap(**asked)
    )
    service.method("Onboard", schemas.OnboardRequest, schemas.OnboardResponse)(
        lambda asked: onboarding.onboard(**asked)
    )
    service.method("GetAttestationInfo", response=schemas.AttestationInfoResponse)(
        lambda _: onboarding.attestation_info()
    )
    service.method("Finish")(lambda _: onboarding.finish())
    return service


def _finish(onboarding: Onboarding) -> Response:
    onboarding.finish()
    return Response("OK", mimetype="text/plain")
