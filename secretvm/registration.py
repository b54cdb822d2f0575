"""EIP-8004 registrations: the metadata that a VM's maker gives, completed with where its evidence is (pure).

Source: secretvm.md section 3.  No chain is touched.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from core.errors import CasemateError, Invalid
from core.prpc import read_json
from secretvm.document import GUEST_PORT

LIMIT = 64 * 1024
DEPTH_MOST = 16
NOT_ON_CHAIN = (
    "on-chain registration is not configured here: agentUri is what a registry would hold"
)
_PAGES = {"teequote": "cpu", "workload": "docker-compose"}


def read(text: str) -> dict[str, Any]:
    """The object of a JSON text; Invalid without a name."""
    try:
        given = read_json(text.encode()) if len(text) <= LIMIT else None
    except CasemateError:
        given = None
    if not isinstance(given, dict) or _is_deep(given):
        raise Invalid.field(
            "eip8004_registration", f"must be a JSON object of at most {LIMIT} bytes"
        )
    if not isinstance(given.get("name"), str) or not given["name"].strip():
        raise Invalid.field("eip8004_registration", "must have a name")
    services = given.get("services", [])
    if not isinstance(services, list) or not all(isinstance(each, dict) for each in services):
        raise Invalid.field("eip8004_registration", "services must be a list of objects")
    return given


def completed(given: Mapping[str, Any], domain: str) -> dict[str, Any]:
    """The metadata with the VM's domain in it and the two services of its evidence."""
    told: dict[str, Any] = json.loads(json.dumps(given).replace("$DOMAIN_NAME", domain))
    services = list(told.get("services", []))
    named = {each.get("name") for each in services}
    for name, page in _PAGES.items():
        if name not in named:
            services.append({"name": name, "endpoint": f"https://{domain}:{GUEST_PORT}/{page}"})
    return {**told, "services": services}


def _is_deep(value: object) -> bool:
    level = [value]
    for _ in range(DEPTH_MOST):
        level = [
            inner
            for each in level
            if isinstance(each, (dict, list))
            for inner in (each.values() if isinstance(each, dict) else each)
        ]
    return bool(level)
