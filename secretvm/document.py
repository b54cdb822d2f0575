"""From a docker-compose file to the app-compose document that is measured, and what is read of both (pure).

Source: secretvm.md section 3 ("What is made from it"), apps.md section 2 (the canonical text).
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import yaml

from core.errors import Invalid

COMPOSE_LIMIT = 1024**2
DOCKER_FILES_LIMIT = 10 * 1024**2
# The port of the guest's own pages.
GUEST_PORT = 29343
PORTS_MOST = 20
# Real files have some hundreds; what nests deeper or is longer only wants to cost time.
DEPTH_MOST = 64
EVENTS_MOST = 50_000

_SHORT_PORT = re.compile(
    r"(?:(?P<ip>\[[^\]]*\]|[0-9.]+):)?(?P<published>\d{1,5})(?:-(?P<last>\d{1,5}))?"
    r":\d{1,5}(?:-\d{1,5})?(?:/(?P<protocol>\w+))?"
)
# ${NAME:-8080} and ${NAME-8080}: what compose takes when nothing else is said.
_DEFAULT = re.compile(r"\$\{[A-Za-z_][A-Za-z0-9_]*:?-([^}]*)\}")
_LOOPBACK = ("127.", "[::1]", "::1", "localhost")


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
    if "\0" in text:
        raise Invalid.field("dockercompose", "must not contain a NUL character")
    services = _value(_parsed(text), "services")
    if not isinstance(services, yaml.MappingNode) or not services.value:
        raise Invalid.field("dockercompose", "must be a mapping with at least one of `services`")
    return text


def published(text: str) -> tuple[int, ...]:
    """The TCP ports of the guest that a docker-compose text publishes, once each, in order.

    A text that cannot be read, as others may have made, publishes none.
    """
    try:
        services = _value(_parsed(text), "services")
    except Invalid:
        return ()
    if not isinstance(services, yaml.MappingNode):
        return ()
    entries = (_value(service, "ports") for _, service in services.value)
    lists = (each.value for each in entries if isinstance(each, yaml.SequenceNode))
    found: dict[int, None] = {}
    for port in (port for entries in lists for entry in entries for port in _published_by(entry)):
        found[port] = None
        if len(found) > PORTS_MOST:  # too many, however many more there are
            break
    return tuple(found)


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


def canonical(document: Mapping[str, Any]) -> str:
    """The one text of a document (apps.md section 2)."""
    return json.dumps(document, sort_keys=True, indent=4, separators=(",", ":"), ensure_ascii=False)


def parsed(app_compose_text: str) -> dict[str, Any]:
    """An app-compose text of whoever made it."""
    try:
        document = json.loads(app_compose_text)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


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


def _parsed(text: str) -> yaml.Node | None:
    """The nodes of a YAML text, none of them made into a value: an alias stays one node however often it is used."""
    try:
        _check_size(text)
        found: yaml.Node | None = yaml.compose(text, Loader=yaml.CSafeLoader)
        return found
    except (yaml.YAMLError, RecursionError) as error:
        where = getattr(error, "problem_mark", None)
        at = f" (line {where.line + 1})" if where else ""
        reason = getattr(error, "problem", None) or "cannot be read"
        raise Invalid.field("dockercompose", f"is not YAML: {reason}{at}") from None


def _check_size(text: str) -> None:
    depth = 0
    for count, event in enumerate(yaml.parse(text, Loader=yaml.CSafeLoader)):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > DEPTH_MOST or count > EVENTS_MOST:
            raise Invalid.field("dockercompose", "has too many parts, or nests too deep")


def _value(node: yaml.Node | None, key: str, depth: int = 4) -> yaml.Node | None:
    """The value of a key of a mapping, or of a mapping that it merges (`<<`)."""
    if not isinstance(node, yaml.MappingNode) or not depth:
        return None
    for name, value in node.value:
        if name.value == key:
            found: yaml.Node = value
            return found
    for name, value in node.value:
        if name.value == "<<":
            merged = value.value if isinstance(value, yaml.SequenceNode) else [value]
            for each in merged[:16]:
                if (inherited := _value(each, key, depth - 1)) is not None:
                    return inherited
    return None


def _published_by(entry: yaml.Node) -> Iterator[int]:
    if isinstance(entry, yaml.MappingNode):
        yield from _ports(
            _scalar(entry, "published"), _scalar(entry, "host_ip"), _scalar(entry, "protocol")
        )
    elif isinstance(entry, yaml.ScalarNode):
        given = _SHORT_PORT.fullmatch(_DEFAULT.sub(r"\1", entry.value.strip()))
        if given:
            last = given["last"] or given["published"]
            yield from _ports(
                f"{given['published']}-{last}", given["ip"] or "", given["protocol"] or ""
            )


def _ports(numbers: str, address: str, protocol: str) -> Iterator[int]:
    first, _, last = _DEFAULT.sub(r"\1", numbers).partition("-")
    # Nothing from outside reaches a loopback address of the guest.
    if protocol.lower() not in ("", "tcp") or address.startswith(_LOOPBACK):
        return
    if re.fullmatch(r"\d{1,5}", first) and re.fullmatch(r"\d{0,5}", last):
        for number in range(int(first), int(last or first) + 1):
            if 1 <= number <= 65535:
                yield number


def _scalar(node: yaml.Node, key: str) -> str:
    found = _value(node, key)
    return str(found.value) if isinstance(found, yaml.ScalarNode) else ""


def _check_member(member: tarfile.TarInfo) -> None:
    steps = member.name.split("/")
    if not (member.isfile() or member.isdir()) or member.name.startswith("/") or ".." in steps:
        raise Invalid.field(
            "dockerfiles",
            f"{member.name[:100]!r} is not a file or folder inside the tar's own folder",
        )
