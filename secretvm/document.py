"""From a docker-compose file to the app-compose document that is measured, and what is read of both (pure).

Source: secretvm.md section 3 ("What is made from it"), apps.md section 2 (the canonical text).
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from attest.compose import canonical
from core.errors import Invalid
from rest.docker_compose import PORTS_MOST, check, published

COMPOSE_LIMIT = 1024**2
DOCKER_FILES_LIMIT = 10 * 1024**2
# The port of the guest's own pages.
GUEST_PORT = 29343


@dataclass(frozen=True)
class Measured:
    """The flags that the guest reads from the measured document."""

    environment: str = "prod"
    private: bool = False
    persistent: bool = False
    upgradeable: bool = False
    dev_token_sha256: str = ""
    docker_files_sha256: str = ""


def read_compose(raw: bytes) -> str:
    """The text of a docker-compose file; Invalid unless it is YAML with services."""
    if len(raw) > COMPOSE_LIMIT:
        raise Invalid.field("dockercompose", f"must have at most {COMPOSE_LIMIT} bytes")
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise Invalid.field("dockercompose", "must be UTF-8 text") from None
    try:
        check(text)
    except Invalid as error:
        raise Invalid.field("dockercompose", error.message) from None
    return text


def guest_ports(text: str) -> tuple[int, ...]:
    """The guest's ports that get a host port: its own pages, and what the compose text publishes."""
    ports = published(text)
    if len(ports) > PORTS_MOST:
        raise Invalid.field("dockercompose", f"publishes more than {PORTS_MOST} TCP ports")
    return tuple(dict.fromkeys((GUEST_PORT, *ports)))


def check_docker_files(raw: bytes) -> str:
    """The SHA-256 in hex of the tar of docker files; Invalid unless it is whole and stays in its folder."""
    if len(raw) > DOCKER_FILES_LIMIT:
        raise Invalid.field("dockerfiles", f"must have at most {DOCKER_FILES_LIMIT} bytes")
    try:
        with tarfile.open(fileobj=io.BytesIO(raw), mode="r:") as tar:
            for member in tar:
                _check_member(member)
            end = tar.offset
    except (tarfile.TarError, ValueError, EOFError):
        end = -1
    # What follows the last file is zeros: a damaged header ends the reading without an error.
    if end < 0 or len(raw) < end or raw[end:].strip(b"\0"):
        raise Invalid.field(
            "dockerfiles",
            "is not a whole uncompressed tar; a client that reads it as text damages every byte "
            "that is not ASCII, so send ASCII files only, or the tar as it is",
        )
    return hashlib.sha256(raw).hexdigest()


def app_compose(name: str, text: str, measured: Measured, names: Iterable[str]) -> str:
    """The app-compose document of a docker-compose text; `names` are the variables it is let have."""
    allowed = sorted(set(names))
    wants_keys = bool(measured.persistent or measured.upgradeable or allowed)
    return canonical(
        {
            "manifest_version": 2,
            "runner": "docker-compose",
            "name": name,
            "docker_compose_file": text,
            "key_provider": "kms" if wants_keys else "none",
            "allowed_envs": allowed,
            "gateway_enabled": False,
            "public_logs": not measured.private,
            "public_sysinfo": not measured.private,
            "secretvm": asdict(measured),
        }
    )


def docker_compose(document: Mapping[str, Any]) -> str:
    """The docker-compose text in an app-compose document, or ""."""
    text = document.get("docker_compose_file")
    return text if isinstance(text, str) else ""


def measured_in(document: Mapping[str, Any]) -> Measured | None:
    """The flags of a document made here; None of one made elsewhere."""
    table = document.get("secretvm")
    if not isinstance(table, dict):
        return None
    known = {key: value for key, value in table.items() if key in Measured.__dataclass_fields__}
    return replace(Measured(), **known)


# Steps ---------------------------------------------------------------------------------------


def _check_member(member: tarfile.TarInfo) -> None:
    steps = member.name.split("/")
    if not (member.isfile() or member.isdir()) or member.name.startswith("/") or ".." in steps:
        raise Invalid.field(
            "dockerfiles",
            f"{member.name[:100]!r} is not a file or folder inside the tar's own folder",
        )
