"""Where collateral comes from: a text that somebody gave, a file, or a vendor's service and its cache.

The one module of this library that speaks to a network, and only to the addresses it was configured with.
What comes back is no more trusted than evidence: verification checks its signatures.
Sources: Intel SGX PCS API version 4 (dcap-qvl asks it); AMD 57230, chapter 4 (KDS).
"""

from __future__ import annotations

import asyncio
import datetime
import json
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from attest.errors import Malformed, NotGenuine
from attest.snp import Report, certificates
from attest.verify import MAX_COLLATERAL_CHARS, Claim

if TYPE_CHECKING:
    import dcap_qvl

# Answers a quote's claim with QuoteCollateralV3 JSON, a report with its certificate chain in PEM.
Source = Callable[[Claim | Report], str]

TIMEOUT_S = 10.0
MAX_CACHED = 64
# AMD's certificates and Intel's revocation lists outlive this; a wrong answer should not.
KDS_LIFETIME_S = 24 * 3600.0

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
            raise NotGenuine(f"collateral: the configured file cannot be read: {error}") from None

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
    """A service's answers, each kept until it ends; one question at a time goes out."""

    def __init__(
        self,
        key: Callable[[Claim | Report], object],
        fetch: Callable[[Claim | Report], Fetched],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._key = key
        self._fetch = fetch
        self._clock = clock
        self._asking = threading.Lock()
        self._kept: dict[object, Fetched] = {}

    def __call__(self, asked: Claim | Report) -> str:
        """The kept answer, or a new one; NotGenuine when the service does not give it."""
        key = self._key(asked)
        with self._asking:
            kept = self._kept.get(key)
            if kept is None or kept.until <= self._clock():
                kept = self._fetch(asked)
                self._kept.pop(key, None)
                self._kept[key] = kept
                if len(self._kept) > MAX_CACHED:
                    del self._kept[next(iter(self._kept))]
            return kept.text


def service(pccs_url: str = "", kds_url: str = "") -> Source:
    """Intel collateral from a PCCS and AMD certificates from a KDS; a vendor without an address has no source."""
    intel: Source = (
        Cached(_platform, lambda asked: _ask_pccs(pccs_url, asked)) if pccs_url else nowhere
    )
    amd: Source = Cached(_processor, lambda asked: _ask_kds(kds_url, asked)) if kds_url else nowhere
    return lambda asked: amd(asked) if isinstance(asked, Report) else intel(asked)


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
    import requests

    try:
        with requests.get(url, timeout=TIMEOUT_S, allow_redirects=False, stream=True) as answer:
            content: bytes = answer.raw.read(MAX_COLLATERAL_CHARS, decode_content=True)
    except (requests.RequestException, OSError) as error:
        raise NotGenuine(f"collateral: the KDS does not give it: {type(error).__name__}") from None
    if answer.status_code != 200:
        raise NotGenuine(f"collateral: the KDS does not give it: status {answer.status_code}")
    return content
