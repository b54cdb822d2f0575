"""traffic log."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """How far the log of clusters' traffic was read."""
    op.create_table(
        "traffic_log",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("inode", sa.BigInteger(), nullable=False),
        sa.Column("offset", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_traffic_log")),
    )
