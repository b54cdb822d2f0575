"""promises."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Which VM is being made of a promised deployment."""
    op.add_column("provisions", sa.Column("taken_by", sa.String(length=64), nullable=True))
