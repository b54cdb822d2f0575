"""What `casemate kms` runs: gunicorn with the KMS, or with the onboarding page while it has no keys."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import resource
import signal
import ssl
import sys
from collections.abc import Callable, Iterable, Iterator
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

from cli.server import Application, Server
from core import files, log
from core.errors import Conflict, Invalid
from kms import admin_routes, onboard_routes, rootkeys, routes, settings
from kms import certs as kms_certs
from kms.onboard import Onboarding
from kms.service import KmsService
from kms.settings import Settings
from vmm.worker import Worker

logger = logging.getLogger(__name__)

VERSION = version_of("casemate")
_PR_SET_DUMPABLE = 4  # linux/prctl.h


class KmsWorker(Worker):
    """gunicorn's threaded worker with the KMS's error body for broken requests."""

    def refusal(self, text: str) -> dict[str, str]:
        """The body's fields."""
        return {"error": text}


# What all its listeners have.
_ALWAYS = {"worker_class": KmsWorker, "umask": 0o077, "proc_name": "casemate-kms"}


def run(config_file: Path, parent: int | None) -> None:
    """Runs the KMS of a configuration file until a signal says otherwise."""
    os.umask(0o077)
    keep_memory_private()
    log.setup()
    given = settings.load(config_file)
    given.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    given.data_dir.chmod(0o700)
    with held(given.data_dir):
        if not rootkeys.exist(given.core.cert_dir):
            find_keys(given, parent)
        kms = opened(given)
        logger.info("the KMS listens on %s", given.address)
        Server(kms_settings(given), lambda: front(kms, given), parent).run()


def keep_memory_private() -> None:
    """No core dump of this process, and nobody of the same user reads its memory."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0)


@contextlib.contextmanager
def held(data_dir: Path) -> Iterator[None]:
    """Holds the data directory; Conflict when another KMS runs there."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(files.locked(data_dir / "kms.lock", timeout_s=0))
        except Conflict:
            raise Conflict(f"{data_dir} is in use by another casemate kms") from None
        yield


def opened(given: Settings) -> KmsService:
    """The KMS of a folder with keys; Invalid when nobody said how it is called."""
    folder, domain = given.core.cert_dir, given.core.onboard.auto_bootstrap_domain
    if not (folder / kms_certs.DOMAIN).exists():
        if not domain:
            raise Invalid.field(
                "core.onboard.auto_bootstrap_domain",
                f"must name this KMS: there are keys in {folder}, but no {kms_certs.DOMAIN}",
            )
        files.write_once(folder / kms_certs.DOMAIN, domain, 0o644)
    return KmsService.opened(given, VERSION)


def find_keys(given: Settings, parent: int | None) -> None:
    """Makes the keys at once where a domain is configured, else lets the operator choose on a page."""
    onboard = given.core.onboard
    if onboard.auto_bootstrap_domain:
        Onboarding(given, VERSION, lambda: None).bootstrap(onboard.auto_bootstrap_domain)
        return
    if not onboard.enabled:
        raise Invalid.field(
            "core.onboard.enabled", f"is off and there are no keys in {given.core.cert_dir}"
        )
    address = onboard.address or given.address
    logger.warning("this KMS has no keys: open http://%s/", address.removeprefix("tcp:"))
    master = os.getpid()
    onboarding = Onboarding(given, VERSION, lambda: os.kill(master, signal.SIGTERM))
    here = {"bind": address.removeprefix("tcp:"), "workers": 1, "threads": 8, **_ALWAYS}
    try:
        Server(here, lambda: onboard_routes.create_app(onboarding, VERSION), parent).run()
    except SystemExit:
        # gunicorn's way to end, in its workers as well: only the master goes on.
        if os.getpid() != master or not rootkeys.exist(given.core.cert_dir):
            raise
    # What gunicorn did to signals and descriptors goes with this program; the process stays.
    os.execv(sys.executable, [sys.executable, "-m", "cli.main", *sys.argv[1:]])


def kms_settings(given: Settings) -> dict[str, Any]:
    """gunicorn's settings for the KMS: a client certificate is asked for, not required."""
    folder, admin = given.core.cert_dir, given.core.admin
    binds = [given.address, *([admin.address] if admin.enabled else [])]
    return {
        "bind": [address.removeprefix("tcp:") for address in binds],
        "workers": given.workers,
        "threads": given.threads,
        "certfile": str(folder / kms_certs.RPC_CERT),
        "keyfile": str(folder / kms_certs.RPC_KEY),
        "ca_certs": str(folder / kms_certs.TMP_CA_CERT),
        "cert_reqs": int(ssl.CERT_OPTIONAL),
        "ssl_context": tls_context,
        **_ALWAYS,
    }


def tls_context(conf: Any, default: Callable[[], ssl.SSLContext]) -> ssl.SSLContext:
    """gunicorn's context, for TLS 1.3 alone."""
    context = default()
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


def front(kms: KmsService, given: Settings) -> Application:
    """Gives each request to the application of the listener it came in on."""
    main = routes.create_app(kms, VERSION)
    if not given.core.admin.enabled:
        return main
    admin = admin_routes.create_app(given, VERSION)
    admin_port = int(given.core.admin.address.rpartition(":")[2])

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        port = environ["gunicorn.socket"].getsockname()[1]
        return (admin if port == admin_port else main)(environ, start_response)

    return application
