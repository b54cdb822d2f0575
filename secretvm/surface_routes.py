"""The SecretVM interface as one surface: its blueprints, their document, and what they stand on."""

from __future__ import annotations

import functools

from flask import Flask

from rest import documents
from secretvm import (
    cluster_routes,
    routes,
    verify_routes,
    vm_routes,  # noqa: F401 (its views join the blueprint of routes)
)
from secretvm.service import SecretVms
from secretvm.verification import Verification
from vmm import simulation
from vmm.openapi_routes import Document

PREFIXES = (
    "/api/vm", "/api/cluster", "/api/background-job", "/api/templates", "/api/public", "/api/keys",
    "/api/auth/session", "/api/agent", "/api/balance", "/api/pricing", "/api/coin-price",
    "/api/verify-docker", "/api/verify-docker-sev", "/api/resolve-attestation", "/api/quote-parse",
    "/api/quote-parse-sev", "/api/gateway-attestation", "/api/secretvm-cert-check",
)  # fmt: skip
ABOUT = (
    "VMs made from docker-compose files. Send a key as `Authorization: Bearer` or `x-api-key`; an agent signs "
    "its requests instead."
)
BLUEPRINTS = [routes.blueprint, cluster_routes.blueprint, verify_routes.blueprint]


def register(app: Flask, version: str) -> None:
    """Adds the interface to the application, whose services are there already."""
    app.extensions["secret_vms"] = SecretVms(app.extensions["vms"], app.extensions["accounts"])
    config = app.extensions["vms"].config
    acpi = simulation.acpi_digests() if config.cvm.simulate else ()
    app.extensions["verification"] = Verification.of(config, app.extensions["verifier"], acpi)
    api = documents.register(app, "secretvm", "Casemate: SecretVM", version, ABOUT, BLUEPRINTS)
    made = functools.cache(lambda: documents.document(api))
    app.extensions["documents"]["secretvm"] = Document("SecretVM", made)


refusal = routes.refusal
