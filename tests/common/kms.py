"""A real `casemate kms` process for tests, and apps on simulated guests that ask it for keys."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests
from click.testing import CliRunner

from cli.kms import kms as kms_command
from core import proc
from guest import simulator
from guest.service import Agent
from kms import attester, service, settings, trust
from tests.common.waiting import free_port, until

ROOT = Path(__file__).parents[2]
OS_IMAGE = "5a" * 32


@dataclass
class RunningKms:
    """One KMS in a folder of its own; restartable.  `core` is TOML below [core], `tables` what follows it."""

    folder: Path
    core: str = ""
    tables: str = '[core.auth_api]\ntype = "file"\n'
    domain: str = "kms.example"
    check_image: bool = False
    address: str = "127.0.0.1"
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def data_dir(self) -> Path:
        return self.folder / "data"

    @property
    def config(self) -> Path:
        return self.folder / "kms.toml"

    @property
    def log(self) -> Path:
        return self.folder / "kms.log"

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def write_config(self) -> None:
        """Writes the configuration file."""
        self.folder.mkdir(parents=True, exist_ok=True)
        trust = (
            "[core.attestation]\ninsecure_allow_external_trust_anchors = true\n"
            f'tdx_collateral = "{self.folder}/tee-collateral.json"\n'
            f'[core.attestation.root_ca]\ntdx = "{self.folder}/tee-root-ca.pem"\n'
        )
        has_root = (self.folder / "tee-root-ca.pem").exists()
        self.config.write_text(
            f'address = "tcp:{self.address}:{self.port}"\ndata_dir = "{self.data_dir}"\n'
            f"[core]\nsimulate = true\n{self.core}\n"
            f'[core.onboard]\nauto_bootstrap_domain = "{self.domain}"\n'
            f"[core.image]\nverify = {str(self.check_image).lower()}\n{trust if has_root else ''}{self.tables}"
        )

    def start(self, scheme: str = "https") -> None:
        """Starts the KMS and waits until it answers."""
        self.write_config()
        env = {key: value for key, value in os.environ.items() if not key.startswith("CASEMATE_")}
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "cli.main", "kms", "-c", self.config],
                cwd=ROOT,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        until(lambda: self.answers(scheme), seconds=60, what=f"the start of the KMS ({self.log})")

    def answers(self, scheme: str = "https") -> bool:
        """Whether it listens."""
        assert self.process is not None and self.process.poll() is None, self.log.read_text()
        try:
            url = f"{scheme}://127.0.0.1:{self.port}/health"
            # Its root is not known yet: its certificate is what the tests are about.
            return requests.get(url, timeout=5, verify=False).text == "OK"
        except (requests.ConnectionError, requests.Timeout):
            return False

    def stop(self) -> None:
        """Ends the KMS."""
        if self.process is not None:
            proc.stop(self.process, patience_s=15)
            self.process = None

    def call(self, method: str, **message: Any) -> dict[str, Any]:
        """One RPC of a stranger; its answer must be 200."""
        answer = self.request(method, **message)
        assert answer.status_code == 200, answer.text
        said: dict[str, Any] = answer.json()
        return said

    def request(self, method: str, **message: Any) -> requests.Response:
        """One RPC of a stranger."""
        # A stranger has no reason to trust its certificate.
        return requests.post(f"{self.url}/prpc/{method}", json=message, timeout=30, verify=False)

    def policy(self, *arguments: str) -> dict[str, Any]:
        """`casemate kms -c FILE ...`, which answers with the policy file; raises what the command raises."""
        done = CliRunner().invoke(kms_command, ["-c", str(self.config), *arguments])
        if done.exception is not None:
            raise done.exception
        document: dict[str, Any] = json.loads(done.stdout)
        return document

    def own_measurements(self) -> dict[str, str]:
        """What the policy must allow for this KMS to do anything; after write_config()."""
        given = settings.load(self.config)
        found = attester.of(given)
        assert found is not None
        boot = service.own_boot_info(found, trust.Trusting(given).now())
        return {key: str(value) for key, value in boot.to_json().items()}

    def audited(self) -> list[dict[str, Any]]:
        """The audit records."""
        path = self.data_dir / "audit.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def trust(self, folder: Path) -> None:
        """Makes the simulated TEE of an agent's folder the root that this KMS believes; before start()."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in ("tee-root-ca.pem", "tee-collateral.json"):
            (self.folder / name).write_bytes((folder / name).read_bytes())


def write_app(folder: Path, kms_url: str, **compose: object) -> None:
    """The files of a simulated guest whose app gets its keys from a KMS."""
    folder.mkdir(parents=True, exist_ok=True)
    document = {"manifest_version": 2, "name": "app", "key_provider": "kms", **compose}
    (folder / "app-compose.json").write_text(json.dumps(document))
    config = {"os_image_hash": OS_IMAGE, "memory_size": 2 * 1024**3}
    said = {"vm_config": json.dumps(config), "kms_urls": [kms_url]}
    (folder / "sys-config.json").write_text(json.dumps(said))


@contextmanager
def booted(folder: Path) -> Iterator[Agent]:
    """A simulated guest that has asked for its keys anew."""
    (folder / "appkeys.json").unlink(missing_ok=True)
    with simulator.prepared(folder, None, f"unix://{folder}/engine.sock") as ready:
        yield Agent(ready.settings, lambda: None)
