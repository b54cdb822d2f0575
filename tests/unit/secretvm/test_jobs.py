from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import select, update

from core.errors import Conflict, NotFound
from models.account import MAIN_ID
from models.base import Database
from models.job import Job
from secretvm import bell, jobs
from tests.common.waiting import until
from vmm.service import Vms

done: list[Any] = []
gate = threading.Event()


@pytest.fixture(autouse=True)
def kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    def note(work: jobs.Work) -> dict[str, Any]:
        done.append(work.argument)
        work.progress(50)
        return {"vmId": work.argument["vm"]}

    def refuse(work: jobs.Work) -> dict[str, Any]:
        raise Conflict("the VM is in the way")

    def break_down(work: jobs.Work) -> dict[str, Any]:
        raise RuntimeError("a secret of the program")

    def wait(work: jobs.Work) -> dict[str, Any]:
        gate.wait(30)
        return {}

    done.clear()
    gate.clear()
    known = {"note": note, "refuse": refuse, "break": break_down, "wait": wait}
    kinds = {name: jobs.Kind(function) for name, function in known.items()}
    monkeypatch.setattr(jobs, "KINDS", kinds | {"once": jobs.Kind(wait, resumes=False)})


@pytest.fixture
def worker(vms: Vms) -> Iterator[jobs.Worker]:
    worker = jobs.Worker(vms)
    yield worker
    gate.set()
    worker.stop()


def enqueue(database: Database, type_: str, **argument: Any) -> str:
    with database.writing() as session:
        return jobs.enqueue(session, type_, MAIN_ID, argument)


def read(database: Database, job_id: str) -> Job:
    with database.reading() as session:
        return session.get_one(Job, job_id)


def ended(database: Database, job_id: str) -> bool:
    return read(database, job_id).status not in jobs.UNFINISHED


def test_a_job_is_done_by_the_worker_that_hears_its_bell(
    database: Database, worker: jobs.Worker
) -> None:
    worker.start()

    job_id = enqueue(database, "note", vm="v1")

    assert until(lambda: ended(database, job_id))
    job = read(database, job_id)
    assert (job.status, job.progress, job.result) == ("completed", 100, {"vmId": "v1"})
    assert done == [{"vm": "v1"}]


def test_a_job_of_a_transaction_that_was_taken_back_is_no_job(
    database: Database, worker: jobs.Worker
) -> None:
    with pytest.raises(ZeroDivisionError), database.writing() as session:
        jobs.enqueue(session, "note", MAIN_ID, {"vm": "v1"})
        raise ZeroDivisionError

    with database.reading() as session:
        assert session.scalars(select(Job)).all() == []
    assert bell.is_silent(worker.vms.config.data_dir)


def test_a_job_whose_bell_was_lost_is_found(
    database: Database, worker: jobs.Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as lost:
        lost.setattr(bell, "ring", lambda *_: None)
        job_id = enqueue(database, "note", vm="v1")
    worker.start()

    assert until(lambda: worker.sweep() or ended(database, job_id))
    assert read(database, job_id).status == "completed"


def test_a_job_whose_bell_rings_twice_is_done_once(database: Database, vms: Vms) -> None:
    job_id = enqueue(database, "note", vm="v1")
    first, second = jobs.Worker(vms), jobs.Worker(vms)

    threads = [threading.Thread(target=each.run, args=(job_id,)) for each in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(done) == 1


def test_a_refusal_is_the_jobs_error_and_a_fault_is_not_told(database: Database, vms: Vms) -> None:
    refused, broken = enqueue(database, "refuse"), enqueue(database, "break")

    for job_id in (refused, broken):
        jobs.Worker(vms).run(job_id)

    assert read(database, refused).status == read(database, broken).status == "failed"
    assert read(database, refused).error == "the VM is in the way"
    assert read(database, broken).error == "internal error; see the service log"


def test_a_job_that_a_killed_process_was_at_is_begun_again_or_failed(
    database: Database, vms: Vms
) -> None:
    again, never, hopeless = (enqueue(database, type_) for type_ in ("wait", "once", "wait"))
    with database.writing() as session:
        session.execute(update(Job).values(status="running", tries=1))
        session.execute(update(Job).where(Job.id == hopeless).values(tries=jobs.TRIES))

    jobs.Worker(vms).take_over()

    assert read(database, again).status == "pending"
    for job_id in (never, hopeless):
        assert read(database, job_id).status == "failed"
        assert read(database, job_id).error == "interrupted by restart"


def test_progress_of_a_running_job_never_goes_back(database: Database, vms: Vms) -> None:
    job_id = enqueue(database, "wait")
    thread = threading.Thread(target=jobs.Worker(vms).run, args=(job_id,))
    thread.start()
    assert until(lambda: read(database, job_id).status == "running")

    with database.writing() as session:
        jobs.progress(session, job_id, 60)
        jobs.progress(session, job_id, 30)

    assert read(database, job_id).progress == 60
    gate.set()
    thread.join()
    assert read(database, job_id).progress == 100


def test_a_job_of_another_project_is_not_found(database: Database) -> None:
    job_id = enqueue(database, "note", vm="v1")

    with database.reading() as session:
        assert jobs.find(session, job_id, None).id == job_id
        assert jobs.find(session, job_id, frozenset({MAIN_ID})).id == job_id
        for projects in (frozenset(), frozenset({"other"})):
            with pytest.raises(NotFound):
                jobs.find(session, job_id, projects)


def test_jobs_are_kept_for_seven_days(database: Database, vms: Vms) -> None:
    old, new = enqueue(database, "refuse"), enqueue(database, "refuse")
    worker = jobs.Worker(vms)
    for job_id in (old, new):
        worker.run(job_id)
    with database.writing() as session:
        session.execute(
            update(Job)
            .where(Job.id == old)
            .values(updated_ms=Job.updated_ms - jobs.KEPT_MS - 60_000)
        )

    worker.sweep()

    with database.reading() as session:
        assert session.scalars(select(Job.id)).all() == [new]
