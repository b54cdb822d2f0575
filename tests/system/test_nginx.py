"""contrib/nginx/casemate.conf, run by the distribution's nginx before a real service on a Unix socket."""

from __future__ import annotations

import contextlib
import datetime
import http.client
import ipaddress
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import requests
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from prometheus_client.parser import text_string_to_metric_families

from cli.client import Client
from tests.common import rows
from tests.common.service import end_processes
from tests.common.waiting import free_port, until

CONFIGURATION = Path(__file__).parents[2] / "contrib/nginx/casemate.conf"
CASEMATE = Path(sys.executable).with_name("casemate")
NGINX = Path("/usr/sbin/nginx")
TOKEN = "nginx-test-token"

pytestmark = pytest.mark.skipif(not NGINX.exists(), reason="nginx is not installed")


@dataclass
class Site:
    """The service behind nginx."""

    data_dir: Path
    port: int
    plain_port: int

    @property
    def base(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def request(self, verb: str, path: str, **kwargs: object) -> requests.Response:
        """One request with the token over TLS, whose certificate is checked."""
        session = requests.Session()
        session.trust_env = False
        headers = {"Authorization": f"Bearer {TOKEN}"}
        return session.request(
            verb,
            self.base + path,
            headers=headers,
            verify=str(self.data_dir / "tls/cert.pem"),
            timeout=20,
            **kwargs,  # type: ignore[arg-type]
        )

    def raw(self, request: bytes) -> tuple[int, bytes]:
        """Status and body of bytes that no client library would send."""
        context = ssl.create_default_context(cafile=self.data_dir / "tls/cert.pem")
        plain = socket.create_connection(("127.0.0.1", self.port), timeout=10)
        with context.wrap_socket(plain, server_hostname="127.0.0.1") as tls:
            tls.sendall(request)
            return read(tls)


def read(connection: socket.socket) -> tuple[int, bytes]:
    """An HTTP answer."""
    answer = http.client.HTTPResponse(connection)
    answer.begin()
    return answer.status, answer.read()


def certificate(folder: Path) -> None:
    """A self-signed certificate for 127.0.0.1."""
    folder.mkdir()
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "casemate test")])
    address = x509.IPAddress(ipaddress.IPv4Address("127.0.0.1"))
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (folder / "cert.pem").write_bytes(made.public_bytes(pem))
    private = serialization.PrivateFormat.PKCS8
    (folder / "key.pem").write_bytes(key.private_bytes(pem, private, serialization.NoEncryption()))


def configuration(site: Site, upstream: Path) -> Path:
    """The shipped configuration with this test's paths and ports, inside a whole nginx.conf."""
    data_dir = site.data_dir
    text = CONFIGURATION.read_text()
    for shipped, here in (
        ("/run/casemate/http.sock", str(upstream)),
        ("/etc/ssl/casemate/fullchain.pem", f"{data_dir}/tls/cert.pem"),
        ("/etc/ssl/casemate/key.pem", f"{data_dir}/tls/key.pem"),
        ("/var/log/nginx", str(data_dir)),
        ("listen 80;", f"listen 127.0.0.1:{site.plain_port};"),
        ("listen 443 ssl http2;", f"listen 127.0.0.1:{site.port} ssl http2;"),
        ("    listen [::]:80;\n", ""),
        ("    listen [::]:443 ssl http2;\n", ""),
    ):
        assert shipped in text
        text = text.replace(shipped, here)
    temporary = "".join(
        f"{name}_temp_path {data_dir}/tmp-{name};\n"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    path = data_dir / f"nginx-{site.port}.conf"
    path.write_text(
        f"daemon off;\npid {data_dir}/nginx-{site.port}.pid;\nerror_log {data_dir}/nginx.log;\n"
        f"{'user root;' if os.getuid() == 0 else ''}\n"
        f"events {{}}\nhttp {{\n{temporary}{text}}}\n"
    )
    return path


@pytest.fixture(scope="module")
def data_dir(fake_qemu: Path) -> Iterator[Path]:
    """A data directory with one image, for all tests here; its VMs end with them."""
    path = Path(tempfile.mkdtemp(prefix="cm-", dir="/tmp"))
    rows.image(path / "images")
    certificate(path / "tls")
    yield path
    end_processes(path)
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def service(data_dir: Path, fake_qemu: Path) -> Iterator[None]:
    """`casemate serve` on a Unix socket, ready as systemd would be told."""
    file = data_dir / "casemate.toml"
    file.write_text(
        f'address = "unix:{data_dir}/http.sock"\ndata_dir = "{data_dir}"\n[auth]\nenabled = true\n'
        f'[cvm]\nqemu_path = "{fake_qemu}"\naccel = "tcg"\nsimulate = true\n'
    )
    env = {key: value for key, value in os.environ.items() if not key.startswith("CASEMATE_")}
    env |= {"CASEMATE_ADMIN_TOKEN": TOKEN, "XDG_RUNTIME_DIR": str(data_dir / "run")}
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        notified.bind(str(data_dir / "notify"))
        notified.setblocking(False)
        with open(data_dir / "service.log", "ab") as log:
            started = subprocess.Popen(
                [CASEMATE, "serve", "-c", file],
                env={**env, "NOTIFY_SOCKET": str(data_dir / "notify")},
                stdout=log,
                stderr=log,
            )
        try:
            until(lambda: started.poll() is not None or b"READY=1" in heard(notified), seconds=30)
            assert started.poll() is None, (data_dir / "service.log").read_text()
            yield
        finally:
            end(started)


def heard(notified: socket.socket) -> bytes:
    """What systemd has been told."""
    with contextlib.suppress(BlockingIOError):
        return notified.recv(4096)
    return b""


@pytest.fixture(scope="module")
def site(data_dir: Path, service: None) -> Iterator[Site]:
    """nginx before the service."""
    with front(data_dir, data_dir / "http.sock") as made:
        yield made


@contextlib.contextmanager
def front(data_dir: Path, upstream: Path) -> Iterator[Site]:
    """nginx before a socket."""
    made = Site(data_dir, free_port(), free_port())
    file = configuration(made, upstream)
    nginx = subprocess.Popen([NGINX, "-c", file, "-p", data_dir], stderr=subprocess.DEVNULL)
    try:
        until(lambda: nginx.poll() is not None or listens(made.port))
        assert nginx.poll() is None, (data_dir / "nginx.log").read_text()
        yield made
    finally:
        end(nginx)


def listens(port: int) -> bool:
    """Whether somebody does."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def end(started: subprocess.Popen[bytes]) -> None:
    """Ends a process that we started, and its children."""
    if started.poll() is not None:
        return
    children = psutil.Process(started.pid).children()
    started.terminate()
    try:
        started.wait(15)
    except subprocess.TimeoutExpired:
        for each in (*children, started):
            each.kill()
        started.wait(5)


def test_the_console_is_behind_tls_and_its_cookie_is_secure(site: Site) -> None:
    page = site.request("GET", "/sign-in")
    secret = re.search(r'name="(csrf\w*)" value="([^"]+)"', page.text)
    form = {"token": TOKEN, **({secret[1]: secret[2]} if secret else {})}

    answer = site.request(
        "POST", "/sign-in", data=form, cookies=page.cookies, allow_redirects=False
    )

    assert page.status_code == 200
    assert "<form" in page.text
    assert answer.status_code in (302, 303)
    assert "; Secure" in answer.headers["Set-Cookie"]
    assert "HttpOnly" in answer.headers["Set-Cookie"]


def test_a_cookie_without_tls_is_not_secure(site: Site) -> None:
    plain = Client(f"unix:{site.data_dir}/http.sock", "")
    answer = plain.request("POST", "/sign-in", data={"token": TOKEN}, allow_redirects=False)

    assert "; Secure" not in answer.headers.get("Set-Cookie", "")


def test_plain_http_is_sent_to_tls(site: Site) -> None:
    answer = requests.get(
        f"http://127.0.0.1:{site.plain_port}/x?y=1", allow_redirects=False, timeout=10
    )

    assert answer.status_code == 301
    assert answer.headers["Location"] == "https://127.0.0.1/x?y=1"


def test_a_large_body_arrives_whole(site: Site) -> None:
    config = "x" * (8 * 1024**2 - 10_000)
    wanted = rows.request(stopped=True, user_config=config)

    made = site.request("POST", "/prpc/CreateVm", json=wanted)

    assert made.status_code == 200, made.text
    answer = site.request("POST", "/prpc/GetInfo", json=made.json())
    assert answer.status_code == 200, answer.text
    assert answer.json()["info"]["configuration"]["user_config"] == config


def test_too_large_a_body_is_refused_by_the_service_or_before_it(site: Site) -> None:
    over_ours = site.request("POST", "/prpc/CreateVm", data=b" " * (11 * 1024**2))
    over_all = site.request("POST", "/prpc/CreateVm", data=b" " * (18 * 1024**2))

    assert (over_ours.status_code, over_all.status_code) == (413, 413)
    assert over_ours.headers["X-App-Version"]
    assert "X-App-Version" not in over_all.headers
    for answer in (over_ours, over_all):
        assert set(answer.json()) == {"message", "error"}


def test_a_followed_log_shows_a_line_at_once(site: Site) -> None:
    made = site.request("POST", "/prpc/CreateVm", json=rows.request()).json()
    log = site.data_dir / "vm" / made["id"] / "serial.log"

    path = f"/logs?id={made['id']}&follow=true&lines=0"
    with site.request("GET", path, stream=True) as answer:
        assert answer.status_code == 200
        lines = answer.iter_lines(chunk_size=None)
        with open(log, "ab") as serial:
            serial.write(b"a line of now\n")
        began = time.monotonic()
        assert any(line == b"a line of now" for line in lines)
        assert time.monotonic() - began < 5


def test_idle_clients_hold_nobody_up(site: Site) -> None:
    context = ssl.create_default_context(cafile=site.data_dir / "tls/cert.pem")
    idle = []
    try:
        for number in range(100):
            plain = socket.create_connection(("127.0.0.1", site.port), timeout=10)
            tls = context.wrap_socket(plain, server_hostname="127.0.0.1")
            if number % 2:
                tls.sendall(
                    b"POST /prpc/CreateVm HTTP/1.1\r\nHost: x\r\nContent-Length: 99999\r\n\r\n{"
                )
            idle.append(tls)
        began = time.monotonic()
        for _ in range(20):
            assert site.request("GET", "/prpc/Version").status_code == 200
        assert time.monotonic() - began < 10
    finally:
        for each in idle:
            each.close()


def test_what_cannot_be_read_is_refused_in_json(site: Site) -> None:
    for broken, expected in (
        (b"GET / HTTP/1.1\r\nHost: x\r\nBad Header: y\r\nContent-Length: z\r\n\r\n", 400),
        (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 9000 + b"\r\n\r\n", 400),
    ):
        status, body = site.raw(broken)
        assert (status, set(json.loads(body))) == (expected, {"message", "error"}), broken[:40]


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"NONSENSE\r\n\r\n", 400),
        (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 9000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 200 + b"\r\n", 431),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nExpect: nonsense\r\nContent-Length: 1\r\n\r\n", 417),
    ],
)  # fmt: skip
def test_what_the_server_cannot_read_is_refused_in_json_without_nginx_too(
    service: None, data_dir: Path, request_bytes: bytes, status: int
) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(str(data_dir / "http.sock"))
        connection.sendall(request_bytes)
        found, body = read(connection)

    assert set(json.loads(body)) == {"message", "error"}
    assert found == status


def test_figures_are_of_all_processes_together(site: Site) -> None:
    before = requests_and_sweeps(site)
    for _ in range(30):
        site.request("GET", "/prpc/ListImages")

    asked, _ = requests_and_sweeps(site)

    assert asked == before[0] + 30
    until(lambda: requests_and_sweeps(site)[1] > before[1])


def requests_and_sweeps(site: Site) -> tuple[float, float]:
    """Answers 200 of the VMM's calls, and the background process's sweeps."""
    samples = {
        sample.name + sample.labels.get("surface", "") + sample.labels.get("status", ""): sample
        for family in text_string_to_metric_families(site.request("GET", "/metrics").text)
        for sample in family.samples
    }
    asked = samples.get("casemate_http_requests_totalvmm200")
    return asked.value if asked else 0, samples["casemate_background_sweeps_total"].value


def test_the_client_is_in_the_access_log_and_its_token_is_not(site: Site) -> None:
    site.request("GET", "/prpc/GetMeta?token=secret-in-a-query")
    log = site.data_dir / "casemate.access.log"

    line = until(lambda: next((x for x in lines(log) if '"GET /prpc/GetMeta"' in x), ""))
    assert line.startswith("127.0.0.1 ")
    assert line.split()[4] == "200"
    assert "secret-in-a-query" not in log.read_text()


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def test_a_service_that_is_away_is_told_in_json(data_dir: Path) -> None:
    with front(data_dir, data_dir / "nobody.sock") as site:
        answer = site.request("GET", "/prpc/Version")

    assert answer.status_code == 502
    assert set(answer.json()) == {"message", "error"}
