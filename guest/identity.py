"""Who this VM is: the app, the instance and what the host configured, read from the shared files.

Source: guest-agent.md section 3.  The files come from the host, which is not trusted: every one is read
with a limit and checked before anything is made of it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from attest import compose
from attest.compose import AppCompose
from core import files
from core.errors import Invalid

APP_ID_SIZE = 20
# vmm.md section 6: what a guest reads at most of each file.
MAX_COMPOSE = 50 * 1024 * 1024
MAX_INSTANCE_INFO = 10 * 1024
MAX_SYS_CONFIG = 32 * 1024


@dataclass(frozen=True)
class App:
    """The app-compose document: its exact text, its hash (32 bytes) and what it says."""

    text: str
    compose_hash: bytes
    compose: AppCompose

    @classmethod
    def read(cls, path: Path) -> App:
        """Reads the document; Invalid when it breaks a rule."""
        raw = files.read_capped(path, MAX_COMPOSE)
        parsed = AppCompose.parse(raw)
        return cls(raw.decode(), compose.compose_hash(raw), parsed)


@dataclass(frozen=True)
class Instance:
    """Which app this is and which of its instances; `instance_id` is empty when the app wants none."""

    app_id: bytes
    instance_id: bytes
    seed: bytes

    def to_json(self) -> str:
        """The text of `.instance_info` and of the `instance.info` event."""
        return json.dumps(
            {
                "instance_id_seed": self.seed.hex(),
                "instance_id": self.instance_id.hex(),
                "app_id": self.app_id.hex(),
            }
        )


@dataclass(frozen=True)
class InstanceInfo:
    """The fields of `.instance_info` as given; each may be empty."""

    seed: bytes = b""
    instance_id: bytes = b""
    app_id: bytes = b""

    @classmethod
    def read(cls, path: Path) -> InstanceInfo:
        """Reads the file; empty when absent, Invalid when a field is no hex or has a wrong length."""
        given = read_object(path, MAX_INSTANCE_INFO)
        return cls(
            seed=_hex(given, "instance_id_seed"),
            instance_id=_hex(given, "instance_id"),
            app_id=_hex(given, "app_id"),
        )

    def of_app(self, app: App, *, fresh_seed: bytes, keep_id: bool = False) -> Instance:
        """The identity these fields give the app (guest-agent.md section 3).

        `fresh_seed` is taken when the file has none; `keep_id` takes a given instance id as it is, which
        only a simulated agent may.
        """
        app_id = self.app_id or app.compose_hash[:APP_ID_SIZE]
        seed = self.seed or fresh_seed
        if app.compose.no_instance_id:
            return Instance(app_id, b"", seed)
        if keep_id and self.instance_id:
            return Instance(app_id, self.instance_id, seed)
        return Instance(app_id, hashlib.sha256(seed + app_id).digest()[:20], seed)


@dataclass(frozen=True)
class SysConfig:
    """What the host says about the VM; `vm_config` and `mr_config` are JSON texts kept as received."""

    vm_config: str = ""
    os_image_hash: bytes = b""
    mr_config: str = ""
    docker_registry: str = ""
    host_api_url: str = ""
    kms_urls: tuple[str, ...] = ()

    @classmethod
    def read(cls, path: Path) -> SysConfig:
        """Reads `.sys-config.json`; all empty when absent, Invalid when a field has a wrong type."""
        given = read_object(path, MAX_SYS_CONFIG)
        vm_config = _text(given, "vm_config")
        return cls(
            vm_config=vm_config,
            os_image_hash=_os_image_hash(vm_config),
            mr_config=_text(given, "mr_config"),
            docker_registry=_text(given, "docker_registry"),
            host_api_url=_text(given, "host_api_url"),
            kms_urls=_texts(given, "kms_urls"),
        )


def _os_image_hash(vm_config: str) -> bytes:
    if not vm_config:
        return b""
    try:
        given = json.loads(vm_config)
    except (ValueError, RecursionError):
        raise Invalid.field("vm_config", "must be JSON") from None
    if not isinstance(given, Mapping):
        raise Invalid.field("vm_config", "must be a JSON object")
    return _hex(given, "os_image_hash", size=32)


def read_object(path: Path, limit: int) -> Mapping[str, object]:
    """The JSON object in a file; empty when there is no file, Invalid when it is something else."""
    try:
        raw = files.read_capped(path, limit)
    except FileNotFoundError:
        return {}
    try:
        given = json.loads(raw)
    except (ValueError, RecursionError):
        raise Invalid(f"{path.name} is not valid JSON") from None
    if not isinstance(given, Mapping):
        raise Invalid(f"{path.name} must be a JSON object")
    return given


def _text(given: Mapping[str, object], name: str) -> str:
    value = given.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise Invalid.field(name, "must be a string")
    return value


def _texts(given: Mapping[str, object], name: str) -> tuple[str, ...]:
    value = given.get(name)
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise Invalid.field(name, "must be a list of strings")
    return tuple(value)


def _hex(given: Mapping[str, object], name: str, size: int = APP_ID_SIZE) -> bytes:
    text = _text(given, name)
    try:
        value = bytes.fromhex(text.removeprefix("0x"))
    except ValueError:
        raise Invalid.field(name, "must be hex text") from None
    if value and len(value) != size:
        raise Invalid.field(name, f"must be {size} bytes of hex")
    return value
