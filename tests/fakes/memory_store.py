"""The Store port in memory, strict: every rule of the port's docstrings holds, and nothing else does."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from datetime import datetime
from threading import RLock
from typing import Any, TypeVar

from broker.core.entries import AuditEntry, encode, encode_head
from broker.core.errors import AlreadyExists, Unavailable, WrongState
from broker.core.kinds import LeaseState
from broker.core.model import (
    AuditHead,
    Import,
    Key,
    KeyVersion,
    Lease,
    Operation,
    Operator,
    PolicyDocument,
    Receipt,
    Record,
    RootKey,
    Secret,
    SecretRead,
    SecretVersion,
    Session,
    Target,
    TrustRule,
    UsedToken,
)
from broker.core.ports import RowFinding, Write

R = TypeVar("R", bound=Record)
Rows = dict[tuple[str | int, ...], Any]

PRIMARY_KEYS: dict[Any, tuple[str, ...]] = {
    Key: ("name",),
    KeyVersion: ("key", "number"),
    Target: ("name",),
    Import: ("key", "version", "target", "remote_name"),
    Operator: ("name",),
    PolicyDocument: ("version",),
    Receipt: ("principal", "request_id"),
    AuditHead: ("chain", "sequence"),
    TrustRule: ("name",),
    Secret: ("name",),
    SecretVersion: ("secret", "number"),
    SecretRead: ("secret",),
    RootKey: ("version",),
    Session: ("id",),
    Lease: ("id",),
    UsedToken: ("issuer", "jti"),
    Operation: ("subject", "number"),
}

TIMES: dict[Any, str] = {
    Session: "expires_at",
    Lease: "expires_at",
    UsedToken: "until",
    Receipt: "created_at",
    Operation: "due_at",
}


def primary_key(record: Record) -> tuple[str | int, ...]:
    return tuple(getattr(record, name) for name in PRIMARY_KEYS[type(record)])


def _sortable(key: tuple[str | int, ...]) -> tuple[bytes | int, ...]:
    return tuple(part.encode() if isinstance(part, str) else part for part in key)


class _Tables:
    """What can be read, of the committed state or of a transaction's."""

    def __init__(self, rows: Mapping[Any, Rows]) -> None:
        self.rows = {kind: dict(table) for kind, table in rows.items()}

    def get(self, kind: type[R], *key: str | int) -> R | None:
        if len(key) != len(PRIMARY_KEYS[kind]):
            raise TypeError(f"the primary key of {kind.__name__} has {len(PRIMARY_KEYS[kind])} parts")
        row: R | None = self.rows[kind].get(key)
        return row

    def page(
        self,
        kind: type[R],
        *,
        after: tuple[str | int, ...] = (),
        limit: int,
        where: Mapping[str, str | int] | None = None,
        sound_only: bool = False,  # noqa: ARG002  all rows are sound here
    ) -> list[R]:
        if limit < 1:
            raise ValueError("a page has at least one row")
        keys = sorted((key for key in self.rows[kind] if not after or _sortable(key) > _sortable(after)), key=_sortable)
        rows: list[R] = [self.rows[kind][key] for key in keys]
        return [row for row in rows if all(getattr(row, name) == value for name, value in (where or {}).items())][
            :limit
        ]

    def due(self, kind: type[R], before: datetime, *, limit: int, state: str = "active") -> list[R]:
        time = TIMES[kind]
        rows: list[R] = [row for row in self.rows[kind].values() if getattr(row, "state", state) == state]
        due = [row for row in rows if getattr(row, time) <= before]
        return sorted(due, key=lambda row: (getattr(row, time), _sortable(primary_key(row))))[:limit]

    def count(self, kind: type[R], where: Mapping[str, str | int]) -> int:
        return sum(
            all(getattr(row, name) == value for name, value in where.items()) for row in self.rows[kind].values()
        )


class _Transaction(_Tables):
    def __init__(self, rows: Mapping[Any, Rows]) -> None:
        super().__init__(rows)
        self.further: list[AuditEntry] = []
        self.facts: dict[str, str | int] = {}

    def page(
        self,
        kind: type[R],
        *,
        after: tuple[str | int, ...] = (),
        limit: int,
        where: Mapping[str, str | int] | None = None,
        sound_only: bool = False,  # noqa: ARG002  as above
        lock: bool = True,  # noqa: ARG002  there is one writer
    ) -> list[R]:
        return super().page(kind, after=after, limit=limit, where=where)

    def add(self, *records: Record) -> None:
        for record in records:
            if primary_key(record) in self.rows[type(record)]:
                raise AlreadyExists("NAME_TAKEN", "The name is taken; choose another.")
            self.rows[type(record)][primary_key(record)] = record

    def replace(self, old: R, new: R) -> R:
        self._unchanged(old)
        if primary_key(old) != primary_key(new):
            raise ValueError("a row keeps its primary key")
        kept = replace(new, revision=old.revision + 1)
        self.rows[type(old)][primary_key(old)] = kept
        return kept

    def replace_all(self, changes: Sequence[tuple[R, R]]) -> list[R]:
        return [self.replace(old, new) for old, new in changes]

    def end_leases(self, session: str, state: LeaseState, at: datetime) -> int:
        table = self.rows[Lease]
        active = [row for row in table.values() if row.session == session and row.state is LeaseState.ACTIVE]
        for row in active:
            self.replace(row, replace(row, state=state, expires_at=min(row.expires_at, at)))
        return len(active)

    def delete(self, record: Record) -> None:
        self._unchanged(record)
        del self.rows[type(record)][primary_key(record)]

    def note(self, **facts: str | int) -> None:
        self.facts.update(facts)

    def also(self, entry: AuditEntry) -> None:
        self.further.append(entry)

    def _unchanged(self, record: Record) -> None:
        stored = self.rows[type(record)].get(primary_key(record))
        if stored is None or stored.revision != record.revision:
            raise WrongState("CHANGED_MEANWHILE", "It was changed meanwhile; read it again.")


class MemoryStore(_Tables):
    """``entries`` is the journal; ``journal_full`` makes the next entries fail, as a full disk does."""

    def __init__(self) -> None:
        super().__init__({kind: {} for kind in PRIMARY_KEYS})
        self.entries: list[AuditEntry] = []
        self.journal_full = False
        self.chain = "memory"
        self._line = (0, "0" * 64)  # sequence and hash of the newest line
        self._signed = 0
        self.fence = 1  # the newest leader's; a test that sets it higher has made another process the leader
        self._lock = RLock()

    def recent(self, kind: type[R], *key: str | int) -> R | None:
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
            if entry.fence not in {0, self.fence}:
                raise WrongState("LEADERSHIP_LOST", "Another process does the shared work now.")
            transaction = _Transaction(self.rows)
            yield transaction
            self._append([replace(entry, facts={**entry.facts, **transaction.facts}), *transaction.further])
            self.rows = transaction.rows

    def record(self, *entries: AuditEntry) -> None:
        with self._lock:
            self._append(list(entries))

    def _append(self, entries: list[AuditEntry]) -> None:
        if self.journal_full:
            raise Unavailable("AUDIT_UNAVAILABLE", "The audit journal cannot be written; free its disk.")
        line = self._line
        for entry in entries:
            _, digest = encode(entry, self.chain, line[0] + 1, line[1])
            line = (line[0] + 1, digest)
        self._line = line
        self.entries += entries

    def heads(self) -> list[AuditHead]:
        with self._lock:
            sequence, digest = self._line
            if sequence == self._signed:
                return []
            moment = self.entries[-1].time
            return [AuditHead(chain=self.chain, sequence=sequence, hash=digest, signed_at=moment, signature=b"")]

    def save_head(self, head: AuditHead) -> None:
        with self._lock:
            sequence, previous = self._line
            _, digest = encode_head(head, sequence + 1, previous)
            transaction = _Transaction(self.rows)
            transaction.add(head)
            self._line, self._signed, self.rows = (sequence + 1, digest), sequence + 1, transaction.rows

    def inspect(self, tables: Collection[str] = ()) -> list[RowFinding]:  # noqa: ARG002  nobody else writes here
        return []

    def lead(self) -> int | None:
        return self.fence

    def clock(self) -> datetime | None:
        return None

    def check(self) -> None:
        if self.journal_full:
            raise Unavailable("AUDIT_UNAVAILABLE", "The audit journal cannot be written; free its disk.")

    def close(self) -> None:
        pass
