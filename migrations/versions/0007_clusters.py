"""clusters."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Clusters, their nodes, what their fronts have counted, and host ports for the fronts."""
    op.create_table(
        "clusters",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("project_id", sa.String(length=36), nullable=False),
        sa.Column("user_id", sa.String(length=36), nullable=True),
        sa.Column("name", sa.String(length=60), nullable=False),
        sa.Column("is_removed", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("vm_type", sa.String(length=64), nullable=False),
        sa.Column("app_id", sa.String(length=40), nullable=False),
        sa.Column("plan_id", sa.Integer(), nullable=True),
        sa.Column("domain", sa.Text(), nullable=False),
        sa.Column("address", sa.String(length=45), nullable=False),
        sa.Column("port", sa.Integer(), nullable=False),
        sa.Column("strategy", sa.String(length=16), nullable=False),
        sa.Column("sticky", sa.Boolean(), nullable=False),
        sa.Column("max_connections", sa.Integer(), nullable=False),
        sa.Column("password_hash", sa.Text(), nullable=True),
        sa.Column("backend_scheme", sa.String(length=5), nullable=False),
        sa.Column("backend_port", sa.Integer(), nullable=False),
        sa.Column("health_scheme", sa.String(length=5), nullable=False),
        sa.Column("health_path", sa.Text(), nullable=False),
        sa.Column("health_port", sa.Integer(), nullable=False),
        sa.Column("health_interval_s", sa.Integer(), nullable=False),
        sa.Column("health_timeout_s", sa.Integer(), nullable=False),
        sa.Column("error", sa.Text(), nullable=False, server_default=""),
        sa.Column("created_ms", sa.Integer(), nullable=False),
        sa.Column("updated_ms", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["project_id"], ["projects.id"], name=op.f("fk_clusters_project_id")
        ),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_clusters_user_id"), ondelete="SET NULL"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_clusters")),
    )
    with op.batch_alter_table("clusters", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_clusters_project_id_created_ms"), ["project_id", "created_ms"]
        )
        batch_op.create_index(batch_op.f("ix_clusters_user_id"), ["user_id"])
        batch_op.create_index(
            batch_op.f("ix_clusters_project_id_name"),
            ["project_id", "name"],
            unique=True,
            sqlite_where=sa.text("NOT is_removed"),
        )

    op.create_table(
        "cluster_plans",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("cluster_id", sa.String(length=36), nullable=False),
        sa.Column("app_compose", sa.Text(), nullable=False),
        sa.Column("encrypted_env", sa.LargeBinary(), nullable=False),
        sa.Column("user_config", sa.Text(), nullable=False),
        sa.Column("flags", sa.JSON(), nullable=False),
        sa.Column("publish", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(
            ["cluster_id"],
            ["clusters.id"],
            name=op.f("fk_cluster_plans_cluster_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_cluster_plans")),
        sqlite_autoincrement=True,
    )
    with op.batch_alter_table("cluster_plans", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_cluster_plans_cluster_id"), ["cluster_id"])

    op.create_table(
        "cluster_nodes",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("cluster_id", sa.String(length=36), nullable=False),
        sa.Column("slot", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=60), nullable=False),
        sa.Column("weight", sa.Integer(), nullable=False, server_default="1"),
        sa.Column("vm_id", sa.String(length=64), nullable=True),
        sa.Column("plan_id", sa.Integer(), nullable=False),
        sa.Column("traffic", sa.String(length=8), nullable=False),
        sa.ForeignKeyConstraint(
            ["cluster_id"],
            ["clusters.id"],
            name=op.f("fk_cluster_nodes_cluster_id"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["vm_id"], ["vms.id"], name=op.f("fk_cluster_nodes_vm_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_cluster_nodes")),
    )
    with op.batch_alter_table("cluster_nodes", schema=None) as batch_op:
        for second in ("name", "slot"):
            batch_op.create_index(
                batch_op.f(f"ix_cluster_nodes_cluster_id_{second}"),
                ["cluster_id", second],
                unique=True,
            )
        batch_op.create_index(batch_op.f("ix_cluster_nodes_vm_id"), ["vm_id"], unique=True)

    op.create_table(
        "cluster_counts",
        sa.Column("cluster_id", sa.String(length=36), nullable=False),
        sa.Column("name", sa.String(length=32), nullable=False),
        sa.Column("value", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["cluster_id"],
            ["clusters.id"],
            name=op.f("fk_cluster_counts_cluster_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("cluster_id", "name", name=op.f("pk_cluster_counts")),
    )

    with op.batch_alter_table("port_leases", schema=None) as batch_op:
        batch_op.alter_column("vm_id", existing_type=sa.String(length=64), nullable=True)
        batch_op.add_column(sa.Column("cluster_id", sa.String(length=36), nullable=True))
        batch_op.create_index(batch_op.f("ix_port_leases_cluster_id"), ["cluster_id"])
        batch_op.create_foreign_key(
            batch_op.f("fk_port_leases_cluster_id"),
            "clusters",
            ["cluster_id"],
            ["id"],
            ondelete="CASCADE",
        )
