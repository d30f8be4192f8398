"""The ``Store`` port on SQLAlchemy Core: one code for both databases, and the audit journal before every commit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy import Select

from broker.core.audit import AuditEntry
from broker.core.errors import WrongState
from broker.core.model import AuditHead, Key, KeyVersion, Record, Secret, SecretVersion
from broker.core.ports import Now
from broker.store import migrate
from broker.store.config import StoreConfig
from broker.store.database import check_revision
from broker.store.dialects import check_there, open_database
from broker.store.journal import PATIENCE, Journal
from broker.store.recent import Recent
from broker.store.restored import Genuine, missing, newest_head, newest_heads, nobody, refuse_older
from broker.store.rows import FIELDS, record_of, row_of, storable
from broker.store.tables import BY_KEY, INSERT, VERSION, count, due, key_cells, page, secrets_of
from broker.store.transaction import SqlWrite

R = TypeVar("R", bound=Record)

_KEY_CELLS = len(FIELDS[Key])
_SECRET_CELLS = len(FIELDS[Secret])


Query = tuple[Select[Any], Mapping[str, str | int]]
"""A statement and its parameters."""


class SqlStore:
    """Open for the life of the process; every method may be called by any thread.

    Raises WrongState ``STORE_MISSING``, ``STORE_NOT_MIGRATED``, ``STORE_TOO_NEW``, ``STORE_IN_USE``,
    ``FILE_NOT_PRIVATE`` when it cannot be opened, besides the errors of the port; and ``STORE_RESTORED`` when the
    database is older than the journal, unless that is to be accepted: then ``forgotten`` tells what it lacks.
    ``genuine`` tells heads that the audit key has signed from others: no journal is believed without. ``passing``: an
    audit chain is begun only when there is something to record, or at the first ``check``.
    """

    def __init__(
        self,
        config: StoreConfig,
        now: Now,
        genuine: Genuine = nobody,
        *,
        accept_restored: bool = False,
        passing: bool = False,
    ) -> None:
        check_there(config)
        self._database = open_database(config)
        self._recent = Recent()
        try:
            check_revision(self._database)
            self._known = newest_heads(config.journal, genuine)
            if not accept_restored:
                refuse_older(self._database, self._known)
            vouched = newest_head(self._database, config.replica, self._known, genuine)
            self._journal = Journal(
                config.journal, config.replica, now, config.journal_file_bytes, vouched=vouched, begin=not passing
            )
        except BaseException:
            self._database.close()
            raise

    @staticmethod
    def migrate(config: StoreConfig) -> None:
        """Bring the database to this program's schema, in one transaction; does nothing when it is there already."""
        migrate.run(config)

    def get(self, kind: type[R], *key: str | int) -> R | None:
        """See ``Store.get``."""
        rows = self._database.read(BY_KEY[kind], key_cells(kind, key))
        return record_of(kind, rows[0]) if rows else None

    def recent(self, kind: type[R], *key: str | int) -> R | None:
        """See ``Store.recent``."""
        return self._recent.get(kind, key, lambda: self.get(kind, *key))

    def version(self, key: str, number: int) -> tuple[Key, KeyVersion] | None:
        """See ``Store.version``."""
        rows = self._database.read(VERSION, {"name": storable(key), "number": storable(number)})
        if not rows:
            return None
        row = rows[0]
        return record_of(Key, row[:_KEY_CELLS]), record_of(KeyVersion, row[_KEY_CELLS:])

    def secrets(self, wanted: Sequence[tuple[str, int]]) -> list[tuple[Secret | None, SecretVersion | None]]:
        """See ``Store.secrets``."""
        found: list[tuple[Secret | None, SecretVersion | None]] = [(None, None)] * len(wanted)
        for place, *row in self._database.read(*secrets_of(wanted)):
            version = row[_SECRET_CELLS:]
            found[place] = (
                record_of(Secret, tuple(row[:_SECRET_CELLS])),
                None if version[0] is None else record_of(SecretVersion, version),
            )
        return found

    def page(
        self,
        kind: type[R],
        *,
        after: tuple[str | int, ...] = (),
        limit: int,
        where: Mapping[str, str | int] | None = None,
        sound_only: bool = False,
    ) -> list[R]:
        """See ``Store.page``."""
        if sound_only:
            return self._sound(kind, limit, lambda most: page(kind, after, most, where))
        return [record_of(kind, row) for row in self._database.read(*page(kind, after, limit, where))]

    def due(self, kind: type[R], before: datetime, *, limit: int, state: str = "active") -> list[R]:
        """See ``Store.due``."""
        return self._sound(kind, limit, lambda most: due(kind, before, most, state))

    def _sound(self, kind: type[R], limit: int, query: Callable[[int], Query]) -> list[R]:
        """The first ``limit`` rows of ``query`` (which is told how many to look for) that can be read."""
        found: list[R] = []
        unreadable = 0
        while True:
            rows = self._database.read(*query(limit + unreadable))
            found = [record for row in rows if (record := _readable(kind, row)) is not None]
            if len(found) >= limit or len(rows) < limit + unreadable:
                return found[:limit]
            unreadable = len(rows) - len(found)

    def count(self, kind: type[R], where: Mapping[str, str | int]) -> int:
        """See ``Store.count``."""
        return int(self._database.read(*count(kind, where))[0][0])

    @contextmanager
    def write(self, entry: AuditEntry) -> Iterator[SqlWrite]:
        """See ``Store.write``."""
        with ExitStack() as done, self._database.change(self._make_durable) as change:
            write = SqlWrite(change.connection, self._database, entry)
            if entry.fence:
                write.check_leader(entry.fence)
            done.callback(self._recent.forget, write.changed)
            yield write
            if write.fault is not None:  # the body went on after a statement had failed
                raise write.fault
            change.entries = (write.entry, *write.further)

    def record(self, *entries: AuditEntry) -> None:
        """See ``Store.record``."""
        self._journal.append_all(entries, PATIENCE)

    def heads(self) -> list[AuditHead]:
        """See ``Store.heads``."""
        return self._journal.heads()

    def save_head(self, head: AuditHead) -> None:
        """See ``Store.save_head``. A head of a chain that this process had to leave is kept in the database alone.

        The journal comes last here, so that what it knows of is in the database for certain (``restored``); and what
        the database forgot while this process ran is not covered up by a new head.
        """
        refuse_older(self._database, self._known)
        with self._database.transaction() as connection:
            # two threads may sign the same head: the second signature of it says nothing new
            connection.execute(INSERT[self._database.name][AuditHead], row_of(head))
            self._database.bound()
            connection.commit()
        self._known = [head]
        self._journal.append(head)
        self._journal.signed(head)

    def forgotten(self) -> list[AuditHead]:
        """Heads of this host's journal that the database lacks, because it was restored."""
        return missing(self._database, self._known)

    def doubts(self) -> list[str]:
        """What the begun audit chain found wrong with those before it, a sentence each."""
        return self._journal.former.doubts

    def finish(self) -> None:
        """End the audit chain with a record that says so; only a head can follow. See ``Journal.finish``."""
        self._journal.finish()

    def lead(self) -> int | None:
        """See ``Store.lead``."""
        return self._database.lead()

    def clock(self) -> datetime | None:
        """See ``Store.clock``."""
        return self._database.clock()

    def check(self) -> None:
        """See ``Store.check``; WrongState ``STORE_RESTORED`` when the database has gone back."""
        check_revision(self._database)
        refuse_older(self._database, self._known)
        self._journal.check()

    def close(self) -> None:
        """See ``Store.close``."""
        self._journal.close()
        self._database.close()

    def _make_durable(self, entries: Sequence[AuditEntry], waited: float) -> None:
        self._journal.append_all(entries, PATIENCE - waited)


def _readable(kind: type[R], row: Sequence[Any]) -> R | None:
    try:
        return record_of(kind, row)
    except WrongState:
        return None
