"""Checks of hosts that are asked right now: does the key of their TLS connection belong to an attested VM?

Everything that is read comes over the connection whose certificate is judged.
Source: secretvm.md section 8 (secretvm-cert-check, gateway-attestation); public dstack, gateway's acme-info and
dstack-ingress' evidences.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from cryptography import x509

from attest import snp
from attest.errors import VerificationError
from attest.quote import TdxQuote
from core.errors import CasemateError, Invalid, Upstream
from core.http import Peer, left
from core.outbound import Link, Outbound, Target
from secretvm import certificate
from secretvm.builds import Builds, Finding, SevClaim, TdxClaim, padded_text
from secretvm.quotes import Parsed, Quotes, read_bytes

# Where guests answer: today's port, and that of older ones.
GUEST_PORTS = (29343, 21434)
GATEWAY_PORT = 443
ACME_INFO = "/.dstack/acme-info"
EVIDENCES = "/evidences"
CRT_SH = "https://crt.sh/"
# Of a domain's unexpired certificates, the newest so many are looked at.
CRT_SH_MOST = 20
# A history of keys grows for ever; verifying one takes a millisecond.
KEYS_MOST = 200


@dataclass
class Checks:
    """The outcome of one check after the other; None where it could not be made."""

    names: tuple[str, ...]
    errors: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.found: dict[str, bool | None] = dict.fromkeys(self.names)

    def note(self, name: str, holds: bool, why: str = "") -> bool:
        """Keeps an outcome, and why it is bad."""
        self.found[name] = holds
        if not holds and why:
            self.errors.append(why)
        return holds


CERT_CHECKS = (
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
GATEWAY_CHECKS = (
    "tls_cert_fetched",
    "evidence_fetched",
    "quote_parsed",
    "quote_verified",
    "account_bound",
    "key_bound",
    "caa_matches",
    "ct_keys_known",
)


class Live:
    """Asks hosts in the name of whoever calls, within the limits of `outbound`."""

    def __init__(
        self,
        outbound: Outbound,
        quotes: Quotes,
        builds: Builds,
        clock: Callable[[], float] = time.time,
        crt_sh: str = CRT_SH,
    ) -> None:
        self._outbound = outbound
        self._quotes = quotes
        self._builds = builds
        self._clock = clock
        self._crt_sh = crt_sh

    # secretvm-cert-check

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
        checks, shown = Checks(CERT_CHECKS), certificate.read(link.certificate)
        self._tls(link, shown, checks)
        quote = _text(link, "/cpu", checks, "cpu_quote_fetched")
        parsed = self._quote(quote, checks) if quote else None
        binding = _binding(parsed, shown, link, checks) if parsed else None
        workload = self._workload(link, parsed, checks)
        # Last, since it may be too large, which ends the connection.
        checks.found["gpu_quote_fetched"] = _optional(link, "/gpu") is not None
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
        if "tls_chain_valid" in checks.names:
            checks.found["tls_chain_valid"] = not link.distrust
            checks.found["tls_not_expired"] = certificate.is_current(shown, int(self._clock()))
            checks.found["tls_hostname_match"] = certificate.stands_for(shown, link.target.host)

    def _quote(self, text: str, checks: Checks) -> Parsed | None:
        """A quote or report with its status, noted under cpu_quote_parsed and cpu_quote_verified."""
        try:
            parsed = self._parsed(text)
        except VerificationError as error:
            checks.note("cpu_quote_parsed", False, error.message)
            return None
        except Invalid:
            checks.note("cpu_quote_parsed", False, "/cpu is neither hex nor base64")
            return None
        checks.note("cpu_quote_parsed", True)
        checks.note("cpu_quote_verified", parsed.is_genuine, parsed.message)
        return parsed

    def _parsed(self, text: str) -> Parsed:
        raw, now = read_bytes("quote", text), int(self._clock())
        is_report = len(raw) == snp.SIZE
        return self._quotes.parse_sev(raw, now) if is_report else self._quotes.parse(raw, now)

    def _workload(self, link: Link, parsed: Parsed | None, checks: Checks) -> str | None:
        compose = _optional(link, "/docker-compose")
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

    # gateway-attestation

    def check_gateway(self, host: str, port: int, include_crt_sh: bool) -> dict[str, Any]:
        """Whether the key that terminates a domain's TLS was made inside of an attested gateway.

        Raises as check_certificate.
        """
        target = Target.of(host, port)
        with self._outbound.call() as deadline:
            with self._outbound.connected(target, deadline) as link:
                answer, quoted = self._gateway(link)
            if include_crt_sh:
                answer["crtSh"] = self._certificates_made(target.host, quoted, deadline, answer)
        return answer

    def _gateway(self, link: Link) -> tuple[dict[str, Any], set[bytes]]:
        checks, shown = Checks(GATEWAY_CHECKS), certificate.read(link.certificate)
        self._tls(link, shown, checks)
        quoted: set[bytes] = set()
        kind = None
        if (acme := _optional(link, ACME_INFO)) is not None:
            kind, quoted = "dstack-gateway", self._acme(acme, shown, checks)
        elif (raw := _optional(link, f"{EVIDENCES}/quote.json")) is not None:
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
        given = _object(raw)
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
        parsed = self._noted(_quote_text(given), checks)
        expected = hashlib.sha512(tag.encode() + b":" + content).digest()
        return parsed is not None and parsed.is_genuine and parsed.report_data == expected

    def _noted(self, text: str, checks: Checks) -> Parsed | None:
        """A quote, noted under quote_parsed and quote_verified, which hold when they do for all quotes."""
        try:
            parsed = self._parsed(text)
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
        sums = _optional(link, f"{EVIDENCES}/sha256sum.txt") or b""
        parsed = self._noted(_quote_text(raw.decode(errors="replace")), checks)
        listed = _listed(sums)
        is_bound = (
            parsed is not None
            and parsed.is_genuine
            and parsed.report_data[:32] == hashlib.sha256(sums).digest()
        )
        account = _optional(link, f"{EVIDENCES}/acme-account.json")
        has_account = account is not None and _is_listed(listed, "acme-account.json", account)
        checks.note(
            "account_bound", is_bound and has_account, "the quote does not vouch for the account"
        )
        name = f"cert-{link.target.host}.pem"
        pem = _optional(link, f"{EVIDENCES}/{name}")
        key = _key_of(pem) if pem is not None and _is_listed(listed, name, pem) else None
        quoted = {key} if key and is_bound else set()
        why = "the quote does not vouch for the key of this connection"
        checks.note("key_bound", certificate.spki(shown) in quoted, why)
        return quoted

    # crt.sh

    def _certificates_made(
        self, domain: str, quoted: set[bytes], deadline: float, answer: dict[str, Any]
    ) -> dict[str, Any]:
        """What certificate transparency knows of a domain; sets the check ct_keys_known."""
        try:
            entries = _list(_json(self._ask_crt_sh(f"?q={domain}&output=json", deadline)))
            ids = _current_ids(entries, self._clock())
            keys = {number: self._key_made(number, deadline) for number in ids[:CRT_SH_MOST]}
        except (CasemateError, TimeoutError) as error:
            return {"error": str(error) or "crt.sh did not answer in time"}
        unknown = [number for number, key in keys.items() if key not in quoted]
        answer["checks"]["ct_keys_known"] = not unknown
        return {"certificates": len(keys), "unknown": unknown, "complete": len(ids) == len(keys)}

    def _key_made(self, number: int, deadline: float) -> bytes | None:
        return _key_of(self._ask_crt_sh(f"?d={number}", deadline))

    def _ask_crt_sh(self, query: str, deadline: float) -> bytes:
        answer = Peer(self._crt_sh + query, "crt.sh").ask("GET", within_s=left(deadline))
        if answer.status != 200:
            raise Upstream(f"crt.sh answered {answer.status}")
        return answer.body


def _current_ids(entries: Iterable[object], now: float) -> list[int]:
    """The numbers of the certificates that have not expired, newest first."""
    today = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))
    return sorted(
        {
            entry["id"]
            for entry in entries
            if isinstance(entry, dict)
            and isinstance(entry.get("id"), int)
            and str(entry.get("not_after")) > today
        },
        reverse=True,
    )


def _optional(link: Link, path: str) -> bytes | None:
    """The body of a page that is there, None when it is not or the connection has ended."""
    try:
        answer = link.get(path)
    except Upstream:
        return None
    return answer.body if answer.status == 200 else None


def _text(link: Link, path: str, checks: Checks, name: str) -> str | None:
    """A quote as a page has it: plain text, or `{"quote"}`."""
    try:
        answer = link.get(path)
    except Upstream as error:
        checks.note(name, False, error.message)
        return None
    if not checks.note(name, answer.status == 200, f"{path} was answered with {answer.status}"):
        return None
    return _quote_text(answer.body.decode(errors="replace"))


def _quote_text(given: object) -> str:
    """The quote in a text, or in an object or its JSON that has one."""
    if isinstance(given, str) and given.lstrip().startswith("{"):
        given = _object(given.encode())
    if isinstance(given, dict):
        given = given.get("quote")
    return given.strip() if isinstance(given, str) else ""


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
    given = _object(_optional(link, "/info") or b"{}")
    return {name: value for name, value in given.items() if isinstance(value, str)}


def _json(raw: bytes) -> object:
    """What a stranger's JSON says, None when it is none."""
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        return None


def _object(raw: bytes) -> dict[str, Any]:
    given = _json(raw)
    return given if isinstance(given, dict) else {}


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


def _key_of(pem: bytes) -> bytes | None:
    try:
        return certificate.spki(x509.load_pem_x509_certificates(pem)[0])
    except (ValueError, x509.InvalidVersion, Upstream):
        return None
