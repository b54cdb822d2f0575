"""A service with a stand-in for QEMU and a KMS of a few lines, and one Chromium for all tests of a file."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from tests.browser.person import Person
from tests.common import rows
from tests.common.service import RunningService

CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")


@dataclass
class Kms:
    """Gives every app the one key whose other half is known here."""

    key: X25519PrivateKey = field(default_factory=X25519PrivateKey.generate)
    asked: list[str] = field(default_factory=list)
    url: str = ""

    def answer(self, body: bytes) -> bytes:
        """GetAppEnvEncryptPubKey."""
        self.asked.append(json.loads(body)["app_id"])
        public = self.key.public_key().public_bytes_raw().hex()
        told = {"public_key": public, "signature": "", "timestamp": 0, "signature_v1": ""}
        return json.dumps(told).encode()


@pytest.fixture(scope="module")
def kms() -> Iterator[Kms]:
    """A KMS on loopback."""
    made = Kms()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            answer = made.answer(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        made.url = f"http://127.0.0.1:{server.server_port}"
        yield made
        server.shutdown()


@pytest.fixture(scope="module")
def service(fake_qemu: Path, kms: Kms) -> Iterator[RunningService]:
    """`casemate serve` with one image and no VM."""
    folder = Path(tempfile.mkdtemp(prefix="cm-", dir="/tmp"))
    rows.image(folder / "images")
    made = RunningService(
        folder / "data",
        folder / "images",
        top=f'kms_url = "{kms.url}"\nnode_name = "attic"',
        extra=f'qemu_path = "{fake_qemu}"\naccel = "tcg"\n',
    )
    made.start()
    yield made
    made.end()
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def person(service: RunningService) -> Iterator[Person]:
    """Somebody at a headless Chromium; its profile is gone afterwards."""
    assert CHROMIUM.exists() and DRIVER.exists(), "run `make setup-dev`"
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for argument in (
        *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
        *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
        # Nothing but this machine; and a name for it that is no secure context.
        "--host-resolver-rules=MAP casemate.test 127.0.0.1, EXCLUDE 127.0.0.1, EXCLUDE localhost",
        "--window-size=1280,900",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    browser.set_page_load_timeout(120)
    yield Person(browser, service)
    browser.quit()
