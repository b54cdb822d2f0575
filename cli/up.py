"""`casemate up`: from nothing to a running confidential VM, shown step by step.

Builds the default image, runs the service, deploys the sample app once, checks what it says and proves, and stays
in the foreground.  What it makes it keeps in the data directory, and finds again the next time.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import requests
from rich.console import Console
from rich.markup import escape

from cli import kms_up
from cli.client import Client
from cli.terminal import plain
from core import config, proc
from core.errors import Unavailable
from core.files import write_atomic

SAMPLE = "casemate-hello"
DEFAULT_ADDRESS = "tcp:127.0.0.1:9080"
BOOT_S = 300.0

console = Console(highlight=False, soft_wrap=True)

_CONFIG = """\
# Written by `casemate up` the first time; yours to edit (docs/configuration.md has every key).
address = "{address}"
data_dir = "{data_dir}"
kms_url = "https://127.0.0.1:{kms_port}"  # the KMS of {data_dir}/kms.toml

[auth]
enabled = true  # the token is in {data_dir}/admin-token

[cvm]
simulate = {simulate}  # {why}
kms_urls = ["https://10.0.2.2:{kms_port}"]  # the same KMS as a VM with user networking sees it

[cvm.port_mapping]
enabled = true
range = [{{protocol = "tcp", from = 1024, to = 65535}}, {{protocol = "udp", from = 1024, to = 65535}}]
"""
# The policy file of the KMS starts with the image built here (kms_up.allow_image) and grows with what is deployed.
_REAL = """
[kms]
register_apps = true  # the KMS may give keys to what users of this service deploy
"""
_SIMULATED = """
[attestation]
# POST /verify accepts the simulated evidence of this host alone, and says that it is simulated.
root_ca = "{data_dir}/tee/tee-root-ca.pem"
collateral = "{data_dir}/tee/tee-collateral.json"
"""


@click.command()
@click.option("--once", is_flag=True, help="Remove the sample VM at the end and exit.")
def up(once: bool) -> None:
    """Build an image, run the service and show a confidential VM."""
    started = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    address = os.environ.get("CASEMATE_ADDRESS", DEFAULT_ADDRESS)
    data_dir = Path(os.environ.get("CASEMATE_DATA_DIR", "data")).absolute()
    config_file = prepare(data_dir, address)
    image = build_image(data_dir)
    kms_up.allow_image(data_dir, image)
    service = Service.start(config_file, data_dir, address)
    kms = kms_up.KeptKms(data_dir, say)
    try:
        if (data_dir / kms_up.CONFIG).exists():
            kms.start(config.load(config_file).kms_url)
        sample = Sample.deployed(service, data_dir, image)
        sample.wait_until_booted()
        report(service, sample, sample.prove(), time.monotonic() - started)
        if once:
            sample.remove()
            say("the sample VM and what it had are gone")
        else:
            service.stay()
    except KeyboardInterrupt:
        console.print()
    finally:
        kms.stop()
        service.stop()
    if not once:
        console.print(
            "The service has ended; its VMs run on. Start it again with [b]make run[/b]; while it runs, "
            "[b]casemate vm stop[/b] and [b]casemate vm remove[/b] end a VM."
        )


def shown_as(text: str) -> str:
    """A guest's words, without power over the terminal or rich's markup."""
    return escape(plain(text))


def say(text: str) -> None:
    """One finished step."""
    console.print(f"[green]✓[/green] {text}")


def prepare(data_dir: Path, address: str) -> Path:
    """Makes the data directory and, once, its configuration file; returns the file."""
    from cli.serve import prepare_data_dir
    from vmm.host import tee_platform

    prepare_data_dir(data_dir)
    path = data_dir / "casemate.toml"
    if not path.exists():
        tee = tee_platform("auto")
        why = f"this host has {tee}" if tee else "this host has no TDX or SEV-SNP"
        form = _CONFIG + (_REAL if tee else _SIMULATED)
        kms_port = free_port()
        text = form.format(
            address=address,
            data_dir=data_dir,
            simulate=str(not tee).lower(),
            why=why,
            kms_port=kms_port,
        )
        kms_up.write_config(data_dir, kms_port, simulated=not tee)
        write_atomic(path, text)
    config.load(path)
    say(f"configuration: {path}")
    return path


def build_image(data_dir: Path) -> str:
    """Builds and installs the production image unless it is there; returns its name."""
    from core.config import cache_dir
    from image import build

    began = time.monotonic()
    with console.status("image") as status:
        shown = ""

        def progress(step: str, fraction: float | None, text: str) -> None:
            nonlocal shown
            share = "" if fraction is None else f" {fraction:4.0%}"
            status.update(f"image: {step}{share} {text}")
            if step != shown and not console.is_terminal:
                console.print(f"  image: {step} {text}")  # a log has no moving line
            shown = step

        cached = build.build(build.Variant.PRODUCTION, cache_dir(), progress)
        installed = build.install(cached, data_dir / "images")
    say(f"guest image {installed.name} ({time.monotonic() - began:.1f} s)")
    return installed.name


@dataclass
class Service:
    """A running `casemate serve` and how to call it."""

    process: Any
    client: Client
    log: Path

    @classmethod
    def start(cls, config_file: Path, data_dir: Path, address: str) -> Service:
        """Starts the service and waits until it answers; Unavailable shows its last words if it does not."""
        log = data_dir / "service.log"
        process = proc.start(
            [
                *(sys.executable, "-m", "cli.main", "serve", "-c", config_file),
                *("--parent", str(os.getpid())),
            ],
            env={"CASEMATE_ADDRESS": address, "CASEMATE_DATA_DIR": os.fspath(data_dir)},
            log=log,
        )
        service = cls(process, Client(address, ""), log)
        began = time.monotonic()
        try:
            with console.status("service"):
                service._wait_until_ready()
        except BaseException:
            service.stop()
            raise
        given = os.environ.get("CASEMATE_ADMIN_TOKEN")
        service.client.token = given or (data_dir / "admin-token").read_text().strip()
        say(f"service at {address} ({time.monotonic() - began:.1f} s), its log in {log}")
        return service

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                last = self.log.read_text(errors="replace").strip().splitlines()[-1:]
                raise Unavailable(f"the service ended at once: {''.join(last) or 'no message'}")
            try:
                # 401 says it as well: somebody listens and speaks for the VMM.
                if "X-App-Version" in self.client.request("GET", "/prpc/Version").headers:
                    return
            except Unavailable:
                time.sleep(0.1)
        raise Unavailable(f"the service does not answer; see {self.log}")

    def stay(self) -> None:
        """Waits until the service ends or the user has had enough."""
        code = self.process.wait()
        raise Unavailable(f"the service ended with {code}; see {self.log}")

    def stop(self) -> None:
        """Ends the service; VMs stay."""
        proc.stop(self.process, patience_s=15)


@dataclass
class Sample:
    """The sample app's VM."""

    service: Service
    vm_id: str
    url: str
    data_dir: Path

    @classmethod
    def deployed(cls, service: Service, data_dir: Path, image: str) -> Sample:
        """The VM made the last time, started if need be, or a new one."""
        memory = data_dir / "sample.json"
        known = json.loads(memory.read_text()) if memory.exists() else {}
        if known and service.client.call("prpc/GetInfo", id=known["vm_id"])["found"]:
            service.client.call("prpc/StartVm", id=known["vm_id"])
            say(f"sample app: VM {known['vm_id']} of an earlier run")
        else:
            ports = known.get("ports") or [free_port(), free_port()]
            compose = json.dumps(sample_compose(kms_enabled=kms_up.allows_all(data_dir)))
            made = service.client.call(
                "prpc/CreateVm",
                name=SAMPLE,
                image=image,
                compose_file=compose,
                vcpu=2,
                memory=2048,
                disk_size=4,
                ports=[
                    {"protocol": "tcp", "host_port": ports[0], "vm_port": 80},
                    {"protocol": "tcp", "host_port": ports[1], "vm_port": 8090},
                ],
            )
            known = {"vm_id": made["id"], "ports": ports}
            write_atomic(memory, json.dumps(known))
            say(f"sample app: VM {made['id']} created")
        return cls(service, known["vm_id"], f"http://127.0.0.1:{known['ports'][0]}", data_dir)

    def info(self) -> dict[str, Any]:
        """GetInfo's word on the VM."""
        found = self.service.client.call("prpc/GetInfo", id=self.vm_id)
        info: dict[str, Any] = found["info"] or {"status": "gone", "boot_error": "it was removed"}
        return info

    def wait_until_booted(self) -> None:
        """Shows the boot's progress until the app runs; Unavailable tells why it does not."""
        began, shown = time.monotonic(), ""
        with console.status("boot") as status:
            while time.monotonic() - began < BOOT_S:
                info = self.info()
                if info["boot_error"] or info["status"] not in ("running", "starting"):
                    why = info["boot_error"] or f"it is {info['status']}"
                    raise Unavailable(f"the VM did not boot: {why}\n{self._console_tail()}")
                progress = info["boot_progress"]
                if progress != shown:
                    shown = progress
                    console.print(
                        f"  [dim]{time.monotonic() - began:6.1f} s[/dim]  {shown_as(progress)}"
                    )
                if progress == "done":
                    say(f"booted; the app was started after {time.monotonic() - began:.1f} s")
                    return
                status.update(f"boot: {shown_as(progress)} ({time.monotonic() - began:.0f} s)")
                time.sleep(0.3)
        raise Unavailable(f"the VM did not boot within {BOOT_S:.0f} s\n{self._console_tail()}")

    def _console_tail(self) -> str:
        return self.service.client.request("GET", f"/logs?id={self.vm_id}&lines=15").text

    def prove(self) -> dict[str, Any]:
        """Asks the app for evidence over a fresh nonce and checks it; Unavailable when it is not right."""
        nonce = secrets.token_hex(16)
        page = _until(lambda: requests.get(f"{self.url}/json", params={"nonce": nonce}, timeout=5))
        said: dict[str, Any] = page.json()
        return {**said, **check_evidence(said, nonce, self.data_dir / "tee")}

    def remove(self) -> None:
        """Removes the VM and waits until nothing of it is left."""
        self.service.client.call("prpc/RemoveVm", id=self.vm_id)
        deadline = time.monotonic() + 60
        while self.service.client.call("prpc/GetInfo", id=self.vm_id)["found"]:
            if time.monotonic() > deadline:
                raise Unavailable("the sample VM could not be removed; see the service's log")
            time.sleep(0.1)
        (self.data_dir / "sample.json").unlink(missing_ok=True)


def sample_compose(*, kms_enabled: bool = False) -> dict[str, Any]:
    """The app-compose of the sample app; with keys of a KMS its disk and keys outlast a restart."""
    from attest import compose
    from image import hello

    return {
        **compose.new(SAMPLE),
        **compose.keys_from("kms" if kms_enabled else "none"),
        "docker_compose_file": hello.compose_text(),
        "public_logs": True,
        "public_sysinfo": True,
    }


def check_evidence(said: dict[str, Any], nonce: str, tee: Path) -> dict[str, Any]:
    """Checks the sample app's quote, report data and event log; CasemateError when one is wrong."""
    import hashlib

    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    from attest import eventlog, policy, verify
    from attest.errors import Mismatch

    root = x509.load_pem_x509_certificate((tee / "tee-root-ca.pem").read_bytes())
    verified = verify.verify_tdx(
        bytes.fromhex(said["quote"]),
        (tee / "tee-collateral.json").read_text(),
        int(time.time()),
        root.public_bytes(Encoding.DER),
    )
    expected = hashlib.sha256(nonce.encode()).digest()
    events = eventlog.from_json(said["event_log"])
    replayed = policy.check_evidence(verified.quote.report, events, expected + bytes(32))
    if replayed != (0, 1, 2, 3):
        raise Mismatch(f"the event log explains only the registers {replayed}")
    return {"tcb_status": verified.tcb_status, "root": verified.root}


def report(service: Service, sample: Sample, proven: dict[str, Any], seconds: float) -> None:
    """The few lines that a newcomer looks for."""
    info = sample.info()
    simulated = proven["root"] == "simulated"
    console.print()
    rows = [
        ("console", f"{service.client.url}/"),
        ("token", service.client.token),
        (
            "app",
            f"{sample.url}/  answered: app {shown_as(proven['app_id'])}, key {shown_as(proven['key_fingerprint'])}",
        ),
        ("VM", f"{sample.vm_id}  {info['status']}, up {info['uptime']}"),
        (
            "evidence",
            f"quote genuine ({proven['tcb_status']}), report data and event log verified"
            + (
                " [yellow](SIMULATED TEE: this proves nothing about this host)[/yellow]"
                if simulated
                else ""
            ),
        ),
    ]
    for name, value in rows:
        console.print(f"  [b]{name:9}[/b] {value}")
    console.print(f"\n{seconds:.0f} s in all.")


def free_port() -> int:
    """A TCP port of the loopback address that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _until(ask: Callable[[], requests.Response], patience_s: float = 60) -> requests.Response:
    """The first good answer; the app needs a moment after its container was started."""
    deadline = time.monotonic() + patience_s
    while True:
        try:
            answer = ask()
            if answer.status_code == 200:
                return answer
            why = f"status {answer.status_code}: {answer.text[:200]}"
        except requests.RequestException as error:
            why = str(error)
        if time.monotonic() > deadline:
            raise Unavailable(f"the sample app does not answer: {why}")
        time.sleep(0.3)
