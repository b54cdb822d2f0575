"""What a SecretVM tells anybody on port 29343: its quote, bound to the key of this listener, and what it runs.

Source: secretvm.md section 8, guest side.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from attest import eventlog
from attest.compose import SecretVm
from core import certs, files
from core.certs import Issuer, Leaf
from core.errors import Forbidden, Invalid, NotFound
from core.kdf import pkcs8_pem
from core.messages import LogsOrder
from guest import keys
from guest.service import Agent
from guest.settings import Settings

PORT = 29343
LINES_MOST = 10_000
LINES = 1000
_NAME = "SecretVM"
_GB = 1024**3

# What a page shows: text, or an object that is shown as JSON.
Content = str | Mapping[str, object]


@dataclass(frozen=True)
class Tls:
    """The key of the listener and its certificate, as files; the DER of the key is what quotes bind."""

    key: Path
    certificate: Path
    spki: bytes


def tls(settings: Settings) -> Tls:
    """The listener's own key, made once a boot; its certificate is signed by itself, since the quote vouches for it."""
    key_file, certificate_file = settings.state / "pages.key", settings.state / "pages.crt"
    if not certificate_file.exists():
        key = ec.generate_private_key(ec.SECP256R1())
        own = certs.authority(key, certs.name(_NAME), path_length=0)
        issuer = Issuer(key, x509.load_pem_x509_certificate(own.encode()))
        leaf = issuer.issue(key.public_key(), Leaf(subject=_NAME, server_auth=True))
        files.write_atomic(key_file, pkcs8_pem(key))
        files.write_atomic(certificate_file, leaf)
    certificate = x509.load_pem_x509_certificate(certificate_file.read_bytes())
    public = certificate.public_key()
    assert isinstance(public, ec.EllipticCurvePublicKey)  # made above
    return Tls(key_file, certificate_file, certs.spki_der(public))


@dataclass(frozen=True)
class Query:
    """What a page was asked with: a token that opens what is private, and which logs."""

    token: str = ""
    service: str = ""
    lines: int = LINES

    @classmethod
    def of(cls, token: str, service: str, lines: str) -> Query:
        """Reads the texts of a request; Invalid for a number of lines that is none."""
        if lines and not (lines.isascii() and lines.isdecimal() and len(lines) < 10):
            raise Invalid("lines must be a whole number")
        return cls(token, service, min(int(lines or LINES), LINES_MOST))


class Pages:
    """The pages by name; some are closed where the measured app-compose says so, but to its dev token."""

    def __init__(self, agent: Agent, spki: bytes) -> None:
        self._agent = agent
        # The second half is for the nonce of a GPU's evidence; this VM has none.
        self._report_data = hashlib.sha256(spki).digest().ljust(64, b"\0")
        self._ticks = (0, 0)
        self._counting = threading.Lock()
        self._pages: Mapping[str, tuple[str, Callable[[Query], Content]]] = {
            "status": ("", self._status),
            "cpu": ("", lambda _: agent.quote_text(self._report_data)),
            "gpu": ("", _no_gpu),
            "self": ("", self._self),
            "docker-compose": ("compose", lambda _: agent.vm().app.compose.docker_compose_file),
            "logs": (
                "logs",
                lambda query: agent.container_logs(LogsOrder(query.service, query.lines)),
            ),
            "services": ("services", self._services),
            "resources": ("resources", self._resources),
            "vm_upgrades": ("upgrades", self._upgrades),
            "info": ("", self._info),
            "publickey_ed25519": ("", lambda _: self._public_key(keys.ED25519)),
            "publickey_secp256k1": ("", lambda _: self._public_key(keys.SECP256K1)),
            "ita-jwt": ("", lambda _: _no_token("Intel Trust Authority")),
            "poc-jwt": ("", lambda _: _no_token("proof of cloud")),
        }

    def page(self, name: str, query: Query) -> Content:
        """A page; NotFound when there is none of that name, Forbidden when it is closed to this caller."""
        if name not in self._pages:
            raise NotFound(f"no such path: /{name}")
        closed_as, show = self._pages[name]
        if not self._is_open(closed_as, query.token):
            raise Forbidden(f"/{name} of this VM is private; its dev token opens it")
        return show(query)

    @property
    def _measured(self) -> SecretVm:
        return self._agent.vm().app.compose.secretvm or SecretVm()

    def _is_open(self, closed_as: str, token: str) -> bool:
        measured = self._measured
        if closed_as not in measured.closed:
            return True
        given = hashlib.sha256(token.encode(errors="replace")).digest()
        has_token = bool(token and measured.dev_token_sha256)
        return has_token and hmac.compare_digest(given, measured.dev_token_sha256)

    def _status(self, _: Query) -> Content:
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        return {"status": "ok", "time": now, "env": self._measured.environment}

    def _self(self, _: Query) -> Content:
        info = self._agent.public_info()
        ids = {name: _hex(info[name]) for name in ("app_id", "instance_id", "compose_hash")}
        return {**ids, "tls_key_sha256": self._report_data[:32].hex()}

    def _info(self, query: Query) -> Content:
        vm = self._agent.vm()
        said: dict[str, object] = {"dstack_app_id": vm.instance.app_id.hex()}
        if vm.app.compose.public_tcbinfo and self._is_open("compose", query.token):
            # With these anybody can tell from the quote which compose file was measured.
            quoted = vm.evidence.quote(self._report_data)
            said["event_log"] = eventlog.to_json(quoted.events)
            said["app_compose"] = vm.app.text
        return said

    def _services(self, _: Query) -> Content:
        listed = self._agent.engine.list()
        return {
            "services": [
                {"name": name, "image": each.image, "state": each.state, "status": each.status}
                for each in listed
                for name in each.names
            ]
        }

    def _upgrades(self, _: Query) -> Content:
        # This VM's operator upgrades it; nobody publishes that beforehand.
        return {"upgradeable": self._measured.upgradeable, "upgrades": []}

    def _resources(self, _: Query) -> Content:
        system = self._agent.sys_info()
        total, free = (
            sum(getattr(disk, name) for disk in system.disks)
            for name in ("total_size", "free_size")
        )
        memory, used = system.total_memory, system.used_memory
        return {
            "memory_used_gb": round(used / _GB, 2),
            "memory_total_gb": round(memory / _GB, 2),
            "disk_used_gb": round((total - free) / _GB, 2),
            "disk_total_gb": round(total / _GB, 2),
            "memory_percent": _percent(used, memory),
            "disk_percent": _percent(total - free, total),
            "cpu_percent": self._cpu_percent(),
        }

    def _cpu_percent(self) -> float:
        """How busy the processors were since somebody last asked, at first since the boot."""
        stat = (self._agent.settings.root / "proc/stat").read_text().partition("\n")[0]
        ticks = [int(word) for word in stat.split()[1:9]]
        # proc(5): the fourth and fifth are idle and waiting for a disk.
        now = (sum(ticks) - ticks[3] - ticks[4], sum(ticks))
        with self._counting:
            before, self._ticks = self._ticks, now
        return _percent(now[0] - before[0], now[1] - before[1])

    def _public_key(self, algorithm: str) -> str:
        return keys.signing_key(self._agent.vm().keys, algorithm).public_key.hex()


def _hex(value: object) -> str:
    return value.hex() if isinstance(value, bytes) else ""


def _percent(part: int, whole: int) -> float:
    return round(100 * part / whole, 1) if whole else 0.0


def _no_gpu(_: Query) -> Content:
    raise NotFound("no GPU attestation", details="this VM has no GPU")


def _no_token(issuer: str) -> Content:
    raise NotFound("no such token", details=f"this VM asks no {issuer} service")


def as_text(content: Content) -> str:
    """Content as a page of HTML shows it."""
    return content if isinstance(content, str) else json.dumps(content, indent=2)
