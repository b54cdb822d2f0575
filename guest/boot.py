"""The start-up of a real guest, from the host's shared folder to the running app.

Source: guest-agent.md section 10; kms.md sections 1 and 7.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from attest import compose
from core import files
from core.errors import CasemateError, Invalid
from core.kdf import pkcs8_pem
from core.proc import CommandFailed, run
from guest import channel, disk, keys, share, tee, tpm
from guest.channel import Notifier
from guest.console import say, say_failed
from guest.events import EventLog, event_log
from guest.identity import App, Instance, InstanceInfo, SysConfig
from guest.keys import AppKeys, KeyProvider, SeedKeys
from guest.settings import DATA_MOUNT, GUEST, HOST_SHARED, Settings

if TYPE_CHECKING:
    from guest.evidence import Evidence
    from guest.provision import Provisioned

logger = logging.getLogger(__name__)

WORK = Path("/dstack")
ENGINE_START_S = 60.0
# Images come from a registry as slow as it likes; a main script may be the whole app.
COMPOSE_TIMEOUT_S = 3600.0
SCRIPT_TIMEOUT_S = 20 * 86400.0
LOGS = DATA_MOUNT / "log"
LAST_WORDS = 2000
# vmm.md section 5: the host drops a longer body.
MAX_EVENT_BODY = 4096
MAX_ENCRYPTED_ENV = share.FILES[".encrypted-env"]
HOME = Path("/root")
_PROGRAM_ENV = {"HOME": str(HOME), "DOCKER_HOST": GUEST.docker_host}


class Progress:
    """Tells the console of every step, and the host of those that it shows."""

    def __init__(self, notifier: Notifier) -> None:
        self._notifier = notifier

    def reached(self, step: str) -> None:
        """A step that the host shows as the VM's progress."""
        say(step)
        self._notifier.notify("boot.progress", step)

    def failed(self, why: str) -> None:
        """The end of a boot that did not succeed."""
        say_failed(why)
        self._notifier.notify("boot.error", why.encode()[:MAX_EVENT_BODY].decode(errors="ignore"))


@dataclass(frozen=True)
class Measuring:
    """The platform's own events, in the order in which verifiers expect them."""

    log: EventLog
    version: int

    def identity(self, app: App, instance: Instance) -> None:
        """What is booted: everything up to `boot-mr-done`."""
        self._emit("system-preparing", b"")
        self._emit("app-id", instance.app_id)
        self._emit("compose-hash", app.compose_hash)
        for script in app.compose.init_scripts:
            self._emit("init-script-hash", hashlib.sha256(script.encode()).digest())
        self._emit("instance-id", instance.instance_id)
        self._emit("boot-mr-done", b"")

    def ready(self, app_keys: AppKeys, storage_fs: str, os_image_hash: bytes = b"") -> None:
        """Who gave the keys and what holds the data; the application's events come after these.

        The image's hash is measured when a KMS found it.
        """
        if app_keys.key_provider.kind == "Kms":
            self._emit("os-image-hash", os_image_hash)
        self._emit("key-provider", app_keys.key_provider.info.encode())
        self._emit("storage-fs", storage_fs.encode())
        self._emit("system-ready", b"")

    def _emit(self, name: str, payload: bytes) -> None:
        self.log.emit(name, payload, self.version)


def evidence_of(platform: tee.Tee, log: EventLog, sys_config: SysConfig) -> Evidence:
    """The evidence of this boot.  X.509 is read in here, a second of work that the disk need not wait for."""
    from guest.evidence import Evidence

    return Evidence(platform, log, sys_config.vm_config, sys_config.mr_config)


def app_keys_of(made: SeedKeys, proof: Evidence, kind: str = "None") -> AppKeys:
    """The keys of a guest without a KMS, with a root certificate that attests itself where there is a TEE."""
    from core.certs import spki_der
    from guest import certs

    has_tee = proof.tee.variant != tee.NO_TEE
    extensions = [proof.ra_tls_extension(made.ca_key.public_key())] if has_tee else []
    return AppKeys(
        disk_crypt_key=made.disk_crypt_key,
        env_crypt_key=b"",
        k256_key=made.k256_key,
        k256_signature=b"",
        gateway_app_id="",
        ca_cert=certs.root(made.ca_key, extensions),
        key_provider=KeyProvider(
            kind,
            pkcs8_pem(made.ca_key),
            # Keys of one boot have no origin to name.
            "" if kind == "None" else spki_der(made.ca_key.public_key()).hex(),
        ),
    )


class Boot:
    """One boot; `start_engine` and `start_pages` ask PID 1 for these services and return at once."""

    def __init__(
        self,
        settings: Settings,
        progress: Progress,
        notifier: Notifier,
        start_engine: Callable[[], None],
        start_pages: Callable[[], None] = lambda: None,
    ) -> None:
        self._settings = settings
        self._progress = progress
        self._notifier = notifier
        self._start_engine = start_engine
        self._start_pages = start_pages

    def run(self) -> None:
        """Every step up to `done`; raises at the first that fails."""
        share.copy_in(self._settings.state / "share", HOST_SHARED)
        app = App.read(self._settings.app_compose)
        check(app)
        say("shared folder read")
        sys_config = SysConfig.read(self._settings.sys_config)
        platform = tee.detect(self._settings)
        if isinstance(platform, tee.Simulated):
            platform.reset()
        log = event_log(self._settings, platform)
        measuring = Measuring(log, app.compose.event_log_version)
        measuring.identity(app, self._instance(app))
        self._progress.reached("requesting app keys")
        with ThreadPoolExecutor(1) as beside:
            if app.compose.key_provider == "none":
                # Every boot has keys of its own, so whatever the disk holds is lost already.
                made = keys.from_seed(os.urandom(32))
                disk_ready = beside.submit(self._data_disk, made.disk_crypt_key, is_lasting=False)
                proof = evidence_of(platform, log, sys_config)
                app_keys = self._become(app, app_keys_of(made, proof), measuring)
            else:
                given = self._given(app, sys_config, evidence_of(platform, log, sys_config))
                key = given.keys.disk_crypt_key
                disk_ready = beside.submit(self._data_disk, key, is_lasting=True)
                app_keys = self._become(app, given.keys, measuring, given.os_image_hash)
            if app.compose.secretvm is not None:
                self._start_pages()
            variables = self._variables(app, app_keys)
            write_work_files(app, WORK, HOST_SHARED)
            disk_ready.result()
        self._start_app(app, variables)

    def _given(self, app: App, sys_config: SysConfig, proof: Evidence) -> Provisioned:
        from guest import provision

        if app.compose.key_provider == "tpm":
            seed = tpm.seed(tpm.over(tpm.wait_for(self._settings.root)))
            return provision.Provisioned(app_keys_of(keys.from_seed(seed), proof, "Tpm"), b"")
        provision.wait_for_network(self._settings.root)
        wanted = app.compose.key_provider_id
        return provision.from_kms(sys_config.kms_urls, proof, sys_config.vm_config, wanted)

    def _instance(self, app: App) -> Instance:
        info = InstanceInfo.read(self._settings.instance_info)
        if app.compose.key_provider == "none":
            # Keys that last one boot make every boot an instance of its own.
            info = InstanceInfo(app_id=info.app_id)
        instance = info.of_app(app, fresh_seed=os.urandom(20))
        files.write_atomic(self._settings.instance_info, instance.to_json())
        self._notifier.notify("instance.info", instance.to_json())
        return instance

    def _become(
        self, app: App, app_keys: AppKeys, measuring: Measuring, os_image_hash: bytes = b""
    ) -> AppKeys:
        """Measures who gave the keys; the agent answers as soon as the keys file is there."""
        measuring.ready(app_keys, disk.check_fs(app.compose.storage_fs), os_image_hash)
        files.write_atomic(self._settings.app_keys, app_keys.to_json())
        say("keys ready")
        return app_keys

    def _variables(self, app: App, app_keys: AppKeys) -> Mapping[str, str]:
        try:
            sealed = files.read_capped(HOST_SHARED / ".encrypted-env", MAX_ENCRYPTED_ENV)
        except FileNotFoundError:
            sealed = b""
        return open_environment(sealed, app_keys, app, HOST_SHARED)

    def _data_disk(self, key: bytes, *, is_lasting: bool) -> None:
        self._progress.reached("initializing data disk")
        device = disk.find(self._settings.root)
        disk.prepare(device, key, self._settings.state, is_lasting=is_lasting)
        self._progress.reached("data disk ready")

    def _start_app(self, app: App, variables: Mapping[str, str]) -> None:
        for script in app.compose.init_scripts:
            self._progress.reached("init-script")
            run_script("init-script", script, {})
        if app.compose.runner == "jobs":
            self._take_jobs(has_ssh=app.compose.runner_ssh)
        self._progress.reached("setting up docker")
        self._start_engine()
        threading.Thread(target=self._watch_engine, daemon=True).start()
        if app.compose.pre_launch_script:
            self._progress.reached("pre-launch")
            run_script("pre-launch", app.compose.pre_launch_script, variables)
        if app.compose.runner == "bash":
            self._progress.reached("running main script")
            run_script("main", app.compose.bash_script, variables)
        else:
            self._progress.reached("starting containers")
            if app.compose.require_digest:
                check_images(variables)
            compose_up(variables)
        # Whoever cuts the power of a VM that said it is done finds all of its images and containers again.
        os.sync()
        self._progress.reached("done")

    def _take_jobs(self, *, has_ssh: bool) -> None:
        from guest import runner

        self._progress.reached("done")
        runner.run(self._settings, self._start_engine, has_ssh=has_ssh)

    def _watch_engine(self) -> None:
        # Whoever calls the engine waits for it for ever: its socket is there before it is.
        from guest.containers import Engine

        try:
            Engine(self._settings.docker_host).ping(ENGINE_START_S)
        except CasemateError as error:
            self._progress.failed(str(error))


def check(app: App) -> None:
    """Refuses (Invalid) what this image cannot do, before anything is measured or made."""
    if app.compose.runner not in ("docker-compose", "bash", "jobs"):
        raise Invalid(
            f"runner {app.compose.runner} is not known; docker-compose, bash and jobs are"
        )
    if app.compose.require_digest and app.compose.runner == "bash":
        raise Invalid("require_digest cannot be kept with runner bash, which may fetch anything")
    if app.compose.key_provider not in ("none", "kms", "tpm"):
        raise Invalid(
            f"key_provider {app.compose.key_provider} is not available in this image; kms and tpm are, and "
            "none, with which the keys and the data disk last one boot"
        )
    disk.check_fs(app.compose.storage_fs)


def compose_up(variables: Mapping[str, str]) -> None:
    """Starts the app's containers; CommandFailed with compose's last words when it cannot."""
    up = ["--ansi", "never", "--progress", "quiet", "up", "--detach", "--remove-orphans"]
    _compose(up, variables)


def check_images(variables: Mapping[str, str]) -> None:
    """Refuses (Invalid) an image that a registry could replace: all must be named by digest.

    Compose is asked, so that what is checked is what it starts.
    """
    named = _compose(["config", "--images"], variables).decode().split()
    if mutable := [image for image in named if not compose.is_pinned(image)]:
        raise Invalid(
            f"require_digest is set, but {', '.join(mutable)} can change: name it as image@sha256:..."
        )


def _compose(arguments: Sequence[str], variables: Mapping[str, str]) -> bytes:
    compose_file = str(WORK / "docker-compose.yaml")
    done = run(
        ["docker-compose", "--project-directory", str(WORK), "--file", compose_file, *arguments],
        env={**_PROGRAM_ENV, **variables},
        cwd=WORK,
        timeout_s=COMPOSE_TIMEOUT_S,
    )
    return done.stdout


def open_environment(
    sealed: bytes, app_keys: AppKeys, app: App, folder: Path, home: Path = HOME
) -> Mapping[str, str]:
    """The app's variables out of the encrypted environment, also written to `folder`; those for a registry
    become the engine's sign-in below `home` instead.  Invalid when it does not open, nobody gave a key for
    it, or the launch token that the app wants is not in it."""
    from guest import env, registry

    if not sealed:
        env.check_launch_token({}, app.compose.launch_token_hash)
        return {}
    if not app_keys.env_crypt_key:
        raise Invalid("an encrypted environment needs a key provider that gives a key for it")
    plaintext = env.decrypt(app_keys.env_crypt_key, sealed)
    given = env.variables(plaintext, app.compose.allowed_envs)
    env.check_launch_token(given, app.compose.launch_token_hash)
    variables, credentials = registry.split(given)
    registry.sign_in(credentials, home)
    files.write_atomic(folder / ".decrypted-env", env.to_shell(variables))
    files.write_atomic(folder / ".decrypted-env.json", json.dumps(variables))
    return variables


def write_work_files(app: App, work: Path, shared: Path) -> None:
    """What the app finds in its work folder (guest-agent.md section 10)."""
    work.mkdir(exist_ok=True)
    files.write_atomic(work / "app-compose.json", app.text, 0o644)
    files.write_atomic(work / "docker-compose.yaml", app.compose.docker_compose_file, 0o644)
    try:
        user_config = (shared / ".user-config").read_bytes()
    except FileNotFoundError:
        user_config = b""
    else:
        files.write_atomic(work / ".user-config", user_config)
        (work / "user_config").symlink_to(".user-config")
    if app.compose.secretvm is not None:
        from guest import registry

        registry.put_docker_files(user_config, app.compose.secretvm.docker_files_sha256, work)


def run_script(name: str, text: str, variables: Mapping[str, str]) -> None:
    """Runs a script of the app to its end, its output kept on the data disk; CommandFailed with its last
    words when it fails."""
    path, log = WORK / f".{name}.sh", LOGS / f"{name}.log"
    files.write_atomic(path, text, 0o700)
    log.parent.mkdir(mode=0o700, exist_ok=True)
    try:
        run(
            ["bash", "-c", 'exec bash "$0" >"$1" 2>&1', path, log],
            env={**_PROGRAM_ENV, **variables},
            cwd=WORK,
            timeout_s=SCRIPT_TIMEOUT_S,
        )
    except CommandFailed as error:
        raise CommandFailed([f"{name} script"], error.code, _last_words(log)) from None


def _last_words(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - LAST_WORDS))
        return file.read().decode(errors="replace")


def main(
    settings: Settings,
    start_engine: Callable[[], None],
    start_pages: Callable[[], None] = lambda: None,
) -> None:
    """Boots and tells console and host how it went; the agent stays up after a failure."""
    notifier = Notifier(channel.host(settings))
    try:
        Boot(settings, Progress(notifier), notifier, start_engine, start_pages).run()
        why = ""
    except (CasemateError, OSError) as error:
        why = str(error)
    except Exception as error:  # noqa: BLE001 - a bug must be seen where the operator looks
        traceback.print_exc()
        why = f"internal error: {type(error).__name__}: {error}"
    notifier.close()
    if why:
        fail(settings, why)


def fail(settings: Settings, why: str) -> None:
    """Tells console, host and agent that the boot failed."""
    files.write_atomic(settings.boot_error, why)
    notifier = Notifier(channel.host(settings))
    Progress(notifier).failed(why)
    notifier.close()
