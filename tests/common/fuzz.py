"""Makes the requests that schemathesis thinks of, out of an OpenAPI document of the application."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Collection, Mapping

import schemathesis
from flask import Flask
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import response_schema_conformance

# These say that something outside is missing: the guest, QEMU, the KMS, the balancer.
MISSING = frozenset({502, 503, 504})


def meet_no_fault(
    app: Flask,
    document: str,
    mode: GenerationMode,
    *,
    headers: Mapping[str, str],
    meant: Collection[int] = MISSING,
    examples: int = 8,
    is_described: bool = False,
) -> Counter[str]:
    """Fails at an answer from 500 on that is not `meant`; how often each path of the document was called.

    With `is_described` each answer must also have the form that the document gives it.
    """
    checks = [not_a_server_error, *([response_schema_conformance] if is_described else [])]
    tried: Counter[str] = Counter()

    def meets_no_fault(case: schemathesis.Case) -> None:
        tried[case.path] += 1
        answer = case.call(headers=dict(headers))
        if answer.status_code not in meant:
            case.validate_response(answer, checks=checks)

    some = settings(
        max_examples=examples,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        database=None,
        derandomize=True,
    )
    for found in schemathesis.openapi.from_wsgi(document, app).get_all_operations():
        # A call without arguments cannot be made wrongly.
        with contextlib.suppress(Unsatisfiable):
            some(given(found.ok().as_strategy(generation_mode=mode))(meets_no_fault))()
    return tried
