"""SQLite: one process, one connection that writes, the others read.

SQLite before 3.51.3 can corrupt a database in WAL mode when two connections checkpoint at once, and Debian 12 has
3.40.1. So a lock on a file beside the database keeps every other process out, only the writing connection ever
checkpoints (the others are opened read-only), and it is opened first and closed last.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import Connection, Engine, Executable, create_engine, event, text
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.pool import ConnectionPoolEntry, NullPool, StaticPool

from broker.core.errors import WrongState
from broker.core.reasons import Reason
from broker.store.config import StoreConfig
from broker.store.database import Change, MakeDurable, Readers, Stream
from broker.store.driver import Driver
from broker.store.group import BEGIN, Group
from broker.store.private import only_process, private_file, private_folder
from broker.store.refusals import unavailable
from broker.store.tables import NEXT_FENCE
from broker.store.waits import Waits

OLDEST = (3, 37, 0)  # STRICT tables

LOOK_EVERY = 0.1
"""Seconds in which reads may go on from a file that has lost its name; every change looks first."""

_WRITER = ("PRAGMA journal_mode=WAL", "PRAGMA synchronous=FULL", "PRAGMA secure_delete=ON")
_READER = ("PRAGMA query_only=ON", "PRAGMA wal_autocheckpoint=0")
_ALL = ("PRAGMA trusted_schema=OFF", "PRAGMA cell_size_check=ON", "PRAGMA temp_store=MEMORY")


class Sqlite:
    """The embedded database; see ``Database`` for the methods."""

    name = "sqlite"

    def __init__(self, config: StoreConfig) -> None:
        if sqlite3.sqlite_version_info < OLDEST:
            raise WrongState(Reason.SQLITE_TOO_OLD, "This SQLite is older than 3.37; install a newer one.")
        path = Path(config.parsed.database or "")
        private_folder(path.parent)
        self._process_lock = only_process(path.with_name(path.name + ".lock"))
        try:
            private_file(path)
            self._writer = _engine(path, "rw", (*_ALL, *_WRITER), config.waits)
            event.listen(self._writer, "begin", _begin)
            self.driver = Driver(self._writer)
            self._looked_at = 0.0
            self._files: list[tuple[str, tuple[int, int] | None]] = []
            self._group = Group(self._writer, self.driver, self._check_ours, config.waits)
            self._connect_writer()
            self._files = [(file, _identity(file)) for file in (str(path), f"{path}-wal")]
        except BaseException:
            os.close(self._process_lock)
            raise
        self._readers = Readers(_engine(path, "ro", (*_ALL, *_READER), config.waits))
        self._fence: int | None = None

    def read(self, statement: Executable, parameters: Mapping[str, Any] | None = None) -> list[Sequence[Any]]:
        """See ``Database``."""
        if time.monotonic() >= self._looked_at + LOOK_EVERY:
            self._check_ours()
            self._looked_at = time.monotonic()
        return self._readers.read(statement, parameters)

    def snapshot(self) -> AbstractContextManager[Stream]:
        """See ``Database``."""
        return self._readers.snapshot("BEGIN", {}, self.bound)

    def change(self, make_durable: MakeDurable) -> AbstractContextManager[Change]:
        """See ``Database``."""
        return self._group.change(make_durable)

    def transaction(self) -> AbstractContextManager[Connection]:
        """See ``Database``."""
        return self._group.alone()

    def migration(self) -> AbstractContextManager[Connection]:
        """See ``Database``."""
        return self.transaction()

    def lead(self) -> int | None:
        """See ``Database``: the only process leads."""
        if self._fence is None:
            with self.transaction() as connection:
                fence = int(connection.execute(text(NEXT_FENCE)).scalar_one())
                connection.commit()
            self._fence = fence
        return self._fence

    def clock(self) -> None:
        """See ``Database``: no other process shares it."""

    def bound(self) -> None:
        """SQLite waits for no server."""

    def close(self) -> None:
        """See ``Database``."""
        self._readers.close()
        self._group.close()
        self._writer.dispose()
        os.close(self._process_lock)

    def _connect_writer(self) -> None:
        try:
            with self.transaction():
                pass
        except BaseException:
            self._writer.dispose()
            raise

    def _check_ours(self) -> None:
        """A file that lost its name is gone when this process ends, and what has the name now is another database."""
        for file, ours in self._files:
            if _identity(file) != ours:
                self._looked_at = 0.0
                raise unavailable(
                    "The SQLite file is not the one that the broker has opened: put that one back, and stop the broker "
                    "before you restore another"
                )


def _identity(file: str) -> tuple[int, int] | None:
    try:
        found = os.stat(file)  # noqa: PTH116 (at each change, and a Path takes as long as the system)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _engine(path: Path, mode: str, pragmas: tuple[str, ...], waits: Waits) -> Engine:
    def connect() -> sqlite3.Connection:
        uri = f"file:{quote(str(path))}?mode={mode}"
        return sqlite3.connect(uri, uri=True, timeout=waits.turn, isolation_level=None, check_same_thread=False)

    def prepare(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
        connection.text_factory = _text
        for pragma in pragmas:
            connection.execute(pragma).close()

    pool = StaticPool if mode == "rw" else NullPool
    engine = create_engine("sqlite://", creator=connect, poolclass=pool, hide_parameters=True)
    event.listen(engine, "connect", prepare)
    return engine


def _begin(connection: Connection) -> None:
    driver: Any = connection.connection.driver_connection
    driver.execute(BEGIN).close()


def _text(cell: bytes) -> str | bytes:
    """Text that is not UTF-8 stays bytes, so that the mapping refuses that one row by name."""
    try:
        return cell.decode()
    except UnicodeDecodeError:
        return cell
