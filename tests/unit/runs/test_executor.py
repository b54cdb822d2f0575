"""The executor with the guest's own runner at the other end, in this process: no VM, and nothing is played."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from attest.compose import AppCompose
from core import prpc
from core.errors import Invalid, Unavailable, Upstream
from core.messages import MAX_OUTPUT, JobReport, Report, StopOrder
from guest.runner import Runner
from runs.executor import NOTES_MOST, JobOrder, Stage, VmExecutor
from tests.common.waiting import until


@dataclass
class Heard:
    """A scheduler that writes down what it is told."""

    states: list[tuple[str, Stage, int | None]] = field(default_factory=list)
    output: dict[str, bytes] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    ready: list[str] = field(default_factory=list)
    lost: list[tuple[str, str]] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)

    def on_state(self, name: str, stage: Stage, status: int | None, message: str) -> None:
        self.states.append((name, stage, status))
        self.messages.append(message)

    def on_output(self, name: str, data: bytes) -> None:
        self.output[name] = self.output.get(name, b"") + data

    def on_diagnosis(self, name: str, text: str) -> None:
        self.notes.append(text)

    def on_inactive(self, name: str, seconds: int) -> None:
        self.notes.append(f"inactive for {seconds}")

    def on_ready(self, vm_id: str) -> None:
        self.ready.append(vm_id)

    def on_lost(self, vm_id: str, message: str) -> None:
        self.lost.append((vm_id, message))

    def ended(self, name: str) -> int | None:
        """The exit status of a job, once it has one."""
        return next(
            (status for job, stage, status in self.states if job == name and status is not None),
            None,
        )


class OneVm:
    """What the executor asks of the VM manager, for one VM whose runner is in this process."""

    def __init__(self) -> None:
        self.runner: Runner | None = None
        self.open: set[int] = set()
        self.refuses = ""
        self.about: dict[str, Any] | None = {"boot_error": "", "status": "running", "events": []}

    def ask_guest(self, vm_id: str, method: str, answer: object, params: Mapping[str, Any]) -> Any:
        if self.runner is None:
            raise Upstream("guest agent: unknown method")
        return self.runner.answer(method, params)

    def publish(self, vm_id: str, port: int) -> int:
        if self.refuses:
            raise Upstream(self.refuses)
        self.open.add(port)
        return 20000 + port

    def withdraw(self, vm_id: str, port: int) -> None:
        self.open.discard(port)

    def info(self, vm_id: str) -> dict[str, Any] | None:
        return self.about


class Channel:
    """The way from the runner to the executor, with the checks of the host API."""

    def __init__(self, heard: Callable[[str, Report], int]) -> None:
        self.heard = heard

    def call(self, method: str, params: Mapping[str, object], timeout_s: float) -> Any:
        return {"offset": self.heard("vm", prpc.load(JobReport, params))}


@pytest.fixture
def vm() -> OneVm:
    return OneVm()


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture
def executor(vm: OneVm, heard: Heard) -> Iterator[VmExecutor]:
    executor = VmExecutor(vm, heard)  # type: ignore[arg-type]
    yield executor
    executor.close()


@pytest.fixture
def boot(vm: OneVm, executor: VmExecutor, tmp_path: Path) -> Iterator[Callable[[], Runner]]:
    """Starts the runner of the VM, as its boot does at its end."""

    def start() -> Runner:
        runner = Runner(tmp_path, Channel(executor.heard))
        vm.runner = runner
        runner.start()
        return runner

    yield start
    if vm.runner is not None and vm.runner.job is not None:
        vm.runner.stop(StopOrder(vm.runner.job.order.id))


def order(name: str, script: str, **fields: Any) -> JobOrder:
    values: dict[str, Any] = {
        "run_name": "r", "job_name": "r-0-0", "image": "", "entrypoint": "", "env": {}, "user": "",
        "working_dir": "", "home_dir": "", "privileged": False, "ports": (), "authorized_keys": (),
    }  # fmt: skip
    return JobOrder(name, command=("/bin/bash", "-c", script), **(values | fields))


def test_a_job_submitted_while_the_vm_boots_runs_when_its_runner_speaks(
    executor: VmExecutor, heard: Heard, boot: Callable[[], Runner]
) -> None:
    executor.submit("vm", order("a", "echo $WORD; exit 4", env={"WORD": "good day"}))
    assert not executor.is_ready("vm")

    boot()

    until(lambda: heard.ended("a") == 4)
    assert executor.is_ready("vm") and heard.ready == ["vm"]
    assert heard.output["a"] == b"good day\r\n"
    assert [stage for _, stage, _ in heard.states] == ["pulling", "running", "exited"]
    assert "the VM is ready for the job" in heard.notes


def test_a_stop_reaches_the_job(
    executor: VmExecutor, heard: Heard, boot: Callable[[], Runner]
) -> None:
    boot()
    executor.submit("vm", order("a", "echo up; sleep 1000"))
    until(lambda: "a" in heard.output)

    executor.stop("vm", "a", 30)

    until(lambda: heard.ended("a") == 128 + 15)


def test_one_vm_takes_one_job_after_another(
    executor: VmExecutor, heard: Heard, boot: Callable[[], Runner]
) -> None:
    boot()
    for name in ("a", "b"):
        executor.submit("vm", order(name, f"echo {name}"))
        until(lambda name=name: heard.ended(name) == 0)
        executor.release("vm", name)

    assert heard.output == {"a": b"a\r\n", "b": b"b\r\n"}


def test_after_a_restart_of_the_service_nothing_is_lost_and_nothing_told_twice(
    vm: OneVm, heard: Heard, executor: VmExecutor, boot: Callable[[], Runner], tmp_path: Path
) -> None:
    runner = boot()
    go = tmp_path / "go"
    executor.submit("vm", order("a", f"echo one; until [ -e {go} ]; do sleep 0.05; done; echo two"))
    until(lambda: "a" in heard.output)
    executor.close()

    again = Heard(output={"a": heard.output["a"]})
    second = VmExecutor(vm, again)  # type: ignore[arg-type]
    runner._reporter._host = Channel(second.heard)
    go.touch()
    until(lambda: runner.job is not None and runner.job.is_over)
    second.submit("vm", order("a", "not run again", output_offset=len(again.output["a"])))

    until(lambda: again.ended("a") == 0)
    assert again.output["a"] == b"one\r\ntwo\r\n"
    second.close()


def test_a_jobs_ports_are_open_until_it_is_released(
    executor: VmExecutor, vm: OneVm, heard: Heard, boot: Callable[[], Runner]
) -> None:
    boot()
    executor.submit("vm", order("a", "true", ports=(8000,)))
    until(lambda: heard.ended("a") == 0)
    assert vm.open == {8000}

    executor.release("vm", "a")

    until(lambda: not vm.open)


def test_a_port_that_cannot_be_opened_fails_the_job(
    executor: VmExecutor, vm: OneVm, heard: Heard, boot: Callable[[], Runner]
) -> None:
    vm.refuses = "no"
    boot()

    executor.submit("vm", order("a", "true", ports=(8000,)))

    until(lambda: ("a", Stage.FAILED, None) in heard.states)


@pytest.mark.parametrize(
    "env", [{"TEXT": "x" * 2**20}, {"TEXT": "a\0b"}, {f"V{n}": "" for n in range(5000)}]
)
def test_an_order_that_no_guest_would_take_fails_its_job(
    executor: VmExecutor, heard: Heard, boot: Callable[[], Runner], env: dict[str, str]
) -> None:
    boot()

    executor.submit("vm", order("a", "true", env=env))

    until(lambda: ("a", Stage.FAILED, None) in heard.states)


@pytest.mark.parametrize(
    ("about", "why"),
    [
        (None, "the VM was removed"),
        ({"boot_error": "no disk", "status": "running", "events": []}, "the boot failed: no disk"),
        ({"boot_error": "", "status": "exited", "events": [{"event": "vmm.exit", "body": "killed"}]}, "killed"),
    ],
)  # fmt: skip
def test_the_end_of_a_vm_is_told_once(
    executor: VmExecutor, vm: OneVm, heard: Heard, about: dict[str, Any] | None, why: str
) -> None:
    executor.watch("vm")

    vm.about = about

    until(lambda: heard.lost)
    assert heard.lost == [("vm", why)]
    assert not executor.is_ready("vm")


# A hostile guest ------------------------------------------------------------------------------------


@pytest.fixture
def known(executor: VmExecutor) -> VmExecutor:
    """An executor that knows the VM and the job `a` of it."""
    executor.submit("vm", order("a", "true"))
    return executor


def said(executor: VmExecutor, vm_id: str = "vm", **fields: Any) -> int:
    return executor.heard(vm_id, Report(**fields))


def test_a_vm_that_nobody_watches_is_not_heard(known: VmExecutor) -> None:
    with pytest.raises(Unavailable):
        said(known, "another", id="a", stage="exited", exit_status=0)


def test_a_vm_cannot_speak_of_another_vms_job(known: VmExecutor, heard: Heard) -> None:
    known.watch("another")

    with pytest.raises(Unavailable):
        said(known, "another", id="a", stage="exited", exit_status=0)

    assert heard.states == []


@pytest.mark.parametrize(
    ("fields", "refusal"),
    [
        ({"stage": "done"}, "stage"),
        ({"stage": ""}, "stage"),
        ({"data": bytes(MAX_OUTPUT + 1)}, "data"),
        ({"stage": "exited"}, "exit_status"),
        ({"stage": "exited", "exit_status": 256}, "exit_status"),
        ({"stage": "running", "exit_status": 0}, "exit_status"),
    ],
)
def test_what_no_runner_says_is_refused(
    known: VmExecutor, fields: dict[str, Any], refusal: str
) -> None:
    with pytest.raises(Invalid, match=refusal):
        said(known, id="a", **fields)


def test_output_is_taken_in_order_and_once(known: VmExecutor, heard: Heard) -> None:
    assert said(known, id="a", offset=3, data=b"def") == 0
    assert said(known, id="a", offset=0, data=b"abc") == 3
    assert said(known, id="a", offset=0, data=b"abc") == 3
    assert said(known, id="a", offset=2, data=b"cde") == 5

    assert heard.output == {"a": b"abcde"}


def test_after_the_end_of_a_job_nothing_more_is_taken(known: VmExecutor, heard: Heard) -> None:
    assert said(known, id="a", data=b"abc") == 3
    said(known, id="a", stage="exited", exit_status=0)

    assert said(known, id="a", offset=3, data=b"def") == 3
    said(known, id="a", stage="exited", exit_status=7)
    said(known, id="a", stage="note", message="more")

    assert heard.output == {"a": b"abc"}
    assert heard.states == [("a", Stage.EXITED, 0)] and heard.notes == []


def test_an_end_that_could_not_be_kept_is_told_again(
    known: VmExecutor, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*told: object) -> None:
        raise Unavailable("the database is busy")

    with monkeypatch.context() as patch, pytest.raises(Unavailable):
        patch.setattr(heard, "on_state", fails)
        said(known, id="a", stage="exited", exit_status=0)
    said(known, id="a", stage="exited", exit_status=0)

    assert heard.ended("a") == 0


def test_output_that_could_not_be_kept_is_wanted_again(
    known: VmExecutor, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*told: object) -> None:
        raise OSError("the disk is full")

    with monkeypatch.context() as patch, pytest.raises(OSError):
        patch.setattr(heard, "on_output", fails)
        said(known, id="a", data=b"abc")

    assert said(known, id="a", offset=1, data=b"bc") == 0
    assert said(known, id="a", offset=0, data=b"abc") == 3
    assert heard.output == {"a": b"abc"}


def test_a_vm_is_ready_when_that_could_be_kept(
    known: VmExecutor, heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(vm_id: str) -> None:
        raise Unavailable("the database is busy")

    with monkeypatch.context() as patch, pytest.raises(Unavailable):
        patch.setattr(heard, "on_ready", fails)
        said(known, stage="alive")
    assert not known.is_ready("vm")
    said(known, stage="alive")

    assert known.is_ready("vm") and heard.ready == ["vm"]


def test_a_guest_cannot_give_the_hosts_reasons(known: VmExecutor, heard: Heard) -> None:
    said(known, id="a", stage="failed", message="terminated_by_user: by nobody")

    assert heard.messages == ["executor_error: terminated_by_user: by nobody"]


def test_a_guest_cannot_fill_the_disk_with_notes(known: VmExecutor, heard: Heard) -> None:
    for _ in range(NOTES_MOST + 10):
        said(known, id="a", stage="note", message="again")

    assert len(heard.notes) == NOTES_MOST


def test_long_words_are_cut(known: VmExecutor, heard: Heard) -> None:
    said(known, id="a", stage="note", message="x" * 10_000)

    assert heard.notes == ["x" * 1000]


def test_the_compose_asks_for_the_runner_and_for_ssh(executor: VmExecutor) -> None:
    text = executor.prepare("web", ssh=False)

    parsed = AppCompose.parse(text.encode())
    assert (parsed.runner, parsed.runner_ssh, parsed.key_provider) == ("jobs", False, "none")
    assert json.loads(executor.prepare("web", ssh=True))["runner_ssh"] is True


def test_an_order_shows_no_secret_in_a_log() -> None:
    shown = repr(order("a", "true", env={"KEY": "s3cret"}, registry_auth=("me", "s3cret")))

    assert "s3cret" not in shown
