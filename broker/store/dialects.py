"""Which of the two databases a configuration asks for."""

from __future__ import annotations

from pathlib import Path

from broker.core.errors import WrongState
from broker.core.reasons import Reason
from broker.store.config import SQLITE, StoreConfig
from broker.store.database import Database
from broker.store.sqlite import Sqlite


def open_database(config: StoreConfig) -> Database:
    """Open it; nothing is created but an empty SQLite file."""
    if config.parsed.drivername == SQLITE:
        return Sqlite(config)
    from broker.store.postgresql import Postgresql  # noqa: PLC0415  slow to load, for those alone that have one

    return Postgresql(config)


def check_there(config: StoreConfig) -> None:
    """WrongState ``STORE_MISSING`` for an SQLite file that is gone: opening it would put an empty one in its place."""
    path = Path(config.parsed.database or "")
    if config.sqlite and not path.exists():
        raise WrongState(
            Reason.STORE_MISSING,
            f"There is no database file {path}: put the newest backup of it back. Only for a broker that holds nothing "
            "yet: `broker init FOLDER` makes an empty one.",
        )
