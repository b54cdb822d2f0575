"""What of a run's spec is secret, and how it stands in the database: each such value as one encrypted text.

Only answers and the order of a job open it.  Everything else, names of runs and commands among it, is in the clear.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

from accounts.keypairs import Safe

Spec = dict[str, Any]

# Probes have headers and bodies, which may hold a token.
SECRET = ("env", "registry_auth", "probes")


def seal(spec: Spec, safe: Safe, run_id: str) -> Spec:
    """A spec of a run or of its job, as it may be stored."""

    def sealed(name: str, value: Any) -> str:
        return base64.b64encode(safe.seal(f"{run_id} {name}", json.dumps(value).encode())).decode()

    return _changed(spec, sealed)


def unseal(spec: Spec, safe: Safe, run_id: str) -> Spec:
    """The spec that was sealed."""

    def opened(name: str, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        return json.loads(safe.open(f"{run_id} {name}", base64.b64decode(value)))

    return _changed(spec, opened)


def _changed(spec: Spec, change: Callable[[str, Any], Any]) -> Spec:
    if "configuration" in spec:
        return {**spec, "configuration": _changed(spec["configuration"], change)}
    return spec | {name: change(name, spec[name]) for name in SECRET if spec.get(name)}
