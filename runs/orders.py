"""A job as a runner is told of it."""

from __future__ import annotations

from sqlalchemy.orm import Session

from accounts.keypairs import Safe
from models.run import Run, RunJob
from runs import sealing
from runs.executor import JobOrder
from runs.jobs import GUEST
from runs.people import keys_of


def order_of(session: Session, run: Run, job: RunJob, safe: Safe, output_offset: int) -> JobOrder:
    """A job as a runner is told of it."""
    spec = sealing.unseal(job.spec, safe, run.id)
    image = spec["image_name"]
    user, auth = run.spec["configuration"]["user"], spec["registry_auth"]
    keys = [run.spec["ssh_key_pub"], *(keys_of(session, run.user_id) if run.user_id else ())]
    return JobOrder(
        submission_id=job.id,
        run_name=run.name,
        job_name=job.name,
        image="" if image == GUEST else image,
        command=tuple(spec["commands"]),
        entrypoint="",
        env=spec["env"] | environment(run, job),
        user=user or "",
        working_dir=spec["working_dir"] or "",
        home_dir=spec["home_dir"],
        privileged=spec["privileged"],
        ports=(spec["service_port"],) if spec["service_port"] else (),
        authorized_keys=tuple(dict.fromkeys(key.strip() for key in keys if key)),
        registry_auth=(auth["username"], auth["password"]) if auth else None,
        output_offset=output_offset,
    )


def environment(run: Run, job: RunJob) -> dict[str, str]:
    """What every job finds in its environment, under dstack's names; nodes have no network of their own."""
    return {
        "DSTACK_RUN_NAME": run.name,
        "DSTACK_RUN_ID": run.id,
        "DSTACK_JOB_ID": job.id,
        "DSTACK_NODE_RANK": str(job.job_num),
        "DSTACK_NODES_NUM": str(job.spec["jobs_per_replica"]),
        "DSTACK_REPLICA_NUM": str(job.replica_num),
        "DSTACK_GPUS_NUM": "0",
        "DSTACK_GPUS_PER_NODE": "0",
    }
