"""What a request asks of a VM, and what is made of it: everything checked, nothing in the clear that is secret."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from attest import compose
from core.config import Config
from core.errors import Invalid
from core.sealed_env import seal
from rest.docker_compose import published
from secretvm import document, sizes
from secretvm.document import Measured
from secretvm.secrets import CREDENTIALS, Given, Keys
from secretvm.vm_object import Flags

# Gives the X25519 key of an app id (both as bytes).
KeyOf = Callable[[bytes], bytes]


@dataclass(frozen=True)
class Wanted:
    """The fields of create, launch and update; None and, for texts, "" were not given."""

    name: str = ""
    vm_type: str = ""
    compose: bytes = b""
    docker_files: bytes = b""
    secrets: Given = field(default_factory=Given)
    persistent: bool | None = None
    upgradeable: bool | None = None
    private: bool | None = None
    environment: str = ""
    dev_token: str = field(default="", repr=False)
    skip_launch: bool | None = None
    skip_attest: bool | None = None
    ita: bool | None = None
    poc: bool | None = None
    description: str = ""
    kms_provider: str = ""
    platform: str = ""
    custom_domain: str = ""
    registration: Mapping[str, Any] | None = None


def for_agent(asked: Wanted) -> Wanted:
    """What an agent asks for, with what is taken for granted of agents: upgradeable, and no wait for a quote."""
    return replace(
        asked,
        upgradeable=True,
        skip_attest=True if asked.skip_attest is None else asked.skip_attest,
    )


@dataclass(frozen=True)
class Prepared:
    """A VM that is ready to be made or changed: what is measured, what is sealed, what is kept beside it."""

    app_id: str
    app_compose: str
    encrypted_env: bytes
    user_config: str
    vm_type: str
    name: str
    flags: Flags
    registration: Mapping[str, Any] | None
    publish: tuple[int, ...]

    @property
    def starts(self) -> bool:
        """Whether the VM starts when it is made; one with a domain of its own waits for its DNS record."""
        return not (self.flags.skip_launch or self.flags.custom_domain)


def prepare(
    wanted: Wanted,
    config: Config,
    *,
    host_tee: str,
    app_id: Callable[[], str],
    keys: Keys,
    key_of: KeyOf,
) -> Prepared:
    """A new VM; `app_id` gives its 40 hex digits once all else is in order."""
    if not wanted.name:
        raise Invalid.field("name", "is missing")
    size = sizes.find(config, wanted.vm_type)
    text = document.read_compose(wanted.compose)
    flags = changed_flags(Flags(), wanted)
    check_platform(config, host_tee, flags)
    measured = changed_measured(Measured(), wanted)
    publish = document.guest_ports(text)
    variables = wanted.secrets.opened(keys)
    drawn = app_id()
    return Prepared(
        app_id=drawn,
        app_compose=document.app_compose(wanted.name, text, measured, variables),
        encrypted_env=sealed(drawn, variables, key_of),
        user_config=user_config(wanted.docker_files),
        vm_type=size.id,
        name=wanted.name,
        flags=flags,
        registration=wanted.registration,
        publish=publish,
    )


def prepare_change(
    before: Prepared, wanted: Wanted, config: Config, *, host_tee: str, keys: Keys, key_of: KeyOf
) -> Prepared:
    """A VM as it will be; what is not given stays as it is."""
    app = compose.document_of(before.app_compose)
    text = document.docker_compose(app)
    if wanted.compose:
        text = document.read_compose(wanted.compose)
    flags = changed_flags(before.flags, wanted)
    check_platform(config, host_tee, flags)
    variables = wanted.secrets.opened(keys)
    return replace(
        before,
        app_compose=_changed_document(app, text, wanted, variables),
        encrypted_env=sealed(before.app_id, variables, key_of),
        user_config=user_config(wanted.docker_files),
        name=wanted.name or before.name,
        flags=flags,
        registration=wanted.registration or before.registration,
        publish=_changed_ports(before, document.docker_compose(app), text),
    )


def _changed_ports(before: Prepared, old_text: str, text: str) -> tuple[int, ...]:
    """The published ports; those that no compose text asked for are a cluster's, and stay."""
    if not before.publish:  # made elsewhere
        return ()
    asked = {document.GUEST_PORT, *published(old_text)}
    extra = [port for port in before.publish if port not in asked]
    return tuple(dict.fromkeys((*document.guest_ports(text), *extra)))


def _changed_document(
    app: Mapping[str, Any], text: str, wanted: Wanted, variables: Mapping[str, str]
) -> str:
    allowed = app.get("allowed_envs") or []
    _check_whole(allowed, variables)
    before = document.measured_in(app)
    if before is None:
        return _changed_elsewhere(app, text, wanted, variables)
    # Its name is measured: another name for people makes no other app.
    name = str(app.get("name") or wanted.name)
    measured = changed_measured(before, wanted)
    return document.app_compose(name, text, measured, variables or allowed)


def _changed_elsewhere(
    app: Mapping[str, Any], text: str, wanted: Wanted, variables: Mapping[str, str]
) -> str:
    """The document of a VM made elsewhere: its maker's, but for the docker-compose text."""
    if wanted.compose and not document.docker_compose(app):
        raise Invalid.field(
            "dockercompose", "this VM was made elsewhere from something else than a compose file"
        )
    unknown = sorted(set(variables) - set(app.get("allowed_envs") or []))
    if unknown:
        raise Invalid.field(
            "secrets", f"this VM was made elsewhere and its app-compose does not allow {unknown[0]}"
        )
    if not wanted.compose:
        return ""
    return json.dumps({**app, "docker_compose_file": text}, indent=4, ensure_ascii=False)


def _check_whole(allowed: list[str], variables: Mapping[str, str]) -> None:
    """Nobody but the guest can read what is sealed, so a part of it cannot be kept."""
    had, has = CREDENTIALS & set(allowed), CREDENTIALS & set(variables)
    if variables and had and not has:
        raise Invalid.field(
            "docker_credentials_encrypted",
            "must be sent again with the secrets: both are sealed as one",
        )
    if has and set(allowed) - CREDENTIALS and not set(variables) - CREDENTIALS:
        raise Invalid.field(
            "secrets", "must be sent again with the credentials: both are sealed as one"
        )


def sealed(app_id: str, variables: Mapping[str, str], key_of: KeyOf) -> bytes:
    """The variables as only the guest can read them; b"" for none, without asking any KMS."""
    return seal(key_of(bytes.fromhex(app_id)), variables) if variables else b""


def user_config(docker_files: bytes) -> str:
    """The user config that carries docker files; "" for none."""
    if not docker_files:
        return ""
    return json.dumps({"docker_files": base64.b64encode(docker_files).decode()})


def changed_measured(before: Measured, wanted: Wanted) -> Measured:
    """The measured flags with those that were given."""
    files = wanted.docker_files
    given: dict[str, Any] = {
        "environment": wanted.environment or None,
        "private": wanted.private,
        "persistent": wanted.persistent,
        "upgradeable": wanted.upgradeable,
        "dev_token_sha256": _digest(wanted.dev_token.encode()) if wanted.dev_token else None,
        "docker_files_sha256": document.check_docker_files(files) if files else None,
    }
    return replace(before, **{key: value for key, value in given.items() if value is not None})


def changed_flags(before: Flags, wanted: Wanted) -> Flags:
    """The flags with those that were given."""
    given: dict[str, Any] = {
        "kms_provider": wanted.kms_provider or None,
        "platform": wanted.platform or None,
        "description": wanted.description or None,
        "ita": wanted.ita,
        "poc": wanted.poc,
        "skip_attest": wanted.skip_attest,
        "skip_launch": wanted.skip_launch,
        "custom_domain": wanted.custom_domain or None,
        **_token_hints(wanted.dev_token),
    }
    return replace(before, **{key: value for key, value in given.items() if value is not None})


def check_platform(config: Config, host_tee: str, flags: Flags) -> None:
    """Invalid when this host can neither be nor play the platform."""
    if flags.kms_provider == "gramine" and flags.platform == "sev":
        raise Invalid.field("kms_provider", "gramine is not for platform sev")
    has = {"tdx": "tdx", "sev": "amd-sev-snp"}[flags.platform]
    if host_tee != has and not config.cvm.simulate:
        raise Invalid.field(
            "platform", f"this host has no {flags.platform} and does not simulate it (cvm.simulate)"
        )


def kept_flags(flags: Flags) -> dict[str, Any]:
    """The flags as a row keeps them."""
    return asdict(flags)


def _token_hints(token: str) -> dict[str, str | None]:
    # Of a short token its ends would be most of it.
    is_long = len(token) >= 16
    return {
        "dev_token_name": token[:4] if is_long else None,
        "dev_token_hint": token[-4:] if is_long else None,
    }


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
