"""rolling."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Whether a service's job may be sent requests, since when, and what its probes said."""
    ready = sa.Column("ready", sa.Boolean(), nullable=False, server_default=sa.false())
    op.add_column("run_jobs", ready)
    op.add_column("run_jobs", sa.Column("ready_us", sa.Integer(), nullable=True))
    op.add_column("run_jobs", sa.Column("streaks", sa.JSON(), nullable=True))
