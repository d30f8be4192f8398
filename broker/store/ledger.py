"""The sums of all rows: what tells that some were put back, removed, or put in again, although each is genuine.

Each row has a weight that only a holder of the key can compute (``authentic``); a table's sum is that of its rows,
modulo 2^256 (MSet-Add-Hash of Clarke et al., ASIACRYPT 2003, with a secret key), and is kept enciphered. Every
commit adds what it changes to a row of the ledger in the same transaction, so that at any moment the ledger's sums are
those of the tables. A process has several such rows (slots), one for each commit under way, so that none waits for
another; changes that share a commit (``store.group``) share its row.

A slot counts its commits, and the audit journal names the counts with each change (``mark``). So somebody who puts the
ledger back together with the tables is found by this process at once, and by the next one through the journal.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import repeat
from operator import methodcaller
from threading import Lock
from typing import Any, Protocol

from sqlalchemy import BigInteger, Executable, LargeBinary, Text, bindparam, select, text

from broker.core.errors import WrongState
from broker.core.reasons import Reason
from broker.core.records import RECORDS
from broker.store.authentic import WEIGHT_BYTES, Rows
from broker.store.marks import Mark
from broker.store.tables import LEDGER

SUMMED = tuple(kind for kind, one in RECORDS.items() if one.summed)
"""Kinds that have a sum, in the order of the sums in a slot."""

MODULUS = 1 << (8 * WEIGHT_BYTES)
_wide = methodcaller("to_bytes", WEIGHT_BYTES, "big")
NONCE_BYTES = 16

_OWNER, _SLOT = LEDGER.c.owner == bindparam("of", type_=Text), LEDGER.c.slot == bindparam("at", type_=BigInteger)
SLOTS = select(LEDGER)
OWN = select(LEDGER.c.slot, LEDGER.c.changes).where(_OWNER)
ONE = select(LEDGER).where(_OWNER, _SLOT)
BEGIN = text(
    "INSERT INTO ledger (owner, slot, changes, sums, mac) VALUES (:owner, :slot, :changes, :sums, :mac) "
    "ON CONFLICT DO NOTHING"
)
MOVE = (
    LEDGER.update()
    .where(_OWNER, _SLOT, LEDGER.c.changes == bindparam("was", type_=BigInteger))
    .values(
        {
            "changes": bindparam("n_changes", type_=BigInteger),
            "sums": bindparam("n_sums", type_=LargeBinary),
            "mac": bindparam("n_mac", type_=LargeBinary),
        }
    )
)

Sums = dict[type[Any], int]

Place = tuple[str, int]
"""A slot of any process: its owner and its number."""


class Statements(Protocol):
    """An open transaction's connection."""

    def read(self, statement: Executable, values: Mapping[str, Any] | None = None) -> list[Sequence[Any]]:
        """The rows of a SELECT."""

    def change(self, statement: Executable, rows: list[dict[str, Any]]) -> int:
        """How many rows a statement changed."""


@dataclass(slots=True)
class Slot:
    """One row of the ledger. ``sums`` None: to be read before its next use, since nobody knows how a commit ended."""

    number: int
    count: int = 0  # of changes that are known to be committed
    sums: Sums | None = field(default_factory=dict)  # never changed in place
    reached: tuple[int, Sums] | None = None  # what the transaction under way has written


class Ledger:
    """The slots of this process. ``owner``: who it is, the same after a restart, and no other process's."""

    def __init__(self, owner: str, rows: Rows) -> None:
        self.owner = owner
        self._rows = rows
        self._lock = Lock()
        self._idle: list[Slot] = []
        self._counts: dict[int, int] = {}
        self.owing: Sums = {}  # what the sums lack, where somebody accepts the tables as they are,
        self.behind: dict[Place, int] = {}  # and how far the journals say that slots had come, of whatever process;
        self.making_good = False  # whether the next change makes both good

    def learn(self, found: Iterable[tuple[int, int]]) -> None:
        """The slots that the database has of this process: (number, count)."""
        with self._lock:
            slots = [Slot(number, count, None) for number, count in found]
            self._idle = sorted(slots, key=lambda slot: -slot.number)
            self._counts = {slot.number: slot.count for slot in slots}

    @contextmanager
    def slot(self) -> Iterator[Slot]:
        """A slot for one commit, which has ended when the body leaves: by an exception, nobody knows how."""
        with self._lock:
            slot = self._idle.pop() if self._idle else Slot(max(self._counts, default=-1) + 1)
            self._counts.setdefault(slot.number, slot.count)
        try:
            yield slot
            if slot.reached:
                slot.count, slot.sums = slot.reached
        except BaseException:
            slot.sums = None
            raise
        finally:
            slot.reached = None
            with self._lock:
                self._counts[slot.number] = slot.count
                self._idle.append(slot)

    def enter(self, slot: Slot, change: Mapping[type[Any], int], statements: Statements) -> str:
        """Add what a transaction changes, as its last statement; the mark that its audit entries are to have."""
        owing: Sums = {}
        if self.making_good:
            for place, count in sorted(self.behind.items()):
                self._catch_up(place, count, statements)
            owing, self.owing, self.behind = self.owing, {}, {}
        if slot.sums is None:
            self._reread(slot, statements)
        whole = {kind: change.get(kind, 0) + owing.get(kind, 0) for kind in change.keys() | owing} if owing else change
        if not self._moved(slot, whole, statements):
            self._reread(slot, statements)
            if not self._moved(slot, whole, statements):
                raise altered()
        return self._mark(slot)

    def has(self, there: Mapping[int, int], known: Mapping[int, int]) -> bool:
        """Whether the database has all the changes of each slot that are ``known`` to be made."""
        return all(there.get(number, 0) >= count for number, count in known.items())

    def known(self) -> dict[int, int]:
        """The slots and how many of their changes are committed."""
        with self._lock:
            return {number: count for number, count in self._counts.items() if count}

    def row(self, slot: int, count: int, sums: Sums, owner: str = "") -> dict[str, Any]:
        """The cells of a slot, of this process if no other ``owner`` is named."""
        owner, packed = owner or self.owner, pack(sums, self._rows)
        mac = self._rows.mac_over("ledger", owner, slot, count, packed)
        return {"owner": owner, "slot": slot, "changes": count, "sums": packed, "mac": mac}

    def _moved(self, slot: Slot, change: Mapping[type[Any], int], statements: Statements) -> bool:
        sums = dict(slot.sums or {})
        for kind, weight in change.items():
            sums[kind] = (sums.get(kind, 0) + weight) % MODULUS
        if not _written(self.row(slot.number, slot.count + 1, sums), slot.count or None, statements):
            return False
        slot.reached = slot.count + 1, sums
        return True

    def _catch_up(self, place: Place, count: int, statements: Statements) -> None:
        """Bring a slot to where a journal says that it was, so that no mark of before is ahead of it for ever."""
        owner, number = place
        rows = statements.read(ONE, {"of": owner, "at": number})
        reached, sums = self._read(rows)
        _written(self.row(number, max(count, reached), sums, owner), rows[0][2] if rows else None, statements)

    def _reread(self, slot: Slot, statements: Statements) -> None:
        rows = statements.read(ONE, {"of": self.owner, "at": slot.number})
        count, sums = self._read(rows)
        if count < slot.count:
            raise restored()
        slot.count, slot.sums = count, sums

    def _read(self, rows: Sequence[Sequence[Any]]) -> tuple[int, Sums]:
        if not rows or not genuine(self._rows, rows[0]):
            return 0, {}
        return rows[0][2], unpack(rows[0][3], self._rows)

    def _mark(self, slot: Slot) -> str:
        with self._lock:
            counts = dict(self._counts)
        counts[slot.number] = slot.reached[0] if slot.reached else slot.count
        mark = Mark(self.owner, slot.number, tuple(counts.get(at, 0) for at in range(max(counts) + 1)))
        return mark.shown(self._rows)


def _written(row: Mapping[str, Any], was: int | None, statements: Statements) -> int:
    """Put a slot in, or over the one whose count ``was`` so; 1 if that is done."""
    if was is None:
        return statements.change(BEGIN, [dict(row)])
    new = {"n_changes": row["changes"], "n_sums": row["sums"], "n_mac": row["mac"]}
    return statements.change(MOVE, [{"of": row["owner"], "at": row["slot"], "was": was, **new}])


def genuine(rows: Rows, row: Sequence[Any]) -> bool:
    """Whether a row of the ledger is as a broker wrote it."""
    owner, slot, count, sums, mac = row
    return bool(mac == rows.mac_over("ledger", owner, slot, count, sums))


def pack(sums: Sums, rows: Rows) -> bytes:
    """The sums as a cell, enciphered."""
    nonce = secrets.token_bytes(NONCE_BYTES)
    shown = b"".join(map(_wide, map(sums.get, SUMMED, repeat(0))))
    return nonce + rows.hidden(nonce, shown)


def unpack(cell: bytes, rows: Rows) -> Sums:
    """What ``pack`` made, or an older program with fewer kinds."""
    packed = rows.hidden(cell[:NONCE_BYTES], cell[NONCE_BYTES:])
    parts = (packed[at : at + WEIGHT_BYTES] for at in range(0, len(packed), WEIGHT_BYTES))
    return {kind: int.from_bytes(part, "big") for kind, part in zip(SUMMED, parts, strict=False)}


def altered() -> WrongState:
    """The refusal of a change when the ledger is not as this process left it."""
    return WrongState(
        Reason.STORE_ALTERED,
        "The database's ledger was changed by somebody else, so nothing was changed; find out who can write to "
        "the database, and restart the broker, which then says what else was changed.",
    )


def restored() -> WrongState:
    """The refusal of a database that lacks changes which were committed."""
    return WrongState(
        Reason.STORE_RESTORED,
        "The database is older than this host's audit journal: it lacks changes that are recorded there, so it was put "
        "back, in part or whole; put the newer one back, or run `broker accept-restore`, which ends all sessions.",
    )
