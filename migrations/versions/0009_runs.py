"""runs."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Fleets, instances, runs, their jobs, and the timeline."""
    op.create_table(
        "events",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("recorded_us", sa.Integer(), nullable=False),
        sa.Column("actor_id", sa.String(length=36), nullable=True),
        sa.Column("actor_name", sa.String(length=60), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_events")),
    )
    op.create_index(op.f("ix_events_actor_id"), "events", ["actor_id"], unique=False)
    op.create_index(op.f("ix_events_recorded_us_id"), "events", ["recorded_us", "id"], unique=False)
    op.create_table(
        "event_targets",
        sa.Column("event_id", sa.String(length=36), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("type", sa.String(length=16), nullable=False),
        sa.Column("target_id", sa.String(length=36), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("within_id", sa.String(length=36), nullable=True),
        sa.Column("project_id", sa.String(length=36), nullable=True),
        sa.Column("project_name", sa.String(length=60), nullable=True),
        sa.Column("recorded_us", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["event_id"], ["events.id"], name=op.f("fk_event_targets_event_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("event_id", "position", name=op.f("pk_event_targets")),
    )
    op.create_index(
        op.f("ix_event_targets_project_id_recorded_us"),
        "event_targets",
        ["project_id", "recorded_us"],
        unique=False,
    )
    op.create_index(
        op.f("ix_event_targets_target_id_recorded_us"),
        "event_targets",
        ["target_id", "recorded_us"],
        unique=False,
    )
    op.create_index(
        op.f("ix_event_targets_within_id_recorded_us"),
        "event_targets",
        ["within_id", "recorded_us"],
        unique=False,
    )
    op.create_table(
        "fleets",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("project_id", sa.String(length=36), nullable=False),
        sa.Column("user_id", sa.String(length=36), nullable=True),
        sa.Column("name", sa.String(length=41), nullable=False),
        sa.Column("spec", sa.JSON(), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("status_message", sa.Text(), nullable=True),
        sa.Column("deleted", sa.Boolean(), nullable=False),
        sa.Column("created_us", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["project_id"], ["projects.id"], name=op.f("fk_fleets_project_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_fleets_user_id"), ondelete="SET NULL"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_fleets")),
    )
    op.create_index(op.f("ix_fleets_created_us"), "fleets", ["created_us"], unique=False)
    op.create_index(
        "ix_fleets_name",
        "fleets",
        ["project_id", "name"],
        unique=True,
        sqlite_where=sa.text("NOT deleted"),
    )
    op.create_table(
        "instances",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("fleet_id", sa.String(length=36), nullable=False),
        sa.Column("user_id", sa.String(length=36), nullable=True),
        sa.Column("num", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=60), nullable=False),
        sa.Column("size", sa.JSON(), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("vm_id", sa.String(length=64), nullable=True),
        sa.Column("unreachable", sa.Boolean(), nullable=False),
        sa.Column("termination_reason", sa.String(length=40), nullable=True),
        sa.Column("termination_message", sa.Text(), nullable=True),
        sa.Column("idle_duration_s", sa.Integer(), nullable=True),
        sa.Column("created_us", sa.Integer(), nullable=False),
        sa.Column("idle_since_us", sa.Integer(), nullable=True),
        sa.Column("finished_us", sa.Integer(), nullable=True),
        sa.ForeignKeyConstraint(
            ["fleet_id"], ["fleets.id"], name=op.f("fk_instances_fleet_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_instances")),
    )
    op.create_index(op.f("ix_instances_fleet_id"), "instances", ["fleet_id"], unique=False)
    op.create_index(
        "ix_instances_num",
        "instances",
        ["fleet_id", "num"],
        unique=True,
        sqlite_where=sa.text("finished_us IS NULL"),
    )
    op.create_index(op.f("ix_instances_status"), "instances", ["status"], unique=False)
    op.create_index(op.f("ix_instances_vm_id"), "instances", ["vm_id"], unique=False)
    op.create_table(
        "runs",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("project_id", sa.String(length=36), nullable=False),
        sa.Column("user_id", sa.String(length=36), nullable=True),
        sa.Column("fleet_id", sa.String(length=36), nullable=True),
        sa.Column("name", sa.String(length=41), nullable=False),
        sa.Column("spec", sa.JSON(), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("termination_reason", sa.String(length=40), nullable=True),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("deployment_num", sa.Integer(), nullable=False),
        sa.Column("deleted", sa.Boolean(), nullable=False),
        sa.Column("submitted_us", sa.Integer(), nullable=False),
        sa.Column("processed_us", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["fleet_id"], ["fleets.id"], name=op.f("fk_runs_fleet_id"), ondelete="SET NULL"
        ),
        sa.ForeignKeyConstraint(
            ["project_id"], ["projects.id"], name=op.f("fk_runs_project_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_runs_user_id"), ondelete="SET NULL"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_runs")),
    )
    op.create_index(
        "ix_runs_name",
        "runs",
        ["project_id", "name"],
        unique=True,
        sqlite_where=sa.text("NOT deleted"),
    )
    op.create_index(
        op.f("ix_runs_project_id_submitted_us"),
        "runs",
        ["project_id", "submitted_us"],
        unique=False,
    )
    op.create_index(op.f("ix_runs_status"), "runs", ["status"], unique=False)
    op.create_index(op.f("ix_runs_submitted_us"), "runs", ["submitted_us"], unique=False)
    op.create_index(op.f("ix_runs_user_id"), "runs", ["user_id"], unique=False)
    op.create_table(
        "run_jobs",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("run_id", sa.String(length=36), nullable=False),
        sa.Column("job_num", sa.Integer(), nullable=False),
        sa.Column("replica_num", sa.Integer(), nullable=False),
        sa.Column("submission_num", sa.Integer(), nullable=False),
        sa.Column("deployment_num", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=60), nullable=False),
        sa.Column("spec", sa.JSON(), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("termination_reason", sa.String(length=40), nullable=True),
        sa.Column("termination_message", sa.Text(), nullable=True),
        sa.Column("exit_status", sa.Integer(), nullable=True),
        sa.Column("inactivity_s", sa.Integer(), nullable=True),
        sa.Column("instance_id", sa.String(length=36), nullable=True),
        sa.Column("provisioning", sa.JSON(), nullable=True),
        sa.Column("runtime", sa.JSON(), nullable=True),
        sa.Column("submitted_us", sa.Integer(), nullable=False),
        sa.Column("processed_us", sa.Integer(), nullable=False),
        sa.Column("provisioned_us", sa.Integer(), nullable=True),
        sa.Column("running_us", sa.Integer(), nullable=True),
        sa.Column("terminating_us", sa.Integer(), nullable=True),
        sa.Column("finished_us", sa.Integer(), nullable=True),
        sa.ForeignKeyConstraint(
            ["instance_id"],
            ["instances.id"],
            name=op.f("fk_run_jobs_instance_id"),
            ondelete="SET NULL",
        ),
        sa.ForeignKeyConstraint(
            ["run_id"], ["runs.id"], name=op.f("fk_run_jobs_run_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_run_jobs")),
    )
    op.create_index(op.f("ix_run_jobs_instance_id"), "run_jobs", ["instance_id"], unique=False)
    op.create_index(
        op.f("ix_run_jobs_run_id_replica_num_job_num_submission_num"),
        "run_jobs",
        ["run_id", "replica_num", "job_num", "submission_num"],
        unique=True,
    )
    op.create_index(op.f("ix_run_jobs_status"), "run_jobs", ["status"], unique=False)
