"""The app-compose document: its hash, the app id made from it, and the fields that guest and VMM read.

The bytes are the app: they are hashed as received and never written again from the parsed form.
Source: vmm.md section 4 ("compose file fields the VMM itself reads"), guest-agent.md sections 3 and 10.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar, get_args

from core.errors import Invalid

KeyProvider = Literal["none", "kms", "local", "tpm"]
# guest-agent.md section 10.
MAX_INIT_SCRIPTS = 5
MAX_ID = 1024

_T = TypeVar("_T")
_SIZE = re.compile(r"(\d{1,15})\s*([KMGT]?)B?", re.IGNORECASE | re.ASCII)
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_PINNED = re.compile(r"@sha256:[0-9a-f]{64}\Z")
# The value of `image:` in block or flow style, quoted or not; `${NAME}` is part of it.
_IMAGE = re.compile(
    r"""(?:^|[\s{,"'])image["']?[ \t]*:[ \t]*["']?((?:\$\{[^}\n]{0,255}\}|[^\s"',{}#])+)"""
)


def compose_hash(raw: bytes) -> bytes:
    """SHA-256 of the document's exact bytes (32 bytes)."""
    return hashlib.sha256(raw).digest()


def app_id(raw: bytes) -> bytes:
    """The app id a document has when none is given: the first 20 bytes of its hash."""
    return compose_hash(raw)[:20]


def new(name: str) -> dict[str, Any]:
    """The fields of a new document, in the one order that every surface writes: the same input, the same hash."""
    return {
        "manifest_version": 2,
        "name": name,
        "runner": "docker-compose",
        "docker_compose_file": "",
        **keys_from("none"),
        "gateway_enabled": False,
        "public_logs": False,
        "public_sysinfo": False,
        "public_tcbinfo": True,
        "secure_time": False,
        "allowed_envs": [],
    }


def keys_from(provider: str) -> dict[str, Any]:
    """The fields that say who gives the app its keys; older readers look at the two flags alone."""
    return {
        "kms_enabled": provider == "kms",
        "local_key_provider_enabled": provider == "local",
        "key_provider": provider,
    }


def text_of(document: Mapping[str, Any]) -> str:
    """A document as the text that is sent and measured."""
    return json.dumps(document, indent=4, ensure_ascii=False)


def canonical(document: Mapping[str, Any]) -> str:
    """A document as the one text that tenants' surfaces give it, whatever the order of its fields (apps.md section 2)."""
    return json.dumps(document, sort_keys=True, indent=4, separators=(",", ":"), ensure_ascii=False)


def document_of(text: str) -> dict[str, Any]:
    """The fields of a document, whoever wrote it; none when the text is not one."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


# secretvm.md section 8, guest side: what private mode closes, in the order of its mask.
PRIVATE_PAGES = ("logs", "compose", "services", "upgrades", "resources")


@dataclass(frozen=True)
class SecretVm:
    """The table `secretvm`: what a VM of that surface is told of itself; `closed` are pages of private mode.

    The two hashes are SHA-256 (32 bytes) of the token that opens those pages, and of the docker files; empty
    where there is none.
    """

    environment: str = "prod"
    closed: frozenset[str] = frozenset()
    persistent: bool = False
    upgradeable: bool = False
    dev_token_sha256: bytes = b""
    docker_files_sha256: bytes = b""

    @classmethod
    def read(cls, given: Mapping[str, object]) -> SecretVm:
        """Reads the table; Invalid names the field that breaks its rule."""
        closed: frozenset[str] = _read(given, "private", _closed, frozenset())
        return cls(
            environment=_read(given, "environment", _text, "prod"),
            closed=closed,
            persistent=_read(given, "persistent", _flag, False),
            upgradeable=_read(given, "upgradeable", _flag, False),
            dev_token_sha256=_read(given, "dev_token_sha256", _digest, b""),
            docker_files_sha256=_read(given, "docker_files_sha256", _digest, b""),
        )


@dataclass(frozen=True)
class AppCompose:
    """What guest and VMM read of an app-compose document; sizes in bytes, absent texts empty."""

    manifest_version: int = 1
    name: str = ""
    runner: str = "docker-compose"
    docker_compose_file: str = ""
    bash_script: str = ""
    public_logs: bool = False
    public_sysinfo: bool = False
    public_tcbinfo: bool = True
    key_provider: KeyProvider = "none"
    key_provider_id: bytes = b""
    gateway_enabled: bool = False
    no_instance_id: bool = False
    allowed_envs: tuple[str, ...] = ()
    event_log_version: int = 1
    init_scripts: tuple[str, ...] = ()
    pre_launch_script: str = ""
    storage_fs: str = ""
    swap_size: int = 0
    secure_time: bool = False
    launch_token_hash: str = ""
    require_digest: bool = False
    requirements: Mapping[str, object] = field(default_factory=dict, hash=False)
    # Of the runner `jobs` (guest/runner.py): whether it starts an SSH server.
    runner_ssh: bool = False
    secretvm: SecretVm | None = None

    @classmethod
    def parse(cls, raw: bytes, *, default_name: str = "") -> AppCompose:
        """Reads a document; Invalid when it is no JSON object or a field has the wrong type, naming it.

        Fields unknown here are ignored and null means absent.  A field written twice is refused: people and
        programs would read different apps under one hash.
        """
        given = _load(raw)
        requirements: Mapping[str, object] = _read(given, "requirements", _object, {})
        return cls(
            manifest_version=_read(given, "manifest_version", _whole, 1),
            name=_read(given, "name", _text, default_name),
            runner=_read(given, "runner", _text, "docker-compose"),
            runner_ssh=_read(given, "runner_ssh", _flag, False),
            docker_compose_file=_read(given, "docker_compose_file", _text, ""),
            bash_script=_read(given, "bash_script", _text, ""),
            public_logs=_read(given, "public_logs", _flag, False),
            public_sysinfo=_read(given, "public_sysinfo", _flag, False),
            public_tcbinfo=_read(given, "public_tcbinfo", _flag, True),
            key_provider=_key_provider(given),
            key_provider_id=_read(given, "key_provider_id", _hex, b""),
            gateway_enabled=_gateway_enabled(given),
            no_instance_id=_read(given, "no_instance_id", _flag, False),
            allowed_envs=_read(given, "allowed_envs", _texts, ()),
            event_log_version=_read(given, "event_log_version", _event_log_version, 1),
            init_scripts=_read(given, "init_script", _scripts, ()),
            pre_launch_script=_read(given, "pre_launch_script", _text, ""),
            storage_fs=_read(given, "storage_fs", _text, ""),
            swap_size=_read(given, "swap_size", _size, 0),
            secure_time=_read(given, "secure_time", _flag, False),
            launch_token_hash=_required(given, requirements, "launch_token_hash", _text, ""),
            require_digest=_required(given, requirements, "require_digest", _flag, False),
            requirements=requirements,
            secretvm=_read(given, "secretvm", _secretvm, None),
        )


def _load(raw: bytes) -> dict[str, object]:
    try:
        given = json.loads(raw.decode(), object_pairs_hook=_no_twice, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        why = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise Invalid.field("compose_file", f"must be JSON: {why}") from None
    if not isinstance(given, dict):
        raise Invalid.field("compose_file", "must be a JSON object")
    return given


def _no_twice(pairs: list[tuple[str, object]]) -> dict[str, object]:
    fields: dict[str, object] = {}
    for name, value in pairs:
        if name in fields:
            raise ValueError(f"the field {name[:64]!r} stands there twice")
        fields[name] = value
    return fields


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _read(given: Mapping[str, object], key: str, check: Callable[[Any], _T], absent: _T) -> _T:
    value = given.get(key)
    if value is None:
        return absent
    try:
        return check(value)
    except Invalid as error:
        raise Invalid.field(key, error.message) from None


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise Invalid("must be a string")
    if "\0" in value:
        raise Invalid("must not contain a NUL character")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Invalid("must be valid Unicode") from None
    return value


def _texts(value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise Invalid("must be a list of strings")
    return tuple(_text(item) for item in value)


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise Invalid("must be true or false")
    return value


def _whole(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**64:
        raise Invalid("must be a whole number")
    return value


def _object(value: object) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise Invalid("must be an object")
    return value


def _hex(value: object) -> bytes:
    text = _text(value)
    digits = text[2:] if text[:2] in ("0x", "0X") else text
    if len(digits) % 2 or not re.fullmatch(r"[0-9A-Fa-f]*", digits):
        raise Invalid("must be hex text with an even number of digits")
    # A key provider is named by a public key or its hash; a KMS's is 91 bytes.
    if len(digits) > 2 * MAX_ID:
        raise Invalid(f"must have at most {MAX_ID} bytes")
    return bytes.fromhex(digits)


def _secretvm(value: object) -> SecretVm | None:
    return SecretVm.read(_object(value))


def _closed(value: object) -> frozenset[str]:
    if isinstance(value, bool):
        return frozenset(PRIVATE_PAGES) if value else frozenset()
    if not isinstance(value, str) or not re.fullmatch(r"[01]{5}", value, re.ASCII):
        raise Invalid("must be true, false, or five of 0 and 1")
    return frozenset(
        page for page, is_closed in zip(PRIVATE_PAGES, value, strict=True) if is_closed == "1"
    )


def _digest(value: object) -> bytes:
    text = _text(value)
    if text and not re.fullmatch(r"[0-9A-Fa-f]{64}", text, re.ASCII):
        raise Invalid("must be 64 hex digits (SHA-256)")
    return bytes.fromhex(text)


def _event_log_version(value: object) -> int:
    version = _whole(value)
    if version not in (1, 2):
        raise Invalid("must be 1 or 2")
    return version


def _scripts(value: object) -> tuple[str, ...]:
    if value == "":
        return ()
    scripts = (_text(value),) if isinstance(value, str) else _texts(value)
    if len(scripts) > MAX_INIT_SCRIPTS:
        raise Invalid(f"must be at most {MAX_INIT_SCRIPTS} scripts")
    return scripts


def _size(value: object) -> int:
    if not isinstance(value, str):
        return _whole(value)
    match = _SIZE.fullmatch(value.strip())
    if not match:
        raise Invalid("must be a number of bytes, or a number with K, M, G or T")
    return int(match[1]) * _UNITS[match[2].upper()]


def _provider(value: object) -> KeyProvider:
    for kind in get_args(KeyProvider):
        if value == kind:
            known: KeyProvider = kind
            return known
    raise Invalid("must be none, kms, local or tpm")


def _key_provider(given: Mapping[str, object]) -> KeyProvider:
    by_flags: KeyProvider = "none"
    if _read(given, "local_key_provider_enabled", _flag, False):
        by_flags = "local"
    if _read(given, "kms_enabled", _flag, False):
        by_flags = "kms"
    return _read(given, "key_provider", _provider, by_flags)


def _gateway_enabled(given: Mapping[str, object]) -> bool:
    named = _read(given, "gateway_enabled", _flag, False)
    older = _read(given, "tproxy_enabled", _flag, False)
    features: tuple[str, ...] = _read(given, "features", _texts, ())
    return named or older or "tproxy-net" in features


def _required(
    given: Mapping[str, object],
    requirements: Mapping[str, object],
    key: str,
    check: Callable[[Any], _T],
    absent: _T,
) -> _T:
    return _read(requirements, key, check, absent) or _read(given, key, check, absent)


def is_pinned(image: str) -> bool:
    """Whether nobody but the maker of the OS image can change what a container image's name stands for.

    Names below `localhost/` are never fetched: such an image lies in the root file system.
    """
    return image.startswith("localhost/") or _PINNED.search(image) is not None


def mutable_images(docker_compose: str) -> tuple[str, ...]:
    """The images of a docker-compose text that a registry may replace, once each, in order.

    Found without parsing YAML, whose aliases can make a small text large: good enough for a warning.
    """
    found = dict.fromkeys(_IMAGE.findall(docker_compose))
    return tuple(image for image in found if not is_pinned(image))
