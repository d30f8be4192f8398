"""Which of the two databases a configuration asks for."""

from __future__ import annotations

from broker.store.config import SQLITE, StoreConfig
from broker.store.database import Database
from broker.store.postgresql import Postgresql
from broker.store.sqlite import Sqlite


def open_database(config: StoreConfig) -> Database:
    """Open it; nothing is created but an empty SQLite file."""
    return Sqlite(config) if config.parsed.drivername == SQLITE else Postgresql(config)
