"""Links to logs that need no key: short-lived, and signed with one that the service keeps (apps.md section 5).

The command line fetches them without its key, so they hold all that is needed.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from core.errors import Unauthenticated

VALID_S = 3600


@dataclass(frozen=True)
class Links:
    """The links of one request: `base` is the address under which the client found this interface."""

    base: str
    key: bytes

    def vm_log(self, vm_id: str) -> str:
        """Of a VM's own logs; the client appends which (`ch`) and how much."""
        return self._link(vm_id, "")

    def container_log(self, vm_id: str, container: str) -> str:
        """Of one container's log."""
        return self._link(vm_id, container)

    def logs(self, vm_id: str) -> dict[str, Any]:
        """The three logs of a VM."""
        link = self.vm_log(vm_id)
        channels = {name: f"{link}&ch={name}" for name in ("serial", "stdout", "stderr")}
        return {**channels, "container_log_base": None}

    def _link(self, vm_id: str, container: str) -> str:
        expires = int(time.time()) + VALID_S
        told = {"container": container} if container else {}
        told |= {"expires": str(expires), "signature": self._signature(vm_id, container, expires)}
        return f"{self.base}/logs/{vm_id}?{urlencode(told)}"

    def check(self, vm_id: str, container: str, expires: str, signature: str) -> None:
        """Unauthenticated unless such a link was made here and is still valid."""
        until = int(expires) if expires.isascii() and expires.isdigit() and len(expires) < 12 else 0
        wanted = self._signature(vm_id, container, until)
        if not hmac.compare_digest(wanted.encode(), signature.encode()) or until < time.time():
            raise Unauthenticated("this link is not valid, or no longer; ask for a new one")

    def _signature(self, vm_id: str, container: str, expires: int) -> str:
        signed = "\0".join(("log", vm_id, container, str(expires))).encode()
        return hmac.new(self.key, signed, hashlib.sha256).hexdigest()
