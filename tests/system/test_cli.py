"""`casemate vm` as a process, against a running service on the stand-in for QEMU."""

from __future__ import annotations

import http.server
import json
import os
import pty
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tests.common import rows
from tests.common.service import end_processes
from tests.common.waiting import listens, press_ctrl_c, until
from tests.unit.cli.conftest import SIGNER, Kms

CASEMATE = (sys.executable, "-m", "cli.main")
ROOT = Path(__file__).parents[2]
HELLO = '{"id": 1, "method": "Info", "params": {}}'


def notify(number: int, event: str, payload: str) -> str:
    """A guest's word to the host."""
    params = {"event": event, "payload": payload}
    return json.dumps({"id": number, "method": "Notify", "params": params})


class KeyService(http.server.BaseHTTPRequestHandler):
    """A KMS that knows the apps whose keys a test has put here."""

    known: ClassVar[dict[str, Kms]] = {}

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        kms = self.known.get(asked["app_id"])
        body = json.dumps(kms.answer if kms else {"error": "app not registered"}).encode()
        self.send_response(200 if kms else 400)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@pytest.fixture(scope="module")
def kms_url() -> Iterator[str]:
    """Where such a KMS answers."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), KeyService)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def house(fake_qemu: Path, kms_url: str) -> Iterator[Path]:
    """The data directory of a running service, which is found by its discovery file."""
    path = Path(tempfile.mkdtemp(prefix="cm-", dir="/tmp"))
    rows.image(path / "images")
    (path / "casemate.toml").write_text(
        f'address = "unix:{path}/http.sock"\ndata_dir = "{path}"\nkms_url = "{kms_url}"\n[auth]\nenabled = true\n'
        f'[cvm]\nqemu_path = "{fake_qemu}"\naccel = "tcg"\nsimulate = true\n'
        "[cvm.auto_restart]\nenabled = false\n"
    )
    with open(path / "service.log", "ab") as log:
        words = (*CASEMATE, "serve", "-c", path / "casemate.toml")
        service = subprocess.Popen(words, cwd=ROOT, env=env(path), stdout=log, stderr=log)
    try:
        sock = path / "http.sock"
        until(lambda: service.poll() is not None or listens(sock), seconds=60, what="the service")
        assert service.poll() is None, (path / "service.log").read_text()
        yield path
    finally:
        service.terminate()
        service.wait(30)
        end_processes(path)
        shutil.rmtree(path)


def env(house: Path) -> dict[str, str]:
    """An environment that names nothing but where discovery files are."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("CASEMATE_")}
    return {**kept, "XDG_RUNTIME_DIR": str(house / "run"), "PYTHONUNBUFFERED": "1"}


def run(house: Path, *words: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """One command to its end."""
    argv = [*CASEMATE, *map(str, words)]
    options = {"capture_output": True, "text": True, "timeout": 60, **options}
    return subprocess.run(argv, cwd=ROOT, env=env(house), check=False, **options)


def create(house: Path, name: str, *more: str, say: list[str] | None = None) -> Any:
    """`vm create` of a VM whose guest says something."""
    rows.behave(house / "vm", say=[HELLO, *(say or [notify(2, "boot.progress", "done")])])
    app = house / "docker-compose.yaml"
    app.write_text("services: {}\n")
    return run(house, "vm", "create", "--name", name, "--compose", app, "--memory", "256", *more)


def test_a_boot_is_shown_until_the_app_runs(house: Path) -> None:
    steps = ["setting up docker", "done"]

    done = create(
        house, "web", say=[notify(2 + i, "boot.progress", s) for i, s in enumerate(steps)]
    )

    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    assert done.stderr.splitlines()[-1].endswith(" s  done")
    info = json.loads(run(house, "vm", "info", "web", "--json").stdout)
    assert info["id"] == done.stdout.strip()
    assert info["boot_progress"] == "done"


def test_a_boot_that_fails_says_why_and_what_the_console_said(house: Path) -> None:
    done = create(house, "sick", say=[notify(2, "boot.error", "no keys\x1b[2J")])

    assert done.returncode == 3
    assert "the VM did not boot: no keys [2J" in done.stderr
    assert "    hello from 0 ports" in done.stderr
    assert done.stdout.strip() in run(house, "vm", "ls", "sick").stdout


def test_a_followed_log_ends_cleanly_with_ctrl_c(house: Path) -> None:
    vm_id = create(house, "talker").stdout.strip()
    log = house / "vm" / vm_id / "serial.log"
    words = (*CASEMATE, "vm", "logs", "talker", "-f")
    pipe = subprocess.PIPE
    follower = subprocess.Popen(words, cwd=ROOT, env=env(house), stdout=pipe, stderr=pipe)
    assert follower.stdout is not None
    assert b"hello from 0 ports\n" in (follower.stdout.readline(), follower.stdout.readline())
    with open(log, "ab") as serial:
        serial.write(b"one more\n")
    assert follower.stdout.readline() == b"one more\n"

    press_ctrl_c(follower)
    _, complaints = follower.communicate(timeout=30)

    assert (follower.returncode, complaints.strip()) == (130, b"")


def test_a_log_reaches_a_terminal_without_its_commands(house: Path) -> None:
    vm_id = create(house, "hostile").stdout.strip()
    with open(house / "vm" / vm_id / "serial.log", "ab") as serial:
        serial.write(b"\x1b]0;owned\x07\x1b[31mred\x1b[0m \x9b2J\x1b[2J\x05 end\n")

    texts = [on_terminal(house, "vm", "logs", "hostile", *more) for more in ([], ["--ansi"])]

    for text in texts:
        assert b"red" in text
        assert b"end" in text
        assert not set(text.replace(b"\x1b[31m", b"").replace(b"\x1b[0m", b"")) & set(
            b"\x1b\x07\x05\x9b"
        )
    assert b"\x1b[31mred\x1b[0m" in texts[1]
    assert b"\x1b" not in texts[0]


def on_terminal(house: Path, *words: str) -> bytes:
    """What a command writes to a terminal."""
    ours, theirs = pty.openpty()
    done = run(house, *words, capture_output=False, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    text = b""
    try:
        while piece := os.read(ours, 65536):
            text += piece
    except OSError:  # the end of a terminal that nobody holds open
        pass
    os.close(ours)
    assert done.returncode == 0, text
    return text


def test_a_reader_that_leaves_is_no_fault(house: Path) -> None:
    create(house, "piped")
    ours, theirs = os.pipe()
    os.close(ours)

    done = run(
        house, "vm", "logs", "piped", capture_output=False, stdout=theirs, stderr=subprocess.PIPE
    )
    os.close(theirs)

    assert done.stderr == ""


def test_a_vm_is_changed_stopped_and_removed_by_name(house: Path) -> None:
    create(house, "short")

    assert "stop it first" in run(house, "vm", "update", "short", "--vcpu", "2").stderr
    assert run(house, "vm", "stop", "short").returncode == 0
    assert run(house, "vm", "update", "short", "--vcpu", "2").returncode == 0
    info = json.loads(run(house, "vm", "info", "short", "--json").stdout)
    assert (info["status"], info["configuration"]["vcpu"]) == ("stopped", 2)
    assert run(house, "vm", "remove", "short", stdin=subprocess.DEVNULL).returncode == 0
    until(lambda: json.loads(run(house, "vm", "ls", "short", "--json").stdout) == [])
    gone = run(house, "vm", "info", "short")
    assert (gone.returncode, gone.stderr) == (1, "casemate: there is no VM short\n")


def test_variables_reach_the_guests_folder_for_the_apps_eyes_alone(house: Path) -> None:
    vm_id = create(house, "secretive").stdout.strip()
    info = json.loads(run(house, "vm", "info", vm_id, "--json").stdout)
    kms = KeyService.known[info["app_id"]] = Kms(info["app_id"])

    done = run(house, "vm", "env", vm_id, "--env-file", "-", input="A=very-secret\nB=2\n")

    assert done.returncode == 0, done.stderr
    assert SIGNER in done.stderr
    after = json.loads(run(house, "vm", "info", vm_id, "--json").stdout)["configuration"]
    assert kms.opened(after["encrypted_env"]) == {"A": "very-secret", "B": "2"}
    assert json.loads(after["compose_file"])["allowed_envs"] == ["A", "B"]
    assert "very-secret" not in (house / "service.log").read_text() + done.stdout + done.stderr


def test_variables_that_the_kms_has_no_key_for_are_refused_in_one_line(house: Path) -> None:
    create(house, "envless")

    done = run(house, "vm", "env", "envless", "--env-file", "-", input="SECRET=very-secret\n")

    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "very-secret" not in done.stderr + (house / "service.log").read_text()


def test_a_shell_is_offered_the_vms_of_the_service(house: Path) -> None:
    create(house, "offered")
    words = {"COMP_WORDS": "casemate vm info off", "COMP_CWORD": "3"}

    done = subprocess.run(
        [CASEMATE[0], "-c", "import sys; sys.argv[0] = 'casemate'; from cli.main import main; main()"],
        cwd=ROOT, env={**env(house), **words, "_CASEMATE_COMPLETE": "bash_complete"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.stdout.splitlines() == ["plain,offered"]


def test_an_image_in_use_is_not_removed(house: Path) -> None:
    create(house, "user-of-an-image")

    done = run(house, "image", "rm", rows.IMAGE)

    assert done.returncode == 1
    assert (house / "images" / rows.IMAGE).exists()
    assert rows.IMAGE in run(house, "image", "ls").stdout
