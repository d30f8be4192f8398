"""Databases at this program's schema: made once a process, then copied."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

from broker.store.config import StoreConfig
from broker.store.sql import SqlStore
from tests.servers.patience import PATIENCE
from tests.servers.postgres import Postgres

SQLITE = "sqlite:///"


@cache
def _schema() -> bytes:
    """An empty SQLite database, as ``SqlStore.migrate`` makes it."""
    with tempfile.TemporaryDirectory() as folder:
        SqlStore.migrate(
            StoreConfig(url=f"{SQLITE}{folder}/broker.db", journal=Path(folder), patience_seconds=PATIENCE)
        )
        assert not [*Path(folder).glob("*-wal"), *Path(folder).glob("*-journal")], "all of it is in the file"
        return Path(folder, "broker.db").read_bytes()


def migrate(place: StoreConfig) -> None:
    """``SqlStore.migrate``, and for a SQLite database that is not there yet a copy of what it made before."""
    file = Path(place.url.removeprefix(SQLITE))
    if not place.url.startswith(SQLITE) or file.exists():
        SqlStore.migrate(place)
        return
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    file.touch(mode=0o600)
    file.write_bytes(_schema())


@cache
def _schema_at(server: Postgres) -> str:
    name = server.create_database()
    with tempfile.TemporaryDirectory() as folder:
        SqlStore.migrate(StoreConfig(url=server.url(name), journal=Path(folder), patience_seconds=PATIENCE))
    return name


def create_database(server: Postgres) -> str:
    """A migrated, empty database on the server."""
    return server.create_database(_schema_at(server))
