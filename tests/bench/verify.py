"""P9: verifying evidence, beside dcap-qvl called directly with the same root and collateral prepared for it.

The calls that the promise names, quote-parse and verify-docker, come with the SecretVM surface.  Until then this
measures, on one core, the functions that they are to call, and `POST /verify` as a figure without a promise.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping

import dcap_qvl

from attest.evidence import Attestation, TdxEvidence
from attest.verified import Trust, verify_evidence
from attest.verify import verify_tdx
from tests.bench.context import Bench, per_second
from tests.bench.http import LOTS, ROUND_S, Load
from tests.bench.report import Line, Promise
from tests.common import evidence
from tests.common.evidence import TdxVm
from tests.common.service import RunningService

DIRECT, QUOTE, EVIDENCE, HTTP = "dcap_qvl directly", "a quote", "whole evidence", "POST /verify"


def measure(bench: Bench) -> Iterator[Line]:
    """Evidence of one simulated VM, again and again: each way in turn, `rounds` times, after one to warm up."""
    now = int(time.time())
    attestation = TdxVm().attestation()
    service = _service(bench, now)
    try:
        service.start()
        load = _load(bench, service, attestation)
        works = _works(attestation, now)
        rates: dict[str, list[float]] = {name: [] for name in (*works, HTTP)}
        for number in range(bench.rounds + 1):
            sample = {name: per_second(work) for name, work in works.items()}
            sample[HTTP] = statistics.mean(load.run(ROUND_S) for _ in range(LOTS))
            if number:
                for name, rate in sample.items():
                    rates[name].append(rate)
                told = ", ".join(f"{name} {rate:,.0f}" for name, rate in sample.items())
                bench.say(f"round {number}: {told} per s")
    finally:
        service.end()
    promises = {QUOTE: Promise(factor=0.8, at_least=True), EVIDENCE: None}
    for name, promise in promises.items():
        yield Line("P9", name, "per s", rates[name], promise, DIRECT, rates[DIRECT])
    yield Line("P9", f"{HTTP} of whole evidence, two workers", "req/s", rates[HTTP])


def _works(attestation: Attestation, now: int) -> Mapping[str, Callable[[], object]]:
    """The ways to verify in this process; all have accepted the evidence once."""
    assert isinstance(attestation.platform, TdxEvidence)
    quote = attestation.platform.quote
    root, text = evidence.platform().root_ca_der, evidence.collateral(now)
    prepared = dcap_qvl.QuoteCollateralV3.from_json(text)
    trust = Trust(now, lambda asked: text, root)
    found = verify_evidence(attestation, trust)
    assert found.is_valid, found.reason
    return {
        DIRECT: lambda: dcap_qvl.verify_with_root_ca(quote, prepared, root, now),
        QUOTE: lambda: verify_tdx(quote, text, now, root),
        EVIDENCE: lambda: verify_evidence(attestation, trust),
    }


def _service(bench: Bench, now: int) -> RunningService:
    """A service that trusts the simulated platform, by files."""
    images, _ = bench.idle_image
    root, collateral = bench.scratch / "verify-root.pem", bench.scratch / "verify-collateral.json"
    root.write_text(evidence.platform().root_ca_pem)
    collateral.write_text(evidence.collateral(now))
    trusted = f'[attestation]\nroot_ca = "{root}"\ncollateral = "{collateral}"\n'
    return RunningService(bench.scratch / "verify", images, extra=trusted)


def _load(bench: Bench, service: RunningService, attestation: Attestation) -> Load:
    body = evidence.request(attestation)
    answer = service.request("POST", "/verify", json=body)
    assert answer.json()["is_valid"], answer.text
    headers = {"Content-Type": "application/json"}
    return Load(bench.scratch, service.port, "/verify", "POST", headers, json.dumps(body))
