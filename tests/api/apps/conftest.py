"""A caller of the apps interface, a KMS and a chain on loopback, and the published form of every answer."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from eth_abi.abi import decode, encode
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from accounts import directory
from core import evm
from core.config import Config
from core.config_apps import AppsConfig, ChainConfig, KmsEntryConfig
from models.base import Database

# The forms of all answers, where the reader has them; they are not part of this repository.
FORMS = Path(__file__).parents[4] / "shared/data/apps/schemas"
VERSIONS = ("2025-10-28", "2026-01-21", "2026-05-22", "2026-06-23")
COMPOSE = "services:\n  web:\n    image: nginx\n"
CONTRACT = "c0" * 20
MULTICALL = "0xca11bde05977b3631167028862be2a173976ca11"


@pytest.fixture(scope="session")
def fits() -> Callable[[str, Any], None]:
    """Compares an answer with the published form of that name."""
    if not FORMS.is_dir():
        pytest.skip("the published forms of the answers are not here")

    def compare(name: str, answer: Any) -> None:
        schema = json.loads((FORMS / f"{name}.json").read_text())
        jsonschema_rs.Draft7Validator(schema).validate(answer)

    return compare


class Server(ThreadingHTTPServer):
    """Answers every POST with what `say` makes of its body."""

    def __init__(self, say: Callable[[Any], Any]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.say = say
        threading.Thread(target=self.serve_forever, args=[0.01], daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        answer = json.dumps(self.server.say(body)).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *args: object) -> None:
        pass


@dataclass
class Contract:
    """An app's contract, and the node of its chain with its habits."""

    hashes: set[str] = field(default_factory=set)
    devices: set[str] = field(default_factory=set)
    any_device: bool = False
    reverts: set[str] = field(default_factory=set)  # functions that do
    is_there: bool = True
    takes_batches: bool = True
    has_multicall: bool = False
    late_s: float = 0.0
    receipts: dict[str, Any] = field(default_factory=dict)
    requests: list[Any] = field(default_factory=list)
    url: str = ""

    def say(self, body: Any) -> Any:
        self.requests.append(body)
        time.sleep(self.late_s)
        if isinstance(body, list):
            if self.takes_batches:
                return [self._one(each) for each in body]
            return {"jsonrpc": "2.0", "id": None, "error": {"code": -32600, "message": "no batch"}}
        return self._one(body)

    def _one(self, asked: Any) -> Any:
        answer = {"jsonrpc": "2.0", "id": asked["id"]}
        if asked["method"] == "eth_getCode":
            return answer | {"result": "0x60" if self.has_multicall else "0x"}
        if asked["method"] == "eth_getTransactionReceipt":
            return answer | {"result": self.receipts.get(asked["params"][0])}
        call = asked["params"][0]
        if call["to"] == MULTICALL:
            return answer | {
                "result": "0x" + self._aggregate(bytes.fromhex(call["data"][2:])).hex()
            }
        told = self._call(bytes.fromhex(call["data"][2:]))
        if told is None:
            return answer | {"error": {"code": 3, "message": "execution reverted"}}
        return answer | {"result": "0x" + told.hex()}

    def _aggregate(self, data: bytes) -> bytes:
        assert data[:4].hex() == "82ad56cb"
        (calls,) = decode(["(address,bool,bytes)[]"], data[4:])
        told = [self._call(inner) for _, _, inner in calls]
        return encode(["(bool,bytes)[]"], [[(each is not None, each or b"") for each in told]])

    def _call(self, data: bytes) -> bytes | None:
        functions = {
            evm.selector("allowAnyDevice()"): ("any", lambda _: self.any_device),
            evm.selector("allowedComposeHashes(bytes32)"): ("hash", lambda h: h in self.hashes),
            evm.selector("allowedDeviceIds(bytes32)"): ("device", lambda d: d in self.devices),
            evm.selector("kmsAllowedDeviceIds(bytes32)"): ("device", lambda d: d in self.devices),
            evm.selector("allowedOsImages(bytes32)"): ("image", lambda i: i in self.hashes),
        }
        name, look = functions[data[:4]]
        if not self.is_there:
            return b""
        return None if name in self.reverts else int(look(data[4:].hex())).to_bytes(32)


@pytest.fixture
def contract() -> Iterator[Contract]:
    made = Contract()
    with Server(made.say) as server:
        made.url = server.url
        yield made
        server.shutdown()


@pytest.fixture
def kms_key() -> X25519PrivateKey:
    return X25519PrivateKey.generate()


@pytest.fixture
def kms_url(kms_key: X25519PrivateKey) -> Iterator[str]:
    public = kms_key.public_key().public_bytes_raw().hex()
    told = {"public_key": public, "signature": "ab" * 65, "timestamp": 0, "signature_v1": ""}
    with Server(lambda _: told) as server:
        yield server.url
        server.shutdown()


@pytest.fixture
def chain_s() -> int:
    """How long a chain may take; on a busy machine an answer takes its time."""
    return 10


@pytest.fixture
def config(config: Config, kms_url: str, contract: Contract, chain_s: int) -> Config:
    """An off-chain entry and one on chain 31337."""
    entries = (
        KmsEntryConfig("main", "phala", kms_url, ("https://10.0.2.2:1",)),
        KmsEntryConfig(
            "chain", "ethereum", kms_url, ("https://10.0.2.2:2",), 31337, "0x" + "aa" * 20
        ),
    )
    chains = (ChainConfig(31337, "anvil", contract.url, timeout_s=chain_s),)
    return replace(config, apps=AppsConfig(node_name="attic", kms=entries, chains=chains))


@dataclass
class Api:
    """A caller with a key."""

    client: FlaskClient
    key: str
    version: str = "2026-01-21"

    def ask(self, method: str, path: str, status: int | None = None, **sent: Any) -> TestResponse:
        """Any call; with `status` it must answer with that."""
        headers = {
            "X-API-Key": self.key,
            "X-Phala-Version": self.version,
            **sent.pop("headers", {}),
        }
        answer = self.client.open(f"/api/v1{path}", method=method, headers=headers, **sent)
        if status is not None:
            assert answer.status_code == status, answer.text
        return answer

    def get(self, path: str, status: int = 200, **sent: Any) -> Any:
        return self.ask("GET", path, status, **sent).json

    def post(self, path: str, body: Any = None, status: int = 200, **sent: Any) -> Any:
        return self.ask("POST", path, status, json=body if body is not None else {}, **sent).json

    def patch(self, path: str, body: Any, status: int = 202, **sent: Any) -> Any:
        return self.ask("PATCH", path, status, json=body, **sent).json

    def speaking(self, version: str) -> Api:
        """The same caller in another version."""
        return replace(self, version=version)

    def provision(self, name: str = "web-app", status: int = 200, **fields: Any) -> Any:
        app = {"docker_compose_file": COMPOSE, **fields.pop("compose_file", {})}
        return self.post("/cvms/provision", {"name": name, "compose_file": app, **fields}, status)

    def deploy(self, name: str = "web-app", **fields: Any) -> Any:
        """Both steps; the VM as the second one answers it."""
        told = self.provision(name, **fields)
        app_id = told["app_id"] or CONTRACT
        return self.post("/cvms", {"app_id": app_id, "compose_hash": told["compose_hash"]})


@pytest.fixture(autouse=True)
def _short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for the guests of stand-ins, who hear no wish to power off."""
    monkeypatch.setattr("apps.changes.GRACE_S", 0.2)


@pytest.fixture
def people(app: Flask, client: FlaskClient, database: Database) -> Callable[[str], Api]:
    """Makes users, each with a project of their own."""

    def make(name: str) -> Api:
        with database.writing() as session:
            user = directory.add_user(session, name)
            return Api(client, directory.add_token(session, user, name="", made_by="test")[1])

    return make


@pytest.fixture
def ann(people: Callable[[str], Api]) -> Api:
    return people("ann")


@pytest.fixture
def bob(people: Callable[[str], Api]) -> Api:
    return people("bob")
