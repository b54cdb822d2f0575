"""tenants."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """What tenants' surfaces need of VMs, of their projects and of host ports."""
    op.create_table(
        "vm_numbers",
        sa.Column("number", sa.Integer(), autoincrement=True, nullable=False),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_vm_numbers")),
        sqlite_autoincrement=True,
    )
    maker = sa.Column(
        "user_id",
        sa.String(length=36),
        sa.ForeignKey("users.id", name=op.f("fk_vms_user_id")),
        nullable=True,
    )
    op.add_column("vms", maker, inline_references=True)
    op.create_index(op.f("ix_vms_user_id"), "vms", ["user_id"])
    # The defaults are of this moment alone: the VMs that are there get their numbers at once.
    op.add_column("vms", sa.Column("number", sa.Integer(), nullable=False, server_default="0"))
    op.execute(
        "UPDATE vms SET number = (SELECT count(*) FROM vms AS other WHERE"
        " (other.created_ms, other.id) <= (vms.created_ms, vms.id))"
    )
    op.execute("INSERT INTO vm_numbers (number) SELECT number FROM vms")
    op.create_index(op.f("ix_vms_number"), "vms", ["number"], unique=True)

    own = sa.Column("own", sa.Boolean(), nullable=False, server_default=sa.false())
    op.add_column("port_leases", own)

    address = sa.Column(
        "address", sa.LargeBinary(length=20), nullable=False, server_default=sa.text("x''")
    )
    op.add_column("projects", address)
    op.execute("UPDATE projects SET address = randomblob(20)")
    nonce = sa.Column("next_nonce", sa.Integer(), nullable=False, server_default="0")
    op.add_column("projects", nonce)
    public = sa.Column("is_public", sa.Boolean(), nullable=False, server_default=sa.false())
    op.add_column("projects", public)
