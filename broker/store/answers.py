"""What the database answers, taken for a record only if it is genuine, as new as known, and what was asked for.

Whoever owns the database can have an index, a collation or an operator of theirs answer a question for one row with
another one, which is as genuine. So names are compared here again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from broker.core.model import Record
from broker.store.authentic import Rows, forged
from broker.store.floors import Floors
from broker.store.rows import PLACES, PRIMARY_KEYS

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
        return self.record(kind, found[0], dict(zip(PRIMARY_KEYS[kind], key, strict=True)))

    def record(self, kind: type[R], row: Sequence[Any], asked: Mapping[str, str | int]) -> R:
        """The record in a row. ``asked``: the cells that it was looked for by."""
        record = self._rows.record(kind, row)
        places = PLACES[kind]
        if any(row[places[name]] != value for name, value in asked.items()):
            raise forged(kind, row, "was given for another one")
        if not self._floors.passes(record):
            raise forged(kind, row, "was put back as it once was")
        return record
