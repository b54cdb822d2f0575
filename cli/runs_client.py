"""Calls to a server of runs, Casemate's or dstack's, for one project of it."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from cli.runs_config import Entry, chosen
from core.errors import (
    CasemateError,
    Forbidden,
    Invalid,
    NotFound,
    Unavailable,
    Upstream,
    UpstreamTimeout,
)

# The level of dstack's interface that these commands speak.
API_VERSION = "0.22.5"
CALL_S = 60.0
ANSWER_LIMIT = 64 * 1024**2
LOOK_S = 0.5
# So long may a server be away while something is waited for.
AWAY_S = 30.0
PAGE = 1000
FINISHED = ("done", "failed", "terminated")
JOB_FINISHED = (*FINISHED, "aborted")


# Calls whose answers are lists of objects, one object, and nothing.
LISTS = ("runs/list", "fleets/list", "events/list")
VOID = ("runs/stop", "runs/delete", "fleets/delete", "fleets/delete_instances")


class Told(dict[str, Any]):
    """An object that a server told; one that lacks what is looked for came from no server of runs."""

    def __missing__(self, name: str) -> Any:
        raise Upstream(f"the server's answer has no {name!r}: is it a server of runs?")


@dataclass(frozen=True)
class Api:
    """One project of one server."""

    entry: Entry

    @classmethod
    def of(cls, project: str) -> Api:
        """The project of a name, or the default one."""
        return cls(chosen(project))

    def call(self, path: str, **body: Any) -> Any:
        """One call of the project, or with a leading slash of the server; CasemateError carries the refusal."""
        from core.http import Peer

        whole = path if path.startswith("/") else f"/api/project/{quote(self.entry.name)}/{path}"
        headers = {
            "Authorization": f"Bearer {self.entry.token}",
            "Content-Type": "application/json",
            "X-API-VERSION": API_VERSION,
        }
        answer = Peer(self.entry.url + whole).ask(
            "POST",
            json.dumps(body, default=str).encode(),  # a day of YAML is a text to servers
            within_s=CALL_S,
            headers=headers,
            limit=ANSWER_LIMIT,
        )
        try:
            told = json.loads(answer.body or b"null", object_hook=Told)
        except (ValueError, RecursionError):
            raise self._is_other() from None
        if answer.status != 200:
            raise refusal(answer.status, told)
        if not _fits(path, told):
            raise self._is_other()
        return told

    def _is_other(self) -> Upstream:
        return Upstream(f"what answers at {self.entry.url} is no server of runs")

    def check(self) -> None:
        """Refuses an address, a token or a project that is none."""
        if "project_id" not in self.call(f"/api/projects/{quote(self.entry.name)}/get"):
            raise self._is_other()

    # Runs ---------------------------------------------------------------------------------------

    def run(self, name: str, run_id: str | None = None) -> Any:
        """A run by its name, or by its id."""
        return self.call("runs/get", **({"id": run_id} if run_id else {"run_name": name}))

    def plan(self, spec: Any, max_offers: int, *, for_offers_only: bool = False) -> Any:
        """The plan of a run, which has a job."""
        asked = {"run_spec": spec, "max_offers": max_offers}
        only = {"for_offers_only": True} if for_offers_only else {}
        plan = self.call("runs/get_plan", **asked, **only)
        if not plan["job_plans"]:
            raise self._is_other()
        return plan

    def delete_fleet(self, name: str | None) -> None:
        """Deletes a fleet and returns when it is gone."""
        self.call("fleets/delete", names=[name])
        while True:
            try:
                self.call("fleets/get", name=name)
            except NotFound:
                return
            time.sleep(LOOK_S)

    def look(self, path: str, **body: Any) -> Any:
        """A call that only reads, for what waits: a server that is away for a while is waited for."""
        deadline = time.monotonic() + AWAY_S
        while True:
            try:
                return self.call(path, **body)
            except (Upstream, UpstreamTimeout, Unavailable):
                if time.monotonic() >= deadline:
                    raise
                time.sleep(LOOK_S)

    def wait(self, run_id: str, is_it: Callable[[Any], bool], seen: Callable[[Any], None]) -> Any:
        """A run as soon as it is as wished; `seen` is shown each state of it."""
        while True:
            run = self.look("runs/get", id=run_id)
            seen(run)
            if is_it(run):
                return run
            time.sleep(LOOK_S)

    def output(
        self, run: Any, submission: str, *, since: str | None = None, diagnose: bool = False
    ) -> Iterator[bytes]:
        """What a job has said up to now, piece by piece; `since` is a time."""
        for entry in self.entries(run, submission, since, diagnose):
            yield base64.b64decode(entry["message"])

    def followed(
        self, run: Any, submission: str, *, since: str | None = None, diagnose: bool = False
    ) -> Iterator[bytes]:
        """The same until the job is over and all was read."""
        while True:
            # First: what is said between two questions must not be missed.
            is_over = _is_over(self.look("runs/get", id=run["id"]), submission)
            for entry in self.entries(run, submission, since, diagnose):
                since = entry["timestamp"]
                yield base64.b64decode(entry["message"])
            if is_over:
                return
            time.sleep(LOOK_S)

    def entries(
        self, run: Any, submission: str, since: str | None, diagnose: bool
    ) -> Iterator[Any]:
        """What a job has said up to now, as the server tells it."""
        token = None
        while True:
            page = self.look(
                "logs/poll",
                run_name=run["run_spec"]["run_name"],
                job_submission_id=submission,
                start_time=since,
                next_token=token,
                limit=PAGE,
                diagnose=diagnose,
            )
            yield from page["logs"]
            token = page["next_token"]
            if token is None:
                return


def _fits(path: str, told: Any) -> bool:
    """Whether an answer is what a call is answered with."""
    if path.endswith(VOID):
        return True
    if path.endswith(LISTS):
        return isinstance(told, list) and all(isinstance(each, dict) for each in told)
    return isinstance(told, dict)


def refusal(status: int, told: Any) -> CasemateError:
    """What a server's refusal says, as an error of ours."""
    detail = told.get("detail") if isinstance(told, dict) else None
    if status == 422 and isinstance(detail, list):
        return Invalid("; ".join(map(_fault, detail)))
    if status >= 500:
        return Unavailable(f"the server failed with status {status}; it may do so once only")
    row = detail[0] if isinstance(detail, list) and detail else detail
    text = str(row.get("msg", row) if isinstance(row, dict) else row or f"status {status}")
    code = row.get("code") if isinstance(row, dict) else None
    if code == "resource_not_exists" or status == 404:
        return NotFound(text)
    return Forbidden(text) if status in (401, 403) else CasemateError(text)


def _fault(row: Any) -> str:
    """What is wrong with a field, and which one."""
    if not isinstance(row, dict):
        return str(row)
    place = row.get("loc")
    name = ".".join(map(str, place[1:])) if isinstance(place, list) else ""
    return f"{name}: {row.get('msg')}" if name else str(row.get("msg"))


def job_of(run: Any, job_num: int = 0, replica: int | None = None) -> Any:
    """A job of a run: of any running replica where none is named; NotFound without it."""
    jobs = [
        job
        for job in run["jobs"]
        if job["job_spec"]["job_num"] == job_num
        and replica in (None, job["job_spec"]["replica_num"])
    ]
    if not jobs:
        where = "" if replica is None else f" in replica {replica}"
        raise NotFound(f"the run has no job {job_num}{where}")
    return next((job for job in jobs if last_of(job)["status"] == "running"), jobs[0])


def last_of(job: Any) -> Any:
    """The last submission of a job."""
    return job["job_submissions"][-1]


def _is_over(run: Any, submission: str) -> bool:
    statuses = [
        each["status"]
        for job in run["jobs"]
        for each in job["job_submissions"]
        if each["id"] == submission
    ]
    return run["status"] in FINISHED or any(each in JOB_FINISHED for each in statuses)


def decisive(run: Any) -> Any:
    """The job by which the end of a run is told: the first that failed, else the first one."""
    return next((job for job in run["jobs"] if last_of(job)["status"] == "failed"), job_of(run))


def exit_code(run: Any, job: Any) -> int:
    """What a command that saw a run to its end ends with: the code of a job, or 1 where that says nothing."""
    return 0 if run["status"] == "done" else last_of(job).get("exit_status") or 1
