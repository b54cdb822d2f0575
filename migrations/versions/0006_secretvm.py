"""secretvm."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """The SecretVM interface: jobs, its VMs, seen signatures, counted calls, prices, balances."""
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("type", sa.String(length=40), nullable=False),
        sa.Column("project_id", sa.String(length=36), nullable=False),
        sa.Column("vm_id", sa.String(length=64), nullable=True),
        sa.Column("argument", sa.JSON(), nullable=False),
        sa.Column("status", sa.String(length=10), nullable=False),
        sa.Column("progress", sa.Integer(), nullable=False),
        sa.Column("tries", sa.Integer(), nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("result", sa.JSON(), nullable=True),
        sa.Column("created_ms", sa.Integer(), nullable=False),
        sa.Column("updated_ms", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["project_id"], ["projects.id"], name=op.f("fk_jobs_project_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_jobs")),
    )
    op.create_index(op.f("ix_jobs_status"), "jobs", ["status"])
    op.create_index(op.f("ix_jobs_vm_id"), "jobs", ["vm_id"])
    op.create_index(op.f("ix_jobs_project_id_created_ms"), "jobs", ["project_id", "created_ms"])
    op.create_table(
        "secret_vms",
        sa.Column("vm_id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=60), nullable=False),
        sa.Column("vm_type", sa.String(length=64), nullable=False),
        sa.Column("domain", sa.Text(), nullable=False),
        sa.Column("flags", sa.JSON(), nullable=False),
        sa.Column("registration", sa.JSON(), nullable=True),
        sa.Column("cluster_id", sa.String(length=36), nullable=True),
        sa.Column("cluster_name", sa.String(length=60), nullable=True),
        sa.Column("quoted_ms", sa.Integer(), nullable=True),
        sa.Column("paid_ms", sa.Integer(), nullable=True),
        sa.ForeignKeyConstraint(
            ["vm_id"], ["vms.id"], name=op.f("fk_secret_vms_vm_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("vm_id", name=op.f("pk_secret_vms")),
    )
    op.create_index(op.f("ix_secret_vms_cluster_id"), "secret_vms", ["cluster_id"])
    op.create_table(
        "seen_signatures",
        sa.Column("digest", sa.LargeBinary(length=32), nullable=False),
        sa.Column("seen_ms", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_seen_signatures")),
    )
    op.create_index(op.f("ix_seen_signatures_seen_ms"), "seen_signatures", ["seen_ms"])
    op.create_table(
        "counted_calls",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("caller", sa.LargeBinary(length=32), nullable=False),
        sa.Column("at_ms", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_counted_calls")),
    )
    op.create_index(op.f("ix_counted_calls_caller_at_ms"), "counted_calls", ["caller", "at_ms"])
    op.create_table(
        "coin_prices",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("symbol", sa.String(length=16), nullable=False),
        sa.Column("price_usd", sa.Float(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("at_ms", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_coin_prices")),
    )
    op.create_index(op.f("ix_coin_prices_symbol_at_ms"), "coin_prices", ["symbol", "at_ms"])
    op.create_table(
        "balances",
        sa.Column("project_id", sa.String(length=36), nullable=False),
        sa.Column("minor", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["project_id"], ["projects.id"], name=op.f("fk_balances_project_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("project_id", name=op.f("pk_balances")),
    )
