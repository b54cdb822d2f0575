"""A real VM with the keys of a real KMS: it opens its environment and disk, keeps both over a restart and a
larger disk, and is refused when its compose hash leaves the policy.

One VM is shared by the tests of this file and they run in order: each boot under emulation costs 20 s and more.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from image import manifest
from tests.common.kms import RunningKms
from tests.common.service import RunningService

pytestmark = pytest.mark.filterwarnings("ignore:Unverified HTTPS request")

BOOT_S = 240.0
SECRET = "marmalade on toast"
# The app: says on the console what it found, and counts its boots on the disk.
SCRIPT = r"""
count=$(( $(cat /dstack/persistent/count 2>/dev/null || echo 0) + 1 ))
echo $count >/dstack/persistent/count
key=$(python3 -c '
import hashlib, http.client, json, os, socket
class Agent(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect("/var/run/dstack.sock")
def ask(method):
    agent = Agent("agent", timeout=60)
    agent.request("POST", "/" + method, "{}")
    return json.loads(agent.getresponse().read())
chain = ask("GetTlsKey")["certificate_chain"]
disk = os.statvfs("/data")
key = hashlib.sha256(ask("GetKey")["key"].encode()).hexdigest()
print(key, len(chain), disk.f_blocks * disk.f_frsize)
')
echo "found: boot $count secret <$SECRET> dropped <$DROPPED> key $key" >/dev/console
sync
"""


@dataclass
class Deployed:
    """The shared VM with its KMS."""

    service: RunningService
    kms: RunningKms
    vm_id: str
    app_id: str
    compose_hash: str

    def found(self) -> re.Match[str]:
        """What the app said last."""
        said = re.findall(r"found: .*", self.service.serial(self.vm_id))
        form = r"found: boot (\d+) secret <(.*)> dropped <(.*)> key (\w+) (\d) (\d+)"
        match = re.search(form, said[-1])
        assert match, said
        return match

    def boot(self) -> re.Match[str]:
        """Starts the VM and waits for its app's word."""
        self.service.call("prpc/StartVm", id=self.vm_id)
        self.service.wait_for(self.vm_id, within_s=BOOT_S, boot_progress="done")
        return self.found()


@pytest.fixture(scope="module")
def service(image_dir: tuple[Path, str]) -> Iterator[RunningService]:
    running = RunningService(Path(f"/tmp/cm-{os.getpid()}-kms"), image_dir[0])
    running.start()
    yield running
    running.end()


@pytest.fixture(scope="module")
def kms(service: RunningService, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningKms]:
    running = RunningKms(
        tmp_path_factory.mktemp("kms"), core="enforce_self_authorization = false", check_image=True
    )
    running.trust(service.data_dir / "tee")
    running.start()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def vm(service: RunningService, kms: RunningKms, image_dir: tuple[Path, str]) -> Deployed:
    compose = json.dumps(
        {
            "manifest_version": 2,
            "name": "keeper",
            "runner": "bash",
            "bash_script": SCRIPT,
            "key_provider": "kms",
            "allowed_envs": ["SECRET"],
        }
    )
    compose_hash = hashlib.sha256(compose.encode()).hexdigest()
    app_id = compose_hash[:40]
    kms.policy("allow", "--os-image", manifest.digest(image_dir[0] / image_dir[1]))
    kms.policy("allow", "--app", app_id, "--compose", compose_hash, "--any-device")
    variables = [{"key": "SECRET", "value": SECRET}, {"key": "DROPPED", "value": "x"}]
    made = service.call(
        "prpc/CreateVm",
        name="kms-test",
        image=image_dir[1],
        compose_file=compose,
        vcpu=2,
        memory=2048,
        disk_size=2,
        kms_urls=[f"https://10.0.2.2:{kms.port}"],
        encrypted_env=sealed(kms, app_id, variables).hex(),
    )
    service.wait_for(made["id"], within_s=BOOT_S, boot_progress="done")
    return Deployed(service, kms, made["id"], app_id, compose_hash)


def sealed(kms: RunningKms, app_id: str, variables: list[dict[str, str]]) -> bytes:
    """An environment encrypted as every client does it (kms.md section 7)."""
    said = kms.call("GetAppEnvEncryptPubKey", app_id=app_id)
    public = X25519PublicKey.from_public_bytes(bytes.fromhex(said["public_key"]))
    ours, nonce = X25519PrivateKey.generate(), os.urandom(12)
    content = AESGCM(ours.exchange(public)).encrypt(
        nonce, json.dumps({"env": variables}).encode(), None
    )
    return ours.public_key().public_bytes_raw() + nonce + content


def test_the_app_finds_its_environment_keys_and_an_empty_disk(vm: Deployed) -> None:
    count, secret, dropped, _, certificates, _ = vm.found().groups()

    assert (count, secret, dropped, certificates) == ("1", SECRET, "", "3")
    methods = [entry["method"] for entry in vm.kms.audited()]
    assert methods[0] == "GetAppKey" and "SignCert" in methods
    released = vm.kms.audited()[0]
    assert (released["appId"], released["composeHash"]) == (vm.app_id, vm.compose_hash)
    assert released["root"] == "simulated"


def test_keys_and_disk_are_the_same_after_stop_and_start(vm: Deployed) -> None:
    before = vm.found()
    vm.service.call("prpc/StopVm", id=vm.vm_id)

    after = vm.boot()

    assert (after[1], after[2]) == ("2", SECRET)
    assert after[4] == before[4]


def test_a_disk_made_larger_is_larger_inside_and_keeps_what_it_holds(vm: Deployed) -> None:
    before = vm.found()
    vm.service.call("prpc/StopVm", id=vm.vm_id)
    vm.service.call("prpc/UpdateVm", id=vm.vm_id, disk_size=3)

    after = vm.boot()

    assert after[1] == "3"
    assert int(after[6]) - int(before[6]) > 900 * 1024**2


def test_an_app_is_refused_when_its_compose_hash_leaves_the_policy(vm: Deployed) -> None:
    released = len(vm.kms.audited())
    vm.service.call("prpc/StopVm", id=vm.vm_id)
    vm.kms.policy("deny", "--app", vm.app_id, "--compose", vm.compose_hash)

    vm.service.call("prpc/StartVm", id=vm.vm_id)
    info = vm.service.wait_for(
        vm.vm_id,
        within_s=BOOT_S,
        boot_error=f"the KMS at https://10.0.2.2:{vm.kms.port} refused: Boot denied: compose hash not allowed",
    )

    assert info["boot_progress"] == "requesting app keys"
    assert len(vm.kms.audited()) == released


def test_nobody_finds_a_secret_on_the_host(vm: Deployed) -> None:
    serial, log = vm.service.serial(vm.vm_id), vm.kms.log.read_text()

    assert SECRET not in vm.service.log.read_text() + log
    for path in vm.service.data_dir.rglob("*"):
        if path.is_file() and not path.name.startswith("serial"):
            # A file that takes another's place is gone under its first name.
            with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
                assert SECRET.encode() not in file.read(2**20), path
    assert "PRIVATE KEY" not in serial + log
