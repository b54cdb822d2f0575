"""accounts."""

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Users, tokens, projects and roles; a VM belongs to a project."""
