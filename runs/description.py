"""Users, projects, fleets, instances, runs and events as answers show them (runs.md section 5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from accounts import keypairs
from accounts.keypairs import Safe
from accounts.roles import GlobalRole, ProjectRole
from models.account import Member, Project, SshKey, User
from models.event import Event
from models.fleet import Fleet, Instance
from models.run import Run, RunJob
from runs import lifecycle, records, rolling, sealing
from runs.jobs import ide_url
from runs.lifecycle import Kind, Status
from runs.moments import maybe, of_ms, written
from runs.sizes import BACKEND, REGION, offer, resources_of

Answer = dict[str, Any]


def user(row: User, keys: Mapping[str, str]) -> Answer:
    """A user; `keys` has public keys by user id."""
    return {
        "id": row.id,
        "username": row.name,
        "created_at": of_ms(row.created_ms),
        "global_role": row.role,
        "email": row.email,
        "active": row.active,
        "permissions": {"can_create_projects": True},
        "ssh_public_key": keys.get(row.id),
    }


def public_key(row: SshKey) -> Answer:
    """A public key that a user added."""
    return {
        "id": row.id,
        "added_at": of_ms(row.created_ms),
        "name": row.name,
        "type": row.public_key.split()[0],
        "fingerprint": keypairs.fingerprint(row.public_key),
    }


def project(row: Project, members: Sequence[Member], keys: Mapping[str, str]) -> Answer:
    """A project with its members."""
    return {
        "project_id": row.id,
        "project_name": row.name,
        "owner": user(row.owner, keys),
        "created_at": of_ms(row.created_ms),
        "backends": [],
        "members": [_member(each, keys) for each in members],
        "is_public": row.is_public,
        "templates_repo": None,
    }


def _member(row: Member, keys: Mapping[str, str]) -> Answer:
    leads = ProjectRole(row.role) is not ProjectRole.USER or row.user.role == GlobalRole.ADMIN
    return {
        "user": user(row.user, keys),
        "project_role": row.role,
        "permissions": {"can_manage_ssh_fleets": leads, "can_manage_secrets": leads},
    }


def fleet(row: Fleet, hostname: str) -> Answer:
    """A fleet with the instances that are not gone, which clients find at `hostname`."""
    return {
        "id": row.id,
        "name": row.name,
        "project_name": row.project.name,
        "spec": row.spec,
        "created_at": written(row.created_us),
        "status": row.status,
        "status_message": row.status_message,
        "instances": [instance(each, row, hostname) for each in records.live(row)],
    }


def instance(row: Instance, of: Fleet, hostname: str) -> Answer:
    """An instance of a fleet, which clients find at `hostname`."""
    is_busy = row.status == Status.BUSY
    return {
        "id": row.id,
        "project_name": of.project.name,
        "backend": BACKEND,
        "instance_type": resources_of(row.size),
        "name": row.name,
        "fleet_id": of.id,
        "fleet_name": of.name,
        "instance_num": row.num,
        "job_name": None,
        "hostname": None if row.vm_id is None else hostname,
        "status": row.status,
        "unreachable": row.unreachable,
        "health_status": "healthy",
        "termination_reason": row.termination_reason,
        "termination_reason_message": row.termination_message,
        "created": written(row.created_us),
        "finished_at": maybe(row.finished_us),
        "region": REGION,
        "availability_zone": None,
        "price": row.size["price"],
        "total_blocks": 1,
        "busy_blocks": int(is_busy),
        "gpu_driver": None,
        "vm_id": row.vm_id,
    }


def run(row: Run, safe: Safe, *, with_jobs: bool = True, submissions: int | None = None) -> Answer:
    """A run with its jobs, its secrets opened; of each job the last `submissions`, or all."""
    last = records.latest_jobs(row)
    reason = row.termination_reason
    return {
        "id": row.id,
        "project_name": row.project.name,
        "user": row.user.name if row.user else "",
        "fleet": {"id": row.fleet.id, "name": row.fleet.name} if row.fleet else None,
        "submitted_at": written(row.submitted_us),
        "last_processed_at": written(row.processed_us),
        "status": row.status,
        "status_message": _message(row, last),
        "termination_reason": reason,
        "run_spec": sealing.unseal(row.spec, safe, row.id),
        "jobs": _jobs(row, safe, submissions) if with_jobs else [],
        "latest_job_submission": submission(last[0]) if last else None,
        "cost": sum(_cost(job) for job in row.jobs),
        "service": service(row),
        "deployment_num": row.deployment_num,
        "error": lifecycle.run_error(reason),
        "deleted": row.deleted,
        "next_triggered_at": None,
    }


def service(row: Run) -> Answer | None:
    """Where a service is reached."""
    if row.spec["configuration"]["type"] != "service":
        return None
    return {"url": f"/proxy/services/{row.project.name}/{row.name}/", "model": None, "options": {}}


def _message(row: Run, last: Sequence[RunJob]) -> str:
    states = {job.status for job in last if not lifecycle.is_finished(Kind.JOB, job.status)}
    if states == {Status.PULLING}:
        return "pulling"
    if row.status in (Status.PENDING, Status.SUBMITTED) and any(job.submission_num for job in last):
        return "retrying"
    if row.status == Status.RUNNING and rolling.given_up(row):
        return "running, update stopped"
    if row.status == Status.RUNNING and rolling.waits(row):
        return "running, update waits for room"
    return str(row.status)


def _jobs(row: Run, safe: Safe, submissions: int | None) -> list[Answer]:
    grouped: dict[tuple[int, int], list[RunJob]] = {}
    for job in row.jobs:
        grouped.setdefault((job.replica_num, job.job_num), []).append(job)
    return [_job(row, safe, each, submissions) for each in grouped.values()]


def _job(row: Run, safe: Safe, submitted: Sequence[RunJob], submissions: int | None) -> Answer:
    last = submitted[-1]
    shown = submitted if submissions is None else submitted[len(submitted) - submissions :]
    return {
        "job_spec": sealing.unseal(last.spec, safe, row.id),
        "job_submissions": [submission(each) for each in shown],
        "job_connection_info": _connection(row) if last.status == Status.RUNNING else None,
    }


def _connection(row: Run) -> Answer:
    return {
        "ide_name": _IDES.get(row.spec["configuration"].get("ide") or ""),
        "attached_ide_url": ide_url(row.spec),
        "proxied_ide_url": None,
        "attached_ssh_command": ["ssh", row.name],
        "proxied_ssh_command": None,
        "sshproxy_hostname": None,
        "sshproxy_port": None,
        "sshproxy_upstream_id": None,
    }


_IDES = {"vscode": "VS Code", "cursor": "Cursor", "windsurf": "Windsurf", "zed": "Zed"}


def submission(row: RunJob) -> Answer:
    """One submission of a job."""
    return {
        "id": row.id,
        "submission_num": row.submission_num,
        "deployment_num": row.deployment_num,
        "submitted_at": written(row.submitted_us),
        "last_processed_at": written(row.processed_us),
        "finished_at": maybe(row.finished_us),
        "inactivity_secs": row.inactivity_s,
        "status": row.status,
        "status_message": lifecycle.job_message(
            row.status, row.termination_reason, row.exit_status, row.termination_message or ""
        ),
        "termination_reason": row.termination_reason,
        "termination_reason_message": row.termination_message,
        "exit_status": row.exit_status,
        "job_provisioning_data": row.provisioning,
        "job_runtime_data": row.runtime,
        "error": lifecycle.job_error(row.termination_reason),
        "probes": [{"success_streak": each} for each in row.streaks or ()],
        "image_pull_progress": None,
    }


def _cost(job: RunJob) -> float:
    """Dollars since the job has its instance."""
    if job.provisioned_us is None or not job.provisioning:
        return 0.0
    until = job.finished_us or job.processed_us
    hours = max(0, until - job.provisioned_us) / 3_600_000_000
    return round(hours * float(job.provisioning["price"]), 4)


def event(row: Event, gone_projects: set[str], gone_users: set[str]) -> Answer:
    """An event of the timeline."""
    return {
        "id": row.id,
        "message": row.message,
        "recorded_at": written(row.recorded_us),
        "actor_user_id": row.actor_id,
        "actor_user": row.actor_name,
        "is_actor_user_deleted": None if row.actor_id is None else row.actor_id in gone_users,
        "targets": [
            {
                "type": target.type,
                "project_id": target.project_id,
                "project_name": target.project_name,
                "is_project_deleted": None
                if target.project_id is None
                else target.project_id in gone_projects,
                "id": target.target_id,
                "name": target.name,
            }
            for target in row.targets
        ],
    }


def provisioning(size: Mapping[str, Any], instance_id: str, hostname: str) -> Answer:
    """What a client reads of the machine that a job is on; `ssh_port` comes with the VM."""
    return {
        "backend": BACKEND,
        "base_backend": None,
        "instance_type": resources_of(dict(size)),
        "instance_id": instance_id,
        "hostname": hostname,
        "internal_ip": "127.0.0.1",
        "public_ip_enabled": False,
        "instance_network": None,
        "region": REGION,
        "availability_zone": None,
        "reservation": None,
        "price": size["price"],
        "username": "root",
        "ssh_port": None,
        "dockerized": False,
        "ssh_proxy": None,
        "backend_data": None,
        "gpu_driver": None,
    }


def runtime(size: Mapping[str, Any], working_dir: str, username: str) -> Answer:
    """What a client reads of a job that runs."""
    return {
        "network_mode": "host",
        "gpu": None,
        "cpu": None,
        "memory": None,
        "ports": {},
        "volume_names": [],
        "offer": offer(dict(size), "idle"),
        "working_dir": working_dir,
        "username": username,
    }
