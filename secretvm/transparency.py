"""What certificate transparency knows of a domain, as crt.sh tells it.

Source: secretvm.md section 8 (gateway-attestation, crtSh).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from core.errors import Upstream
from core.http import Peer, left
from secretvm import certificate
from secretvm.checks import json_value

CRT_SH = "https://crt.sh/"
# Of a domain's unexpired certificates, the newest so many are looked at.
CRT_SH_MOST = 20


@dataclass(frozen=True)
class Made:
    """The keys (DER) of certificates by their numbers, and whether those are all that have not expired."""

    keys: dict[int, bytes | None]
    is_complete: bool


@dataclass(frozen=True)
class Transparency:
    """Asks crt.sh, or what stands at `url` for it."""

    clock: Callable[[], float] = time.time
    url: str = CRT_SH

    def made(self, domain: str, deadline: float) -> Made:
        """The newest certificates of a domain; Upstream or TimeoutError when they are not told."""
        entries = json_value(self._ask(f"?q={domain}&output=json", deadline))
        ids = _current_ids(entries if isinstance(entries, list) else [], self.clock())
        chosen = ids[:CRT_SH_MOST]
        keys = {number: self._key(number, deadline) for number in chosen}
        return Made(keys, len(chosen) == len(ids))

    def _key(self, number: int, deadline: float) -> bytes | None:
        return certificate.key_of(self._ask(f"?d={number}", deadline))

    def _ask(self, query: str, deadline: float) -> bytes:
        answer = Peer(self.url + query, "crt.sh").ask("GET", within_s=left(deadline))
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
