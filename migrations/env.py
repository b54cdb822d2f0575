"""What alembic runs for every command: one connection, batch mode for SQLite."""

from alembic import context
from sqlalchemy import create_engine

import models.port
import models.vm  # noqa: F401 - its tables join the metadata
from models.base import Base

engine = create_engine(context.config.attributes["url"])
with engine.connect() as connection:
    context.configure(connection=connection, target_metadata=Base.metadata, render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()
engine.dispose()
