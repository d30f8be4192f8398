"""Brings a database to this program's schema, whole or not at all."""

from __future__ import annotations

from importlib.resources import files

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from broker.store.config import StoreConfig
from broker.store.database import CATALOGUE, REVISIONS, refuse_newer
from broker.store.dialects import open_database
from broker.store.refusals import refusal


def run(config: StoreConfig) -> None:
    """See ``SqlStore.migrate``. Two processes on PostgreSQL take turns; on SQLite the second is refused.

    Everything happens in one transaction, so that a process killed in the middle leaves the schema as it was.
    """
    database = open_database(config)
    try:
        with database.migration() as connection:
            if connection.execute(CATALOGUE[database.name]).all():
                refuse_newer(connection.execute(REVISIONS).all())
            upgrade(connection)
            connection.commit()
    except SQLAlchemyError as error:
        raise refusal(error) from error
    finally:
        database.close()


def upgrade(connection: Connection, revision: str = "head") -> None:
    """Run the migrations up to ``revision`` inside the connection's transaction."""
    command.upgrade(alembic_config(connection), revision)


def alembic_config(connection: Connection | None = None) -> Config:
    """Alembic's own configuration; there is no file of it, and no log of its own."""
    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(files("broker.store") / "migrations").replace("%", "%%"))
    return config
