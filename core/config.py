"""The configuration file: dstack's key names, every default and unit stated once.

Source: vmm.md section 13 (dstack's vmm.toml) and the README of the contracts for the keys of our own.
"""

from __future__ import annotations

import os
import re
import shutil
import tomllib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from core import config_apps, config_cvm, config_runs, config_secretvm, tables
from core.config_apps import AppsConfig
from core.config_cvm import CvmConfig
from core.config_runs import OffersConfig, RunsConfig
from core.config_secretvm import BillingConfig, ClusterConfig, SecretVmConfig
from core.errors import Invalid
from core.urls import is_web_address

# A Unix socket's path may have 107 bytes; the longest of ours is <run_path>/<36-byte id>/passt7/run/sock.
_SOCKET_PATH_MAX = 107
_LONGEST_IN_RUN_PATH = len("/") + 36 + len("/passt7/run/sock")
# The number above the last one means any of them.
_CID_MAX = 2**32 - 2


@dataclass(frozen=True)
class ImageConfig:
    """Guest operating system images."""

    path: Path = Path()  # default: DATA_DIR/images
    registry: str = ""
    default: str = ""  # the image of a request that names none


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
    htpasswd_file: Path = Path()  # default: none


@dataclass(frozen=True)
class HostApiConfig:
    """Where guests with vsock find the host API."""

    address: str = "vsock:2"
    port: int = 10000


@dataclass(frozen=True)
class KeyProviderConfig:
    """The SGX key provider of this host, which gives guests a sealing key."""

    enabled: bool = True
    address: str = "127.0.0.1"
    port: int = 3443


@dataclass(frozen=True)
class KmsConfig:
    """What the service does for a KMS of this host that decides by a policy file."""

    register_apps: bool = False  # allow there what users of this service deploy
    policy_file: Path = Path()  # default: DATA_DIR/kms/policy.json


@dataclass(frozen=True)
class ServerConfig:
    """The HTTP server: threads must outnumber streams (performance.md section 2.1)."""

    workers: int = 2
    threads: int = 64


@dataclass(frozen=True)
class KnownMachine:
    """A machine that the operator knows by its id in quotes (32 hex digits), and what they call it."""

    id: str = ""
    label: str = ""


@dataclass(frozen=True)
class AttestationConfig:
    """What verification goes by: roots beside the vendors' own, and where collateral comes from.

    `outbound` says where checks that strangers ask for may connect to: off, public (addresses) or any.
    """

    root_ca: Path = Path()
    collateral: Path = Path()
    pccs_url: str = ""
    kds_url: str = ""
    known_machines: tuple[KnownMachine, ...] = ()
    outbound: str = ""  # default: any where only this host can ask, else public


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
    cvm: CvmConfig = field(default_factory=CvmConfig)
    gateway: GatewayConfig = GatewayConfig()
    auth: AuthConfig = AuthConfig()
    host_api: HostApiConfig = HostApiConfig()
    key_provider: KeyProviderConfig = KeyProviderConfig()
    kms: KmsConfig = KmsConfig()
    server: ServerConfig = ServerConfig()
    attestation: AttestationConfig = AttestationConfig()
    secretvm: SecretVmConfig = field(default_factory=SecretVmConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    billing: BillingConfig = field(default_factory=BillingConfig)
    apps: AppsConfig = field(default_factory=AppsConfig)
    runs: RunsConfig = field(default_factory=RunsConfig)
    offers: OffersConfig = field(default_factory=OffersConfig)
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
    config = tables.build(Config, table, "")
    environment = os.environ
    address = environment.get("CASEMATE_ADDRESS", "")
    # A URL is where clients find a service, this one or another.
    if address and "://" not in address:
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
        auth=replace(config.auth, htpasswd_file=_absolute(config.auth.htpasswd_file)),
        cvm=replace(config.cvm, qemu_path=qemu),
        kms=replace(
            config.kms,
            policy_file=_absolute(config.kms.policy_file, data_dir / "kms" / "policy.json"),
        ),
        attestation=replace(
            config.attestation,
            root_ca=_absolute(config.attestation.root_ca),
            collateral=_absolute(config.attestation.collateral),
        ),
    )


def _absolute(path: Path, default: Path = Path()) -> Path:
    chosen = default if path == Path() else path
    return chosen if chosen == Path() else chosen.absolute()


def check(config: Config) -> Config:
    """Returns a configuration whose values fit together, or raises Invalid naming the key."""
    _check_paths(config)
    _check_attestation(config.attestation)
    _check_numbers(config)
    _check_urls(config)
    _check_words(config)
    config_cvm.check(config.cvm)
    config_apps.check(config.apps)
    config_runs.check(config.runs, config.offers)
    config_secretvm.check_sizes(config.secretvm.vm_types)
    config_secretvm.check_cluster(config.cluster)
    return config


def _check_paths(config: Config) -> None:
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


def _check_attestation(attestation: AttestationConfig) -> None:
    if attestation.outbound not in ("", "off", "public", "any"):
        raise Invalid.field("attestation.outbound", "must be one of off, public, any")
    for machine in attestation.known_machines:
        if not re.fullmatch(r"[0-9a-f]{32}", machine.id):
            raise Invalid.field(
                "attestation.known_machines.id", "must be a machine_id: 32 hex digits, lower case"
            )


def _check_numbers(config: Config) -> None:
    cvm, restart = config.cvm, config.cvm.auto_restart
    for key, value, least, most in (
        ("cvm.cid_start", cvm.cid_start, 3, _CID_MAX),
        ("cvm.cid_pool_size", cvm.cid_pool_size, 1, _CID_MAX + 1 - cvm.cid_start),
        ("cvm.qgs_port", cvm.qgs_port, 0, 2**32 - 1),
        ("cvm.log.check_interval_secs", cvm.log.check_interval_secs, 1, 86400),
        ("cvm.auto_restart.interval", restart.interval, 1, 86400),
        ("cvm.auto_restart.initial_backoff", restart.initial_backoff, 1, restart.max_backoff),
        ("event_buffer_size", config.event_buffer_size, 1, 10_000),
        ("gateway.port", config.gateway.port, 1, 65535),
        ("gateway.agent_port", config.gateway.agent_port, 1, 65535),
        ("host_api.port", config.host_api.port, 1, 2**32 - 2),
        ("key_provider.port", config.key_provider.port, 1, 65535),
        ("server.workers", config.server.workers, 1, 1000),
        ("server.threads", config.server.threads, 1, 10_000),
        ("secretvm.creates_per_minute", config.secretvm.creates_per_minute, 1, 1_000_000),
        ("secretvm.coin_price_interval_s", config.secretvm.coin_price_interval_s, 1, 86400),
    ):
        if not least <= value <= most:
            raise Invalid.field(key, f"must be between {least} and {most}")


def _check_urls(config: Config) -> None:
    cvm = config.cvm
    for key, urls in (
        ("kms_url", (config.kms_url,)),
        ("cvm.kms_urls", cvm.kms_urls),
        ("cvm.gateway_urls", cvm.gateway_urls),
        ("cvm.pccs_url", (cvm.pccs_url,)),
        ("cvm.nvidia_attestation_proxy_url", (cvm.nvidia_attestation_proxy_url,)),
        ("attestation.pccs_url", (config.attestation.pccs_url,)),
        ("attestation.kds_url", (config.attestation.kds_url,)),
        ("secretvm.coin_price_url", (config.secretvm.coin_price_url,)),
    ):
        for url in filter(None, urls):
            if not is_web_address(url):
                raise Invalid.field(key, f"{url!r} must be http:// or https:// with a host")


def _check_words(config: Config) -> None:
    gpu, slot = config.cvm.gpu, r"([0-9a-fA-F]{4}:)?[0-9a-fA-F]{2}:[0-9a-fA-F]{2}\.[0-7]"
    for key, words, form, example in (
        ("cvm.gpu.listing", gpu.listing, r"[0-9a-fA-F]{4}:[0-9a-fA-F]{4}", "10de:2335"),
        ("cvm.gpu.exclude", gpu.exclude, slot, "0000:3b:00.0"),
        ("cvm.gpu.include", gpu.include, slot, "0000:3b:00.0"),
        ("cvm.qemu_version", (config.cvm.qemu_version,), r"(\d+\.\d+\.\d+)?", "9.2.1"),
        ("cvm.user", (config.cvm.user,), r"([a-z_][a-z0-9_\-]{0,31})?", "casemate-vm"),
        ("host_api.address", (config.host_api.address,), r"vsock:2", "vsock:2"),
    ):
        for word in words:
            if not re.fullmatch(form, word):
                raise Invalid.field(key, f"{word!r} must look like {example}")
