"""The published dstack SDKs, unchanged, on the agent simulator and on the agent inside a real VM."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import coincurve
import pytest
import requests
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from attest import envelope
from core import k256
from tests.common.passt import needs_passt
from tests.common.service import RunningService
from tests.common.waiting import free_port, until
from tests.system.test_agent import Simulator, simulator  # noqa: F401 - the fixture

HERE = Path(__file__).parent
BOOT_S = 180.0
# Forwards a TCP port to the agent's socket: the bundled image has Python, not the SDKs.
FORWARDER = """
import socket, threading
def pump(source, target):
    while data := source.recv(65536):
        target.sendall(data)
    target.shutdown(socket.SHUT_WR)
def serve(client):
    agent = socket.socket(socket.AF_UNIX)
    agent.connect("/var/run/dstack.sock")
    threading.Thread(target=pump, args=(agent, client)).start()
    pump(client, agent)
listener = socket.create_server(("0.0.0.0", 80))
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],)).start()
"""

Calls = Callable[[str], dict[str, Any]]


@pytest.fixture(scope="module")
def python_sdk(peer_python: Path) -> Calls:
    """The calls of PyPI dstack-sdk."""

    def calls(endpoint: str) -> dict[str, Any]:
        # -S and our own PYTHONPATH: nothing of this environment is seen.
        command = [sys.executable, "-S", HERE / "python/sdk_calls.py", endpoint]
        return _said(command, {"PYTHONPATH": str(peer_python)}, peer_python)

    return calls


@pytest.fixture(scope="module")
def node_sdk(peer_node: Path) -> Calls:
    """The calls of npm @phala/dstack-sdk."""

    def calls(endpoint: str) -> dict[str, Any]:
        # Node looks for packages beside the program.
        program = peer_node / "sdk_calls.mjs"
        shutil.copy(HERE / "node/sdk_calls.mjs", program)
        return _said(["node", program, endpoint], {}, peer_node)

    return calls


def _said(command: list[Any], extra: dict[str, str], folder: Path) -> dict[str, Any]:
    env = {"PATH": os.environ["PATH"], "HOME": str(folder), **extra}
    done = subprocess.run(
        command, env=env, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said: dict[str, Any] = json.loads(done.stdout)
    return said


@pytest.fixture(scope="module")
def vm_endpoint(image_dir: tuple[Path, str]) -> Iterator[str]:
    """The agent inside a VM, by way of an app that forwards its port 80 to the agent's socket."""
    # QEMU's own user network resets some connections when many open at once; passt does not.
    service = RunningService(
        Path(f"/tmp/cm-{os.getpid()}-sdk"), image_dir[0], extra='networking = {mode = "passt"}'
    )
    compose = {
        "services": {
            "forwarder": {
                "image": "localhost/casemate-hello:1",
                "command": ["python3", "-c", FORWARDER.replace("$", "$$")],
                "ports": ["80:80"],
                "volumes": ["/var/run/dstack.sock:/var/run/dstack.sock"],
            }
        }
    }
    port = free_port()
    try:
        service.start()
        made = service.call(
            "prpc/CreateVm",
            name="sdk",
            image=image_dir[1],
            compose_file=json.dumps(
                {
                    "manifest_version": 2,
                    "name": "sdk",
                    "runner": "docker-compose",
                    "docker_compose_file": json.dumps(compose),
                    "public_tcbinfo": True,
                }
            ),
            vcpu=2,
            memory=2048,
            disk_size=2,
            ports=[{"protocol": "tcp", "host_port": port, "vm_port": 80}],
        )
        service.wait_for(made["id"], within_s=BOOT_S, boot_progress="done")
        # The app's container was started; whether its program listens is another matter.
        until(lambda: answers(f"http://127.0.0.1:{port}/Info"), seconds=120, what="the forwarder")
        yield f"http://127.0.0.1:{port}"
    finally:
        service.end()


def answers(url: str) -> bool:
    """Whether there is an agent."""
    try:
        return requests.get(url, timeout=20).ok
    except requests.RequestException:
        return False


def check(said: dict[str, Any]) -> None:
    """What every call must have answered, whichever client asked and wherever the agent is."""
    assert said["reachable"] is True and said["version"]["version"]
    _check_keys(said)
    _check_certificate(said)
    _check_evidence(said)
    for algorithm, made in said["signatures"].items():
        assert (made["valid"], made["valid_of_other_data"]) == (True, False), algorithm
    assert said["many"] == [True] * 16


def _check_keys(said: dict[str, Any]) -> None:
    key = bytes.fromhex(said["key"])
    assert len(key) == 32 and said["key"] == said["key_again"] != said["ed25519_key"]
    signed = b"mainnet:" + k256.public_key(key).hex().encode()
    app_key = k256.recover(bytes.fromhex(said["key_chain"][0]), signed)
    assert len(app_key) == 33
    # The SDKs' wallets: an Ethereum account of SHA-256 of the key signs for its own address.
    message = b"\x19Ethereum Signed Message:\n5hello"
    signature = bytes.fromhex(said["ethereum_signature"])
    signer = k256.recover(signature[:64] + bytes([signature[64] - 27]), message)
    point = coincurve.PublicKey(signer).format(compressed=False)[1:]
    assert said["ethereum"].lower() == "0x" + k256.keccak256(point)[-20:].hex()
    assert len(said["solana"]) >= 32
    data = b"\x11" * 32
    ed = said["signatures"]["ed25519"]
    ed25519.Ed25519PublicKey.from_public_bytes(bytes.fromhex(ed["public_key"])).verify(
        bytes.fromhex(ed["signature"]), data
    )


def _check_certificate(said: dict[str, Any]) -> None:
    leaf, *issuers = (x509.load_pem_x509_certificate(each.encode()) for each in said["tls_chain"])
    key = serialization.load_pem_private_key(said["tls_key"].encode(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert key.public_key() == leaf.public_key()
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "app.example" in names.get_values_for_type(x509.DNSName)
    leaf.verify_directly_issued_by(issuers[0])


def _check_evidence(said: dict[str, Any]) -> None:
    quote = bytes.fromhex(said["quote"])
    registers = {str(number): quote[376 + 48 * number :][:48].hex() for number in range(4)}
    assert said["replayed"] == registers
    assert quote[568:632].rstrip(b"\0") == b"peer report data"
    names = [event["event"] for event in said["event_log"]]
    assert any(name.startswith("peer-") for name in names)
    assert envelope.decode(bytes.fromhex(said["attestation"]))
    info = said["info"]
    compose = info["tcb_info"]["app_compose"]
    assert info["tcb_info"]["rtmr3"] and len(info["app_id"]) == 40
    assert hashlib.sha256(compose.encode()).hexdigest() == info["compose_hash"]


def test_the_python_sdk_works_with_the_simulator(
    python_sdk: Calls,
    simulator: Simulator,  # noqa: F811
) -> None:
    check(python_sdk(str(simulator.folder / "dstack.sock")))


def test_the_npm_sdk_works_with_the_simulator(
    node_sdk: Calls,
    simulator: Simulator,  # noqa: F811
) -> None:
    check(node_sdk(str(simulator.folder / "dstack.sock")))


@needs_passt
def test_both_sdks_work_with_the_agent_inside_a_vm_and_get_the_same_keys(
    python_sdk: Calls, node_sdk: Calls, vm_endpoint: str
) -> None:
    by_python, by_node = python_sdk(vm_endpoint), node_sdk(vm_endpoint)

    check(by_python)
    check(by_node)
    same = ("key", "ed25519_key", "ethereum", "solana")
    assert {name: by_python[name] for name in same} == {name: by_node[name] for name in same}
    assert by_python["info"]["app_id"] == by_node["info"]["app_id"]
