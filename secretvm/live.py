"""Checks of VMs that are asked right now: does the key of their TLS connection belong to an attested one?

Everything that is read comes over the connection whose certificate is judged.
Source: secretvm.md section 8 (secretvm-cert-check).
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from cryptography import x509

from attest.errors import VerificationError
from attest.quote import TdxQuote
from core.errors import CasemateError, Invalid, Upstream
from core.outbound import Link, Outbound, Target
from secretvm import certificate
from secretvm.builds import Builds, Finding, SevClaim, TdxClaim, padded_text
from secretvm.checks import Checks, json_object, optional, quote_text
from secretvm.quotes import Parsed, Quotes, read_bytes

# Where guests answer: today's port, and that of older ones.
GUEST_PORTS = (29343, 21434)


CHECKS = (
    "tls_cert_fetched",
    "tls_chain_valid",
    "tls_not_expired",
    "tls_hostname_match",
    "cpu_quote_fetched",
    "cpu_quote_parsed",
    "cpu_quote_verified",
    "tls_binding_verified",
    "gpu_quote_fetched",
    "workload_fetched",
    "workload_binding_verified",
)


class Live:
    """Asks hosts in the name of whoever calls, within the limits of `outbound`."""

    def __init__(
        self,
        outbound: Outbound,
        quotes: Quotes,
        builds: Builds,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._outbound = outbound
        self._quotes = quotes
        self._builds = builds
        self._clock = clock

    def check_certificate(self, host: str, port: int | None) -> dict[str, Any]:
        """Whether a VM's TLS key is bound into its quote, and whether it measured the app that it shows.

        Raises Invalid for a host that may not be asked and Upstream when there is no TLS connection.
        """
        targets = [Target.of(host, each) for each in ((port,) if port else GUEST_PORTS)]
        with self._outbound.call() as deadline, self._first(targets, deadline) as link:
            return self._vm(link)

    @contextlib.contextmanager
    def _first(self, targets: list[Target], deadline: float) -> Iterator[Link]:
        with contextlib.ExitStack() as held:
            for target in targets:
                try:
                    link = held.enter_context(self._outbound.connected(target, deadline))
                    break
                except Upstream:
                    if target == targets[-1]:
                        raise
            yield link

    def _vm(self, link: Link) -> dict[str, Any]:
        checks, shown = Checks(CHECKS), certificate.read(link.certificate)
        self._tls(link, shown, checks)
        quote = _text(link, "/cpu", checks, "cpu_quote_fetched")
        parsed = self._quote(quote, checks) if quote else None
        binding = _binding(parsed, shown, link, checks) if parsed else None
        workload = self._workload(link, parsed, checks)
        # Last, since it may be too large, which ends the connection.
        checks.found["gpu_quote_fetched"] = optional(link, "/gpu") is not None
        needed = ("tls_cert_fetched", "cpu_quote_verified", "tls_binding_verified")
        return {
            "ok": all(checks.found[name] for name in needed),
            "host": link.target.host,
            "port": link.target.port,
            "checks": checks.found,
            "certificate": certificate.described(shown),
            "binding": binding,
            "cpu_type": _kind(parsed),
            "quote": quote,
            "workload": workload,
            "errors": checks.errors,
        }

    def _tls(self, link: Link, shown: x509.Certificate, checks: Checks) -> None:
        checks.note("tls_cert_fetched", True)
        checks.found["tls_chain_valid"] = not link.distrust
        checks.found["tls_not_expired"] = certificate.is_current(shown, int(self._clock()))
        checks.found["tls_hostname_match"] = certificate.stands_for(shown, link.target.host)

    def _quote(self, text: str, checks: Checks) -> Parsed | None:
        """A quote or report with its status, noted under cpu_quote_parsed and cpu_quote_verified."""
        try:
            parsed = self._quotes.parse_text(text, int(self._clock()))
        except VerificationError as error:
            checks.note("cpu_quote_parsed", False, error.message)
            return None
        except Invalid:
            checks.note("cpu_quote_parsed", False, "/cpu is neither hex nor base64")
            return None
        checks.note("cpu_quote_parsed", True)
        checks.note("cpu_quote_verified", parsed.is_genuine, parsed.message)
        return parsed

    def _workload(self, link: Link, parsed: Parsed | None, checks: Checks) -> str | None:
        compose = optional(link, "/docker-compose")
        checks.found["workload_fetched"] = compose is not None
        if compose is None:
            return None
        if parsed is not None:
            try:
                found = self._finding(compose, parsed, _info(link))
            except CasemateError as error:
                checks.note("workload_binding_verified", False, error.message)
            else:
                checks.note("workload_binding_verified", not found.code, found.message)
        return compose.decode(errors="replace")

    def _finding(self, compose: bytes, parsed: Parsed, info: Mapping[str, str]) -> Finding:
        evidence = parsed.evidence
        if not isinstance(evidence, TdxQuote):
            family, image = (
                padded_text(each.decode(errors="replace"))
                for each in (evidence.family_id, evidence.image_id)
            )
            return self._builds.check_sev(SevClaim(compose, family, image, evidence.measurement))
        report = evidence.report
        rtmr0, rtmr1, rtmr2, rtmr3 = report.rtmrs
        claim = TdxClaim(
            compose,
            (report.mrtd, rtmr0, rtmr1, rtmr2),
            rtmr3,
            app_id=read_bytes("dstack_app_id", info.get("dstack_app_id", "")),
            event_log=info.get("event_log", ""),
            app_compose=info.get("app_compose", ""),
        )
        return self._builds.check_tdx(claim)


def _text(link: Link, path: str, checks: Checks, name: str) -> str | None:
    """A quote as a page has it: plain text, or `{"quote"}`."""
    try:
        answer = link.get(path)
    except Upstream as error:
        checks.note(name, False, error.message)
        return None
    if not checks.note(name, answer.status == 200, f"{path} was answered with {answer.status}"):
        return None
    return quote_text(answer.body.decode(errors="replace"))


def _binding(parsed: Parsed, shown: x509.Certificate, link: Link, checks: Checks) -> str | None:
    """What the first half of the report data is the hash of: the key, or in older guests the certificate."""
    first = parsed.report_data[:32]
    ways = {"spki": certificate.spki(shown), "certificate": link.certificate}
    found = next((way for way, der in ways.items() if hashlib.sha256(der).digest() == first), None)
    why = "the quote was made for another key than that of this connection"
    checks.note("tls_binding_verified", found is not None, why)
    return found


def _kind(parsed: Parsed | None) -> str | None:
    if parsed is None:
        return None
    return "tdx" if isinstance(parsed.evidence, TdxQuote) else "sev"


def _info(link: Link) -> dict[str, str]:
    """What a guest says of itself beside its quote; texts only."""
    given = json_object(optional(link, "/info") or b"{}")
    return {name: value for name, value in given.items() if isinstance(value, str)}
