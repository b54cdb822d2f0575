"""The app-compose documents of VMs: made from what a client asks for, changed, checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from apps.cvms import Cvm
from apps.refusals import COMPOSE_INVALID, INVALID_REQUEST, coded
from apps.schemas import Deployment
from attest import compose
from core.errors import Invalid
from rest import docker_compose
from rest.docker_compose import PORTS_MOST
from vmm.service import Vms

COMPOSE_LIMIT = 200 * 1024
# What of a document may change.
_CHANGING = (
    "docker_compose_file",
    "pre_launch_script",
    "allowed_envs",
    "public_logs",
    "public_sysinfo",
    "public_tcbinfo",
)


def of_deployment(wanted: Deployment) -> dict[str, Any]:
    """The app-compose document of a deployment: what was asked for, and nothing else."""
    app = wanted.compose_file
    given = {name: value for name, value in asdict(app).items() if value is not None}
    gateway = given.pop("tproxy_enabled", None)
    if gateway is not None:
        given.setdefault("gateway_enabled", gateway)
    if not given.get("pre_launch_script"):
        given.pop("pre_launch_script", None)
    # A deployment that names a KMS, or has variables to unseal, wants keys of it.
    if wanted.kms or wanted.kms_id or wanted.kms_contract or wanted.env_keys or app.allowed_envs:
        given.setdefault("kms_enabled", True)
    if wanted.env_keys is not None:
        given.setdefault("allowed_envs", wanted.env_keys)
    named = {"name": app.name or wanted.name}
    return {"manifest_version": 2, "runner": "docker-compose", **given, **named}


def changed(cvm: Cvm, given: Mapping[str, Any]) -> str:
    """The VM's app-compose text with these fields; "" when it would be the same document."""
    wanted = {name: given[name] for name in _CHANGING if name in given}
    document = {**cvm.compose, **wanted}
    if not document.get("pre_launch_script"):
        document.pop("pre_launch_script", None)
    if document == cvm.compose:
        return ""
    if not cvm.compose:
        raise coded(
            Invalid("this CVM has no app-compose document that could be changed"), INVALID_REQUEST
        )
    return compose.canonical(document)


def check_compose(text: str | None, script: str | None) -> None:
    """Refuses a docker-compose text that is no YAML mapping with services, or too large with its script."""
    size = len((text or "").encode()) + len((script or "").encode())
    if size > COMPOSE_LIMIT:
        raise coded(
            Invalid(
                f"docker_compose_file and pre_launch_script: must have at most {COMPOSE_LIMIT} "
                f"bytes together, these have {size}"
            ),
            COMPOSE_INVALID,
        )
    if text is None:
        return
    try:
        docker_compose.check(text)
    except Invalid as error:
        reason = Invalid(f"docker_compose_file: {error.message}")
        raise coded(reason, COMPOSE_INVALID) from None


def check(vms: Vms, name: str, text: str) -> None:
    """Refuses a text that the VM manager would not take for a VM of that name."""
    try:
        vms.compose_hash(name, text)
    except Invalid as error:
        raise coded(error, COMPOSE_INVALID) from None


def published(app_compose: str) -> tuple[int, ...]:
    """The guest's TCP ports that get a host port: those that its docker-compose text publishes."""
    text = compose.document_of(app_compose).get("docker_compose_file")
    return docker_compose.published(text)[:PORTS_MOST] if isinstance(text, str) else ()
