"""The rules for what a VM may be made from (vmm.md section 4, "Validation of a configuration")."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attest import compose
from core.config import Config
from core.errors import CasemateError, Invalid
from core.urls import is_web_address
from image import registry
from vmm import companion, gpu
from vmm.network import Port, check_apart, check_nics, check_port, check_reachable
from vmm.schemas import Configuration
from vmm.simulation import SNP as SIMULATED_SNP

DISK_MOST_GB = 64 * 1024
COMPOSE_LIMIT = 50 * 1024**2
ENCRYPTED_ENV_LIMIT = 256 * 1024
USER_CONFIG_LIMIT = 50 * 1024**2
URLS_MOST, URL_LIMIT = 16, 512
# What attest_sim can play, the usual one first; dstack names more (vmm.md section 3).
SIMULATED_PLATFORMS = ("dstack-tdx", SIMULATED_SNP)

_NAME = re.compile(r"[A-Za-z0-9\-_. @~!$^()]+")
_APP_ID = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Checked:
    """The derived parts of a configuration that keeps every rule."""

    name: str
    image: registry.Image
    app_id: str
    ports: tuple[Port, ...]
    simulated_tee: str | None
    warning: str
    options: dict[str, Any]


def check(
    wanted: Configuration, config: Config, *, host_tee: str, root: Path = Path("/")
) -> Checked:
    """Applies every rule to a configuration; Invalid names the field, the rule and what to change.

    `root` is where the host's /sys is found.
    """
    ports = tuple(
        check_port(i, p.protocol, p.host_address, p.host_port, p.vm_port, config.cvm.port_mapping)
        for i, p in enumerate(wanted.ports)
    )
    check_apart(ports)
    _check_sizes(wanted)
    _check_limits(wanted, config)
    _check_urls(wanted)
    raw = check_compose(wanted.compose_file)
    app = compose.AppCompose.parse(raw)
    _check_devices(wanted, ports, app, config, root)
    image = _image(wanted.image, config)
    _check_key_provider(app, image)
    return Checked(
        name=check_name(wanted.name),
        image=image,
        app_id=_app_id(wanted.app_id) or compose.app_id(raw).hex(),
        ports=ports,
        simulated_tee=_simulated(wanted, config, host_tee),
        warning=f"these can change under their tags: {mutable}"
        if (mutable := _mutable(app))
        else "",
        options={
            "kms_urls": wanted.kms_urls,
            "gateway_urls": wanted.gateway_urls,
            "gpus": wanted.gpus,
            "networking": wanted.networking,
            "networks": wanted.networks,
            "gateway": app.gateway_enabled,
        },
    )


def check_name(name: str) -> str:
    """The trimmed name of a VM."""
    trimmed = name.strip()
    if not trimmed:
        raise Invalid.field("name", "must not be empty")
    if len(trimmed) > 64:
        raise Invalid.field("name", "must have at most 64 characters")
    if not _NAME.fullmatch(trimmed):
        raise Invalid.field(
            "name", "may contain only letters, digits, spaces and - _ . @ ~ ! $ ^ ( )"
        )
    return trimmed


def check_compose(text: str) -> bytes:
    """The exact bytes of an app-compose text that parses as a JSON object."""
    raw = text.encode()
    if len(raw) > COMPOSE_LIMIT:
        raise Invalid.field("compose_file", f"must have at most {COMPOSE_LIMIT} bytes")
    try:
        app = compose.AppCompose.parse(raw)
    except CasemateError as error:
        raise Invalid.field("compose_file", error.message.removeprefix("compose_file: ")) from None
    if app.require_digest and (mutable := _mutable(app)):
        raise Invalid.field(
            "compose_file",
            f"require_digest is set, but {mutable} can change: name each image as image@sha256:...",
        )
    return raw


def _mutable(app: compose.AppCompose) -> str:
    images = compose.mutable_images(app.docker_compose_file)
    shown = ", ".join(image[:200] for image in images[:5])
    return f"{shown} and {len(images) - 5} more" if len(images) > 5 else shown


def _check_sizes(wanted: Configuration) -> None:
    for name in ("vcpu", "memory", "disk_size"):
        if getattr(wanted, name) < 1:
            raise Invalid.field(name, "must be at least 1")
    for name, unit, most in (
        ("vcpu", "", 4096),
        ("memory", " (MB)", 64 * 1024**2),
        ("disk_size", " (GB)", DISK_MOST_GB),
    ):
        if getattr(wanted, name) > most:
            raise Invalid.field(name, f"must be at most {most}{unit}")
    if len(wanted.encrypted_env) > ENCRYPTED_ENV_LIMIT:
        raise Invalid.field("encrypted_env", f"must have at most {ENCRYPTED_ENV_LIMIT} bytes")
    if len(wanted.user_config.encode()) > USER_CONFIG_LIMIT:
        raise Invalid.field("user_config", f"must have at most {USER_CONFIG_LIMIT} bytes")


def _check_urls(wanted: Configuration) -> None:
    # They go into .sys-config.json, of which a guest reads 32 KiB.
    for name in ("kms_urls", "gateway_urls"):
        urls = getattr(wanted, name)
        if len(urls) > URLS_MOST:
            raise Invalid.field(name, f"at most {URLS_MOST} entries")
        for index, url in enumerate(urls):
            if len(url) > URL_LIMIT or not is_web_address(url):
                raise Invalid.field(
                    f"{name}[{index}]",
                    f"must be an http(s) address with a host, of at most {URL_LIMIT} characters",
                )


def _check_limits(wanted: Configuration, config: Config) -> None:
    # More than the host allows in all running VMs together could never be started.
    for name, most in (
        ("vcpu", config.cvm.max_allocable_vcpu),
        ("memory", config.cvm.max_allocable_memory_in_mb),
    ):
        if getattr(wanted, name) > most:
            raise Invalid.field(name, f"must be at most {most} (cvm.max_allocable_* of this host)")


def _check_devices(
    wanted: Configuration,
    ports: tuple[Port, ...],
    app: compose.AppCompose,
    config: Config,
    root: Path,
) -> None:
    gpu.requested(wanted.gpus, root, config.cvm.gpu)
    nics = check_nics(wanted.networking, wanted.networks, config.cvm.networking)
    check_reachable(ports, nics)
    if any(nic.mode == "passt" for nic in nics):
        companion.check_installed("passt", "networking.mode")
    if app.key_provider == "tpm":
        companion.check_installed("swtpm", "compose_file")


def _check_key_provider(app: compose.AppCompose, image: registry.Image) -> None:
    # The guest would refuse it as well, a minute later.
    if app.key_provider == "local" and image.is_ours:
        raise Invalid.field(
            "compose_file",
            f"key_provider local is not offered by image {image.name}, which cannot check the quote of an SGX "
            "key provider; choose kms or tpm, or none for keys and a disk that last one boot",
        )


def _image(name: str, config: Config) -> registry.Image:
    if not name:
        raise Invalid.field("image", "must not be empty")
    try:
        return registry.load(config.image.path, name)
    except CasemateError as error:
        raise Invalid.field("image", error.message.removeprefix("image: ")) from None


def _app_id(given: str | None) -> str:
    if not given:
        return ""
    bare = given.lower().removeprefix("0x")
    if not _APP_ID.fullmatch(bare):
        raise Invalid.field("app_id", "must be 40 hex digits")
    return bare


def _simulated(wanted: Configuration, config: Config, host_tee: str) -> str | None:
    if wanted.simulated_tee:
        if wanted.simulated_tee not in SIMULATED_PLATFORMS:
            raise Invalid.field("simulated_tee", f"must be one of {', '.join(SIMULATED_PLATFORMS)}")
        return wanted.simulated_tee
    # A host whose owner allowed simulation runs what asks for a TEE in a simulated one; a host with a
    # TEE never does.
    if config.cvm.simulate and not wanted.no_tee and not host_tee:
        return SIMULATED_PLATFORMS[0]
    return None
