"""Runs in a real VM, through dstack's own command line and the plain interface: executed, attached, stopped, wiped.

One service and one VM serve the tests of this file, in order: each job but the first finds the VM of the one before.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.common.service import RunningService
from tests.common.waiting import free_port, until
from tests.peer.conftest import peer_dstackai  # noqa: F401 - a fixture
from tests.peer.test_dstackai_cli import FLEET, HELLO, Cli

BOOT_S = 400.0
# A job in a VM that is there; emulated on a busy machine, each login into a container takes some ten seconds.
JOB_S = 150.0
FINISHED = ("done", "failed", "terminated")


class Project:
    """Project main of a service, asked as any client would."""

    def __init__(self, service: RunningService) -> None:
        self.service = service

    def call(self, path: str, **body: Any) -> Any:
        """One call below the project."""
        return self.service.call(f"api/project/main/{path}", **body)

    def submit(self, name: str, *commands: str, **fields: Any) -> None:
        """Submits a task, or what `fields` say."""
        configuration = {"type": "task", "commands": list(commands), **fields}
        spec = {"run_name": name, "configuration": configuration}
        self.call("runs/apply", plan={"run_spec": spec}, force=False)

    def run(self, name: str) -> Any:
        """A run as it is now."""
        return self.call("runs/get", run_name=name)

    def reach(self, name: str, *statuses: str, within_s: float = JOB_S) -> Any:
        """A run once it has one of these statuses; a run that ended otherwise fails at once."""

        def has_it() -> Any:
            run = self.run(name)
            assert run["status"] in statuses or run["status"] not in FINISHED, run
            return run if run["status"] in statuses else None

        return until(has_it, seconds=within_s, what=f"{' or '.join(statuses)} of {name}")

    def output(self, name: str) -> bytes:
        """All that a run has printed."""
        job = self.run(name)["latest_job_submission"]["id"]
        said, token = b"", None
        while True:
            page = self.call(
                "logs/poll", run_name=name, job_submission_id=job, limit=1000, next_token=token
            )
            said += b"".join(base64.b64decode(entry["message"]) for entry in page["logs"])
            token = page["next_token"]
            if token is None:
                return said

    def vm(self) -> str:
        """The one VM of this service."""
        (vm,) = self.service.call("prpc/Status")["vms"]
        return str(vm["id"])


@pytest.fixture(scope="module")
def service(image_dir: tuple[Path, str]) -> Iterator[RunningService]:
    running = RunningService(Path(f"/tmp/cm-{os.getpid()}-runs"), image_dir[0])
    running.start()
    yield running
    running.end()


@pytest.fixture(scope="module")
def project(service: RunningService) -> Project:
    return Project(service)


@pytest.fixture(scope="module")
def cli(
    peer_dstackai: Path,  # noqa: F811 - the fixture
    tmp_path_factory: pytest.TempPathFactory,
    service: RunningService,
) -> Cli:
    """dstack's program with a home of its own, a fleet of at most one VM, and the task of the first page."""
    home = tmp_path_factory.mktemp("home")
    cli = Cli(peer_dstackai, home)
    (home / "fleet.dstack.yml").write_text(FLEET)
    (home / ".dstack.yml").write_text(HELLO)
    cli.run(
        "project", "add", "--name", "main", "--url", service.base, "--token", service.token, "-y"
    )
    cli.run("apply", "-f", "fleet.dstack.yml", "-y")
    return cli


def test_the_first_task_of_the_page_runs_attached(cli: Cli, project: Project) -> None:
    said = cli.run("apply", "-f", ".dstack.yml", "-y", within_s=BOOT_S)

    assert "hello world" in said
    assert "Exited (0)" in said
    assert project.output("hello") == b"hello world\r\n"
    assert "hello world" in cli.run("logs", "hello")


def test_the_next_job_finds_the_same_vm_wiped(cli: Cli, project: Project) -> None:
    vm = project.vm()
    project.submit(
        "leaves", "echo secret > /root/left; echo secret > /tmp/left; setsid sleep 9999 & sleep 0.2"
    )
    project.reach("leaves", "done")

    look = "ls /root/left /tmp/left; cat /proc/[0-9]*/comm 2>/dev/null | grep -x sleep; echo looked"
    project.submit("finds", look)
    project.reach("finds", "done")

    said = project.output("finds")
    assert b"looked" in said
    assert b"secret" not in said and b"sleep" not in said
    assert said.count(b"No such file") == 2
    assert project.vm() == vm


def test_a_megabyte_comes_byte_for_byte(project: Project) -> None:
    project.submit(
        "large",
        "head -c 786432 /dev/urandom | base64 -w 0 > /tmp/x",
        "md5sum < /tmp/x",
        "cat /tmp/x",
    )
    project.reach("large", "done")

    digest, _, text = project.output("large").partition(b"  -\r\n")
    assert len(text) == 1024**2
    assert hashlib.md5(text).hexdigest().encode() == digest


def test_a_job_asks_the_agent_of_its_vm_who_it_is(
    service: RunningService, project: Project
) -> None:
    script = (
        "import http.client, socket; c = http.client.HTTPConnection('localhost'); c.sock = socket.socket(1);"
        "c.sock.connect('/var/run/dstack.sock'); c.request('GET', '/Info'); print(c.getresponse().read().decode())"
    )
    project.submit("asks", f'python3 -c "{script}"')
    project.reach("asks", "done")

    assert service.info(project.vm())["app_id"].encode() in project.output("asks")


@pytest.mark.parametrize(
    ("name", "script", "status"),
    [("fails", "exit 7", 7), ("crashes", "kill -SEGV $$", 139)],
)
def test_how_a_job_ended_is_told(project: Project, name: str, script: str, status: int) -> None:
    project.submit(name, script)

    job = project.reach(name, "failed")["latest_job_submission"]
    assert job["exit_status"] == status
    assert job["termination_reason"] == "container_exited_with_error"
    assert job["status_message"] == f"exited ({status})"


def test_the_end_is_seen_within_two_seconds_of_the_last_output(project: Project) -> None:
    project.submit("punctual", "echo begun; sleep 2; echo last")
    job = project.reach("punctual", "done")["latest_job_submission"]

    asked = {"run_name": "punctual", "job_submission_id": job["id"]}
    last = project.call("logs/poll", **asked)["logs"][-1]
    assert b"last" in base64.b64decode(last["message"])
    # By the service's clock: how long this test's own questions take does not count.
    late = datetime.fromisoformat(job["finished_at"]) - datetime.fromisoformat(last["timestamp"])
    assert late.total_seconds() < 2


def test_a_running_job_is_attached_to_with_its_ports_and_a_shell(
    cli: Cli, project: Project
) -> None:
    project.submit(
        "web", "echo begun", "python3 -m http.server 8000", ports=["8000"], env={"WORD": "good day"}
    )
    project.reach("web", "running")
    port = free_port()

    with cli.start("attach", "web", "--logs", "-p", f"{port}:8000") as attach:
        try:
            page = until(lambda: _get(f"http://127.0.0.1:{port}/"), seconds=JOB_S, what="the page")
            config = cli.home / ".dstack/ssh/config"
            shell = [
                "ssh",
                "-F",
                str(config),
                "web",
                "echo $WORD; pwd; test -t 0 || echo no terminal",
            ]
            said = subprocess.run(shell, capture_output=True, text=True, timeout=JOB_S, check=True)
        finally:
            attach.send_signal(signal.SIGINT)
            told = attach.communicate(timeout=JOB_S)[0]

    assert "Directory listing" in page
    assert said.stdout == "good day\n/root\nno terminal\n"
    assert "begun" in told and "Traceback" not in told


def _get(url: str) -> str:
    try:
        return requests.get(url, timeout=20).text
    except requests.RequestException:
        return ""


def test_a_stop_ends_the_run_at_once_and_frees_its_vm(cli: Cli, project: Project) -> None:
    assert "Stopped" in cli.run("stop", "web", "-y")
    # Half of the grace that a job which does not listen is given.
    run = project.reach("web", "terminated", within_s=150)

    assert run["latest_job_submission"]["termination_reason"] == "terminated_by_user"
    assert b"Serving HTTP" in project.output("web")


def test_a_job_outlives_the_service_and_no_byte_is_lost_or_told_twice(
    service: RunningService, project: Project
) -> None:
    project.submit("long", "for i in $(seq 1 60); do echo line $i; sleep 0.2; done")
    project.reach("long", "running")
    until(lambda: b"line 10" in project.output("long"), seconds=JOB_S, what="some output")

    service.kill(everything=True)
    service.start()
    project.reach("long", "done")

    assert project.output("long") == b"".join(b"line %d\r\n" % i for i in range(1, 61))


def test_a_service_is_reached_through_the_proxy_by_who_may(
    service: RunningService, project: Project
) -> None:
    script = "mkdir -p /srv/x && cd /srv/x && echo hi from the service > index.html && exec python3 -m http.server 8000"
    project.submit("site", script, type="service", port=8000)
    url = "/proxy/services/main/site/"
    assert project.reach("site", "running")["service"]["url"] == url

    def page() -> requests.Response | None:
        answer = service.request("GET", url)
        return answer if answer.status_code == 200 else None

    answer = until(page, seconds=JOB_S, what="the service's page")
    assert answer is not None and answer.text == "hi from the service\n"
    assert answer.headers["Content-Security-Policy"].startswith("sandbox")
    assert requests.get(service.base + url, timeout=10).status_code == 401
    assert service.request("GET", url + "none").status_code == 404
    project.call("runs/stop", runs_names=["site"], abort=False)
    project.reach("site", "terminated")
    assert service.request("GET", url).status_code == 503


def test_a_job_with_an_image_runs_in_its_container(cli: Cli, project: Project) -> None:
    script = "import os; print(os.getcwd(), os.environ['WORD'], open('/proc/1/comm').read()); raise SystemExit(5)"
    configuration = {
        "image": "localhost/casemate-hello:1",
        "env": {"WORD": "two\nlines"},
        "working_dir": "/work",
    }
    project.submit("boxed", f"python3 -c {json.dumps(script)}", **configuration)

    job = project.reach("boxed", "failed", within_s=2 * JOB_S)["latest_job_submission"]
    assert job["exit_status"] == 5
    # Before that busybox's interactive shell says who it is.
    assert project.output("boxed").split()[-4:] == [b"/work", b"two", b"lines", b"podman-init"]


def test_a_login_and_copied_files_land_in_the_container(
    cli: Cli, project: Project, tmp_path: Path
) -> None:
    configuration = {"image": "localhost/casemate-hello:1", "working_dir": "/work"}
    project.submit("box", "sleep 1000", env={"WORD": "good day"}, **configuration)
    project.reach("box", "running", within_s=2 * JOB_S)
    (tmp_path / "sent").write_text("from outside\n")
    options = ["-F", str(cli.home / ".dstack/ssh/config")]
    look = "cat sent; echo $WORD; cat /proc/1/comm; exit 6"

    with cli.start("attach", "box") as attach:
        try:
            until(lambda: _ran("ssh", *options, "box", "true")[0] == 0, seconds=JOB_S)
            copied = _ran("scp", *options, tmp_path / "sent", "box:sent")
            said = _ran("ssh", *options, "box", look)
            back = _ran("scp", *options, "box:/work/sent", tmp_path / "back")
        finally:
            attach.send_signal(signal.SIGINT)
            attach.communicate(timeout=JOB_S)
            project.call("runs/stop", runs_names=["box"], abort=True)
            project.reach("box", "terminated")

    assert (copied[0], back[0]) == (0, 0), (copied, back)
    assert said[:2] == (6, "from outside\ngood day\npodman-init\n")
    assert (tmp_path / "back").read_text() == "from outside\n"


def _ran(*words: str | Path) -> tuple[int, str, str]:
    """The exit code of a program, and what it said."""
    done = subprocess.run(words, capture_output=True, text=True, timeout=JOB_S, check=False)
    return done.returncode, done.stdout, done.stderr


def test_an_image_that_is_nowhere_is_named(project: Project) -> None:
    project.submit("nowhere", "true", image="127.0.0.1:9/no/such:image")

    job = project.reach("nowhere", "failed", within_s=2 * JOB_S)["latest_job_submission"]
    assert job["termination_reason"] == "creating_container_error"
    assert "127.0.0.1:9/no/such:image" in job["termination_reason_message"]


def test_the_death_of_the_vm_ends_its_job(service: RunningService, project: Project) -> None:
    project.submit("doomed", "echo begun; sleep 1000")
    project.reach("doomed", "running")
    (qemu,) = service.qemus()

    qemu.kill()

    job = project.reach("doomed", "failed")["latest_job_submission"]
    assert job["termination_reason"] == "instance_unreachable"


@pytest.fixture
def without_ssh(image_dir: tuple[Path, str]) -> Iterator[RunningService]:
    name = Path(f"/tmp/cm-{os.getpid()}-no-ssh")
    running = RunningService(name, image_dir[0], extra="[runs]\nssh = false")
    running.start()
    yield running
    running.end()


def test_without_ssh_a_job_runs_and_its_vm_has_neither_server_nor_port(
    without_ssh: RunningService, tmp_path: Path
) -> None:
    project = Project(without_ssh)
    fleet = {"type": "fleet", "name": "default", "nodes": "0..1", "resources": {"gpu": 0}}
    spec = {"configuration": fleet, "profile": {}}
    project.call("fleets/apply", plan={"spec": spec}, force=False)
    look = "grep -ls sshd /proc/[0-9]*/comm; (echo > /dev/tcp/127.0.0.1/22) 2>&1 | grep -o refused"
    project.submit("quiet", f"{look}; echo looked; sleep 1000")
    project.reach("quiet", "running", within_s=BOOT_S)
    until(lambda: b"looked" in project.output("quiet"), seconds=JOB_S, what="its look around")

    assert b"/comm" not in project.output("quiet")
    assert b"refused" in project.output("quiet")
    (qemu,) = without_ssh.qemus()
    assert not [word for word in qemu.cmdline() if word.endswith("-:22") or "-:22," in word]
    assert "[runs] ssh = false" in _attached(without_ssh, "quiet", home=tmp_path)


def _attached(service: RunningService, run: str, *, home: Path) -> str:
    """What `casemate attach` says, which must fail."""
    env = {**os.environ, "HOME": str(home)}
    casemate = [sys.executable, "-m", "cli.main"]
    project = ["--name", "main", "--url", service.base, "--token", service.token, "-y"]
    subprocess.run([*casemate, "project", "add", *project], env=env, check=True, timeout=60)
    attach = subprocess.run(
        [*casemate, "attach", run], env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert attach.returncode != 0 and "Traceback" not in attach.stderr
    return attach.stderr
