"""What this process knows of each row: how new it is. A row that is older than that was put back by somebody.

Filled from the whole database at the start, by this process's own changes, and by each inspection with those of others.
Rows are known by a hash, which costs about 100 bytes a row; kinds that come and go are kept for the newest
``PASSING_ROWS`` only, those that permit nothing not at all.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable
from threading import Lock
from typing import Any

from broker.core.errors import WrongState
from broker.core.reasons import Reason
from broker.core.records import kinds
from broker.store.authentic import MEND_ROW
from broker.store.marks import UNTOLD, Changed, word
from broker.store.rows import RANK_BITS, shown_key

NEVER_DELETED = kinds("never_deleted")
PASSING = kinds("passing")
PASSING_ROWS = 65_536


class Floors:
    """The level of each row, by kind and primary key. Thread-safe.

    A level is twice the highest rank that is known, and one more once that row was deleted: one of the same name that
    is made later, here or by another process, is above it.

    ``alone``: no other process changes this database, so that whatever is gone was deleted here.
    """

    def __init__(self, *, alone: bool) -> None:
        self._alone = alone
        self._lock = Lock()
        self._lasting: dict[int, int] = {}
        self._passing: OrderedDict[int, int] = OrderedDict()  # the oldest first
        self._leaving: Counter[int] = Counter()  # being deleted here, committed or not yet
        self._removed: frozenset[str] = frozenset()  # as the journal calls them
        self.turns = 0  # how often something was learnt

    def admits(self, kind: type[Any], key: tuple[str | int, ...], found: int) -> bool:
        """Whether a row of the rank ``found`` can be the newest of its name."""
        return kind in UNTOLD or 2 * found >= self._of(kind).get(hash((kind, key)), 0)

    def check_absent(self, kind: type[Any], key: tuple[str | int, ...]) -> None:
        """WrongState ``ROW_FORGED`` if a row that is not there was removed by somebody else."""
        known = (self._alone or kind in NEVER_DELETED) and self.has(kind, key) and not self._leaving[hash((kind, key))]
        if known or (self._removed and word(kind, key) in self._removed):
            raise WrongState(
                Reason.ROW_FORGED,
                f"The stored {kind.__name__} {shown_key(key)} was removed by somebody else: "
                f"nothing was done; {MEND_ROW}.",
                kind=kind.__name__,
            )

    def has(self, kind: type[Any], key: tuple[str | int, ...]) -> bool:
        """Whether such a row is there, as far as this process knows."""
        level = self._of(kind).get(hash((kind, key)), 0)
        return level > 0 and not level & 1

    def deleted(self, kind: type[Any], key: tuple[str | int, ...]) -> bool:
        """Whether this process knows that such a row was deleted."""
        return bool(self._of(kind).get(hash((kind, key)), 0) & 1)

    def removed(self, name: str) -> None:
        """The journal names a row (``marks.word``) that is not there."""
        self._removed |= {name}

    def raise_to(self, known: Iterable[tuple[type[Any], tuple[str | int, ...], int]]) -> None:
        """Rows have these ranks, or higher ones."""
        with self._lock:
            self.turns += 1
            for kind, key, found in known:
                self._note(kind, hash((kind, key)), 2 * found)

    def leave(self, kind: type[Any], key: tuple[str | int, ...]) -> None:
        """A row is about to be deleted here: from now until ``left`` it may be there or not."""
        with self._lock:
            self._leaving[hash((kind, key))] += 1

    def left(self, places: Iterable[tuple[type[Any], tuple[str | int, ...]]]) -> None:
        """What was to be deleted is, or was not after all."""
        with self._lock:
            for place in map(hash, places):
                self._leaving[place] -= 1
                if not self._leaving[place]:
                    del self._leaving[place]

    def changed(self, changes: Iterable[Changed]) -> None:
        """This process has committed these changes, in this order; what it committed after them may be known already.

        Threads tell of their commits as they come to it: who was later to delete a row may be the first to say so.
        """
        with self._lock:
            self.turns += 1
            for one in changes:
                if one.kind in UNTOLD:
                    continue
                place = hash((one.kind, one.key))
                if one.before is None:
                    self._forget_former(one, place)
                if one.after and self._removed:
                    self._removed -= {word(one.kind, one.key)}
                self._note(one.kind, place, 2 * one.rank + (one.after is None))

    def _forget_former(self, one: Changed, place: int) -> None:
        """If there was another row of this name once, that one is over, even if by its clock it was the younger."""
        created, former = one.rank >> RANK_BITS, self._of(one.kind).get(place, 0) >> (RANK_BITS + 1)
        if not created or created != former:
            self._of(one.kind).pop(place, None)

    def _note(self, kind: type[Any], place: int, level: int) -> None:
        if kind in UNTOLD:
            return
        floors = self._of(kind)
        floors[place] = max(level, floors.get(place, 0))
        if floors is self._passing:
            self._passing.move_to_end(place)
            if len(self._passing) > PASSING_ROWS:
                self._passing.popitem(last=False)

    def _of(self, kind: type[Any]) -> dict[int, int]:
        return self._passing if kind in PASSING else self._lasting
