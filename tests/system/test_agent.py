"""The agent simulator as a process: every call of seed 000 by curl, its evidence, its wire, its restarts."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dcap_qvl
import psutil
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from attest import eventlog, quote
from core import k256
from core.proc import run
from tests.common.waiting import free_port, until
from tests.unit.guest.test_containers import StandIn, frame

START_S = 30.0


@dataclass
class Simulator:
    """A running `casemate agent --simulate`."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [str(Path(sys.executable).parent / "casemate"), "agent", "--simulate"]
        self.process = subprocess.Popen(
            [*command, "--dir", self.folder, "--http", f"127.0.0.1:{self.port}"]
            + ["--docker-host", f"unix://{self.folder.parent}/engine.sock"],
            stdout=(self.folder.parent / "out").open("wb"),
            stderr=subprocess.STDOUT,
        )
        until(self.is_up, seconds=START_S)

    def is_up(self) -> bool:
        assert self.process is not None and self.process.poll() is None, self.output
        # The last of its listeners.
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    @property
    def output(self) -> str:
        """What it printed."""
        return (self.folder.parent / "out").read_text()

    def stop(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(15)

    def curl(self, *args: str, sock: str = "dstack.sock") -> bytes:
        """The body of what curl got on one of the sockets."""
        return run(["curl", "-sS", "--unix-socket", self.folder / sock, *args]).stdout

    def shell(self, example: str) -> str:
        """What an example of the seed prints, run by a shell as it stands but for socket and address."""
        here = example.replace("/var/run/dstack.sock", str(self.folder / "dstack.sock"))
        for address in ("127.0.0.1:9206", "localhost:8090"):
            here = here.replace(address, f"127.0.0.1:{self.port}")
        # An example with an unquoted & leaves curl in the background.
        return run(["bash", "-c", f"{here}\nwait"]).stdout.decode()

    def ask(self, method: str, **fields: object) -> dict[str, Any]:
        answer = self.curl(f"http://dstack/{method}", "-d", json.dumps(fields))
        said: dict[str, Any] = json.loads(answer)
        return said

    def raw(self, request: bytes, *, tcp: bool = False) -> bytes:
        """All that comes back for bytes sent as they are."""
        with socket.socket(socket.AF_INET if tcp else socket.AF_UNIX) as client:
            client.settimeout(10)
            if tcp:
                client.connect(("127.0.0.1", self.port))
            else:
                client.connect(str(self.folder / "dstack.sock"))
            client.sendall(request)
            answer = b""
            while part := client.recv(65536):
                answer += part
            return answer


@pytest.fixture(scope="module")
def simulator() -> Iterator[Simulator]:
    home = Path(tempfile.mkdtemp(prefix="cm-agent-", dir="/tmp"))
    made = Simulator(home / "agent", free_port())
    made.start()
    yield made
    made.stop()
    shutil.rmtree(home)


def verified(simulator: Simulator, raw: bytes) -> Any:
    """The report that dcap-qvl makes of a quote under the simulated root."""
    root = x509.load_pem_x509_certificate((simulator.folder / "tee-root-ca.pem").read_bytes())
    collateral = dcap_qvl.QuoteCollateralV3.from_json(
        (simulator.folder / "tee-collateral.json").read_text()
    )
    der = root.public_bytes(serialization.Encoding.DER)
    return dcap_qvl.verify_with_root_ca(raw, collateral, der, int(time.time()))


# Seed 000: each call with its parameters; POST with a body, or GET with a query.
POSTED = {
    "GetTlsKey": """{
  "subject": "example.com",
  "alt_names": ["www.example.com", "api.example.com"],
  "usage_ra_tls": true,
  "usage_server_auth": true,
  "usage_client_auth": false
}""",
    "GetKey": """{
  "path": "my/key/path",
  "purpose": "signing",
  "algorithm": "ed25519"
}""",
    "GetQuote": """{
  "report_data": "1234deadbeaf"
}""",
    "EmitEvent": """{
  "event": "custom-event",
  "payload": "deadbeef"
}""",
    "Sign": """{
  "algorithm": "ed25519",
  "data": "deadbeef"
}""",
    "Verify": """{
  "algorithm": "ed25519",
  "data": "deadbeef",
  "signature": "deadbeef",
  "public_key": "deadbeef"
}""",
    "Attest": """{
  "report_data": "1234deadbeaf"
}""",
}


def posted(simulator: Simulator, method: str) -> dict[str, Any]:
    """The answer to the seed's POST example of a method."""
    answer: dict[str, Any] = json.loads(
        simulator.shell(
            f"curl --unix-socket /var/run/dstack.sock -X POST \\\nhttp://dstack/{method} \\\n"
            f"-H 'Content-Type: application/json' \\\n-d '{POSTED[method]}'"
        )
    )
    return answer


def got(simulator: Simulator, path: str) -> dict[str, Any]:
    """The answer to the seed's GET example, which stands without quotes."""
    answer: dict[str, Any] = json.loads(
        simulator.shell(f"curl --unix-socket /var/run/dstack.sock http://dstack/{path}")
    )
    return answer


def test_every_example_of_the_seed_runs_as_printed(simulator: Simulator) -> None:
    tls = posted(simulator, "GetTlsKey")
    assert tls["key"].startswith("-----BEGIN PRIVATE KEY-----\n")
    assert [pem[:28] for pem in tls["certificate_chain"]] == ["-----BEGIN CERTIFICATE-----\n"] * 2

    assert len(posted(simulator, "GetKey")["signature_chain"]) == 2
    # The shell takes what follows the first & for itself.
    assert got(simulator, "GetKey?path=my/key/path&purpose=signing&algorithm=ed25519")["key"]

    quoted = posted(simulator, "GetQuote")
    assert {"quote", "event_log", "report_data", "vm_config"} <= set(quoted)
    assert quoted["report_data"] == "1234deadbeaf".ljust(128, "0")
    assert got(simulator, f"GetQuote?report_data={'0' * 120}")["report_data"] == "0" * 128

    assert {
        *("app_id", "instance_id", "app_cert", "tcb_info", "app_name", "device_id"),
        *("mr_aggregated", "os_image_hash", "key_provider_info", "compose_hash", "vm_config"),
    } <= set(got(simulator, "Info"))

    assert posted(simulator, "EmitEvent") == {}
    log = json.loads(posted(simulator, "GetQuote")["event_log"])
    assert (log[-1]["event"], log[-1]["event_payload"]) == ("custom-event", "deadbeef")

    signed = posted(simulator, "Sign")
    assert len(signed["signature_chain"]) == 3 and len(signed["public_key"]) == 64
    # The example's signature has four bytes.
    assert "must be 64 bytes" in posted(simulator, "Verify")["error"]
    question = {"algorithm": "ed25519", "data": "deadbeef", **signed}
    assert simulator.ask("Verify", **question) == {"valid": True}

    assert posted(simulator, "Attest")["attestation"].startswith("00")
    assert got(simulator, f"Attest?report_data={'0' * 120}")["attestation"].startswith("00")


def test_get_and_post_give_one_key(simulator: Simulator) -> None:
    by_get = simulator.curl(
        "http://dstack/GetKey?path=my/key/path&purpose=signing&algorithm=ed25519"
    )

    assert json.loads(by_get) == posted(simulator, "GetKey")


@pytest.fixture
def engine(simulator: Simulator) -> Iterator[StandIn]:
    """A container engine with the container that the seed's examples name."""
    path = simulator.folder.parent / "engine.sock"
    made = StandIn(path)
    made.name = "dstack-gateway-1"
    made.log = frame(1, b"2026-02-05T21:51:50Z  INFO one\n") + frame(2, b"two\n")
    yield made
    made.sock.close()
    path.unlink()


def test_the_seeds_examples_of_the_http_port_run_as_printed(
    simulator: Simulator, engine: StandIn
) -> None:
    for example in (
        'curl "http://127.0.0.1:9206/logs/dstack-gateway-1?text&bare&timestamps&tail=30"',
        'curl "http://127.0.0.1:9206/logs/dstack-gateway-1?text&bare&since=1h"',
        'curl "http://localhost:8090/logs/dstack-gateway-1?text&bare&timestamps&tail=30"',
    ):
        assert simulator.shell(example) == "2026-02-05T21:51:50Z  INFO one\ntwo\n"
    tails = [path.split("tail=")[1].split("&")[0] for path in engine.asked if "/logs" in path]
    assert tails == ["30", "1000", "30"]
    assert "# TYPE system_num_cpus gauge" in simulator.shell('curl "http://127.0.0.1:9206/metrics"')
    assert simulator.shell('curl "http://127.0.0.1:9206/"').startswith("<!doctype html>")


def test_a_followed_log_comes_at_once_and_ends_with_its_reader(
    simulator: Simulator, engine: StandIn
) -> None:
    url = f"http://127.0.0.1:{simulator.port}/logs/dstack-gateway-1?text&bare&follow=true"
    # More readers than there are places for streams: each gives its own back when it leaves.
    for _ in range(12):
        engine.left.clear()
        reader = subprocess.Popen(["curl", "-sN", url], stdout=subprocess.PIPE)
        assert reader.stdout is not None
        assert reader.stdout.readline() == b"2026-02-05T21:51:50Z  INFO one\n"
        reader.kill()
        reader.wait()
        reader.stdout.close()
        assert engine.left.wait(30)


def test_its_quote_verifies_under_its_own_root_and_no_other(simulator: Simulator) -> None:
    raw = bytes.fromhex(simulator.ask("GetQuote", report_data="1234")["quote"])

    assert verified(simulator, raw).status == "UpToDate"

    changed = bytearray(raw)
    changed[568] ^= 1
    with pytest.raises(ValueError):
        verified(simulator, bytes(changed))
    collateral = dcap_qvl.QuoteCollateralV3.from_json(
        (simulator.folder / "tee-collateral.json").read_text()
    )
    with pytest.raises(ValueError):
        dcap_qvl.verify(raw, collateral, int(time.time()))


def test_its_collateral_is_good_for_a_day_and_more(simulator: Simulator) -> None:
    raw = bytes.fromhex(simulator.ask("GetQuote")["quote"])
    collateral = dcap_qvl.QuoteCollateralV3.from_json(
        (simulator.folder / "tee-collateral.json").read_text()
    )
    root = x509.load_pem_x509_certificate((simulator.folder / "tee-root-ca.pem").read_bytes())
    der = root.public_bytes(serialization.Encoding.DER)

    later = int(time.time()) + 25 * 3600

    assert dcap_qvl.verify_with_root_ca(raw, collateral, der, later).status == "UpToDate"


def test_the_log_replays_to_all_four_registers_and_shows_an_event(simulator: Simulator) -> None:
    simulator.ask("EmitEvent", event="seen", payload="c0ffee")

    answer = simulator.ask("GetQuote", report_data="ab" * 64)

    report = quote.parse(bytes.fromhex(answer["quote"])).report
    register = [bytes(48)] * 4
    for entry in json.loads(answer["event_log"]):
        digest = bytes.fromhex(entry["digest"])
        assert len(digest) == 48
        register[entry["imr"]] = hashlib.sha384(register[entry["imr"]] + digest).digest()
    assert tuple(register) == report.rtmrs
    assert report.report_data == b"\xab" * 64
    last = json.loads(answer["event_log"])[-1]
    assert (last["event"], last["event_payload"]) == ("seen", "c0ffee")
    names = [entry["event"] for entry in json.loads(answer["event_log"])]
    assert {"acpi-loader", "acpi-rsdp", "acpi-tables"} < set(names)


def test_sixteen_callers_at_once_agree_and_are_answered_soon(simulator: Simulator) -> None:
    def call(number: int) -> float:
        began = time.monotonic()
        simulator.ask("EmitEvent", event=f"at-once-{number}", payload="00" * number)
        answer = simulator.ask("GetQuote", report_data=f"{number:02x}")
        log = eventlog.from_json(answer["event_log"])
        report = quote.parse(bytes.fromhex(answer["quote"])).report
        assert eventlog.replay(log, 3) == report.rtmrs[3]
        return time.monotonic() - began

    with ThreadPoolExecutor(16) as pool:
        times = list(pool.map(call, range(48)))

    # Two calls and two starts of curl each; the promise of 500 ms is for one call on a quiet machine.
    assert sorted(times)[len(times) // 2] < 10


def test_a_restart_keeps_keys_and_identity_and_forgets_events(simulator: Simulator) -> None:
    before, key = simulator.ask("Info"), simulator.ask("GetKey", path="a")
    certificate = simulator.ask("GetTlsKey")["certificate_chain"][-1]
    simulator.ask("EmitEvent", event="gone", payload="")

    simulator.stop()
    simulator.start()

    after = simulator.ask("Info")
    for name in ("app_id", "instance_id", "device_id", "compose_hash", "key_provider_info"):
        assert before[name] == after[name]
    assert simulator.ask("GetKey", path="a") == key
    assert simulator.ask("GetTlsKey")["certificate_chain"][-1] == certificate
    assert "gone" not in simulator.ask("GetQuote")["event_log"]


def test_kill_minus_nine_of_the_worker_is_survived_in_the_middle_of_events(
    simulator: Simulator,
) -> None:
    assert simulator.process is not None
    children = Path(f"/proc/{simulator.process.pid}/task/{simulator.process.pid}/children")

    for number in range(3):
        (worker,) = children.read_text().split()
        with ThreadPoolExecutor(4) as pool:
            asked = [
                pool.submit(run, ["curl", "-s", "--unix-socket", simulator.folder / "dstack.sock"]
                + ["http://dstack/EmitEvent", "-d", json.dumps({"event": f"e{number}-{i}"})], check=False)
                for i in range(20)
            ]  # fmt: skip
            asked[5].result()
            os.kill(int(worker), signal.SIGKILL)
        until(lambda gone=worker: gone not in children.read_text().split())  # type: ignore[misc] # bound per turn
        answer = simulator.ask("GetQuote")
        log = eventlog.from_json(answer["event_log"])
        report = quote.parse(bytes.fromhex(answer["quote"])).report
        assert eventlog.replay(log, 3) == report.rtmrs[3]


def test_secrets_are_closed_to_others(simulator: Simulator) -> None:
    public = {"app-compose.json", "sys-config.json", ".instance_info"}
    public |= {"tee-root-ca.pem", "tee-collateral.json"}
    keys = json.loads((simulator.folder / "appkeys.json").read_text())
    seed = json.loads((simulator.folder / "tee-seed").read_text())["seed"]
    secrets = {keys[name] for name in ("disk_crypt_key", "env_crypt_key", "k256_key")} | {seed}
    secrets.add(keys["key_provider"]["None"]["key"].splitlines()[1])

    for path in simulator.folder.rglob("*"):
        mode = path.stat().st_mode
        if stat.S_ISREG(mode):
            assert mode & 0o077 == 0 or path.name in public, path
            found = [each for each in secrets if each in path.read_text(errors="replace")]
            assert not found or path.name in ("appkeys.json", "tee-seed"), path
    assert (simulator.folder / ".run").stat().st_mode & 0o077 == 0
    assert not any(each in simulator.output for each in secrets)


def test_no_secret_stands_in_an_argument_or_a_variable(simulator: Simulator) -> None:
    keys = json.loads((simulator.folder / "appkeys.json").read_text())
    secrets = {keys[name] for name in ("disk_crypt_key", "env_crypt_key", "k256_key")}
    secrets.add(json.loads((simulator.folder / "tee-seed").read_text())["seed"])
    simulator.ask("Sign", algorithm="ed25519", data="00")
    assert simulator.process is not None

    tree = [psutil.Process(simulator.process.pid)]
    tree += tree[0].children(recursive=True)

    assert len(tree) >= 2
    for process in tree:
        for name in ("cmdline", "environ"):
            shown = Path(f"/proc/{process.pid}/{name}").read_bytes()
            assert not any(each.encode() in shown for each in secrets), (process, name)


def test_it_says_where_it_listens(simulator: Simulator) -> None:
    for name in ("dstack.sock", "tappd.sock", "guest.sock"):
        assert f"unix:{simulator.folder / name}\n" in simulator.output
    assert f"http://127.0.0.1:{simulator.port}\n" in simulator.output


def is_json_error(answer: bytes, status: int) -> bool:
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines[1:])
    return (
        lines[0].split()[1] == str(status)
        and headers["content-type"] == "application/json"
        and int(headers["content-length"]) == len(body)
        and list(json.loads(body)) == ["error"]
    )


@pytest.mark.parametrize("tcp", [False, True])
@pytest.mark.parametrize(
    "request_bytes",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"G\x00T /Info HTTP/1.1\r\n\r\n",
        b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n\r\n",
        b"GET /Info HTTP/1.1\r\nA: " + b"a" * 20000 + b"\r\n\r\n",
        b"GET /Info HTTP/1.1\r\n" + b"".join(b"A%d: a\r\n" % i for i in range(200)) + b"\r\n",
        b"GET /Info HTTP/1.1\r\nbad header\r\n\r\n",
        b"POST /Info HTTP/1.1\r\nContent-Length: x\r\n\r\n",
        b"POST /prpc/Info HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_what_is_no_http_is_refused_in_json(
    simulator: Simulator, request_bytes: bytes, tcp: bool
) -> None:
    answer = simulator.raw(request_bytes, tcp=tcp)

    assert is_json_error(answer, 400)
    assert (b"\r\nX-App-Version: v" in answer) == tcp


def test_unknown_paths_and_large_bodies_are_refused_in_json(simulator: Simulator) -> None:
    close = b"Host: a\r\nConnection: close\r\n"
    assert is_json_error(simulator.raw(b"GET /nope HTTP/1.1\r\n" + close + b"\r\n"), 404)
    large = b"POST /GetKey HTTP/1.1\r\n" + close + b"Content-Length: 10485761\r\n\r\n"
    assert is_json_error(simulator.raw(large), 413)

    with tempfile.NamedTemporaryFile() as file:
        file.truncate(11 * 1024 * 1024)
        said = simulator.curl("http://dstack/GetKey", "--data-binary", f"@{file.name}", "-i")
    assert b" 413 " in said and b'{"error":' in said


@pytest.mark.parametrize("tcp", [False, True])
def test_a_sender_of_a_large_body_gets_to_read_the_refusal(simulator: Simulator, tcp: bool) -> None:
    size = 11 * 1024 * 1024
    head = f"POST /prpc/Info HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {size}\r\n\r\n"

    answer = simulator.raw(head.encode() + b" " * size, tcp=tcp)

    assert is_json_error(answer, 413)


def test_slow_callers_from_the_network_do_not_stop_the_app(simulator: Simulator) -> None:
    stalled = []
    try:
        for _ in range(60):
            client = socket.create_connection(("127.0.0.1", simulator.port))
            client.sendall(b"GET / HTTP/1.1\r\nHost:")
            stalled.append(client)
        began = time.monotonic()

        assert simulator.ask("GetKey")["key"]

        assert time.monotonic() - began < 8
    finally:
        for client in stalled:
            client.close()


def test_the_public_listener_tells_and_signs_nothing_of_the_apps(simulator: Simulator) -> None:
    base = f"http://127.0.0.1:{simulator.port}"
    for path in ("/GetKey", "/prpc/GetKey", "/prpc/Tappd.DeriveKey", "/prpc/Sign", "/api/Shutdown"):
        done = run(["curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", base + path])
        assert done.stdout == b"404"
    page = run(["curl", "-sSi", base + "/"]).stdout
    assert b"200 OK" in page and b"X-App-Version: v" in page


def test_the_signature_chain_ends_in_one_root(simulator: Simulator) -> None:
    info = simulator.ask("Info")
    roots = set()
    for path in ("a", "b"):
        key = simulator.ask("GetKey", path=path, purpose="p")
        public = k256.public_key(bytes.fromhex(key["key"]))
        first, second = (bytes.fromhex(link) for link in key["signature_chain"])
        app_key = k256.recover(first, b"p:" + public.hex().encode())
        issued = b"dstack-kms-issued:" + bytes.fromhex(info["app_id"]) + app_key
        roots.add(k256.recover(second, issued))
    assert len(roots) == 1


def test_outside_of_a_guest_it_only_simulates() -> None:
    casemate = Path(sys.executable).parent / "casemate"
    done = run([casemate, "agent", "--dir", "/tmp/nowhere"], check=False)

    assert done.returncode == 2 and b"--simulate" in done.stderr


def test_shutdown_ends_the_simulator(simulator: Simulator) -> None:
    assert simulator.curl("http://guest/api/Shutdown", sock="guest.sock") == b"{}"

    assert simulator.process is not None
    assert simulator.process.wait(15) == 0
    assert not (simulator.folder / "dstack.sock").exists()
    simulator.start()
