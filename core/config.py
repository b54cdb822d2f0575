"""The configuration file: dstack's key names, every default and unit stated once.

Source: vmm.md section 13 (dstack's vmm.toml) and the README of the contracts for the keys of our own.
"""

from __future__ import annotations

import difflib
import ipaddress
import logging
import os
import re
import shutil
import tomllib
import types
import typing
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from core.errors import Invalid

logger = logging.getLogger(__name__)

# A Unix socket's path may have 107 bytes; the longest of ours is <run_path>/<36-byte id>/guest.sock.
_SOCKET_PATH_MAX = 107
_LONGEST_IN_RUN_PATH = len("/") + 36 + len("/guest.sock")


@dataclass(frozen=True)
class ImageConfig:
    """Guest operating system images."""

    path: Path = Path()  # default: DATA_DIR/images
    registry: str = ""
    default: str = ""  # the image of a request that names none


@dataclass(frozen=True)
class NetworkingConfig:
    """The network of a VM that asks for none of its own."""

    mode: str = "user"
    net: str = "10.0.2.0/24"
    dhcp_start: str = "10.0.2.10"
    restrict: bool = False
    bridge: str = ""
    mac_prefix: str = ""
    netdev: str = ""


@dataclass(frozen=True)
class PortRange:
    """Host ports that tenants may map, both ends included."""

    protocol: str = "tcp"
    from_: int = 1
    to: int = 20000


@dataclass(frozen=True)
class PortMappingConfig:
    """Whether and where guest ports appear on the host."""

    enabled: bool = False
    address: str = "127.0.0.1"
    range: tuple[PortRange, ...] = (PortRange(),)


@dataclass(frozen=True)
class AutoRestartConfig:
    """Restarting VMs that should run and do not; seconds."""

    enabled: bool = True
    interval: int = 20
    max_retries: int = 5
    initial_backoff: int = 5
    max_backoff: int = 300
    reset_window: int = 300


@dataclass(frozen=True)
class LogConfig:
    """Rotation of the serial logs; `max_bytes` takes K, M or G, 0 turns it off."""

    max_bytes: int = 4 * 1024 * 1024
    max_backups: int = 3
    check_interval_secs: int = 5


@dataclass(frozen=True)
class ProductConfig:
    """The DMI texts that a guest sees."""

    sys_vendor: str = ""
    product_name: str = "dstack"


@dataclass(frozen=True)
class CvmConfig:
    """How VMs are made and run."""

    platform: str = "auto"
    accel: str = "auto"
    channel: str = "auto"
    simulate: bool = False
    qemu_path: str = ""  # default: qemu-system-x86_64 on PATH
    kms_urls: tuple[str, ...] = ()
    gateway_urls: tuple[str, ...] = ()
    pccs_url: str = ""
    docker_registry: str = ""
    cid_start: int = 1000
    cid_pool_size: int = 1000
    max_allocable_vcpu: int = 20
    max_allocable_memory_in_mb: int = 100_000
    host_share_mode: str = "vhd"
    use_mrconfigid: bool = True
    qemu_pci_hole64_size: int = 0
    qemu_hotplug_off: bool = False
    qgs_port: int = 4050
    user: str = ""
    product: ProductConfig = ProductConfig()
    networking: NetworkingConfig = NetworkingConfig()
    port_mapping: PortMappingConfig = PortMappingConfig()
    auto_restart: AutoRestartConfig = AutoRestartConfig()
    log: LogConfig = LogConfig()


@dataclass(frozen=True)
class GatewayConfig:
    """Where apps would be published by a gateway; Casemate has none of its own."""

    base_domain: str = "localhost"
    port: int = 8082
    agent_port: int = 8090


@dataclass(frozen=True)
class AuthConfig:
    """Who may call.  Tokens are read here and kept only as digests (accounts/tokens.py)."""

    enabled: bool = False
    tokens: tuple[str, ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class HostApiConfig:
    """Where guests with vsock find the host API."""

    address: str = "vsock:2"
    port: int = 10000


@dataclass(frozen=True)
class ServerConfig:
    """The HTTP server: threads must outnumber streams (performance.md section 2.1)."""

    workers: int = 2
    threads: int = 64


@dataclass(frozen=True)
class Config:
    """Everything `casemate serve` reads at start."""

    address: str = "unix:./vmm.sock"
    data_dir: Path = Path("data")
    run_path: Path = Path()  # default: DATA_DIR/vm
    kms_url: str = "http://127.0.0.1:8081"
    event_buffer_size: int = 20
    node_name: str = ""
    image: ImageConfig = ImageConfig()
    cvm: CvmConfig = CvmConfig()
    gateway: GatewayConfig = GatewayConfig()
    auth: AuthConfig = AuthConfig()
    host_api: HostApiConfig = HostApiConfig()
    server: ServerConfig = ServerConfig()
    admin_token: str = field(default="", repr=False)  # from CASEMATE_ADMIN_TOKEN alone

    @property
    def database(self) -> Path:
        """The SQLite file."""
        return self.data_dir / "casemate.db"

    @property
    def tee_dir(self) -> Path:
        """The simulated TEE's seed, root and collateral."""
        return self.data_dir / "tee"


def cache_dir() -> Path:
    """Where built images and downloaded packages are kept between data directories."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("CASEMATE_CACHE_DIR") or Path(home) / "casemate").absolute()


def load(path: Path | None = None) -> Config:
    """The configuration of a TOML file (None: all defaults) with the environment's word on top.

    Unknown keys warn and are ignored; a value of the wrong type or range raises Invalid naming the key.
    """
    table: dict[str, Any] = {}
    if path is not None:
        try:
            table = tomllib.loads(path.read_text())
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise Invalid(f"{path}: {error}") from None
    config = _build(Config, table, "")
    environment = os.environ
    if address := environment.get("CASEMATE_ADDRESS"):
        config = replace(config, address=address)
    if data_dir := environment.get("CASEMATE_DATA_DIR"):
        config = replace(config, data_dir=Path(data_dir))
    config = replace(config, admin_token=environment.get("CASEMATE_ADMIN_TOKEN", ""))
    return check(_with_paths(config))


def _with_paths(config: Config) -> Config:
    """Paths made absolute, so that nothing depends on a later working directory."""
    data_dir = config.data_dir.absolute()
    run_path = config.run_path.absolute() if config.run_path != Path() else data_dir / "vm"
    images = config.image.path.absolute() if config.image.path != Path() else data_dir / "images"
    qemu = config.cvm.qemu_path or shutil.which("qemu-system-x86_64") or ""
    return replace(
        config,
        data_dir=data_dir,
        run_path=run_path,
        image=replace(config.image, path=images),
        cvm=replace(config.cvm, qemu_path=qemu),
    )


def check(config: Config) -> Config:
    """Returns a configuration whose values fit together, or raises Invalid naming the key."""
    for name, path in (("data_dir", config.data_dir), ("run_path", config.run_path)):
        if "," in str(path) or "=" in str(path):
            raise Invalid.field(name, "must not contain ',' or '=' (QEMU's option separators)")
    if len(os.fsencode(config.run_path)) + _LONGEST_IN_RUN_PATH > _SOCKET_PATH_MAX:
        raise Invalid.field(
            "run_path", "is too long for the sockets of a VM; choose a shorter data_dir"
        )
    listen = re.fullmatch(r"unix:.+|tcp:.+:(\d{1,5})", config.address)
    if not listen or int(listen[1] or 0) > 65535:
        raise Invalid.field("address", "must be tcp:IP:PORT or unix:PATH")
    cvm = config.cvm
    for key, value, allowed in (
        ("cvm.platform", cvm.platform, ("auto", "tdx", "amd-sev-snp")),
        ("cvm.accel", cvm.accel, ("auto", "kvm", "tcg")),
        ("cvm.channel", cvm.channel, ("auto", "serial", "vsock")),
        ("cvm.host_share_mode", cvm.host_share_mode, ("vhd", "9p", "vvfat")),
        ("cvm.networking.mode", cvm.networking.mode, ("user", "bridge", "passt", "custom")),
    ):
        if value not in allowed:
            raise Invalid.field(key, f"must be one of {', '.join(allowed)}")
    if not re.fullmatch(r"([0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){0,2})?", cvm.networking.mac_prefix):
        raise Invalid.field("cvm.networking.mac_prefix", "must be up to three bytes like 52:54:00")
    if cvm.cid_start < 3:
        raise Invalid.field("cvm.cid_start", "must be at least 3 (lower numbers are reserved)")
    restart = cvm.auto_restart
    if not 0 < restart.initial_backoff <= restart.max_backoff:
        raise Invalid.field(
            "cvm.auto_restart.initial_backoff", "must be above 0 and at most max_backoff"
        )
    for each in cvm.port_mapping.range:
        if each.protocol not in ("tcp", "udp") or not 1 <= each.from_ <= each.to <= 65535:
            raise Invalid.field(
                "cvm.port_mapping.range", "needs tcp or udp and 1 <= from <= to <= 65535"
            )
    try:
        ipaddress.ip_address(cvm.port_mapping.address)
    except ValueError:
        raise Invalid.field("cvm.port_mapping.address", "must be an IP address") from None
    if min(config.server.workers, config.server.threads) < 1:
        raise Invalid.field("server", "workers and threads must be at least 1")
    return config


def _build(cls: Any, table: object, prefix: str) -> Any:
    if not isinstance(table, dict):
        raise Invalid.field(prefix or "configuration", "must be a table")
    hints = typing.get_type_hints(cls)
    known = {each.name.rstrip("_"): each.name for each in fields(cls) if each.name != "admin_token"}
    values = {}
    for key, value in table.items():
        name = f"{prefix}.{key}" if prefix else key
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            logger.warning("unknown configuration key %s is ignored%s", name, hint)
            continue
        values[known[key]] = _convert(hints[known[key]], value, name)
    return cls(**values)


def _convert(kind: Any, value: object, name: str) -> object:
    if is_dataclass(kind):
        return _build(kind, value, name)
    if isinstance(kind, types.GenericAlias):  # tuple[X, ...]
        if not isinstance(value, list):
            raise Invalid.field(name, "must be a list")
        return tuple(_convert(kind.__args__[0], each, name) for each in value)
    if kind is int and isinstance(value, str) and (size := re.fullmatch(r"(\d+)([KMG])", value)):
        return int(size[1]) * 1024 ** (" KMG".index(size[2]))
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is int and isinstance(value, bool) or not isinstance(value, kind):
        raise Invalid.field(name, f"must be of type {kind.__name__}")
    if kind is int and typing.cast(int, value) < 0:
        raise Invalid.field(name, "must not be negative")
    return value
