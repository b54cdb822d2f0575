"""launch."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """vsock numbers, DHCP leases, and when a QEMU fell silent."""
    # Numbers come from the configured pool, which a migration does not know: vmm/records.py gives them.
    with op.batch_alter_table("vms", schema=None) as batch_op:
        batch_op.add_column(sa.Column("cid", sa.Integer(), nullable=True))
        batch_op.add_column(sa.Column("silent_ms", sa.Integer(), nullable=True))
        batch_op.create_index(batch_op.f("ix_vms_cid"), ["cid"], unique=True)

    op.create_table(
        "dhcp_leases",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("vm_id", sa.String(length=64), nullable=False),
        sa.Column("mac", sa.String(length=17), nullable=False),
        sa.Column("ip", sa.String(length=45), nullable=False),
        sa.Column("reported_ms", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["vm_id"], ["vms.id"], name=op.f("fk_dhcp_leases_vm_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_dhcp_leases")),
        sa.UniqueConstraint("mac", name=op.f("uq_dhcp_leases_mac")),
    )
    with op.batch_alter_table("dhcp_leases", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_dhcp_leases_vm_id"), ["vm_id"], unique=False)
