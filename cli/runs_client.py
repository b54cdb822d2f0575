"""Calls to a server of runs, Casemate's or dstack's, for one project of it."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from cli.runs_config import Entry, chosen
from core.errors import CasemateError, Forbidden, Invalid, NotFound, Upstream
from core.http import Peer

# The level of dstack's interface that these commands speak.
API_VERSION = "0.22.5"
CALL_S = 60.0
ANSWER_LIMIT = 64 * 1024**2
LOOK_S = 0.5
FINISHED = ("done", "failed", "terminated")

T = TypeVar("T")


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
        whole = path if path.startswith("/") else f"/api/project/{self.entry.name}/{path}"
        headers = {
            "Authorization": f"Bearer {self.entry.token}",
            "Content-Type": "application/json",
            "X-API-VERSION": API_VERSION,
        }
        answer = Peer(self.entry.url + whole).ask(
            "POST",
            json.dumps(body).encode(),
            within_s=CALL_S,
            headers=headers,
            limit=ANSWER_LIMIT,
        )
        try:
            told = json.loads(answer.body or b"null")
        except ValueError:
            raise Upstream(f"what answers at {self.entry.url} is no server of runs") from None
        if answer.status != 200:
            raise refusal(answer.status, told)
        return told

    # Runs ---------------------------------------------------------------------------------------

    def run(self, name: str, run_id: str | None = None) -> Any:
        """A run by its name, or by its id."""
        return self.call("runs/get", **({"id": run_id} if run_id else {"run_name": name}))

    def run_or_none(self, name: str) -> Any:
        """A run by its name, or None."""
        try:
            return self.run(name)
        except NotFound:
            return None

    def wait(self, name: str, is_it: Callable[[Any], bool], seen: Callable[[Any], None]) -> Any:
        """A run as soon as it is as wished; `seen` is shown each state of it."""
        while True:
            run = self.run(name)
            seen(run)
            if is_it(run):
                return run
            time.sleep(LOOK_S)

    def output(
        self, name: str, submission: str, *, since: str | None = None, follow: bool = False,
        diagnose: bool = False,
    ) -> Iterator[bytes]:  # fmt: skip
        """The output of a job, piece by piece; with `follow` until the run has ended and all was read."""
        token, after = None, since
        while True:
            is_over = not follow or self.run(name)["status"] in FINISHED
            page = self.call(
                "logs/poll",
                run_name=name,
                job_submission_id=submission,
                start_time=after,
                next_token=token,
                limit=1000,
                diagnose=diagnose,
            )
            for entry in page["logs"]:
                after = entry["timestamp"]
                yield base64.b64decode(entry["message"])
            token = page["next_token"]
            if token is None and not page["logs"]:
                if is_over:
                    return
                time.sleep(LOOK_S)


def refusal(status: int, told: Any) -> CasemateError:
    """What a server's refusal says, as an error of ours."""
    detail = told.get("detail") if isinstance(told, dict) else None
    if status == 422 and isinstance(detail, list):
        rows = [(".".join(str(step) for step in each["loc"][1:]), each["msg"]) for each in detail]
        return Invalid("; ".join(f"{name}: {said}" if name else said for name, said in rows))
    row = detail[0] if isinstance(detail, list) and detail else detail
    text = str(row.get("msg", row) if isinstance(row, dict) else row or f"status {status}")
    code = row.get("code") if isinstance(row, dict) else None
    if code == "resource_not_exists" or status == 404:
        return NotFound(text)
    return Forbidden(text) if status in (401, 403) else CasemateError(text)


def last_submission(run: Any, job_num: int = 0, replica: int | None = None) -> Any:
    """The last submission of a job of a run: of any running replica where none is named; NotFound without it."""
    jobs = [
        job
        for job in run["jobs"]
        if job["job_spec"]["job_num"] == job_num
        and (replica is None or job["job_spec"]["replica_num"] == replica)
    ]
    if not jobs:
        raise NotFound(f"the run has no job {job_num}" + (f" of replica {replica}" if replica else ""))
    running = [job for job in jobs if job["job_submissions"][-1]["status"] == "running"]
    return (running or jobs)[0]["job_submissions"][-1]


def exit_code(run: Any) -> int:
    """What a command that saw a run to its end ends with: the job's own code, or 1 for one that has none."""
    if run["status"] == "done":
        return 0
    submission = run.get("latest_job_submission") or {}
    return submission.get("exit_status") or 1
