"""Connections of one database, of either kind: many readers, and transactions.

A reader is a connection that is kept and borrowed by one call at a time; borrowing is one list operation, because
SQLAlchemy's own pool costs three times as much as the read. A reader that has lost its server is replaced and the
read made once more, so that a restarted server is noticed by nobody.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from sqlalchemy import Connection, Engine, Executable, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from broker.core.errors import WrongState
from broker.core.reasons import Reason
from broker.store.driver import Driver
from broker.store.refusals import refusal
from broker.store.tables import REVISION

MAX_IDLE = 64

MakeDurable = Callable[[Sequence[Any], float], AbstractContextManager[None]]
"""Makes what several changes have made (``Change.made``) ready for one commit, which is its body: all or none of it.

The second argument: the seconds that their callers have waited already.
"""


Stream = Callable[[Executable], Iterator[Sequence[Any]]]
"""The rows of one SELECT without parameters, of which few are in memory at a time."""

BATCH = 200
"""Rows that a stream has in memory: a secret may be large."""


@dataclass(slots=True)
class Change:
    """A transaction's connection, and what its body leaves for ``MakeDurable``; None: nothing."""

    connection: Connection
    made: Any = None


class Database(Protocol):
    """What ``sqlite`` and ``postgresql`` each make of the configuration."""

    name: str  # SQLAlchemy's name of the dialect
    driver: Driver  # of the connections that make changes

    def read(self, statement: Executable, parameters: Mapping[str, Any] | None = None) -> list[Sequence[Any]]:
        """The rows of one SELECT, as of one moment."""

    def snapshot(self) -> AbstractContextManager[Stream]:
        """Reads of whole tables as of one moment."""

    def change(self, make_durable: MakeDurable) -> AbstractContextManager[Change]:
        """A transaction that is committed on leaving, by ``make_durable``; it may share both with others.

        Then it sees what those before it did, although that is not committed yet.
        """

    def transaction(self) -> AbstractContextManager[Connection]:
        """A transaction whose commit is the caller's; what is not committed on leaving is rolled back."""

    def migration(self) -> AbstractContextManager[Connection]:
        """A transaction for changing the schema, waiting for any other that does so."""

    def lead(self) -> int | None:
        """See ``Store.lead``."""

    def clock(self) -> datetime | None:
        """See ``Store.clock``."""

    def bound(self) -> None:
        """Give what follows on this thread until its time is up (``Waits.server`` from now)."""

    def close(self) -> None:
        """Close all connections and locks."""


class Readers:
    """Kept connections that each see what is committed at the moment of their read."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._driver = Driver(engine)
        self._idle: list[Connection] = []
        self._closed = False

    def read(self, statement: Executable, parameters: Mapping[str, Any] | None = None) -> list[Sequence[Any]]:
        """The rows of one SELECT; errors are the broker's."""
        try:
            return self._once(statement, parameters)
        except SQLAlchemyError as error:
            if not (isinstance(error, DBAPIError) and error.connection_invalidated):
                raise refusal(error) from error
        self._forget()  # the others lost the same server
        try:
            return self._once(statement, parameters)
        except SQLAlchemyError as error:
            raise refusal(error) from error

    @contextmanager
    def snapshot(self, begin: str, cursor: Mapping[str, str], bound: Callable[[], None]) -> Iterator[Stream]:
        """A read-only transaction of its own; ``begin`` and ``cursor`` say how the driver makes it and its cursors.

        ``bound`` is called before each wait for the database.
        """

        def stream(statement: Executable) -> Iterator[Sequence[Any]]:
            bound()
            with closing(driver.cursor(**cursor)) as rows:
                rows.execute(self._driver.text(statement))
                while batch := rows.fetchmany(BATCH):
                    yield from batch
                    bound()

        with transaction(self._engine.connect) as connection, self._translated(connection):
            driver: Any = connection.connection.driver_connection
            driver.execute(begin)
            try:
                yield stream
            finally:
                bound()
                driver.execute("ROLLBACK")

    @contextmanager
    def _translated(self, connection: Connection) -> Iterator[None]:
        try:
            yield
        except self._driver.errors as error:
            raise self._driver.translated(error, connection) from error

    def close(self) -> None:
        """Close the connections that are idle now, and the others as they come back."""
        self._closed = True
        self._forget()

    def _once(self, statement: Executable, parameters: Mapping[str, Any] | None) -> list[Sequence[Any]]:
        connection = self._take()
        try:
            rows = self._driver.read(connection, statement, parameters)
        except BaseException:
            drop(connection)
            raise
        if self._closed or len(self._idle) >= MAX_IDLE:
            drop(connection)
        else:
            self._idle.append(connection)
        return rows

    def _take(self) -> Connection:
        try:
            return self._idle.pop()
        except IndexError:
            return self._engine.connect()

    def _forget(self) -> None:
        while self._idle:
            with suppress(IndexError):  # another thread took the last one
                drop(self._idle.pop())


@contextmanager
def transaction(connect: Callable[[], Connection]) -> Iterator[Connection]:
    """A connection with a transaction; rolled back on leaving unless it was committed; errors are the broker's."""
    try:
        connection = connect()
    except SQLAlchemyError as error:
        raise refusal(error) from error
    try:
        yield connection
    except SQLAlchemyError as error:
        raise refusal(error) from error
    finally:
        drop(connection)


def check_revision(database: Database) -> None:
    """Return if the schema is this program's; WrongState ``STORE_NOT_MIGRATED`` or ``STORE_TOO_NEW`` if not."""
    found = database.read(REVISIONS) if database.read(CATALOGUE[database.name]) else []
    refuse_newer(found)
    if [row[0] for row in found] != [REVISION]:
        raise WrongState(
            Reason.STORE_NOT_MIGRATED,
            "The database has not the tables of this release yet; stop every broker, make a backup, and run `broker "
            "init FOLDER` for its folder.",
        )


def refuse_newer(found: Sequence[Sequence[Any]]) -> None:
    """WrongState ``STORE_TOO_NEW`` if a revision is not one that this program knows."""
    if any(not str(row[0]).isdecimal() or str(row[0]) > REVISION for row in found):
        raise WrongState(
            Reason.STORE_TOO_NEW,
            "The database was migrated by a newer release than this one; start that release. There is no way back "
            "but the backup made before, with which all later changes are lost.",
        )


CATALOGUE = {
    "sqlite": text("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'alembic_version'"),
    "postgresql": text("SELECT 1 WHERE to_regclass('alembic_version') IS NOT NULL"),
}
"""Finds the table of the schema's revision without an error when it is absent."""

REVISIONS = text("SELECT version_num FROM alembic_version")


def drop(connection: Connection) -> None:
    """Close a connection, or give it back, with what was not committed on it taken back."""
    with suppress(SQLAlchemyError):  # it may be lost already, and it is thrown away in any case
        connection.close()
