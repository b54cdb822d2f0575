"""Whether the key that ends a domain's TLS was made inside of an attested gateway.

Everything that is read comes over the connection whose certificate is judged.
Source: secretvm.md section 8 (gateway-attestation); public dstack, gateway's acme-info and dstack-ingress' evidences.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from typing import Any

from cryptography import x509

from core.errors import CasemateError
from core.outbound import Link, Outbound, Target
from secretvm import certificate
from secretvm.checks import Checks, json_object, optional, quote_text
from secretvm.quotes import Parsed, Quotes
from secretvm.transparency import CRT_SH, Transparency

GATEWAY_PORT = 443
ACME_INFO = "/.dstack/acme-info"
EVIDENCES = "/evidences"
# A history of keys grows for ever; verifying one takes a millisecond.
KEYS_MOST = 200

CHECKS = (
    "tls_cert_fetched",
    "evidence_fetched",
    "quote_parsed",
    "quote_verified",
    "account_bound",
    "key_bound",
    "caa_matches",
    "ct_keys_known",
)


class Gateways:
    """Asks hosts in the name of whoever calls, within the limits of `outbound`."""

    def __init__(
        self,
        outbound: Outbound,
        quotes: Quotes,
        clock: Callable[[], float] = time.time,
        crt_sh: str = CRT_SH,
    ) -> None:
        self._outbound = outbound
        self._quotes = quotes
        self._clock = clock
        self._transparency = Transparency(clock, crt_sh)

    def check(self, host: str, port: int, include_crt_sh: bool) -> dict[str, Any]:
        """Whether the key that terminates a domain's TLS was made inside of an attested gateway.

        Raises Invalid for a host that may not be asked and Upstream when there is no TLS connection.
        """
        target = Target.of(host, port)
        with self._outbound.call() as deadline:
            with self._outbound.connected(target, deadline) as link:
                answer, quoted = self._gateway(link)
            if include_crt_sh:
                answer["crtSh"] = self._made(target.host, quoted, deadline, answer["checks"])
        return answer

    def _gateway(self, link: Link) -> tuple[dict[str, Any], set[bytes]]:
        checks, shown = Checks(CHECKS), certificate.read(link.certificate)
        checks.note("tls_cert_fetched", True)
        quoted: set[bytes] = set()
        kind = None
        if (acme := optional(link, ACME_INFO)) is not None:
            kind, quoted = "dstack-gateway", self._acme(acme, shown, checks)
        elif (raw := optional(link, f"{EVIDENCES}/quote.json")) is not None:
            kind, quoted = "dstack-ingress", self._ingress(link, raw, shown, checks)
        evidence = f"neither {ACME_INFO} nor {EVIDENCES}/quote.json is there"
        checks.note("evidence_fetched", kind is not None, evidence)
        return {
            "domain": link.target.host,
            "port": link.target.port,
            "checks": checks.found,
            "evidence_type": kind,
            "certificate": certificate.described(shown),
            "errors": checks.errors,
        }, quoted

    def _acme(self, raw: bytes, shown: x509.Certificate, checks: Checks) -> set[bytes]:
        """The public keys (DER) that a gateway's quotes vouch for."""
        given = json_object(raw)
        uri, entries = str(given.get("account_uri") or ""), given.get("quoted_hist_keys")
        account = self._bound(given.get("account_quote"), "acme-account", uri.encode(), checks)
        checks.note("account_bound", account, "no genuine quote vouches for the ACME account")
        keys = [each for each in _list(entries)[-KEYS_MOST:] if isinstance(each, dict)]
        quoted = set()
        for each in keys:
            key = _hex(each.get("public_key"))
            if key and self._bound(each.get("quote"), "zt-cert", key, checks):
                quoted.add(key)
        why = "no genuine quote vouches for the key of this connection"
        checks.note("key_bound", certificate.spki(shown) in quoted, why)
        return quoted

    def _bound(self, given: object, tag: str, content: bytes, checks: Checks) -> bool:
        """Whether a quote (hex, or GetQuote's answer) is genuine and made for this content."""
        parsed = self._noted(quote_text(given), checks)
        expected = hashlib.sha512(tag.encode() + b":" + content).digest()
        return parsed is not None and parsed.is_genuine and parsed.report_data == expected

    def _noted(self, text: str, checks: Checks) -> Parsed | None:
        """A quote, noted under quote_parsed and quote_verified, which hold when they do for all quotes."""
        try:
            parsed = self._quotes.parse_text(text, int(self._clock()))
        except CasemateError as error:
            checks.note("quote_parsed", False, error.message)
            return None
        checks.found["quote_parsed"] = checks.found["quote_parsed"] is not False
        if not parsed.is_genuine:
            checks.note("quote_verified", False, parsed.message)
        elif checks.found["quote_verified"] is None:
            checks.note("quote_verified", True)
        return parsed

    def _ingress(
        self, link: Link, raw: bytes, shown: x509.Certificate, checks: Checks
    ) -> set[bytes]:
        """The public key that the listed certificate has, if a genuine quote vouches for the list."""
        sums = optional(link, f"{EVIDENCES}/sha256sum.txt") or b""
        parsed = self._noted(quote_text(raw.decode(errors="replace")), checks)
        listed = _listed(sums)
        is_bound = (
            parsed is not None
            and parsed.is_genuine
            and parsed.report_data[:32] == hashlib.sha256(sums).digest()
        )
        account = optional(link, f"{EVIDENCES}/acme-account.json")
        has_account = account is not None and _is_listed(listed, "acme-account.json", account)
        checks.note(
            "account_bound", is_bound and has_account, "the quote does not vouch for the account"
        )
        name = f"cert-{link.target.host}.pem"
        pem = optional(link, f"{EVIDENCES}/{name}")
        key = certificate.key_of(pem) if pem is not None and _is_listed(listed, name, pem) else None
        quoted = {key} if key and is_bound else set()
        why = "the quote does not vouch for the key of this connection"
        checks.note("key_bound", certificate.spki(shown) in quoted, why)
        return quoted

    def _made(
        self, domain: str, quoted: set[bytes], deadline: float, checks: dict[str, bool | None]
    ) -> dict[str, Any]:
        """What certificate transparency knows of a domain; sets the check ct_keys_known."""
        try:
            made = self._transparency.made(domain, deadline)
        except (CasemateError, TimeoutError) as error:
            return {"error": str(error) or "crt.sh did not answer in time"}
        unknown = [number for number, key in made.keys.items() if key not in quoted]
        checks["ct_keys_known"] = not unknown
        return {"certificates": len(made.keys), "unknown": unknown, "complete": made.is_complete}


def _list(given: object) -> list[Any]:
    return given if isinstance(given, list) else []


def _hex(given: object) -> bytes:
    try:
        return bytes.fromhex(given) if isinstance(given, str) else b""
    except ValueError:
        return b""


def _listed(sums: bytes) -> dict[str, str]:
    """The digests of a sha256sum.txt by the last part of the file's name."""
    lines = (line.split(None, 1) for line in sums.decode(errors="replace").splitlines())
    return {parts[1].lstrip("*").rpartition("/")[2]: parts[0] for parts in lines if len(parts) == 2}


def _is_listed(listed: Mapping[str, str], name: str, content: bytes) -> bool:
    return listed.get(name) == hashlib.sha256(content).hexdigest()
