"""`casemate apply` of runs, and `offer`: plans, questions, attached runs and how they end."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from core.errors import CasemateError, Conflict, Invalid, NotFound
from tests.common.runs_site import SMALL, Site
from tests.common.waiting import press_ctrl_c, until


@pytest.fixture
def fleet(site: Site) -> Site:
    site.fleet()
    return site


def test_a_plan_is_shown_and_a_no_submits_nothing(fleet: Site) -> None:
    file = fleet.task("hello", "echo hello world")

    done = fleet.run("apply", "-f", file, input="n\n")

    shown = dict(line.split(maxsplit=1) for line in done.stdout.splitlines()[:3])
    assert shown == {"Project": "main", "User": "admin", "Type": "task"}
    for word in (
        "Spot policy",
        "Max price",
        "Retry policy",
        "Idle duration",
        "Max duration",
        "cpu=1..",
    ):
        assert word in done.stdout
    assert "Submit the run hello? [y/n]" in done.stderr
    assert fleet.json("ps")["runs"] == []
    with pytest.raises(Invalid, match="-y answers yes"):
        fleet.run("apply", "-f", file)


def test_an_attached_run_shows_its_output_and_ends_with_its_code(fleet: Site) -> None:
    done = fleet.run("apply", "-f", fleet.task("hello", "echo hello world"), input="y\n")
    assert done.stdout_bytes.endswith(b"hello world\r\n")
    assert "hello: exited (0)" in done.stderr

    done = fleet.run("apply", "-y", "-f", fleet.task("bad", "echo no; exit 7"), code=7)
    assert done.stdout_bytes.endswith(b"no\r\n")
    assert "bad: exited (7)" in done.stderr


def test_a_run_that_never_began_says_why(site: Site) -> None:
    done = site.run("apply", "-y", "-f", site.task("lost", "true"), code=1)

    assert "the project has no fleets" in done.stderr
    assert "lost: no fleets" in done.stderr


def test_the_default_file_and_a_file_without_a_name(fleet: Site) -> None:
    fleet.file({"type": "task", "commands": ["echo $WORD"], "resources": SMALL, "env": ["WORD"]})

    done = fleet.run("apply", "-y", "-e", "WORD=given")

    assert done.stdout_bytes.endswith(b"given\r\n")
    (run,) = fleet.json("ps", "-a")["runs"]
    assert run["run_spec"]["configuration_path"] == ".dstack.yml"
    with pytest.raises(Invalid, match="WORD has no value"):
        fleet.run("apply", "-y")


def test_standard_input_is_a_configuration_that_needs_no_answer(fleet: Site) -> None:
    text = fleet.task("hello", "echo from standard input").read_text()

    with pytest.raises(Invalid, match="-y"):
        fleet.run("apply", "-f", "-", input=text)
    done = fleet.run("apply", "-y", "-f", "-", "-n", "renamed", input=text)

    assert done.stdout_bytes.endswith(b"from standard input\r\n")
    assert fleet.json("run", "get", "renamed")["status"] == "done"


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("x.yml", "type: [", "is not YAML"),
        ("x.yml", "- 1", "must have a type"),
        ("x.yml", "type: volume", "must have a type"),
        ("x.yml", "type: task\ncommands: [a]\nfiles: [b]", "files"),
        ("x.yml", "type: task\ncommands: [a]\nenv: 5", "env"),
        ("x.yml", "type: task\ncommands: [a]\nnonsense: 1", "nonsense"),
        ("x.yml", "type: task\nname: 2026-01-02\ncommands: [a]", "name"),
        ("x.txt", "type: task", "ends in .yml"),
        ("x.yml", "\0", "is not YAML"),
        ("x.yml", "type: task\nx: &a [*a]", "is not YAML"),
        ("x.yml", "type: task\nx: {2026-01-02: a}", "is not YAML"),
    ],
)
def test_a_file_that_describes_nothing_is_refused(
    site: Site, name: str, text: str, why: str
) -> None:
    (site.home / name).write_text(text)

    with pytest.raises(CasemateError, match=why):
        site.run("apply", "-y", "-f", name)


def test_a_file_that_is_not_there_is_named(site: Site) -> None:
    with pytest.raises(NotFound, match=r"no file \.dstack\.yml"):
        site.run("apply", "-y")


def test_an_active_run_is_told_from_a_changed_one(fleet: Site) -> None:
    fleet.submit("long", "sleep 100", env={"SECRET": "one"})
    first = fleet.until("long", "running")
    file = fleet.home / "long.dstack.yml"

    done = fleet.run("apply", "-y", "-d", "-f", file)
    assert "Detected no changes" in done.stderr
    assert "--force" in done.stderr
    assert fleet.json("run", "get", "long")["id"] == first["id"]

    fleet.task("long", "sleep 200", env={"SECRET": "two"})
    done = fleet.run("apply", "-f", file, input="n\n")
    assert "cannot be made in place" in done.stderr
    assert "configuration.commands: ['sleep 100'] -> ['sleep 200']" in done.stderr
    assert "configuration.env.SECRET\n" in done.stderr
    assert "two" not in done.output

    fleet.run("apply", "-y", "-d", "-f", file)
    again = fleet.until("long", "running")
    assert again["id"] != first["id"]
    assert fleet.json("run", "get", "--id", first["id"])["status"] == "terminated"


def test_force_submits_what_has_not_changed_anew(fleet: Site) -> None:
    fleet.submit("long", "sleep 100")
    first = fleet.until("long", "running")

    fleet.run("apply", "-y", "-d", "--force", "-f", fleet.home / "long.dstack.yml")

    assert fleet.until("long", "running")["id"] != first["id"]


def begun(site: Site, *options: str) -> subprocess.Popen[str]:
    """An attached run that has said its first word."""
    file = site.task("long", "echo begun; sleep 100")
    started = site.start("apply", *options, "-f", file)
    assert started.stdin is not None and started.stdout is not None
    if "-y" not in options:
        started.stdin.write("y\n")
        started.stdin.flush()
    for line in started.stdout:
        if line == "begun\n":
            return started
    raise AssertionError(started.communicate())


def test_ctrl_c_asks_whether_to_stop(fleet: Site) -> None:
    started = begun(fleet)

    started.send_signal(signal.SIGINT)
    told = started.communicate("y\n", timeout=60)[1]

    assert "Stop the run long before detaching? [y/n]" in told
    assert "Stopped" in told
    assert "Traceback" not in told
    assert started.returncode == 130
    assert fleet.json("run", "get", "long")["status"] == "terminated"


def test_ctrl_c_with_a_no_detaches(fleet: Site) -> None:
    started = begun(fleet)

    started.send_signal(signal.SIGINT)
    told = started.communicate("n\n", timeout=60)[1]

    assert told.endswith("Detached\n")
    assert started.returncode == 0
    assert fleet.json("run", "get", "long")["status"] == "running"


def test_ctrl_c_detaches_at_once_when_nothing_is_asked(fleet: Site) -> None:
    started = begun(fleet, "-y")

    press_ctrl_c(started)
    told = started.communicate(timeout=60)[1]

    assert told.endswith("Detached\n")
    assert "[y/n]" not in told
    assert fleet.json("run", "get", "long")["status"] == "running"


def test_a_second_ctrl_c_aborts(fleet: Site) -> None:
    started = begun(fleet)
    started.send_signal(signal.SIGINT)
    assert started.stderr is not None
    read = ""
    while not read.endswith("detaching? [y/n]: "):
        piece = started.stderr.read(1)
        assert piece, read
        read += piece

    started.send_signal(signal.SIGINT)
    told = started.communicate(timeout=60)[1]

    assert "Aborted" in told
    assert "Traceback" not in told
    assert started.returncode == 130

    def is_over() -> Any:
        return fleet.json("run", "get", "long")["termination_reason"] == "aborted_by_user"

    until(is_over, seconds=20)


def test_a_port_that_is_taken_is_told_before_anything_is_submitted(fleet: Site) -> None:
    taken = fleet.url.rpartition(":")[2]
    file = fleet.task("web", "true", ports=[f"{taken}:8000"])

    with pytest.raises(Conflict, match=f"port {taken} of localhost"):
        fleet.run("apply", "-y", "-f", file)

    assert fleet.json("ps", "-a")["runs"] == []


def test_a_key_of_ones_own_needs_its_public_half(fleet: Site, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("private")
    file = fleet.task("keyed", "sleep 100")
    with pytest.raises(NotFound, match=r"key\.pub"):
        fleet.run("apply", "-y", "-d", "-f", file, "--ssh-identity", key)
    key.with_name("key.pub").write_text("ssh-ed25519 AAAA me")

    fleet.run("apply", "-y", "-d", "-f", file, "--ssh-identity", key)

    assert fleet.json("run", "get", "keyed")["run_spec"]["ssh_key_pub"] == "ssh-ed25519 AAAA me"
    fleet.until("keyed", "running")
    with pytest.raises(Invalid, match="--ssh-identity"):
        fleet.run("attach", "keyed")


def test_a_run_that_is_over_can_be_attached_to_for_its_output_alone(fleet: Site) -> None:
    fleet.submit("bad", "echo once; exit 3")
    fleet.until("bad", "failed")

    done = fleet.run("attach", "bad", "--logs", code=3)
    assert done.stdout_bytes == b"once\r\n"
    assert done.stderr == "bad: exited (3)\n"
    with pytest.raises(Conflict, match="casemate logs bad"):
        fleet.run("attach", "bad")


def test_offers_are_listed_counted_and_narrowed(site: Site) -> None:
    all_ = site.json("offer")
    assert len(all_["offers"]) == all_["total_offers"] > 1

    first = site.run("offer", "--max-offers", "1").stdout.splitlines()
    assert first[0].split()[:3] == ["#", "BACKEND", "RESOURCES"]
    assert first[2] == f"... 1 of {all_['total_offers']} offers"
    assert {
        each["instance"]["resources"]["cpus"] for each in site.json("offer", "--cpu", "1")["offers"]
    } == {1}
    assert site.json("offer", "--fleet", "none")["offers"] == []
    for words in (("--gpu", "H100"), ("--cpu", "100000..")):
        assert "no offers" in site.run("offer", *words).stderr
    assert site.json("offer", "--group-by", "gpu")["gpus"] == []
    with pytest.raises(Invalid, match="cpu"):
        site.run("offer", "--cpu", "many")


def test_credentials_of_a_registry_come_from_the_variables(site: Site) -> None:
    auth = {"username": "joe", "password": "${{ env.PASSWORD }}"}
    site.fleet()
    task = {"image": "registry.example.org/tool", "registry_auth": auth, "env": ["PASSWORD"]}

    site.run("apply", "-y", "-d", "-e", "PASSWORD=a$b", "-f", site.task("boxed", "true", **task))

    configuration = site.json("run", "get", "boxed")["run_spec"]["configuration"]
    assert configuration["registry_auth"] == {"username": "joe", "password": "a$b"}
    with pytest.raises(Invalid, match="OTHER is none of the variables"):
        auth["password"] = "${{env.OTHER}}"
        site.run("apply", "-y", "-e", "PASSWORD=a", "-f", site.task("boxed", "true", **task))
