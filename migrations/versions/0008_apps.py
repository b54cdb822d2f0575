"""apps."""

import hashlib

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """The apps interface: revisions of what VMs boot, profiles, and what is promised but not made yet."""
    revisions = op.create_table(
        "revisions",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("key", sa.String(length=24), nullable=False),
        sa.Column("app_id", sa.String(length=40), nullable=False),
        sa.Column("vm_id", sa.String(length=64), nullable=False),
        sa.Column("vm_name", sa.String(length=64), nullable=False),
        sa.Column("project_id", sa.String(length=36), nullable=False),
        sa.Column("user_id", sa.String(length=36), nullable=True),
        sa.Column("operation", sa.String(length=32), nullable=False),
        sa.Column("trace_id", sa.String(length=64), nullable=True),
        sa.Column("compose_hash", sa.String(length=64), nullable=False),
        sa.Column("created_ms", sa.Integer(), nullable=False),
        sa.Column("compose_file", sa.Text(), nullable=False),
        sa.Column("encrypted_env", sa.LargeBinary(), nullable=False),
        sa.Column("user_config", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["project_id"],
            ["projects.id"],
            name=op.f("fk_revisions_project_id"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("fk_revisions_user_id"), ondelete="SET NULL"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_revisions")),
        sa.UniqueConstraint("key", name=op.f("uq_revisions_key")),
    )
    with op.batch_alter_table("revisions", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_revisions_app_id_id"), ["app_id", "id"])
        batch_op.create_index(batch_op.f("ix_revisions_vm_id_id"), ["vm_id", "id"])
        batch_op.create_index(batch_op.f("ix_revisions_project_id"), ["project_id"])
        batch_op.create_index(batch_op.f("ix_revisions_user_id"), ["user_id"])
    op.create_table(
        "cvm_profiles",
        sa.Column("vm_id", sa.String(length=64), nullable=False),
        sa.Column("kms", sa.String(length=64), nullable=False),
        sa.Column("instance_type", sa.String(length=64), nullable=True),
        sa.Column("listed", sa.Boolean(), nullable=False),
        sa.Column("deployer", sa.String(length=42), nullable=True),
        sa.Column("env_key", sa.String(length=64), nullable=True),
        sa.ForeignKeyConstraint(
            ["vm_id"], ["vms.id"], name=op.f("fk_cvm_profiles_vm_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("vm_id", name=op.f("pk_cvm_profiles")),
    )
    op.create_table(
        "provisions",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("project_id", sa.String(length=36), nullable=False),
        sa.Column("vm_id", sa.String(length=64), nullable=True),
        sa.Column("token", sa.LargeBinary(length=32), nullable=True),
        sa.Column("app_id", sa.String(length=40), nullable=True),
        sa.Column("compose_hash", sa.String(length=64), nullable=False),
        sa.Column("wanted", sa.JSON(), nullable=False),
        sa.Column("created_ms", sa.Integer(), nullable=False),
        sa.Column("compose_file", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["project_id"],
            ["projects.id"],
            name=op.f("fk_provisions_project_id"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["vm_id"], ["vms.id"], name=op.f("fk_provisions_vm_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_provisions")),
        sa.UniqueConstraint("vm_id", name=op.f("uq_provisions_vm_id")),
    )
    with op.batch_alter_table("provisions", schema=None) as batch_op:
        batch_op.create_index(
            batch_op.f("ix_provisions_project_id_compose_hash"), ["project_id", "compose_hash"]
        )
        batch_op.create_index(batch_op.f("ix_provisions_created_ms"), ["created_ms"])
    _begin_the_history(revisions)


def _begin_the_history(revisions: sa.Table) -> None:
    """The VMs that are there already begin with what they are."""
    connection = op.get_bind()
    columns = "id, name, app_id, project_id, compose_file, encrypted_env, user_config, created_ms"
    ids = [row.id for row in connection.execute(sa.text("SELECT id FROM vms ORDER BY created_ms"))]
    for vm_id in ids:  # one by one: the texts may be large
        asked = sa.text(f"SELECT {columns} FROM vms WHERE id = :id")
        vm = connection.execute(asked, {"id": vm_id}).one()
        connection.execute(
            revisions.insert().values(
                key=f"rev_{hashlib.sha256(vm.id.encode()).hexdigest()[:16]}",
                app_id=vm.app_id,
                vm_id=vm.id,
                vm_name=vm.name,
                project_id=vm.project_id,
                operation="deploy",
                compose_hash=hashlib.sha256(vm.compose_file.encode()).hexdigest(),
                created_ms=vm.created_ms,
                compose_file=vm.compose_file,
                encrypted_env=vm.encrypted_env,
                user_config=vm.user_config,
            )
        )
