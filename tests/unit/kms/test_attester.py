"""How a KMS proves itself."""

from __future__ import annotations

import http.server
import json
import os
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from attest import envelope
from attest.verified import Trust, verify_evidence
from core.errors import Upstream
from kms import attester
from kms.attester import COLLATERAL, Agent, Simulated
from kms.settings import CoreSettings, Settings
from tests.unit.kms.conftest import Guest


class UnixServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    answer: bytes = b""
    daemon_threads = True


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[UnixServer]:
    """A guest agent that answers Attest as a test says."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            said: Any = self.server
            self.send_response(200)
            self.send_header("Content-Length", str(len(said.answer)))
            self.end_headers()
            self.wfile.write(said.answer)

        def address_string(self) -> str:
            return "unix"

        def log_message(self, *args: object) -> None:
            pass

    server = UnixServer(str(tmp_path / "dstack.sock"), Handler)
    threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_the_guest_agent_attests_a_kms_in_a_vm(
    agent: UnixServer, tmp_path: Path, guest: Guest
) -> None:
    evidence = guest.attestation(bytes(64))
    agent.answer = json.dumps({"attestation": envelope.encode(evidence).hex()}).encode()

    found = attester.of(Settings(core=CoreSettings(agent_socket=tmp_path / "dstack.sock")))

    assert isinstance(found, Agent)
    assert found.attestation(bytes(64)) == evidence
    trust = Trust(0, lambda asked: "")
    assert found.trust(trust) is trust


@pytest.mark.parametrize(
    "answer", [b"", b"[]", b"{}", b'{"attestation": "zz"}', b'{"attestation": 5}']
)
def test_an_agent_that_gives_none_is_named(
    agent: UnixServer, tmp_path: Path, answer: bytes
) -> None:
    agent.answer = answer

    with pytest.raises(Upstream, match="gives no attestation"):
        Agent(tmp_path / "dstack.sock").attestation(bytes(64))


def test_an_agent_that_is_gone_is_named(tmp_path: Path) -> None:
    with pytest.raises(Upstream, match="gives no attestation"):
        Agent(tmp_path / "none.sock").attestation(bytes(64))


def test_a_simulated_kms_stays_the_same_and_says_what_it_is(tmp_path: Path) -> None:
    one, again = Simulated(tmp_path / "tee"), Simulated(tmp_path / "tee")
    other = Simulated(tmp_path / "other")

    boots = [
        verify_evidence(each.attestation(bytes(64)), each.trust(Trust(0, lambda asked: "")))
        for each in (one, again, other)
    ]

    assert all(boot.is_valid and boot.root == "simulated" for boot in boots)
    assert boots[0].boot_info == boots[1].boot_info != boots[2].boot_info
    assert (tmp_path / "tee/seed").stat().st_mode & 0o777 == 0o600


def test_old_collateral_of_a_simulated_kms_is_written_anew(tmp_path: Path) -> None:
    kms = Simulated(tmp_path / "tee")
    file = tmp_path / "tee" / COLLATERAL
    file.write_text("old")
    kms.attestation(bytes(64))
    young = file.read_text()

    os.utime(file, (0, 0))
    kms.attestation(bytes(64))

    assert young == "old"
    assert json.loads(file.read_text())["tcb_info"]
