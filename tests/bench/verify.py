"""P9: verifying evidence, beside dcap-qvl called directly with the same root and collateral prepared for it.

On one core, without HTTP: what quote-parse and verify-docker do, and verifying a lone quote; over HTTP those calls
and `POST /verify` as figures without a promise.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping

import dcap_qvl

from attest import artifacts, collateral
from attest.artifacts import Registry, TdxBuild
from attest.evidence import Attestation, TdxEvidence
from attest.verified import Trust, verify_evidence
from attest.verify import verify_tdx
from secretvm import verify_answers
from secretvm.builds import Builds, TdxClaim
from secretvm.quotes import Quotes
from tests.bench.context import Bench, per_second
from tests.bench.http import LOTS, ROUND_S, Load
from tests.bench.report import Line, Promise
from tests.common import evidence
from tests.common.evidence import TdxVm
from tests.common.service import RunningService
from verify.service import Verifier

DIRECT, QUOTE, EVIDENCE, HTTP = "dcap_qvl directly", "a quote", "whole evidence", "POST /verify"
PARSE, DOCKER, HTTP_PARSE = "quote-parse", "verify-docker", "POST /api/quote-parse"


def measure(bench: Bench) -> Iterator[Line]:
    """Evidence of one simulated VM, again and again: each way in turn, `rounds` times, after one to warm up."""
    now = int(time.time())
    attestation = TdxVm().attestation()
    service = _service(bench, now)
    try:
        service.start()
        loads = {
            HTTP: _load(bench, service, attestation),
            HTTP_PARSE: _parse_load(bench, service, attestation),
        }
        works = {**_works(attestation, now), **_calls(bench, attestation, now)}
        rates: dict[str, list[float]] = {name: [] for name in (*works, *loads)}
        for number in range(bench.rounds + 1):
            sample = {name: per_second(work) for name, work in works.items()}
            for name, load in loads.items():
                sample[name] = statistics.mean(load.run(ROUND_S) for _ in range(LOTS))
            if number:
                for name, rate in sample.items():
                    rates[name].append(rate)
                told = ", ".join(f"{name} {rate:,.0f}" for name, rate in sample.items())
                bench.say(f"round {number}: {told} per s")
    finally:
        service.end()
    kept = Promise(factor=0.8, at_least=True)
    promises = {PARSE: kept, DOCKER: kept, QUOTE: kept, EVIDENCE: None}
    for name, promise in promises.items():
        yield Line("P9", name, "per s", rates[name], promise, DIRECT, rates[DIRECT])
    yield Line("P9", f"{HTTP} of whole evidence, two workers", "req/s", rates[HTTP])
    yield Line("P9", f"{HTTP_PARSE}, two workers", "req/s", rates[HTTP_PARSE])


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


def _calls(bench: Bench, attestation: Attestation, now: int) -> Mapping[str, Callable[[], object]]:
    """What the two calls do between their request and their answer, for a published build's VM."""
    assert isinstance(attestation.platform, TdxEvidence)
    raw, compose, rootfs = attestation.platform.quote, b"services: {}\n" * 50, bytes(32)
    root = bench.scratch / "verify-root.pem"
    quotes = Quotes(Verifier(root, collateral.given(evidence.collateral(now))))
    registers = (bytes(48), bytes(48), bytes(48), bytes(48))
    known = tuple(
        TdxBuild("small", "prod", f"v0.0.{n}", registers, bytes([n]) * 32) for n in range(5)
    )
    builds = Builds(lambda: Registry(known), bench.scratch / "no-images", {})
    claim = TdxClaim(compose, registers, artifacts.rtmr3(compose, rootfs))
    assert quotes.parse(raw, now).result == "0"
    assert not builds.check_tdx(claim).code
    return {
        PARSE: lambda: verify_answers.parsed_answer(quotes.parse(raw, now)),
        DOCKER: lambda: verify_answers.tdx_answer(claim, builds.check_tdx(claim)),
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


def _parse_load(bench: Bench, service: RunningService, attestation: Attestation) -> Load:
    assert isinstance(attestation.platform, TdxEvidence)
    body, path = {"quote": attestation.platform.quote.hex()}, "/api/quote-parse"
    answer = service.request("POST", path, json=body)
    assert answer.json()["status"]["result"] == "0", answer.text
    headers = {"Content-Type": "application/json"}
    return Load(bench.scratch, service.port, path, "POST", headers, json.dumps(body))
