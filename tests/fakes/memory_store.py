"""The Store port in memory, held to the port's contract like the databases; what it keeps of a record is its cells."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from threading import RLock
from typing import Any, TypeVar

from broker.core.entries import AuditEntry, Phase, encode, encode_head
from broker.core.errors import AlreadyExists, BrokerError, Unavailable, WrongState
from broker.core.kinds import LeaseState
from broker.core.model import AuditHead, Key, KeyVersion, Lease, Record, Secret, SecretVersion
from broker.core.ports import Now, RowFinding, Write
from broker.core.records import RECORDS, check_asked, due_of, key_of
from broker.store.rows import FIELDS, record_of, row_of, storable

R = TypeVar("R", bound=Record)
Part = str | int
Rows = dict[tuple[Part, ...], Any]

SQL = {kind: {each.name: each.sql for each in found} for kind, found in FIELDS.items()}


def _cell(kind: type[Any], name: str, value: Part) -> Part:
    """A value to compare a field with: of its type, and such as a database can keep."""
    if isinstance(value, str) is not (SQL[kind][name] is str):
        raise TypeError(f"{name} is compared with a value of another type")
    return storable(value)


def _whole(kind: type[Any], key: Sequence[Part]) -> tuple[Part, ...]:
    return tuple(_cell(kind, name, part) for name, part in zip(RECORDS[kind].key, key, strict=True))


def _sortable(key: tuple[Part, ...]) -> tuple[bytes | int, ...]:
    return tuple(part.encode() if isinstance(part, str) else part for part in key)


def _kept(record: R) -> R:
    """The record as it comes back from its cells."""
    return record_of(type(record), tuple(row_of(record).values()))


class _Tables:
    """What can be read, of the committed state or of a transaction's."""

    def __init__(self, rows: Mapping[Any, Rows]) -> None:
        self.rows = {kind: dict(table) for kind, table in rows.items()}

    def check_open(self) -> None:
        """Refuse whatever is asked of what is over."""

    def get(self, kind: type[R], *key: Part) -> R | None:
        self.check_open()
        row: R | None = self.rows[kind].get(_whole(kind, key))
        return row

    def _found(
        self, kind: type[R], where: Mapping[str, Part] | None, under: Sequence[Part] = (), begins: str = ""
    ) -> list[tuple[tuple[Part, ...], R]]:
        """The rows that were asked for and their keys, in no order."""
        self.check_open()
        named = check_asked(kind, where or {}, under, begins)
        cells = {**dict(zip(named, under, strict=True)), **(where or {})}
        wanted = {name: _cell(kind, name, value) for name, value in cells.items()}
        if begins:
            _cell(kind, RECORDS[kind].key[len(under)], begins)
        return [
            (key, row)
            for key, row in self.rows[kind].items()
            if all(getattr(row, name) == value for name, value in wanted.items())
            and (not begins or str(key[len(under)]).startswith(begins))
        ]

    def _page(
        self, kind: type[R], after: tuple[Part, ...], limit: int, found: list[tuple[tuple[Part, ...], R]]
    ) -> list[R]:
        if limit < 1:
            raise ValueError("a page holds at least one record")
        start = _sortable(_whole(kind, after)) if after else ()
        rows = sorted((_sortable(key), key, row) for key, row in found if not after or _sortable(key) > start)
        return [row for _, _, row in rows][:limit]

    def page(
        self,
        kind: type[R],
        *,
        after: tuple[Part, ...] = (),
        limit: int,
        under: Sequence[Part] = (),
        begins: str = "",
        where: Mapping[str, Part] | None = None,
        sound_only: bool = False,  # noqa: ARG002  all rows are sound here
    ) -> list[R]:
        return self._page(kind, after, limit, self._found(kind, where, under, begins))

    def last(self, kind: type[R], *under: Part) -> R | None:
        found = self._found(kind, None, under)
        return max(found, key=lambda one: _sortable(one[0]))[1] if found else None

    def due(self, kind: type[R], before: datetime, *, limit: int, state: str = "") -> list[R]:
        time, state = due_of(kind, state)
        found = self._found(kind, None)
        due = [
            (getattr(row, time), _sortable(key), row)
            for key, row in found
            if getattr(row, time) <= before and (not state or getattr(row, "state", None) == state)
        ]
        return [row for _, _, row in sorted(due, key=lambda one: one[:2])][:limit]

    def count(self, kind: type[R], where: Mapping[str, Part]) -> int:
        return len(self._found(kind, where))


class _Transaction(_Tables):
    """``fault``: what a part was already changed for when it was refused; nothing of this may be committed any more."""

    def __init__(self, rows: Mapping[Any, Rows], entry: AuditEntry) -> None:
        super().__init__(rows)
        self.entry = entry
        self.further: list[AuditEntry] = []
        self.fault: BrokerError | None = None

    def check_open(self) -> None:
        if self.fault is not None:
            raise self.fault

    def page(  # type: ignore[override]  # the port's Write has no more than this
        self,
        kind: type[R],
        *,
        after: tuple[Part, ...] = (),
        limit: int,
        where: Mapping[str, Part] | None = None,
        lock: bool = True,  # noqa: ARG002  there is one writer
    ) -> list[R]:
        return self._page(kind, after, limit, self._found(kind, where))

    def last(self, kind: type[R], *under: Part, lock: bool = True) -> R | None:  # noqa: ARG002  as above
        return super().last(kind, *under)

    def add(self, *records: R) -> None:
        self.check_open()
        if len({type(record) for record in records}) > 1:
            raise ValueError("records of one kind are added together")
        new = {key_of(kept): kept for kept in map(_kept, records)}
        free = {key: kept for key, kept in new.items() if key not in self.rows[type(kept)]}
        if len(free) < len(records):
            refusal = AlreadyExists("NAME_TAKEN", "The name is taken; choose another.")
            self.fault = refusal if free else None
            raise refusal
        for key, kept in free.items():
            self.rows[type(kept)][key] = kept

    def replace(self, old: R, new: R) -> R:
        return self.replace_all([(old, new)])[0]

    def replace_all(self, changes: Sequence[tuple[R, R]]) -> list[R]:
        self.check_open()
        if any(type(old) is not type(new) or key_of(old) != key_of(new) for old, new in changes):
            raise ValueError("a record is replaced by one of the same kind and name")
        written = [_kept(replace(new, revision=old.revision + 1)) for old, new in changes]
        stale = [old for old, _ in changes if not self._stands(old)]
        if stale:
            self._refuse(partly=len(stale) < len(changes))
        for kept in written:
            self.rows[type(kept)][key_of(kept)] = kept
        return written

    def end_leases(self, session: str, state: LeaseState, at: datetime) -> int:
        active = [row for _, row in self._found(Lease, {"session": session, "state": LeaseState.ACTIVE.value})]
        self.replace_all([(row, replace(row, state=state, expires_at=min(row.expires_at, at))) for row in active])
        return len(active)

    def delete(self, record: Record) -> None:
        self.check_open()
        if not self._stands(record):
            self._refuse(partly=False)
        del self.rows[type(record)][key_of(record)]

    def note(self, **facts: Part) -> None:
        self.entry = replace(self.entry, facts={**self.entry.facts, **facts})

    def also(self, entry: AuditEntry) -> None:
        self.further.append(entry)

    def _stands(self, record: Record) -> bool:
        stored = self.rows[type(record)].get(key_of(record))
        return stored is not None and stored.revision == record.revision

    def _refuse(self, *, partly: bool) -> None:
        refusal = WrongState("CHANGED_MEANWHILE", "It was changed meanwhile; read it again.")
        self.fault = refusal if partly else None
        raise refusal


@dataclass
class Memory:
    """What outlives a store that is closed: the rows, the journal's lines by chain, and who leads."""

    rows: dict[Any, Rows] = field(default_factory=lambda: {kind: {} for kind in RECORDS})
    chains: dict[str, list[bytes]] = field(default_factory=dict)
    fence: int = 0
    leader: MemoryStore | None = None
    lock: Any = field(default_factory=RLock)


class MemoryStore(_Tables):
    """One process's store on a ``Memory``. ``journal_full`` makes the next entries fail, as a full disk does.

    ``entries`` is what was recorded, without the record that begins the chain, which is written before the first other.
    """

    def __init__(self, memory: Memory | None = None, now: Now = lambda: datetime.now(UTC)) -> None:
        self.memory = memory or Memory()
        self.entries: list[AuditEntry] = []
        self.journal_full = False
        self.chain = f"memory-{len(self.memory.chains) + 1}" if self.memory.chains else "memory"
        self._now = now
        self._hash, self._entry, self._signed = "0" * 64, 0, 0  # of the newest line; of the newest entry; of a head
        self._closed = self._writing = False
        self._lock = self.memory.lock

    @property
    def rows(self) -> dict[Any, Rows]:  # type: ignore[override]  # read through to what outlives it
        return self.memory.rows

    @property
    def fence(self) -> int:
        """The newest leader's number; a test that sets it has made another process the leader."""
        return self.memory.fence

    @fence.setter
    def fence(self, number: int) -> None:
        self.memory.fence, self.memory.leader = number, None

    def check_open(self) -> None:
        if self._closed:
            raise Unavailable("STORE_UNAVAILABLE", "The store is closed.")

    def recent(self, kind: type[R], *key: Part) -> R | None:
        return self.get(kind, *key)

    def version(self, key: str, number: int) -> tuple[Key, KeyVersion] | None:
        with self._lock:
            row = self.get(Key, key)
            found = row and self.get(KeyVersion, key, number or row.primary)
            return (row, found) if row and found else None

    def secrets(self, wanted: Sequence[tuple[str, int]]) -> list[tuple[Secret | None, SecretVersion | None]]:
        with self._lock:
            return [self._secret(name, number) for name, number in wanted]

    def _secret(self, name: str, number: int) -> tuple[Secret | None, SecretVersion | None]:
        secret = self.get(Secret, name)
        return secret, self.get(SecretVersion, name, number or secret.latest) if secret else None

    def write(self, entry: AuditEntry) -> AbstractContextManager[Write]:
        return self._write(entry)

    @contextmanager
    def _write(self, entry: AuditEntry) -> Iterator[Write]:
        with self._lock:
            self.check_open()
            if self._writing:
                raise RuntimeError("a write within a write: on a database they would wait for each other")
            if entry.fence and entry.fence != self.fence:
                raise WrongState("LEADERSHIP_LOST", "Another process does the shared work now.")
            self._writing = True
            try:
                transaction = _Transaction(self.rows, entry)
                yield transaction
                transaction.check_open()
                self._append([transaction.entry, *transaction.further])
                self.memory.rows = transaction.rows
            finally:
                self._writing = False

    def record(self, *entries: AuditEntry) -> None:
        with self._lock:
            self._append(entries)

    def _append(self, entries: Sequence[AuditEntry]) -> None:
        """All of them or none; the chain is begun first, with a record of its own."""
        if self._closed or self.journal_full:
            raise Unavailable("AUDIT_UNAVAILABLE", "The audit journal cannot be written; free its disk.")
        chain = self.memory.chains.get(self.chain, [])
        begun = [] if chain else [_beginning(self._now())]
        lines, end = list[bytes](), self._hash
        for entry in [*begun, *entries]:
            line, end = encode(entry, self.chain, len(chain) + len(lines) + 1, end)
            lines.append(line)
        self.memory.chains[self.chain], self._hash = [*chain, *lines], end
        self._entry = len(chain) + len(lines) if lines else self._entry
        self.entries += entries

    def heads(self) -> list[AuditHead]:
        with self._lock:
            sequence = len(self.memory.chains.get(self.chain, []))
            if self._entry <= self._signed:
                return []
            return [
                AuditHead(chain=self.chain, sequence=sequence, hash=self._hash, signed_at=self._now(), signature=b"")
            ]

    def save_head(self, head: AuditHead) -> None:
        with self._lock:
            self.check_open()
            self.memory.rows[AuditHead].setdefault(key_of(head), _kept(head))
            if head.chain == self.chain:
                lines = self.memory.chains[self.chain]
                line, self._hash = encode_head(head, len(lines) + 1, self._hash)
                lines.append(line)
                self._signed = max(self._signed, head.sequence)

    def inspect(self, tables: Collection[str] = ()) -> list[RowFinding]:  # noqa: ARG002  nobody else writes here
        return []

    def lead(self) -> int | None:
        with self._lock:
            self.check_open()
            if self.memory.leader is None:
                self.memory.leader, self.memory.fence = self, self.memory.fence + 1
            return self.memory.fence if self.memory.leader is self else None

    def clock(self) -> datetime | None:
        return None

    def check(self) -> None:
        with self._lock:
            self.check_open()
            self._append([])

    def close(self) -> None:
        self._closed = True
        if self.memory.leader is self:
            self.memory.leader = None


def _beginning(moment: datetime) -> AuditEntry:
    return AuditEntry(
        time=moment, phase=Phase.OUTCOME, call_id="", rpc="-", request_id="", principal="", authn="", credential="",
        peer="", resource="", decision="", policies=(), policy_version=0, outcome="ok", reason="",
    )  # fmt: skip
