"""What the database answers, taken for a record only if it is genuine, as new as known, and what was asked for.

The database's owner can have an index, a collation or an operator of theirs answer a question for one row with
another one, which is as genuine. So names are compared here again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from broker.core.model import Record
from broker.store.asked import Asked
from broker.store.authentic import Read, Rows, forged
from broker.store.floors import Floors
from broker.store.rows import PLACES

R = TypeVar("R", bound=Record)

Key = tuple[str | int, ...]


class Answers:
    """Rows to records, for all who read."""

    def __init__(self, rows: Rows, floors: Floors) -> None:
        self._rows = rows
        self._floors = floors

    def one(self, kind: type[R], key: Key, found: Sequence[Sequence[Any]]) -> R | None:
        """What was found under a whole primary key; WrongState ``ROW_FORGED`` or ``ROW_DAMAGED``."""
        if not found:
            self._floors.check_absent(kind, key)
            return None
        read = self._rows.read(kind, found[0])
        if read.key != key:
            raise forged(kind, read.key, "was given for another one")
        return self._newest(kind, read)

    def record(self, kind: type[R], row: Sequence[Any], asked: Asked) -> R:
        """The record in a row. ``asked``: what it was looked for by."""
        read = self._rows.read(kind, row)
        if not asked.fits(row, PLACES[kind]):
            raise forged(kind, read.key, "was given for another one")
        return self._newest(kind, read)

    def _newest(self, kind: type[R], read: Read[R]) -> R:
        if not self._floors.admits(kind, read.key, read.rank):
            raise forged(kind, read.key, "was put back as it once was")
        return read.record
