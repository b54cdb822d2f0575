"""The KMS beside the service of `casemate up`: its configuration, made once, and a process that is kept running."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from core import http, policy_file, proc
from core.errors import CasemateError, Unavailable
from core.files import write_atomic
from image import registry
from kms import settings

CONFIG = "kms.toml"
START_S = 30.0
# A KMS that ends at once is started again after 1, 2, 4 ... seconds.
LONGEST_PAUSE_S = 60.0

_FORM = """\
# Written by `casemate up` the first time; yours to edit (docs/kms.md has every key).
address = "tcp:127.0.0.1:{port}"
data_dir = "{data_dir}/kms"

[core.onboard]
auto_bootstrap_domain = "localhost"

[core.image]
local_dir = "{data_dir}/images"
"""
# Evidence of this host's simulated TEE is accepted, and every app of it: nothing here is secret from the host.
_SIMULATED = """
[core]
simulate = true
sev_snp_key_release = true

[core.auth_api]
type = "dev"

[core.attestation]
insecure_allow_external_trust_anchors = true
tdx_collateral = "{data_dir}/tee/tee-collateral.json"

[core.attestation.root_ca]
tdx = "{data_dir}/tee/tee-root-ca.pem"
snp = "{data_dir}/tee/tee-root-ca.pem"
"""
_REAL = """
[core]
# It runs on the host, not in a confidential VM: whoever owns this machine has its keys.
attest_rpc_cert = false
enforce_self_authorization = false

[core.auth_api]
type = "file"  # what it holds and how to change it: casemate kms -c {data_dir}/kms.toml list, allow --help
"""


def write_config(data_dir: Path, port: int, *, simulated: bool) -> None:
    """Writes the KMS's configuration file for a data directory of the service."""
    form = _FORM + (_SIMULATED if simulated else _REAL)
    write_atomic(data_dir / CONFIG, form.format(port=port, data_dir=data_dir))


def allows_all(data_dir: Path) -> bool:
    """Whether the service has a KMS that gives every app its keys; another asks the operator first."""
    path = data_dir / CONFIG
    return path.exists() and settings.load(path).core.auth_api.type == "dev"


def allow_image(data_dir: Path, name: str) -> None:
    """Begins the policy file of a KMS that decides by one with the image built here; later it is the operator's."""
    path = data_dir / CONFIG
    if not path.exists():
        return
    auth = settings.load(path).core.auth_api
    if auth.type == "file" and not auth.file.path.exists():
        digest = registry.load(data_dir / "images", name).digest
        policy_file.change(auth.file.path, lambda document: document.update(osImages=[digest]))


class KeptKms:
    """A `casemate kms` that is started again whenever it ends, until it is stopped."""

    def __init__(self, data_dir: Path, say: Callable[[str], None]) -> None:
        self._config = data_dir / CONFIG
        self._log = data_dir / "kms.log"
        self._say = say
        self._ending = threading.Event()
        self._process: Any = None

    def start(self, url: str) -> None:
        """Starts it and waits until it answers at `url`; Unavailable shows its last words if it does not."""
        began = time.monotonic()
        self._launch()
        while not _answers(url):
            if self._process.poll() is not None or time.monotonic() - began > START_S:
                self.stop()
                last = self._log.read_text(errors="replace").strip().splitlines()[-1:]
                raise Unavailable(f"the KMS does not answer: {''.join(last) or 'no message'}")
            time.sleep(0.1)
        threading.Thread(target=self._keep, name="kms", daemon=True).start()
        self._say(f"KMS at {url} ({time.monotonic() - began:.1f} s), its log in {self._log}")

    def stop(self) -> None:
        """Ends it for good."""
        self._ending.set()
        if self._process is not None:
            proc.stop(self._process, patience_s=15)

    def _launch(self) -> None:
        command = [sys.executable, "-m", "cli.main", "kms", "-c", str(self._config)]
        self._process = proc.start([*command, "--parent", str(os.getpid())], log=self._log)

    def _keep(self) -> None:
        pause = 1.0
        while True:
            began = time.monotonic()
            code = self._process.wait()
            if time.monotonic() - began > LONGEST_PAUSE_S:
                pause = 1.0
            if self._ending.wait(pause):
                return
            self._say(f"the KMS ended with {code} and was started again; see {self._log}")
            self._launch()
            pause = min(2 * pause, LONGEST_PAUSE_S)


def _answers(url: str) -> bool:
    try:
        http.post_json(f"{url}/prpc/GetMeta?json", {}, within_s=5, check_certificate=False)
    except CasemateError:
        return False
    return True
