"""The ``Store`` port on SQLAlchemy Core: one code for both databases, and the audit journal before every commit."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, TypeVar

from broker.core.entries import AuditEntry
from broker.core.errors import WrongState
from broker.core.model import AuditHead, Key, KeyVersion, Record, Secret, SecretVersion
from broker.core.ports import Now, RowFinding
from broker.core.reasons import Reason
from broker.store.adoption import adopt
from broker.store.answers import Answers
from broker.store.asked import Asked, asked
from broker.store.authentic import Rows
from broker.store.condition import Condition, condition, refuse_anothers
from broker.store.config import StoreConfig
from broker.store.database import check_revision
from broker.store.dialects import check_there, open_database
from broker.store.floors import Floors
from broker.store.inspection import Inspection
from broker.store.journal import Journal
from broker.store.ledger import OWN, Ledger, restored
from broker.store.private import lasting_name, private_folder
from broker.store.recent import Recent
from broker.store.restored import Genuine, missing, newest_head, newest_heads, nobody, refuse_older
from broker.store.rows import FIELDS, PLACES, key_in, row_of, storable
from broker.store.tables import BY_KEY, INSERT, VERSION, Query, count, due, key_cells, last, page, secrets_of
from broker.store.transaction import SqlWrite

R = TypeVar("R", bound=Record)

T = TypeVar("T")

_KEY_CELLS = len(FIELDS[Key]) + 1  # the MAC
_SECRET_CELLS = len(FIELDS[Secret]) + 1


MOST_READS = 20
"""Of one row that is changed again and again while it is read, its reader coming late to the processor each time."""


class SqlStore:
    """Open for the life of the process; every method may be called by any thread.

    ``key``: the 32 bytes that vouch for rows (``store.authentic``). Raises WrongState ``STORE_MISSING``,
    ``STORE_NOT_MIGRATED``, ``STORE_TOO_NEW``, ``DATABASE_NOT_OURS``, ``STORE_IN_USE``, ``FILE_NOT_PRIVATE`` when it
    cannot be opened, besides the errors of the port; ``STORE_RESTORED`` when the database is older than the
    journal, and ``STORE_ALTERED`` when somebody else has changed rows that cannot be named, unless that is to be
    accepted. ``findings``: the rows that were found changed and are refused by name. ``genuine`` tells heads that
    the audit key has signed from others: no journal is believed without. ``passing``: an audit chain is begun only
    when there is something to record, or at the first ``check``. ``role``: what a process beside the one that
    serves is here for, so that it has a ledger of its own. ``adopting``: vouch for the rows of a database that was
    made before rows had MACs.
    """

    def __init__(
        self,
        config: StoreConfig,
        key: bytes,
        now: Now,
        genuine: Genuine = nobody,
        *,
        accept_restored: bool = False,
        passing: bool = False,
        role: str = "",
        adopting: bool = False,
    ) -> None:
        check_there(config)
        self._rows, self._floors = Rows(key), Floors(alone=config.sqlite)
        self._answers = Answers(self._rows, self._floors)
        self._database = open_database(config)
        self._recent = Recent()
        try:
            check_revision(self._database)
            refuse_anothers(self._database, self._rows)
            self._known = newest_heads(config.journal, genuine)
            private_folder(config.journal)
            owner = lasting_name(config.journal / f"{config.replica}.ledger")
            self._ledger = Ledger(f"{owner}-{role}" if role else owner, self._rows)
            self._inspection = Inspection(self._database, self._rows, self._floors, self._ledger, config)
            if adopting:
                adopt(self._database, self._rows, self._inspection.marks())
            self.findings = self._inspection.begin(accept=accept_restored)
            if not accept_restored:
                refuse_older(self._database, self._known)
            vouched = newest_head(self._database, config.replica, self._known, genuine)
            self._journal = Journal(
                config.journal, config.replica, now, config.journal_file_bytes,
                patience=config.waits.journal, vouched=vouched, begin=not passing,
            )  # fmt: skip
        except BaseException:
            self._database.close()
            raise

    @staticmethod
    def migrate(config: StoreConfig) -> None:
        """Bring the database to this program's schema, in one transaction; does nothing when it is there already."""
        from broker.store import migrate  # noqa: PLC0415 - Alembic would be a sixth of every start, which has no use for it

        migrate.run(config)

    @staticmethod
    def condition(config: StoreConfig) -> Condition:
        """What the database is before anything is done to it (``store.condition``)."""
        return condition(config)

    @property
    def doubted(self) -> bool:
        """Whether what was accepted is not what brokers left."""
        return bool(self.findings or self._ledger.owing or self._ledger.behind)

    def make_good(self) -> None:
        """What was accepted is made good by the next change; until then, another start is refused as this one was."""
        self._ledger.making_good = True

    def get(self, kind: type[R], *key: str | int) -> R | None:
        """See ``Store.get``."""
        return self._again_if_forged(lambda: self._get(kind, key))

    def recent(self, kind: type[R], *key: str | int) -> R | None:
        """See ``Store.recent``."""
        return self._recent.get(kind, key, lambda: self.get(kind, *key))

    def version(self, key: str, number: int) -> tuple[Key, KeyVersion] | None:
        """See ``Store.version``."""
        return self._again_if_forged(lambda: self._version(key, number))

    def secrets(self, wanted: Sequence[tuple[str, int]]) -> list[tuple[Secret | None, SecretVersion | None]]:
        """See ``Store.secrets``."""
        return self._again_if_forged(lambda: self._secrets(wanted))

    def page(
        self,
        kind: type[R],
        *,
        after: tuple[str | int, ...] = (),
        limit: int,
        under: Sequence[str | int] = (),
        begins: str = "",
        where: Mapping[str, str | int] | None = None,
        sound_only: bool = False,
    ) -> list[R]:
        """See ``Store.page``."""
        wanted = asked(kind, where, under, begins)
        if sound_only:
            return self._sound(kind, limit, lambda most: page(kind, wanted, after, most), wanted)
        rows = self._database.read(*page(kind, wanted, after, limit))
        return [record for row in rows if (record := self._listed(kind, row, wanted)) is not None]

    def last(self, kind: type[R], *under: str | int) -> R | None:
        """See ``Store.last``."""
        wanted = asked(kind, under=under)
        return self._again_if_forged(lambda: self._last(kind, wanted))

    def due(self, kind: type[R], before: datetime, *, limit: int, state: str = "") -> list[R]:
        """See ``Store.due``."""
        return self._sound(kind, limit, lambda most: due(kind, before, most, state), asked(kind))

    def _last(self, kind: type[R], wanted: Asked) -> R | None:
        rows = self._database.read(*last(kind, wanted))
        return self._answers.record(kind, rows[0], wanted) if rows else None

    def _get(self, kind: type[R], key: tuple[str | int, ...]) -> R | None:
        return self._answers.one(kind, key, self._database.read(BY_KEY[kind], key_cells(kind, key)))

    def _version(self, key: str, number: int) -> tuple[Key, KeyVersion] | None:
        rows = self._database.read(VERSION, {"name": storable(key), "number": storable(number)})
        if not rows:
            if there := self._get(Key, (key,)):
                self._floors.check_absent(KeyVersion, (key, number or there.primary))
            return None
        found = self._answers.record(Key, rows[0][:_KEY_CELLS], Asked({"name": key}))
        named = Asked({"key": key, "number": number or found.primary})
        return found, self._answers.record(KeyVersion, rows[0][_KEY_CELLS:], named)

    def _secrets(self, wanted: Sequence[tuple[str, int]]) -> list[tuple[Secret | None, SecretVersion | None]]:
        rows: list[Sequence[Any]] = [()] * len(wanted)
        for place, *row in self._database.read(*secrets_of(wanted)):
            rows[place] = tuple(row)
        return [self._secret(name, number, row) for (name, number), row in zip(wanted, rows, strict=True)]

    def _secret(self, name: str, number: int, row: Sequence[Any]) -> tuple[Secret | None, SecretVersion | None]:
        secret = self._answers.one(Secret, (name,), [row[:_SECRET_CELLS]] if row else [])
        if secret is None:
            return None, None
        cells = row[_SECRET_CELLS:]
        there = [cells] if cells[0] is not None else []
        return secret, self._answers.one(SecretVersion, (name, number or secret.latest), there)

    def _listed(self, kind: type[R], row: Sequence[Any], wanted: Asked) -> R | None:
        """The record of a page's row, read once more by itself if it is too old; None if it belongs there no more.

        On a busy broker some row of a long page is changed while that is read, each time.
        """
        try:
            return self._answers.record(kind, row, wanted)
        except WrongState as error:
            if error.reason != Reason.ROW_FORGED or not self._rows.genuine(kind, row):
                raise
        record = self.get(kind, *key_in(kind, row))
        there = record is not None and wanted.fits(tuple(row_of(record).values()), PLACES[kind])
        return record if there else None

    def _again_if_forged(self, read: Callable[[], T]) -> T:
        """Read again before a row is called too old, as long as rows are changed meanwhile: that is no crime."""
        for _ in range(MOST_READS):
            known = self._floors.turns
            try:
                return read()
            except WrongState as error:
                if error.reason != Reason.ROW_FORGED or self._floors.turns == known:
                    raise
        return read()

    def _sound(self, kind: type[R], limit: int, query: Callable[[int], Query], wanted: Asked) -> list[R]:
        """The first ``limit`` rows of ``query`` (which is told how many to look for) that can be read."""
        unreadable = 0
        while True:
            rows = self._database.read(*query(limit + unreadable))
            found = [record for row in rows if (record := self._readable(kind, row, wanted)) is not None]
            if len(found) >= limit or len(rows) < limit + unreadable:
                return found[:limit]
            unreadable = len(rows) - len(found)

    def _readable(self, kind: type[R], row: Sequence[Any], wanted: Asked) -> R | None:
        try:
            return self._listed(kind, row, wanted)
        except WrongState:
            return None

    def count(self, kind: type[R], where: Mapping[str, str | int]) -> int:
        """See ``Store.count``."""
        return int(self._database.read(*count(kind, asked(kind, where)))[0][0])

    @contextmanager
    def write(self, entry: AuditEntry) -> Iterator[SqlWrite]:
        """See ``Store.write``."""
        write = SqlWrite(self._database, self._rows, self._floors, entry)
        try:
            with self._database.change(self._ready) as change:
                write.begin(change.connection)
                yield write
                if write.fault is not None:  # the body went on after a statement had failed
                    raise write.fault
                change.made = write
            self._floors.changed(write.changed)
            self._rows.committed(write.written)
        finally:
            self._forget(write)

    def _forget(self, write: SqlWrite) -> None:
        """However it ended."""
        self._recent.forget((one.kind, one.key) for one in write.changed)
        self._floors.left(write.leaving)

    @contextmanager
    def _ready(self, writes: Sequence[SqlWrite], waited: float) -> Iterator[None]:
        """What these have changed is in the ledger and in the journal; the body commits it, for all of them."""
        with self._ledger.slot() as slot:
            changed = [one for write in writes for one in write.changed]
            moves = changed or (writes and self._ledger.making_good)
            mark = writes[-1].enter(self._ledger, slot, changed) if moves else ""
            entries = [each for write in writes for each in write.told(mark if write.changed or not changed else "")]
            self._journal.append_all(entries, waited)
            yield

    def record(self, *entries: AuditEntry) -> None:
        """See ``Store.record``."""
        self._journal.append_all(entries)

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
            connection.execute(INSERT[self._database.name][AuditHead], self._rows.row(head))
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
        known = self._ledger.known()
        there = {row[0]: row[1] for row in self._database.read(OWN, {"of": self._ledger.owner})}
        if not self._ledger.has(there, known):
            raise restored()
        self._journal.check()

    def inspect(self, tables: Collection[str] = ()) -> list[RowFinding]:
        """See ``Store.inspect``."""
        return self._inspection.again(tables)

    def close(self) -> None:
        """See ``Store.close``."""
        self._journal.close()
        self._database.close()
