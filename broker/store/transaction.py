"""An open transaction: the ``Write`` port on a connection of either database."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy import Connection, Executable, select, text
from sqlalchemy.exc import SQLAlchemyError

from broker.core.entries import AuditEntry
from broker.core.errors import AlreadyExists, BrokerError, WrongState
from broker.core.kinds import LeaseState
from broker.core.model import Lease, Record
from broker.core.reasons import Reason
from broker.core.records import key_of, kinds, renewed
from broker.store.answers import Answers
from broker.store.asked import Asked, asked
from broker.store.authentic import Rows
from broker.store.database import Database
from broker.store.floors import Floors
from broker.store.ledger import Ledger, Slot
from broker.store.marks import UNTOLD, Changed, tell, weights
from broker.store.refusals import refusal
from broker.store.rows import NAMES, PLACES, microseconds, rank, rank_of
from broker.store.tables import (
    BY_KEY,
    DELETE,
    END_LEASE,
    LEADERSHIP,
    LOCKED_BY_KEY,
    NEW_CELLS,
    UPDATE,
    Query,
    cells,
    insert_of,
    inserted,
    key_cells,
    last,
    page,
)

R = TypeVar("R", bound=Record)

STEP = 1000
"""Leases of one session that are ended at a time."""

_ID, _STATE, _ENDS, _REVISION = (PLACES[Lease][name] for name in ("id", "state", "expires_at", "revision"))

LEADER = select(LEADERSHIP.c.fence)
LEADER_LOCKED = LEADER.with_for_update(read=True)
LOCK_NAME = text("SELECT pg_advisory_xact_lock(:number)")

RANDOMLY_NAMED = kinds("randomly_named")
"""Such a name needs no lock of its own; and one fetch adds a hundred, while a PostgreSQL server holds some thousand
locks in all."""


class SqlWrite:
    """Reads here hold on PostgreSQL as they do on SQLite, where there is one writer.

    A row that is read is locked; a row that is absent is locked by its name (an advisory lock, which ``add`` takes
    as well); a page locks its table against other writers.
    """

    def __init__(self, database: Database, rows: Rows, floors: Floors, entry: AuditEntry) -> None:
        self.entry = entry
        self.noted: dict[str, str | int] = {}  # facts that its entry is to have besides
        self.further: list[AuditEntry] = []
        self.changed: list[Changed] = []
        self.written: list[tuple[type[Any], Sequence[Any]]] = []  # rows with their MACs
        self.leaving: list[tuple[type[Any], tuple[str | int, ...]]] = []  # deleted, or tried to be
        self._macs: dict[int, tuple[Record, bytes]] = {}  # of what was read or written here
        self.fault: BrokerError | None = None  # PostgreSQL's answer to COMMIT after a failed statement is a rollback
        self._connection: Connection
        self._database = database
        self._rows = rows
        self._floors = floors
        self._answers = Answers(rows, floors)
        self._shared = database.name == "postgresql"

    def begin(self, connection: Connection) -> None:
        """Make the changes in this transaction; those of a leader only if it is the newest (``LEADERSHIP_LOST``)."""
        self._connection = connection
        if self.entry.fence:
            self._check_leader(self.entry.fence)

    def _check_leader(self, fence: int) -> None:
        """WrongState ``LEADERSHIP_LOST`` unless ``fence`` is the newest; the next leader waits for this transaction."""
        with _Statements(self):
            rows = self.read(LEADER_LOCKED if self._shared else LEADER)
        if not rows or rows[0][0] != fence:
            raise WrongState(
                Reason.LEADERSHIP_LOST, "Another process does the shared work now, so this one's was refused."
            )

    def get(self, kind: type[R], *key: str | int) -> R | None:
        """See ``Write.get``."""
        query, named = (LOCKED_BY_KEY if self._shared else BY_KEY)[kind], key_cells(kind, key)
        with _Statements(self):
            rows = self.read(query, named)
            if not rows and self._shared:
                self._lock_name(kind, key)
                rows = self.read(query, named)
        found = self._answers.one(kind, key, rows)
        return found if found is None else self._met(found, rows[0][-1])

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
        wanted = asked(kind, where)
        return self._found(kind, wanted, page(kind, wanted, after, limit), lock=lock)

    def last(self, kind: type[R], *under: str | int, lock: bool = True) -> R | None:
        """See ``Write.last``."""
        wanted = asked(kind, under=under)
        return next(iter(self._found(kind, wanted, last(kind, wanted), lock=lock)), None)

    def _found(self, kind: type[R], wanted: Asked, query: Query, *, lock: bool) -> list[R]:
        with _Statements(self):
            if lock and self._shared:
                self._connection.execute(text(f"LOCK TABLE {NAMES[kind]} IN SHARE ROW EXCLUSIVE MODE"))
            rows = self.read(*query)
        return [self._met(self._answers.record(kind, row, wanted), row[-1]) for row in rows]

    def add(self, *records: R) -> None:
        """See ``Write.add``."""
        if not records:
            return
        kind = type(records[0])
        with _Statements(self):
            if self._shared and kind not in RANDOMLY_NAMED:
                for record in records:
                    self._lock_name(kind, key_of(record))
            statement = insert_of(self._database.name, kind, len(records))  # type: ignore[arg-type]  # a class is hashable
            rows = [self._rows.row(record) for record in records]
            added = self.change(statement, [inserted(rows)])
        if added < len(records):
            name = "/".join(str(part) for part in key_of(records[0])) if len(records) == 1 else "of such a name"
            raise self._whole(
                AlreadyExists(
                    Reason.NAME_TAKEN, f"The {kind.__name__.lower()} {name} exists or existed; choose another name."
                ),
                added,
            )
        if kind not in UNTOLD:
            self._new(records)
        self.written += [(kind, tuple(row.values())) for row in rows]
        self.changed += [
            Changed(kind, key_of(record), record.revision, rank(record), None, row["mac"])
            for record, row in zip(records, rows, strict=True)
        ]

    def replace(self, old: R, new: R) -> R:
        """See ``Write.replace``."""
        return self.replace_all([(old, new)])[0]

    def replace_all(self, changes: Sequence[tuple[R, R]]) -> list[R]:
        """See ``Write.replace_all``."""
        written = [renewed(new, revision=old.revision + 1) for old, new in changes]
        if any(type(old) is not type(new) or key_of(old) != key_of(new) for old, new in changes):
            raise ValueError("a record is replaced by one of the same kind and name")
        pairs = [(old, new) for (old, _), new in zip(changes, written, strict=True)]
        if pairs:
            changed = self._replaced(pairs, [self._mac(old) for old, _ in changes])
            if not changed and len(pairs) == 1 and (mac := self._mac_of(changes[0][0])):
                changed = self._replaced(pairs, [mac])
            self._expect(changed, written[0], len(pairs))
        return written

    def _replaced(self, pairs: Sequence[tuple[R, R]], macs: Sequence[bytes]) -> int:
        """Write over the rows that have these MACs; how many there were."""
        changes, rows, made = [], [], [self._rows.row(new) for _, new in pairs]
        for (old, new), mac, row in zip(pairs, macs, made, strict=True):
            kind, key = type(old), key_of(old)
            changes.append(Changed(kind, key, new.revision, rank(new), mac, row["mac"]))
            rows.append({**_as_read(kind, key, mac), **dict(zip(NEW_CELLS[kind], row.values(), strict=True))})
        with _Statements(self):
            changed = self.change(UPDATE[type(pairs[0][0])], rows)
        if changed == len(rows):
            self.changed += changes
            for (_, new), row in zip(pairs, made, strict=True):
                self.written.append((type(new), tuple(row.values())))
                self._met(new, row["mac"])
        return changed

    def _met(self, record: R, mac: bytes) -> R:
        """Remember the MAC of a row, for when it is replaced."""
        self._macs[id(record)] = record, mac
        return record

    def _mac(self, record: Record) -> bytes:
        known = self._macs.get(id(record))
        return known[1] if known and known[0] is record else self._rows.mac(record)

    def _mac_of(self, read: Record) -> bytes | None:
        """The MAC of the stored row, if it has the revision of the copy that its caller has gone on working on."""
        stored = self.get(type(read), *key_of(read))
        return self._mac(stored) if stored is not None and stored.revision == read.revision else None

    def end_leases(self, session: str, state: LeaseState, at: datetime) -> int:
        """See ``Write.end_leases``. A lease that somebody else has altered stays as it is: it is refused anyway."""
        ended, after = 0, ""
        active = asked(Lease, {"session": session, "state": LeaseState.ACTIVE.value})
        while True:
            query, values = page(Lease, active, (after,) if after else (), STEP)
            with _Statements(self):
                rows = self.read(query, values)
            ended += self._ended([row for row in rows if self._rows.known(Lease, row)], state, microseconds(at))
            if len(rows) < STEP:
                return ended
            after = rows[-1][_ID]

    def _ended(self, rows: Sequence[Sequence[Any]], state: LeaseState, at: int) -> int:
        """End leases cell by cell: a job has many, and taking them apart costs more than all the rest of it."""
        changes, ends = [], []
        for row in rows:
            cells = list(row[:-1])
            cells[_STATE] = state.value
            cells[_ENDS] = min(cells[_ENDS], at)
            cells[_REVISION] += 1
            key, mac = (cells[_ID],), self._rows.mac_of(Lease, cells)
            changes.append(Changed(Lease, key, cells[_REVISION], rank_of(Lease, cells), row[-1], mac))
            new = {"n_state": state.value, "n_expires_at": cells[_ENDS], "n_revision": cells[_REVISION], "n_mac": mac}
            ends.append({"k0": key[0], "read": row[-1], **new})
        if ends:
            with _Statements(self):
                changed = self.change(END_LEASE, ends)
            if changed != len(ends):
                again = WrongState(Reason.CHANGED_MEANWHILE, "The leases were changed meanwhile; repeat the call.")
                raise self._whole(again, changed)
            self.changed += changes
        return len(ends)

    def delete(self, record: Record) -> None:
        """See ``Write.delete``."""
        kind, key = type(record), key_of(record)
        self._floors.leave(kind, key)
        self.leaving.append((kind, key))
        mac = self._mac(record)
        changed = self._deleted(kind, key, mac)
        if not changed and (stored := self._mac_of(record)):
            mac, changed = stored, self._deleted(kind, key, stored)
        self._expect(changed, record)
        self.changed.append(Changed(kind, key, record.revision, rank(record), mac, None))

    def _deleted(self, kind: type[Any], key: tuple[Any, ...], mac: bytes) -> int:
        with _Statements(self):
            return self.change(DELETE[kind], [_as_read(kind, key, mac)])

    def note(self, **facts: str | int) -> None:
        """See ``Write.note``."""
        self.noted.update(facts)

    def also(self, entry: AuditEntry) -> None:
        """See ``Write.also``."""
        self.further.append(entry)

    def ask(self) -> None:
        """Bound the time of what is asked of the database next; raises what has failed before."""
        if self.fault is not None:
            raise self.fault
        self._database.bound()

    def read(self, statement: Executable, values: Mapping[str, Any] | None = None) -> list[Sequence[Any]]:
        """The rows of a SELECT, as they are."""
        return self._database.driver.read(self._connection, statement, values)

    def change(self, statement: Executable, rows: list[dict[str, Any]]) -> int:
        """Carry out a statement for each row; how many rows of the database that changed."""
        return self._database.driver.change(self._connection, statement, rows)

    def enter(self, ledger: Ledger, slot: Slot, changed: Iterable[Changed]) -> str:
        """Add what this and others have changed in this transaction to the sums; nothing is changed in it any more."""
        with _Statements(self):
            return ledger.enter(slot, weights(self._rows, changed), self)

    def told(self, mark: str) -> tuple[AuditEntry, ...]:
        """The entries of what was changed here. ``mark``: of the ledger; "" where nothing was changed."""
        return tell((self.entry, *self.further), self.noted, self.changed, mark)

    def _expect(self, changed: int, record: Record, wanted: int = 1) -> None:
        if changed != wanted:
            raise self._whole(
                WrongState(
                    Reason.CHANGED_MEANWHILE,
                    f"The {type(record).__name__} was changed by somebody else meanwhile; read it again and repeat.",
                ),
                changed,
            )

    def _new(self, records: Sequence[Record]) -> None:
        """Their names were free; WrongState ``ROW_FORGED`` if one is so only because somebody has removed its row."""
        try:
            for record in records:
                self._floors.check_absent(type(record), key_of(record))
        except WrongState as error:
            raise self._whole(error, len(records)) from None

    def _whole(self, refusal: BrokerError, changed: int) -> BrokerError:
        """The refusal; if a part was changed for it, nothing else that the body goes on with may be committed."""
        self.fault = refusal if changed else self.fault
        return refusal

    def _lock_name(self, kind: type[Any], key: tuple[str | int, ...]) -> None:
        digest = hashlib.sha256(repr((NAMES[kind], cells(kind, key))).encode()).digest()
        number = int.from_bytes(digest[:8], "big", signed=True)
        self.read(LOCK_NAME, {"number": number})


class _Statements:
    """While something is asked of the database for a write: that it failed is remembered there.

    A class and no generator, which takes longer than all else that is done here, at each statement.
    """

    __slots__ = ("_write",)

    def __init__(self, write: SqlWrite) -> None:
        self._write = write

    def __enter__(self) -> None:
        self._write.ask()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, SQLAlchemyError):
            self._write.fault = refusal(error)
            raise self._write.fault from error


def _as_read(kind: type[Any], key: tuple[str | int, ...], mac: bytes) -> dict[str, Any]:
    """Names a row as it was when it was read."""
    return {**key_cells(kind, key), "read": mac}
