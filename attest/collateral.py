"""Where collateral comes from: a text that somebody gave, a file, or a vendor's service and its cache.

The one module of this library that speaks to a network, and only to the addresses it was configured with.
What comes back is no more trusted than evidence: verification checks its signatures.
Sources: Intel SGX PCS API version 4 (dcap-qvl asks it); AMD 57230, chapter 4 (KDS).
"""

from __future__ import annotations

import asyncio
import datetime
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from attest import snp_crl
from attest.errors import Malformed, NotGenuine
from attest.snp import Report, certificates
from attest.verify import MAX_COLLATERAL_CHARS, Claim
from core.errors import CasemateError
from core.files import read_capped, write_atomic

if TYPE_CHECKING:
    import dcap_qvl

# Answers a quote's claim with QuoteCollateralV3 JSON, a report with its certificate chain in PEM.
Source = Callable[[Claim | Report], str]

TIMEOUT_S = 10.0
MAX_CACHED = 64
# AMD's certificates and Intel's revocation lists outlive this; a wrong answer should not.
KDS_LIFETIME_S = 24 * 3600.0
REFUSAL_LIFETIME_S = 600.0
MAX_KEPT = 1024

_ADDRESS = re.compile(r"https?://[^\s)]+")
_FAMILY_19, _FAMILY_1A = 0x19, 0x1A


def given(text: str) -> Source:
    """A text that came with the request or the command."""
    return lambda asked: text


def file(path: Path) -> Source:
    """A file that is read at every question, since it may be renewed at any time."""

    def read(asked: Claim | Report) -> str:
        try:
            with path.open() as opened:
                return opened.read(MAX_COLLATERAL_CHARS + 1)
        except (OSError, UnicodeDecodeError) as error:
            # Without its path: reasons are shown to strangers.
            why = getattr(error, "strerror", "it is not text")
            raise NotGenuine(f"collateral: the configured file cannot be read: {why}") from None

    return read


def nowhere(asked: Claim | Report) -> str:
    """The source of a verifier that has none."""
    raise NotGenuine("collateral: none was given, and this verifier has no source of it configured")


@dataclass(frozen=True)
class Fetched:
    """An answer and the Unix time until which it need not be asked again."""

    text: str
    until: float


class Cached:
    """A service's answers, each kept until it ends; the same question goes out once at a time."""

    def __init__(
        self,
        key: Callable[[Claim | Report], object],
        fetch: Callable[[Claim | Report], Fetched],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._key = key
        self._fetch = fetch
        self._clock = clock
        self._guard = threading.Lock()
        # Of the questions that are out: whoever asks another one need not wait for a slow answer.
        self._asking: WeakValueDictionary[object, threading.Lock] = WeakValueDictionary()
        self._kept: dict[object, Fetched] = {}

    def __call__(self, asked: Claim | Report) -> str:
        """The kept answer, or a new one; NotGenuine when the service does not give it."""
        key = self._key(asked)
        with self._guard:
            asking = self._asking.setdefault(key, threading.Lock())
        with asking:
            kept = self._kept.get(key)
            if kept is None or kept.until <= self._clock():
                kept = self._fetch(asked)
                self._keep(key, kept)
            return kept.text

    def _keep(self, key: object, fetched: Fetched) -> None:
        with self._guard:
            self._kept.pop(key, None)
            self._kept[key] = fetched
            if len(self._kept) > MAX_CACHED:
                del self._kept[next(iter(self._kept))]


class OnDisk:
    """The certificates of processors, kept in a folder over restarts; that there are none, for some minutes."""

    def __init__(
        self, folder: Path, ask: Callable[[Claim | Report], Fetched], clock: Callable[[], float]
    ) -> None:
        self._folder = folder
        self._ask = ask
        self._clock = clock

    def __call__(self, asked: Claim | Report) -> Fetched:
        """What the file says, or the service; NotGenuine when it has just failed to give it or fails now."""
        path = self._folder / hashlib.sha256(repr(_processor(asked)).encode()).hexdigest()
        if (kept := self._read(path)) is not None:
            return kept
        try:
            found = self._ask(asked)
        except NotGenuine as error:
            self._keep(path, Fetched("", self._clock() + REFUSAL_LIFETIME_S), error.message)
            raise
        self._keep(path, found, "")
        return found

    def _read(self, path: Path) -> Fetched | None:
        try:
            kept = json.loads(read_capped(path, MAX_COLLATERAL_CHARS))
            found, why = Fetched(kept["text"], kept["until"]), kept["why"]
        except (OSError, ValueError, KeyError, TypeError, CasemateError):
            return None  # not there, or written by nobody of ours: asked anew
        if found.until <= self._clock():
            return None
        if why:
            raise NotGenuine(why)
        return found

    def _keep(self, path: Path, fetched: Fetched, why: str) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomic(path, json.dumps({"text": fetched.text, "until": fetched.until, "why": why}))
        # Strangers choose what is asked: the folder must not grow with that.
        files = sorted(self._folder.iterdir(), key=_written)
        for old in files[:-MAX_KEPT]:
            old.unlink(missing_ok=True)


def _written(path: Path) -> float:
    """When a file was written last; 0 for one that somebody else has taken away meanwhile."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def service(pccs_url: str = "", kds_url: str = "", folder: Path | None = None) -> Source:
    """Intel collateral from a PCCS and AMD certificates from a KDS; a vendor without an address has no source.

    With a folder AMD's answers are kept there too.
    """
    intel: Source = (
        Cached(_platform, lambda asked: _ask_pccs(pccs_url, asked)) if pccs_url else nowhere
    )

    def ask_kds(asked: Claim | Report) -> Fetched:
        return _ask_kds(kds_url, asked)

    fetch = OnDisk(folder, ask_kds, time.time) if folder else ask_kds
    amd: Source = Cached(_processor, fetch) if kds_url else nowhere
    return lambda asked: amd(asked) if isinstance(asked, Report) else intel(asked)


def revocations(kds_url: str = "") -> Source:
    """AMD's list of revoked keys for a report's processor (PEM), from a KDS; nowhere without an address."""

    def ask(asked: Claim | Report) -> Fetched:
        assert isinstance(asked, Report)
        crl = snp_crl.read(_get(f"{kds_url.rstrip('/')}/vcek/v1/{_product(asked)}/crl"))
        return Fetched(crl.public_bytes(Encoding.PEM).decode(), time.time() + KDS_LIFETIME_S)

    def product(asked: Claim | Report) -> str:
        assert isinstance(asked, Report)
        return _product(asked)

    return Cached(product, ask) if kds_url else nowhere


def _platform(asked: Claim | Report) -> object:
    assert isinstance(asked, Claim)
    return asked.platform.fmspc, asked.chain[0].issuer


def _processor(asked: Claim | Report) -> object:
    assert isinstance(asked, Report)
    return asked.chip_id, asked.reported_tcb


def _ask_pccs(url: str, asked: Claim | Report) -> Fetched:
    assert isinstance(asked, Claim)
    try:
        text = asyncio.run(_collateral(url, asked.raw)).to_json()
    except (RuntimeError, ValueError, TimeoutError) as error:
        # Reasons are shown to strangers, whom the address does not concern.
        why = _ADDRESS.sub("its address", " ".join(str(error).split())) or "no answer in time"
        raise NotGenuine(f"collateral: the PCCS does not give it: {why}") from None
    return Fetched(text, next_update(text))


async def _collateral(url: str, quote: bytes) -> dcap_qvl.QuoteCollateralV3:
    import dcap_qvl

    return await asyncio.wait_for(dcap_qvl.get_collateral(url, quote), TIMEOUT_S)


def next_update(collateral_json: str) -> float:
    """The first Unix time at which a part of the collateral is out of date; Malformed when it does not say."""
    try:
        parts = json.loads(collateral_json)
        signed = [json.loads(parts[name])["nextUpdate"] for name in ("tcb_info", "qe_identity")]
        moments = [datetime.datetime.fromisoformat(text).timestamp() for text in signed]
        for name in ("root_ca_crl", "pck_crl"):
            update = x509.load_der_x509_crl(bytes.fromhex(parts[name])).next_update_utc
            moments += [update.timestamp()] if update else []
    except (ValueError, TypeError, KeyError, RecursionError):
        raise Malformed("collateral: it does not say when it ends") from None
    return min(moments)


def _ask_kds(url: str, asked: Claim | Report) -> Fetched:
    assert isinstance(asked, Report)
    base = f"{url.rstrip('/')}/vcek/v1/{_product(asked)}"
    found = certificates([_get(f"{base}/{_vcek_path(asked)}"), _get(f"{base}/cert_chain")])
    text = "".join(certificate.public_bytes(Encoding.PEM).decode() for certificate in found)
    return Fetched(text, time.time() + KDS_LIFETIME_S)


def _product(report: Report) -> str:
    """The product name under which AMD keeps the certificates of a processor."""
    if report.version >= 3 and report.family == _FAMILY_19:
        return "Milan" if report.model < 0x10 else "Genoa"
    if report.version >= 3 and report.family == _FAMILY_1A:
        return "Turin"
    raise NotGenuine(
        "report: it does not say which processor made it, so its certificates cannot be asked for"
    )


def _vcek_path(report: Report) -> str:
    tcb, chip = report.reported_tcb, report.chip_id
    if report.family == _FAMILY_1A:
        parts = zip(("fmcSPL", "blSPL", "teeSPL", "snpSPL"), tcb[:4], strict=True)
        fields, chip = dict(parts), chip[:8]
    else:
        fields = {"blSPL": tcb[0], "teeSPL": tcb[1], "snpSPL": tcb[6]}
    query = "&".join(f"{name}={value}" for name, value in (fields | {"ucodeSPL": tcb[7]}).items())
    return f"{chip.hex()}?{query}"


def _get(url: str) -> bytes:
    """One answer of at most MAX_COLLATERAL_CHARS; NotGenuine when there is none."""
    # Here, since the many who verify without a service need none of it.
    from core import http

    try:
        answer = http.Peer(url, "the KDS").ask(
            "GET", within_s=TIMEOUT_S, limit=MAX_COLLATERAL_CHARS
        )
    except CasemateError as error:
        raise NotGenuine(f"collateral: the KDS does not give it: {error.message}") from None
    if answer.status != 200:
        raise NotGenuine(f"collateral: the KDS does not give it: status {answer.status}")
    return answer.body
