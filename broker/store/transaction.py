"""An open transaction: the ``Write`` port on a connection of either database."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy import Connection, Executable, select, text
from sqlalchemy.exc import SQLAlchemyError

from broker.core.audit import AuditEntry
from broker.core.errors import AlreadyExists, BrokerError, WrongState
from broker.core.kinds import LeaseState
from broker.core.model import Lease, Record, Session
from broker.store.database import Database
from broker.store.refusals import refusal
from broker.store.rows import microseconds, record_of, row_of, storable
from broker.store.tables import (
    BY_KEY,
    DELETE,
    END_LEASES,
    LEADERSHIP,
    LOCKED_BY_KEY,
    NAMES,
    UPDATE,
    cells,
    insert_of,
    inserted,
    key_cells,
    key_of,
    page,
)

R = TypeVar("R", bound=Record)

LEADER = select(LEADERSHIP.c.fence)
LEADER_LOCKED = LEADER.with_for_update(read=True)
LOCK_NAME = text("SELECT pg_advisory_xact_lock(:number)")

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
        self.changed: list[tuple[type[Any], tuple[str | int, ...]]] = []  # rows that were there before
        self.fault: BrokerError | None = None  # PostgreSQL's answer to COMMIT after a failed statement is a rollback
        self._connection = connection
        self._database = database
        self._shared = database.name == "postgresql"

    def check_leader(self, fence: int) -> None:
        """WrongState ``LEADERSHIP_LOST`` unless ``fence`` is the newest; the next leader waits for this transaction."""
        with self._statements():
            rows = self._read(LEADER_LOCKED if self._shared else LEADER)
        if not rows or rows[0][0] != fence:
            raise WrongState("LEADERSHIP_LOST", "Another process does the shared work now, so this one's was refused.")

    def get(self, kind: type[R], *key: str | int) -> R | None:
        """See ``Write.get``."""
        query, found = (LOCKED_BY_KEY if self._shared else BY_KEY)[kind], key_cells(kind, key)
        with self._statements():
            rows = self._read(query, found)
            if not rows and self._shared:
                self._lock_name(kind, key)
                rows = self._read(query, found)
        return record_of(kind, rows[0]) if rows else None

    def page(
        self,
        kind: type[R],
        *,
        after: tuple[str | int, ...] = (),
        limit: int,
        where: Mapping[str, str | int] | None = None,
        lock: bool = True,
    ) -> list[R]:
        """See ``Write.page``."""
        query, values = page(kind, after, limit, where)
        with self._statements():
            if lock and self._shared:
                self._connection.execute(text(f"LOCK TABLE {NAMES[kind]} IN SHARE ROW EXCLUSIVE MODE"))
            rows = self._read(query, values)
        return [record_of(kind, row) for row in rows]

    def add(self, *records: R) -> None:
        """See ``Write.add``."""
        if not records:
            return
        kind = type(records[0])
        with self._statements():
            if self._shared and kind not in RANDOMLY_NAMED:
                for record in records:
                    self._lock_name(kind, key_of(record))
            statement = insert_of(self._database.name, kind, len(records))  # type: ignore[arg-type]  # a class is hashable
            added = self._changed(statement, [inserted([row_of(record) for record in records])])
        if added < len(records):
            name = "/".join(str(part) for part in key_of(records[0])) if len(records) == 1 else "of such a name"
            raise AlreadyExists(
                "NAME_TAKEN", f"The {kind.__name__.lower()} {name} exists or existed; choose another name."
            )

    def replace(self, old: R, new: R) -> R:
        """See ``Write.replace``."""
        return self.replace_all([(old, new)])[0]

    def replace_all(self, changes: Sequence[tuple[R, R]]) -> list[R]:
        """See ``Write.replace_all``."""
        written = [replace(new, revision=old.revision + 1) for old, new in changes]
        if any(type(old) is not type(new) or key_of(old) != key_of(new) for old, new in changes):
            raise ValueError("a record is replaced by one of the same kind and name")
        rows = [
            {**_as_read(old), **{f"n_{name}": cell for name, cell in row_of(new).items()}}
            for (old, _), new in zip(changes, written, strict=True)
        ]
        if rows:
            with self._statements():
                self.changed += [(type(old), key_of(old)) for old, _ in changes]
                self._expect(self._changed(UPDATE[type(written[0])], rows), changes[0][0], len(rows))
        return written

    def end_leases(self, session: str, state: LeaseState, at: datetime) -> int:
        """See ``Write.end_leases``."""
        values = {"held_by": storable(session), "as": state.value, "at": microseconds(at)}
        with self._statements():
            return self._changed(END_LEASES, [values])

    def delete(self, record: Record) -> None:
        """See ``Write.delete``."""
        self.changed.append((type(record), key_of(record)))
        with self._statements():
            self._expect(self._changed(DELETE[type(record)], [_as_read(record)]), record)

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

    def _read(self, statement: Executable, values: Mapping[str, Any] | None = None) -> list[Sequence[Any]]:
        return self._database.driver.read(self._connection, statement, values)

    def _changed(self, statement: Executable, rows: list[dict[str, Any]]) -> int:
        """Carry out a statement for each row; how many rows of the database that changed."""
        return self._database.driver.change(self._connection, statement, rows)

    def _expect(self, changed: int, record: Record, wanted: int = 1) -> None:
        if changed != wanted:
            raise WrongState(
                "CHANGED_MEANWHILE",
                f"The {type(record).__name__} was changed by somebody else meanwhile; read it again and repeat.",
            )

    def _lock_name(self, kind: type[Any], key: tuple[str | int, ...]) -> None:
        digest = hashlib.sha256(repr((NAMES[kind], cells(kind, key))).encode()).digest()
        number = int.from_bytes(digest[:8], "big", signed=True)
        self._read(LOCK_NAME, {"number": number})


def _as_read(record: Record) -> dict[str, Any]:
    """Names a row as it was when it was read."""
    return {**key_cells(type(record), key_of(record)), "read": record.revision}
