"""What the tenants' surfaces read of a docker-compose text: whether it is one, and which ports it publishes (pure).

No value is made of a node: an alias stays one however often it is used, so a small text cannot become a large one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import yaml

from core.errors import Invalid

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


def check(text: str) -> None:
    """Invalid, with the reason and no field, unless a text is YAML with services."""
    if "\0" in text:
        raise Invalid("must not contain a NUL character")
    services = _value(_parsed(text), "services")
    if not isinstance(services, yaml.MappingNode) or not services.value:
        raise Invalid("must be a mapping with at least one of `services`")


def published(text: str) -> tuple[int, ...]:
    """The TCP ports of the guest that a text publishes, once each, in order; at most PORTS_MOST and one more.

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
    for port in (port for each in lists for entry in each for port in _published_by(entry)):
        found[port] = None
        if len(found) > PORTS_MOST:  # too many, however many more there are
            break
    return tuple(found)


def _parsed(text: str) -> yaml.Node | None:
    try:
        _check_size(text)
        return yaml.compose(text, Loader=yaml.CSafeLoader)
    except (yaml.YAMLError, RecursionError) as error:
        where = getattr(error, "problem_mark", None)
        at = f" (line {where.line + 1})" if where else ""
        reason = getattr(error, "problem", None) or "cannot be read"
        raise Invalid(f"is not YAML: {reason}{at}") from None


def _check_size(text: str) -> None:
    depth = 0
    for count, event in enumerate(yaml.parse(text, Loader=yaml.CSafeLoader)):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > DEPTH_MOST or count > EVENTS_MOST:
            raise Invalid("has too many parts, or nests too deep")


def _value(node: yaml.Node | None, key: str, depth: int = 4) -> yaml.Node | None:
    """The value of a key of a mapping, or of a mapping that it merges (`<<`)."""
    if not isinstance(node, yaml.MappingNode) or not depth:
        return None
    for name, value in node.value:
        if name.value == key:
            return value  # type: ignore[no-any-return] # PyYAML types its nodes' parts as Any
    for name, value in node.value:
        if name.value == "<<":
            merged = value.value if isinstance(value, yaml.SequenceNode) else [value]
            for each in merged[:16]:
                if (found := _value(each, key, depth - 1)) is not None:
                    return found
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
