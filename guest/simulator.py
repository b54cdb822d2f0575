"""`casemate agent --simulate`: the agent with a simulated TEE, all its files in one folder.

Source: guest-agent.md section 1 ("Simulated agent's folder").
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from core import files, k256
from core.errors import Conflict, Invalid
from guest import boot, disk, keys, listeners, provision, settings, tee
from guest.events import event_log
from guest.evidence import Evidence
from guest.identity import App, Instance, InstanceInfo, SysConfig
from guest.keys import AppKeys
from guest.service import Agent
from guest.settings import Settings

logger = logging.getLogger(__name__)

# struct sockaddr_un, Linux: the longest path a socket can have.
MAX_SOCKET_PATH = 107
# attestation.md section 2: the collateral is valid for days; verifiers are promised one.
COLLATERAL_RENEWAL_S = 6 * 3600

_COMPOSE = {
    "manifest_version": 2,
    "name": "simulated-app",
    "runner": "docker-compose",
    "docker_compose_file": "services: {}\n",
    "public_logs": True,
    "public_sysinfo": True,
    "public_tcbinfo": True,
    "key_provider": "none",
    "allowed_envs": [],
}
_VM_CONFIG = {"spec_version": 1, "os_image_hash": "", "cpu_count": 1, "memory_size": 2 * 1024**3}


@dataclass(frozen=True)
class Simulator:
    """A prepared folder: where its listeners are, and running them until told to end."""

    settings: Settings
    binds: tuple[str, ...]
    renew: Callable[[], None]

    def run(self) -> None:
        """Serves until SIGTERM or SIGINT."""
        # The verbs run in gunicorn's worker, the one to end is its master: this process.
        master = os.getpid()
        agent = Agent(self.settings, lambda: os.kill(master, signal.SIGTERM))

        def start() -> None:
            agent.vm()
            threading.Thread(target=self._keep_fresh, name="collateral", daemon=True).start()

        listeners.run(agent, self.binds, start)

    def _keep_fresh(self) -> None:
        while True:
            time.sleep(COLLATERAL_RENEWAL_S)
            try:
                self.renew()
            except OSError:
                logger.exception("the collateral could not be renewed")


@contextlib.contextmanager
def prepared(folder: Path, http: str | None, docker_host: str) -> Iterator[Simulator]:
    """A booted simulated VM in `folder`, which is made when absent and held while this lasts.

    What is missing is made and kept; RTMR3 starts anew.  Raises Conflict when another agent runs there and
    Invalid when the folder's path is too long for a socket or a file in it breaks its rule.
    """
    where = settings.simulated(folder, docker_host)
    _check_path(where)
    where.state.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(files.locked(where.state / "agent.lock", timeout_s=0))
        except Conflict:
            raise Conflict(f"another agent is running in {folder}") from None
        platform = _boot(where)

        def renew() -> None:
            text = platform.platform.collateral_json(int(time.time()))
            files.write_atomic(where.sockets / "tee-collateral.json", text, 0o644)

        files.write_atomic(where.sockets / "tee-root-ca.pem", platform.platform.root_ca_pem, 0o644)
        renew()
        names = (listeners.DSTACK_SOCKET, listeners.TAPPD_SOCKET, settings.GUEST_SOCKET)
        binds = [f"unix:{where.sockets / name}" for name in names]
        yield Simulator(where, (*binds, *([http] if http else [])), renew)


def _check_path(where: Settings) -> None:
    longest = os.fsencode(where.sockets / listeners.DSTACK_SOCKET)
    if len(longest) > MAX_SOCKET_PATH:
        raise Invalid(
            f"{where.sockets} is too long for a socket: {len(longest)} bytes of {MAX_SOCKET_PATH}"
        )


def _boot(where: Settings) -> tee.Simulated:
    """What boot.py does in a real guest, from the folder's files (guest-agent.md section 10)."""
    _keep(where.tee_seed, lambda: json.dumps({"platform": tee.TDX, "seed": os.urandom(32).hex()}))
    _keep(where.app_compose, lambda: json.dumps(_COMPOSE, indent=2), 0o644)
    _keep(where.sys_config, lambda: json.dumps({"vm_config": json.dumps(_VM_CONFIG)}), 0o644)
    app = App.read(where.app_compose)
    info = InstanceInfo.read(where.instance_info)
    instance = info.of_app(app, fresh_seed=os.urandom(20), keep_id=True)
    files.write_atomic(where.instance_info, instance.to_json(), 0o644)
    where.runtime_log.unlink(missing_ok=True)
    platform = tee.detect(where)
    assert isinstance(platform, tee.Simulated)  # its seed was just made sure of
    platform.reset()
    log = event_log(where, platform)
    sys_config = SysConfig.read(where.sys_config)
    proof = boot.evidence_of(platform, log, sys_config)
    measure = boot.Measuring(log, app.compose.event_log_version)
    measure.identity(app, instance)
    _keep(where.app_keys, lambda: _app_keys(app, sys_config, proof, instance).to_json())
    storage_fs = app.compose.storage_fs or disk.DEFAULT_FS
    measure.ready(keys.load(where.app_keys), storage_fs, sys_config.os_image_hash)
    return platform


def _app_keys(app: App, sys_config: SysConfig, proof: Evidence, instance: Instance) -> AppKeys:
    """Keys of a KMS where the folder's files name one; else random ones, vouched for as a KMS would, so that
    clients can check the whole signature chain."""
    if app.compose.key_provider == "kms" and sys_config.kms_urls:
        wanted = app.compose.key_provider_id
        urls, config = sys_config.kms_urls, sys_config.vm_config
        return provision.from_kms(urls, proof, config, wanted).keys
    made = boot.app_keys_of(keys.from_seed(os.urandom(32)), proof)
    message = b"dstack-kms-issued:" + instance.app_id + k256.public_key(made.k256_key)
    return replace(
        made,
        env_crypt_key=os.urandom(32),
        k256_signature=k256.sign_recoverable(os.urandom(32), message),
        gateway_app_id="any",
    )


def _keep(path: Path, content: Callable[[], str], mode: int = 0o600) -> None:
    if not path.exists():
        files.write_atomic(path, content(), mode)
