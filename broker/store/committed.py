"""Rows that this process has committed itself: at their next read their MAC is not made a second time.

Nothing is believed here that ``Rows.genuine`` would not believe: a row counts only if it is, cell by cell, the one that
this process has computed the MAC of and whose commit was confirmed. How new it is, ``floors`` says as of any other.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from threading import Lock
from typing import Any

KEPT = 4096


class Committed:
    """By MAC, which is the last cell of a row; each until it is taken, the oldest gives way."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._rows: OrderedDict[bytes, tuple[type[Any], Sequence[Any]]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, rows: Iterable[tuple[type[Any], Sequence[Any]]]) -> None:
        """It is certain that these are in the database, written by this process."""
        with self._lock:
            for kind, row in rows:
                self._rows[row[-1]] = kind, row
            while len(self._rows) > KEPT:
                self._rows.popitem(last=False)

    def take(self, kind: type[Any], row: Sequence[Any]) -> bool:
        """Whether it is one of them, asked once."""
        if type(row[-1]) is not bytes:
            return False
        with self._lock:
            own = self._rows.pop(row[-1], None)
        return own is not None and own == (kind, row) and [*map(type, own[1])] == [*map(type, row)]  # 1 and True
