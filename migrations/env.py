"""What alembic runs for every command: one connection, batch mode for SQLite."""

from alembic import context
from sqlalchemy import create_engine, event

import models.app
import models.event
import models.job
import models.port
import models.run
import models.secretvm
import models.usage
import models.vm  # noqa: F401 - its tables join the metadata
from core import faults
from models.base import Base

engine = create_engine(context.config.attributes["url"])
# The driver by itself opens no transaction for CREATE and DROP: a migration cut off would stay half done.
event.listen(engine, "connect", lambda driver, _: setattr(driver, "isolation_level", None))
event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
with engine.connect() as connection:
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        render_as_batch=True,
        on_version_apply=lambda **_: faults.point("migration.step"),
    )
    with context.begin_transaction():
        context.run_migrations()
engine.dispose()
