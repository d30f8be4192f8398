"""An open transaction: the ``Write`` port on a connection of either database."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

from sqlalchemy import Connection, CursorResult, Executable, and_, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError

from broker.core.audit import AuditEntry
from broker.core.errors import AlreadyExists, BrokerError, WrongState
from broker.core.model import Lease, Record, Session
from broker.store.database import Database
from broker.store.refusals import refusal
from broker.store.rows import record_of, row_of
from broker.store.tables import LEADERSHIP, NAMES, TABLES, cells, key_of, page, with_key

R = TypeVar("R", bound=Record)

RANDOMLY_NAMED = frozenset({Session, Lease})
"""Nobody can have looked for such a name before it was added, so it needs no lock; and one fetch adds a hundred, while
a PostgreSQL server holds some thousand locks in all."""


class SqlWrite:
    """Reads here hold on PostgreSQL as they do on SQLite, where there is one writer.

    A row that is read is locked; a row that is absent is locked by its name (an advisory lock, which ``add`` takes
    as well); a page locks its table against other writers.
    """

    def __init__(self, connection: Connection, database: Database, entry: AuditEntry) -> None:
        self.entry = entry
        self.further: list[AuditEntry] = []
        self.fault: BrokerError | None = None  # PostgreSQL's answer to COMMIT after a failed statement is a rollback
        self._connection = connection
        self._database = database
        self._shared = database.name == "postgresql"

    def check_leader(self, fence: int) -> None:
        """WrongState ``LEADERSHIP_LOST`` unless ``fence`` is the newest; the next leader waits for this transaction."""
        query = LEADERSHIP.select()
        with self._statements():
            row = self._connection.execute(query.with_for_update(read=True) if self._shared else query).one_or_none()
        if row is None or row.fence != fence:
            raise WrongState("LEADERSHIP_LOST", "Another process does the shared work now, so this one's was refused.")

    def get(self, kind: type[R], *key: str | int) -> R | None:
        """See ``Write.get``."""
        query = TABLES[kind].select().where(with_key(kind, key))
        query = query.with_for_update() if self._shared else query
        with self._statements():
            row = self._connection.execute(query).one_or_none()
            if row is None and self._shared:
                self._lock_name(kind, key)
                row = self._connection.execute(query).one_or_none()
        return None if row is None else record_of(kind, row)

    def page(
        self,
        kind: type[R],
        *,
        after: tuple[str | int, ...] = (),
        limit: int,
        where: Mapping[str, str | int] | None = None,
    ) -> list[R]:
        """See ``Store.page``."""
        query = page(kind, after, limit, where)
        with self._statements():
            if self._shared:
                self._connection.execute(text(f"LOCK TABLE {NAMES[kind]} IN SHARE ROW EXCLUSIVE MODE"))
            rows = self._connection.execute(query).all()
        return [record_of(kind, row) for row in rows]

    def add(self, record: Record) -> None:
        """See ``Write.add``."""
        kind = type(record)
        statement = insertion(self._database.name, record)
        with self._statements():
            if self._shared and kind not in RANDOMLY_NAMED:
                self._lock_name(kind, key_of(record))
            added = self._changed(statement)
        if not added:
            name = "/".join(str(part) for part in key_of(record))
            raise AlreadyExists(
                "NAME_TAKEN", f"The {kind.__name__.lower()} {name} exists or existed; choose another name."
            )

    def replace(self, old: R, new: R) -> R:
        """See ``Write.replace``."""
        if type(old) is not type(new) or key_of(old) != key_of(new):
            raise ValueError("a record is replaced by one of the same kind and name")
        written = replace(new, revision=old.revision + 1)
        statement = TABLES[type(old)].update().where(_as_read(old)).values(row_of(written))
        with self._statements():
            self._expect(self._changed(statement), old)
        return written

    def delete(self, record: Record) -> None:
        """See ``Write.delete``."""
        with self._statements():
            self._expect(self._changed(TABLES[type(record)].delete().where(_as_read(record))), record)

    def note(self, **facts: str | int) -> None:
        """See ``Write.note``."""
        self.entry = replace(self.entry, facts={**self.entry.facts, **facts})

    def also(self, entry: AuditEntry) -> None:
        """See ``Write.also``."""
        self.further.append(entry)

    @contextmanager
    def _statements(self) -> Iterator[None]:
        """Bound the time of what is asked of the database, and remember that it failed."""
        if self.fault is not None:
            raise self.fault
        self._database.bound()
        try:
            yield
        except SQLAlchemyError as error:
            self.fault = refusal(error)
            raise self.fault from error

    def _changed(self, statement: Executable) -> bool:
        result: CursorResult[Any] = self._connection.execute(statement, execution_options={"preserve_rowcount": True})
        return result.rowcount == 1

    def _expect(self, changed: bool, record: Record) -> None:  # noqa: FBT001 - the answer of the line before
        if not changed:
            raise WrongState(
                "CHANGED_MEANWHILE",
                f"The {type(record).__name__} was changed by somebody else meanwhile; read it again and repeat.",
            )

    def _lock_name(self, kind: type[Any], key: tuple[str | int, ...]) -> None:
        digest = hashlib.sha256(repr((NAMES[kind], cells(kind, key))).encode()).digest()
        number = int.from_bytes(digest[:8], "big", signed=True)
        self._connection.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": number})


def insertion(dialect: str, record: Record) -> Executable:
    """An INSERT that adds nothing when the primary key is in use: an error would end a PostgreSQL transaction."""
    insert = postgresql.insert if dialect == "postgresql" else sqlite.insert
    return insert(TABLES[type(record)]).values(row_of(record)).on_conflict_do_nothing()


def _as_read(record: Record) -> Any:
    kind = type(record)
    return and_(with_key(kind, key_of(record)), TABLES[kind].c.revision == record.revision)
