"""The configuration file of `casemate kms`: dstack's key names where it has them.

Source: kms.md section 8.
"""

from __future__ import annotations

import os
import re
import tomllib
from dataclasses import dataclass, field, replace
from pathlib import Path

from core import tables
from core.errors import Invalid
from core.urls import is_web_address

NONE = Path()
IMAGE_HASH = "{OS_IMAGE_HASH}"


@dataclass(frozen=True)
class ImageSettings:
    """Whether the OS image of a guest must be one whose measurements we know, and where we look for it."""

    verify: bool = True
    local_dir: Path = NONE  # a folder of images, such as the host's own
    cache_dir: Path = NONE  # default: DATA_DIR/images
    download_url: str = ""  # of an archive; {OS_IMAGE_HASH} stands for the hash
    download_timeout: str = "2m"


@dataclass(frozen=True)
class WebhookSettings:
    """An authorisation service of dstack's."""

    url: str = ""


@dataclass(frozen=True)
class DevSettings:
    """Everything is allowed."""

    gateway_app_id: str = "any"


@dataclass(frozen=True)
class FileSettings:
    """A policy file."""

    path: Path = NONE  # default: DATA_DIR/policy.json


@dataclass(frozen=True)
class EthereumSettings:
    """A DstackKms contract on a chain."""

    rpc_url: str = ""
    contract: str = ""


@dataclass(frozen=True)
class AuthSettings:
    """Who decides which app may have its keys."""

    type: str = "webhook"
    webhook: WebhookSettings = WebhookSettings()
    dev: DevSettings = DevSettings()
    file: FileSettings = FileSettings()
    ethereum: EthereumSettings = EthereumSettings()


@dataclass(frozen=True)
class OnboardSettings:
    """How a KMS without keys comes by them."""

    enabled: bool = True
    address: str = ""  # default: the KMS's own, in plain HTTP
    auto_bootstrap_domain: str = ""


@dataclass(frozen=True)
class AdminSettings:
    """The operator's own listener."""

    enabled: bool = False
    address: str = "tcp:127.0.0.1:9203"
    token: str = field(default="", repr=False)
    htpasswd_file: Path = NONE


@dataclass(frozen=True)
class MetricsSettings:
    """Whether /metrics is there."""

    enabled: bool = True


@dataclass(frozen=True)
class RootCas:
    """Roots to trust in place of the vendors'."""

    tdx: Path = NONE
    snp: Path = NONE


@dataclass(frozen=True)
class AttestationSettings:
    """What evidence must lead to."""

    root_ca: RootCas = RootCas()
    insecure_allow_external_trust_anchors: bool = False
    tdx_collateral: Path = NONE  # a file, in place of asking a service
    pccs_url: str = ""
    kds_url: str = ""


@dataclass(frozen=True)
class CoreSettings:
    """The KMS proper."""

    cert_dir: Path = NONE  # default: DATA_DIR/certs
    subject_postfix: str = ""  # of dstack's files; nothing uses it
    site_name: str = ""
    simulate: bool = False
    agent_socket: Path = Path("/var/run/dstack.sock")
    enforce_self_authorization: bool = True
    attest_rpc_cert: bool = True
    sev_snp_key_release: bool = False
    aws_nitro_tpm_key_release: bool = False
    image: ImageSettings = ImageSettings()
    auth_api: AuthSettings = AuthSettings()
    onboard: OnboardSettings = OnboardSettings()
    admin: AdminSettings = AdminSettings()
    metrics: MetricsSettings = MetricsSettings()
    attestation: AttestationSettings = AttestationSettings()


@dataclass(frozen=True)
class Settings:
    """Everything `casemate kms` reads at start."""

    address: str = "tcp:127.0.0.1:9201"
    data_dir: Path = Path("kms")
    workers: int = 2
    threads: int = 16
    core: CoreSettings = CoreSettings()

    @property
    def audit_log(self) -> Path:
        """One line for every release of keys."""
        return self.data_dir / "audit.jsonl"

    @property
    def tee_dir(self) -> Path:
        """The simulated TEE of a KMS that simulates one."""
        return self.data_dir / "tee"


def load(path: Path) -> Settings:
    """The settings of a TOML file; unknown keys warn, a wrong value raises Invalid naming the key."""
    try:
        table = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise Invalid(f"{path}: {error}") from None
    settings: Settings = tables.build(Settings, table, "")
    return check(_with_token(_with_paths(settings)))


def _with_paths(settings: Settings) -> Settings:
    """Paths made absolute, so that nothing depends on a later working directory."""
    data_dir, core = settings.data_dir.absolute(), settings.core
    image, admin, trust = core.image, core.admin, core.attestation
    policy = _absolute(core.auth_api.file.path, data_dir / "policy.json")
    root = RootCas(_absolute(trust.root_ca.tdx), _absolute(trust.root_ca.snp))
    core = replace(
        core,
        cert_dir=_absolute(core.cert_dir, data_dir / "certs"),
        image=replace(
            image,
            local_dir=_absolute(image.local_dir),
            cache_dir=_absolute(image.cache_dir, data_dir / "images"),
        ),
        admin=replace(admin, htpasswd_file=_absolute(admin.htpasswd_file)),
        auth_api=replace(core.auth_api, file=FileSettings(policy)),
        attestation=replace(trust, root_ca=root, tdx_collateral=_absolute(trust.tdx_collateral)),
    )
    return replace(settings, data_dir=data_dir, core=core)


def _absolute(path: Path, default: Path = NONE) -> Path:
    chosen = default if path == NONE else path
    return chosen if chosen == NONE else chosen.absolute()


def _with_token(settings: Settings) -> Settings:
    """The admin token from the environment where the file has none (kms.md section 3)."""
    admin = settings.core.admin
    names = ("DSTACK_KMS_ADMIN_TOKEN", "ADMIN_API_TOKEN")
    given = next(filter(None, map(os.environ.get, names)), "")
    if admin.token or not given:
        return settings
    return replace(settings, core=replace(settings.core, admin=replace(admin, token=given)))


def check(settings: Settings) -> Settings:
    """Returns settings whose values fit together, or raises Invalid naming the key."""
    core = settings.core
    for key, address in (
        ("address", settings.address),
        ("core.onboard.address", core.onboard.address or settings.address),
        ("core.admin.address", core.admin.address),
    ):
        listen = re.fullmatch(r"tcp:.+:(\d{1,5})", address)
        if not listen or int(listen[1]) > 65535:
            raise Invalid.field(key, "must be tcp:IP:PORT")
    for key, count in (("workers", settings.workers), ("threads", settings.threads)):
        if not 1 <= count <= 1000:
            raise Invalid.field(key, "must be between 1 and 1000")
    _check_auth(core.auth_api)
    _check_trust(core.attestation)
    for key, url in (
        ("core.attestation.pccs_url", core.attestation.pccs_url),
        ("core.attestation.kds_url", core.attestation.kds_url),
    ):
        if url and not is_web_address(url):
            raise Invalid.field(key, "must be http:// or https:// with a host")
    if core.admin.enabled and not core.admin.token and core.admin.htpasswd_file == NONE:
        raise Invalid.field(
            "core.admin",
            "needs a token (there, or in DSTACK_KMS_ADMIN_TOKEN) or an htpasswd_file",
        )
    if core.onboard.auto_bootstrap_domain:
        check_domain(core.onboard.auto_bootstrap_domain, "core.onboard.auto_bootstrap_domain")
    _check_download(core.image)
    return settings


def _check_auth(auth: AuthSettings) -> None:
    if auth.type not in ("webhook", "dev", "file", "ethereum"):
        raise Invalid.field("core.auth_api.type", "must be webhook, file, ethereum or dev")
    if auth.type == "webhook" and not is_web_address(auth.webhook.url):
        raise Invalid.field("core.auth_api.webhook.url", "must be http:// or https:// with a host")
    if auth.type != "ethereum":
        return
    if not is_web_address(auth.ethereum.rpc_url):
        raise Invalid.field(
            "core.auth_api.ethereum.rpc_url", "must be http:// or https:// with a host"
        )
    if not re.fullmatch(r"0x[0-9a-fA-F]{40}", auth.ethereum.contract):
        raise Invalid.field("core.auth_api.ethereum.contract", "must be 0x and 40 hex digits")


def _check_trust(trust: AttestationSettings) -> None:
    if trust.root_ca != RootCas() and not trust.insecure_allow_external_trust_anchors:
        raise Invalid.field(
            "core.attestation.root_ca",
            "replaces the vendor's root: whoever holds its key can take every app's keys; set "
            "insecure_allow_external_trust_anchors = true beside it if that is meant",
        )


def check_domain(domain: str, name: str = "domain") -> str:
    """The domain itself; Invalid unless it is ASCII labels of letters, digits and inner hyphens."""
    label = r"[A-Za-z0-9]([A-Za-z0-9\-]{0,61}[A-Za-z0-9])?"
    if not 1 <= len(domain) <= 253 or not re.fullmatch(rf"{label}(\.{label})*", domain, re.ASCII):
        raise Invalid.field(
            name,
            "must be a host name: labels of up to 63 letters, digits and inner hyphens with dots "
            "between, 253 characters at most",
        )
    return domain


def _check_download(image: ImageSettings) -> None:
    download_timeout_s(image)
    url = image.download_url
    if url and (IMAGE_HASH not in url or not is_web_address(url.replace(IMAGE_HASH, "0"))):
        raise Invalid.field(
            "core.image.download_url", f"must be http:// or https:// and hold {IMAGE_HASH}"
        )


def download_timeout_s(image: ImageSettings) -> int:
    """The time an image may take to come, in seconds."""
    found = re.fullmatch(r"(\d{1,6})([smh]?)", image.download_timeout)
    if not found:
        raise Invalid.field("core.image.download_timeout", "must be like 90s, 2m or 1h")
    return int(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]]
