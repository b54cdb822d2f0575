"""What tenants have, as rows (a cluster with traffic, jobs, revisions, a fleet, a run with its log), and their browser."""

from __future__ import annotations

import json
import re
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy.orm import Session
from werkzeug.test import TestResponse

from models.account import Project, SshKey, User
from models.app import Revision
from models.cluster import Cluster, ClusterCount, ClusterNode, ClusterPlan, ClusterSlot
from models.fleet import Fleet, Instance
from models.job import Job
from models.run import Run, RunJob
from models.secretvm import SecretVm
from models.vm import Vm
from runs import timeline
from runs.logs import log_of
from secretvm.traffic import BUCKETS_MS

HOUR_MS = 3_600_000
# Were it not escaped, it would be there as it is.
HOSTILE = "<img src=x onerror=canary(1)>"


@dataclass(frozen=True)
class Browser:
    """A browser whose person signed in, without script."""

    client: FlaskClient

    @classmethod
    def of(cls, app: Flask, token: str) -> Browser:
        """One whose person gave a token."""
        made = cls(app.test_client())
        assert made.client.post("/sign-in", data={"token": token}).status_code == 302
        return made

    def sees(self, path: str, status: int = 200) -> str:
        """The text of a page, in which nothing that somebody wrote is markup."""
        page = self.client.get(path)
        assert page.status_code == status, (path, page.status_code)
        assert page.headers["Content-Security-Policy"].startswith("default-src 'self';")
        assert "<img src=x" not in page.text, path
        assert not re.search(r"<script(?![^>]* src=)|<style", page.text), path
        return page.text

    def sends(self, path: str, **fields: str) -> TestResponse:
        """A form of a page of ours."""
        found = re.search(
            r'name="csrf" value="([\w-]{40,})"', self.client.get("/console/keys").text
        )
        assert found
        return self.client.post(path, data={"csrf": found[1], **fields})


def new_id() -> str:
    """An id for a row."""
    return str(uuid.uuid4())


def now_ms() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def cluster(session: Session, project: Project, vm: Vm, text: str) -> Cluster:
    """A cluster of one node, through whose front went something in the last hour; `text` is in all free texts."""
    now = now_ms()
    made = Cluster(
        id=new_id(), project_id=project.id, name=text[:60], vm_type="small", app_id=vm.app_id,
        domain="", address="127.0.0.1", port=18080, strategy="roundrobin", sticky=False,
        max_connections=1000, backend_scheme="http", backend_port=80, health_scheme="http",
        health_path="/", health_port=29343, health_interval_s=5, health_timeout_s=5,
        error=text, created_ms=now - HOUR_MS, updated_ms=now,
    )  # fmt: skip
    session.add(made)
    session.flush()
    compose = json.dumps({"docker_compose_file": f"services: {{}} # {text}"})
    plan = ClusterPlan(
        cluster_id=made.id,
        app_compose=compose,
        encrypted_env=b"",
        user_config="",
        flags={},
        publish=[],
    )
    session.add(plan)
    session.flush()
    made.plan_id = plan.id
    node = ClusterNode(slot=1, name=text[:60], vm_id=vm.id, plan_id=plan.id, traffic="open")
    made.nodes.append(node)
    session.add(
        SecretVm(
            vm_id=vm.id,
            name=text[:60],
            vm_type="small",
            domain="",
            flags={},
            cluster_id=made.id,
            cluster_name=text[:60],
        )
    )
    counts = {"requests": 1234, "answered": 1200, "ms": 60000, "code:200": 1200}
    for name, value in {**counts, f"le:{BUCKETS_MS[20]}": 1200}.items():
        session.add(ClusterCount(cluster_id=made.id, name=name, value=value))
    first = (now - HOUR_MS) // 15_000 + 1
    for slot in range(first, now // 15_000):
        count = 100 + slot * 7919 % 90 if slot % 60 < 45 else 0
        session.add(
            ClusterSlot(
                cluster_id=made.id,
                at_ms=slot * 15_000,
                requests=count,
                answered=count,
                milliseconds=count * (20 + slot * 104729 % 30),
            )
        )
    return made


def jobs(session: Session, project: Project, about: dict[str, Any], text: str) -> None:
    """A job in each state but the one that a worker would take up."""
    now = now_ms()
    for place, status in enumerate(("running", "completed", "failed")):
        session.add(
            Job(
                id=new_id(), type="cluster.update", project_id=project.id, argument=about, status=status,
                progress=(40, 100, 10)[place], tries=1, error=text if status == "failed" else None,
                created_ms=now - place * 60_000, updated_ms=now - place * 60_000,
            )
        )  # fmt: skip


def revision(session: Session, vm: Vm, compose: str, text: str) -> str:
    """One more thing that a VM booted; its key."""
    made = Revision(
        key=f"rev_{new_id()[:8]}", app_id=vm.app_id, vm_id=vm.id, vm_name=text[:64],
        project_id=vm.project_id, user_id=None, operation=text[:32], trace_id=None,
        compose_hash="ab" * 32, created_ms=now_ms(), compose_file=compose, encrypted_env=b"",
        user_config="",
    )  # fmt: skip
    session.add(made)
    return made.key


def run(session: Session, project: Project, user: User, folder: Path, text: str) -> tuple[Run, str]:
    """A run that failed, with its fleet, its events and its log; also the id of its submission."""
    now = now_ms() * 1000
    nodes = {"min": 0, "target": 0, "max": 1}
    wanted = {"configuration": {"nodes": nodes, "resources": None, "name": text}, "profile": None}
    fleet = Fleet(
        id=new_id(), project=project, user_id=user.id, name=text[:41], spec=wanted, status="active",
        status_message=text, created_us=now,
    )  # fmt: skip
    size = {"name": "s", "cpu": 1, "memory_mib": 1024, "disk_gb": 10, "price": 0.0}
    instance = Instance(
        id=new_id(), fleet=fleet, num=0, name=text[:60], size=size, status="idle",
        termination_message=text, created_us=now,
    )  # fmt: skip
    configuration = {"type": "task", "commands": [text], "ide": None}
    made = Run(
        id=new_id(), project=project, user=user, name=text[:41], status="failed", fleet=fleet,
        spec={"run_name": text, "configuration": configuration}, submitted_us=now, processed_us=now,
        termination_reason="job_failed",
    )  # fmt: skip
    session.add_all([fleet, instance, made])
    session.flush()
    job = RunJob(
        id=new_id(), run=made, job_num=0, replica_num=0, submission_num=0, deployment_num=0,
        name=text[:60], spec={"job_name": text}, status="failed", exit_status=3, submitted_us=now,
        termination_reason="container_exited_with_error", termination_message=text,
        processed_us=now, finished_us=now,
    )  # fmt: skip
    session.add(job)
    timeline.tell(session, f"Run submitted {text}", timeline.of_run(made))
    timeline.tell(session, "Job status changed", timeline.of_job(job, made))
    log = log_of(folder, job.id)
    log.append(f"\x1b[32mhello\x1b[0m {text}\r\nthe last line\r\n".encode())
    log.close()
    return made, job.id


def key(session: Session, user: User, text: str) -> None:
    """A public key of a user's own."""
    blob = "AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f"
    session.add(
        SshKey(
            id=new_id(),
            user_id=user.id,
            name=text[:100],
            public_key=f"ssh-ed25519 {blob} me",
            created_ms=now_ms(),
        )
    )
