"""kill -9 at every named point of every operation: what the next service makes of it (core/faults.py)."""

from __future__ import annotations

import ast
import contextlib
import shutil
import signal
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import pytest
import requests

from core import faults
from tests.common import rows
from tests.common.promises import Seen, breaches, is_settled, look
from tests.common.service import RunningService
from tests.common.waiting import free_port, until
from tests.system import test_cluster_faults
from vmm import process

OLD = rows.COMPOSE
NEW = '{"docker_compose_file": "services: {web: {}}"}'
FIRST_SCHEMA = Path(__file__).parents[1] / "unit/migrations/schema_0001.sql"
MIGRATION_POINTS = ("migration.step:1", "migration.step:2", "migration.step:3", "migration.done")
WHOLE_START = (
    "folder.shared",
    "folder.mirrored",
    "disk.shared",
    "process.described",
    "runner.spawned",
    "runner.recorded",
    "start.spawned",
    "start.greeted",
    "start.observed",
)


@dataclass
class Site:
    """A service with a running and a stopped bystander, and what it was heard to promise."""

    service: RunningService
    kept: set[str] = field(default_factory=set)
    removed: set[str] = field(default_factory=set)
    held: list[IO[str]] = field(default_factory=list)

    def create(self, **fields: Any) -> str:
        vm_id: str = self.service.call("prpc/CreateVm", **rows.request(**fields))["id"]
        self.kept.add(vm_id)
        return vm_id

    def ask(self, path: str, **message: Any) -> requests.Response | None:
        """A call whose answer may never come."""
        try:
            return self.service.request("POST", f"/prpc/{path}", json=message)
        except requests.ConnectionError:
            return None

    def hold(self, vm_id: str) -> None:
        """Keeps the log of a VM's runner readable when its folder is removed."""
        log = self.service.data_dir / "vm" / vm_id / "stderr.log"
        self.held.append(log.open(errors="replace"))

    def forget_logs(self) -> None:
        """Begins anew what `passed` looks at."""
        for held in self.held:
            held.close()
        self.held.clear()
        for log in self.logs():
            log.write_bytes(b"")

    def logs(self) -> list[Path]:
        return [self.service.log, *(self.service.data_dir / "vm").glob("*/stderr.log")]

    def passed(self, name: str) -> bool:
        """Whether a process has killed itself at that point since the logs were last cleared."""
        texts = []
        for log in self.logs():
            with contextlib.suppress(FileNotFoundError):  # its VM was removed just now
                texts.append(log.read_text(errors="replace"))
        for held in self.held:
            held.seek(0)
            texts.append(held.read())
        return any(f"fault point {name}\n" in text for text in texts)


# One operation: how its VM is made, the calls, and what may have become of the VM, given whether the last call
# was answered with success, was refused, or got no answer (None).
Answer = bool | None


@dataclass(frozen=True)
class Operation:
    make: Callable[[Site], str]
    calls: Callable[[Site, str], requests.Response | None]
    points: tuple[str, ...]
    holds: Callable[[Seen | None, Answer], bool]


def stopped(site: Site) -> str:
    return site.create(stopped=True, ports=[rows.port(free_port())])


def running(site: Site) -> str:
    return site.create(ports=[rows.port(free_port())])


def stubborn(site: Site) -> str:
    vm_id = running(site)
    site.service.call("prpc/StopVm", id=vm_id)
    rows.behave(site.service.data_dir / "vm" / vm_id, ignore_sigterm=True)
    site.service.call("prpc/StartVm", id=vm_id)
    return vm_id


def nothing(site: Site) -> str:
    return ""


def created(site: Site, _: str, **fields: Any) -> requests.Response | None:
    answer = site.ask("CreateVm", **rows.request(ports=[rows.port(free_port())], **fields))
    if answer is not None and answer.status_code == 200:
        site.kept.add(answer.json()["id"])
    return answer


def verb(name: str) -> Callable[[Site, str], requests.Response | None]:
    return lambda site, vm_id: site.ask(name, id=vm_id)


def removal(site: Site, vm_id: str) -> requests.Response | None:
    answer = site.ask("RemoveVm", id=vm_id)
    # Unanswered it may be done or not; all points but the first ones lie behind the answer.
    if answer is None or answer.status_code == 200:
        site.removed.add(vm_id)
    return answer


def begun_and_removed(site: Site, vm_id: str) -> requests.Response | None:
    site.ask("StartVm", id=vm_id)
    site.hold(vm_id)
    return removal(site, vm_id)


def updated(site: Site, vm_id: str) -> requests.Response | None:
    return site.ask("UpgradeApp", id=vm_id, compose_file=NEW, encrypted_env="00ff")


def upgraded(site: Site, vm_id: str) -> requests.Response | None:
    updated(site, vm_id)
    return site.ask("StartVm", id=vm_id)


def resized(site: Site, vm_id: str) -> requests.Response | None:
    return site.ask("ResizeVm", id=vm_id, vcpu=2, memory=512, disk_size=2)


def is_running(vm: Seen | None, answer: Answer) -> bool:
    # A start that was refused is no standing wish.
    wanted = {"running"} if answer is not False else {"stopped"}
    return vm is not None and vm.status in wanted


OPERATIONS = {
    "create": Operation(
        nothing,
        created,
        (
            "create.checked",
            "create.leased",
            "create.inserted",
            "create.committed",
            "lock.taken",
            "folder.made",
            "start.asked",
            "folder.shared:3",
            "disk.made",
            *WHOLE_START,
            "create.unanswered",
        ),
        # Whole and running, or not there at all.
        lambda vm, answer: vm is None or vm.status == "running",
    ),
    "create stopped": Operation(
        nothing,
        lambda site, vm_id: created(site, vm_id, stopped=True),
        ("create.committed", "folder.made", "create.unanswered"),
        lambda vm, answer: vm is None or vm.status == "stopped",
    ),
    "start": Operation(
        stopped,
        verb("StartVm"),
        ("start.wished", "start.asked", "disk.made", *WHOLE_START),
        is_running,
    ),
    "start not begun": Operation(
        stopped,
        verb("StartVm"),
        ("lock.taken", "folder.made"),
        lambda vm, answer: vm is not None and vm.status == "stopped",
    ),
    "stop": Operation(
        running,
        verb("StopVm"),
        (
            "stop.wished",
            "lock.taken",
            "process.signalling",
            "stop.ended",
            "stop.buried",
        ),
        lambda vm, answer: vm is not None and vm.status == "stopped",
    ),
    "stop by force": Operation(
        stubborn,
        verb("StopVm"),
        ("process.signalling:2",),
        lambda vm, answer: vm is not None and vm.status == "stopped",
    ),
    # A runner is told of a point by the service that starts it.
    "start and stop": Operation(
        stopped,
        lambda site, vm_id: (site.ask("StartVm", id=vm_id), site.ask("StopVm", id=vm_id))[1],
        ("runner.ended",),
        lambda vm, answer: vm is not None and vm.status == "stopped",
    ),
    "start and remove": Operation(
        stopped,
        begun_and_removed,
        ("runner.ended",),
        lambda vm, answer: vm is None,
    ),
    "shutdown": Operation(
        running,
        verb("ShutdownVm"),
        ("shutdown.asked", "stop.ended", "stop.buried"),
        # Before the wish is kept, the end of the guest looks like its own, and it is started again.
        lambda vm, answer: (
            vm is not None
            and (
                vm.status == "stopped"
                or (not answer and vm.status == "running" and vm.process is not None)
            )
        ),
    ),
    "update": Operation(
        running,
        updated,
        ("lock.taken", "update.assigned", "update.committed"),
        lambda vm, answer: (
            vm is not None
            and vm.status == "running"
            and (vm.compose, vm.events.count("vmm.update")) in ((OLD, 0), (NEW, 1))
        ),
    ),
    "upgrade and start": Operation(
        lambda site: stopped_again(site),
        upgraded,
        ("start.wished", "folder.shared:1", "folder.shared:2", "folder.mirrored:1", "disk.shared"),
        lambda vm, answer: is_running(vm, answer) and vm is not None and vm.compose == NEW,
    ),
    "resize": Operation(
        lambda site: stopped_again(site),
        resized,
        ("update.grown", "update.assigned", "update.committed"),
        lambda vm, answer: vm is not None and vm.size in ((1, 256, 1), (2, 512, 2)),
    ),
    "remove": Operation(
        running,
        removal,
        (
            "remove.marked",
            "lock.taken",
            "process.signalling",
            "remove.ended",
            "remove.half",
            "remove.deleted",
            "remove.forgotten",
        ),
        lambda vm, answer: vm is None,
    ),
}


def stopped_again(site: Site) -> str:
    vm_id = running(site)
    site.service.call("prpc/StopVm", id=vm_id)
    return vm_id


CASES = [(name, point) for name, operation in OPERATIONS.items() for point in operation.points]


@pytest.fixture(scope="module")
def walked(fake_qemu: Path) -> Iterator[Site]:
    """One service for the whole walk: each case begins with the one that recovered from the case before."""
    folder = Path(tempfile.mkdtemp(prefix="cm-", dir="/tmp"))
    rows.image(folder / "images")
    service = RunningService(
        folder / "data",
        folder / "images",
        extra=f'qemu_path = "{fake_qemu}"\naccel = "tcg"\n[server]\nworkers = 1\nthreads = 4\n',
    )
    site = Site(service)
    service.start()
    running(site)
    stopped_again(site)
    yield site
    service.end()
    shutil.rmtree(folder)


@pytest.fixture
def site(walked: Site) -> Site:
    master = walked.service.process
    if master is None or master.poll() is not None:
        walked.service.start()
    return walked


@pytest.mark.parametrize(("name", "point"), CASES)
def test_nothing_is_lost_when_the_service_is_killed(site: Site, name: str, point: str) -> None:
    operation, service = OPERATIONS[name], site.service
    vm_id = operation.make(site)
    before = look(service)
    service.kill(everything=False)
    site.forget_logs()
    service.start(CASEMATE_FAULT=point, CASEMATE_FAULTS_ALLOWED="1")
    # This start came after a recovery that had settled: it has nothing left to do.
    assert look(service) == before

    answer = operation.calls(site, vm_id)
    told = None if answer is None else answer.status_code == 200
    # The log of a runner goes with the VM whose creation failed.
    cut_short = point.startswith("runner.") and told is False
    until(
        lambda: cut_short or site.passed(point.partition(":")[0]),
        seconds=30,
        what=f"a pass of {point} ({answer and answer.text})",
    )
    service.kill(everything=False)
    folder = service.data_dir / "vm" / vm_id
    if name == "shutdown":
        until(lambda: process.find(folder) is None, what="the end of a guest that was asked to")
    alive = process.find(folder) if vm_id else None
    service.start()

    def converged() -> bool:
        after = look(service)
        touched = vm_id or next(iter(after.keys() - before.keys()), "")
        return (
            is_settled(service)
            and operation.holds(after.get(touched), told)
            and not breaches(service, site.kept, site.removed)
        )

    with contextlib.suppress(AssertionError):  # what is wrong is told below
        until(converged, seconds=30)  # 10 on a machine with nothing else to do
    after = look(service)
    assert breaches(service, site.kept, site.removed) == []
    assert len(after.keys() - before.keys()) <= (0 if vm_id else 1)
    touched = vm_id or next(iter(after.keys() - before.keys()), "")
    assert converged(), (after.get(touched), told, service.log.read_text()[-3000:])
    others = before.keys() - {touched}
    assert {key: after[key] for key in others} == {key: before[key] for key in others}
    if alive and touched in after and after[touched].status == "running":
        assert after[touched].process == alive, "a running VM was started again"
    tidy(site, touched, after)


def tidy(site: Site, vm_id: str, after: dict[str, Seen]) -> None:
    """Takes the case's VM away, so that the walk does not grow."""
    if vm_id in after:
        site.service.call("prpc/RemoveVm", id=vm_id)
        site.removed.add(vm_id)
        until(lambda: vm_id not in look(site.service))


@pytest.mark.parametrize("point", MIGRATION_POINTS)
def test_a_service_killed_while_it_migrates_is_migrated_by_the_next(
    fake_qemu: Path, data_dir: Path, point: str
) -> None:
    rows.image(data_dir / "images")
    service = RunningService(
        data_dir / "data", data_dir / "images", extra=f'qemu_path = "{fake_qemu}"\naccel = "tcg"\n'
    )
    service.data_dir.mkdir()
    with contextlib.closing(sqlite3.connect(service.data_dir / "casemate.db")) as database:
        database.executescript(FIRST_SCHEMA.read_text())

    with pytest.raises(AssertionError, match=f"fault point {point.partition(':')[0]}"):
        service.start(CASEMATE_FAULT=point, CASEMATE_FAULTS_ALLOWED="1")
    assert service.process is not None
    assert service.process.wait(10) == -signal.SIGKILL

    service.start()
    listed = [(vm["name"], vm["status"]) for vm in service.call("prpc/Status")["vms"]]
    service.end()
    # They ran once, and their folders are not there.
    assert listed == [("first", "unknown"), ("second", "unknown")]


def test_a_service_that_was_not_told_that_it_is_a_test_refuses(
    fake_qemu: Path, data_dir: Path
) -> None:
    service = RunningService(
        data_dir / "data", data_dir / "images", extra=f'qemu_path = "{fake_qemu}"\n'
    )

    with pytest.raises(
        AssertionError, match="casemate: CASEMATE_FAULT kills the service on purpose"
    ):
        service.start(CASEMATE_FAULT="create.checked")

    assert service.process is not None
    assert service.process.wait(10) == 1
    assert not service.data_dir.exists()


def placed() -> list[str]:
    """Every point as it stands in the code, as often as it stands there."""
    root = Path(faults.__file__).parents[1]
    folders = ("vmm", "migrations", "core", "cli", "accounts", "image", "secretvm")
    trees = [
        ast.parse(path.read_text()) for each in folders for path in (root / each).rglob("*.py")
    ]
    calls = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [
        node.args[0].value
        for node in calls
        if ast.unparse(node.func) in ("faults.point", "point")
        and isinstance(node.args[0], ast.Constant)
    ]


def test_every_point_stands_in_the_code_once_and_is_walked() -> None:
    assert sorted(placed()) == sorted(faults.POINTS)
    cases = (*CASES, *test_cluster_faults.CASES)
    points = (*(point for _, point in cases), *MIGRATION_POINTS)
    walked = {point.partition(":")[0] for point in points}
    assert walked == set(faults.POINTS)
