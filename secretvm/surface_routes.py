"""The SecretVM interface as one surface: its blueprints, their document, and what they stand on."""

from __future__ import annotations

from flask import Flask

from rest import documents
from secretvm import (
    cluster_routes,
    routes,
    schemas,
    verify_routes,
    vm_routes,  # noqa: F401 (its views join the blueprint of routes)
)
from secretvm.service import SecretVms
from secretvm.verification import Verification
from vmm import simulation

# All of it that is no other surface's: those have their longer prefixes before this one.
PREFIXES = ("/api",)
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
    documents.register(
        app,
        "secretvm",
        "/api/openapi.json",
        "SecretVM",
        version,
        ABOUT,
        BLUEPRINTS,
        schemas.Refusal,
    )


refusal = routes.refusal
