"""tappd.sock: the API of dstack before 0.5, for apps that were not changed since.

Source: guest-agent.md sections 1 and 4 (legacy service).
"""

from __future__ import annotations

from flask import Flask

from core.prpc import Empty, Service
from guest import routes, schemas
from guest.routes import verb
from guest.service import Agent


def create_app(agent: Agent) -> Flask:
    """The application of the legacy API: `/prpc/<Method>`, and `/Info` for the JavaScript client."""
    service = Service("Tappd")
    verb(
        service, "DeriveKey", schemas.DeriveKeyRequest, schemas.GetTlsKeyResponse, agent.derive_key
    )
    verb(
        service,
        "DeriveK256Key",
        schemas.DeriveK256KeyRequest,
        schemas.DeriveK256KeyResponse,
        agent.derive_k256_key,
    )
    verb(service, "TdxQuote", schemas.TdxQuoteRequest, schemas.TdxQuoteResponse, agent.tdx_quote)
    verb(service, "RawQuote", schemas.ReportDataRequest, schemas.TdxQuoteResponse, agent.raw_quote)
    verb(service, "Info", Empty, schemas.InfoResponse, agent.info)
    verb(service, "Version", Empty, schemas.VersionResponse, agent.version)
    info = Service()
    info.methods["Info"] = service.methods["Info"]
    app = routes.new_app("tappd")
    routes.add_service(app, service, "/prpc/<method>")
    routes.add_service(app, info, "/<method>")
    return app
