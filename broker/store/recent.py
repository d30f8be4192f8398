"""Records that may be a second old: what every call looks at is not asked for anew by each.

What this process changes itself is forgotten here as soon as the change ends, so that only changes of others are seen
late. An absent record is never kept.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from threading import Lock
from typing import Any, TypeVar

R = TypeVar("R")
Place = tuple[type[Any], tuple[str | int, ...]]

KEPT_SECONDS = 1.0
KEPT = 4096


class Recent:
    """By kind and primary key; the one that was kept first gives way. ``clock``: seconds that only go forward."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = Lock()
        self._kept: OrderedDict[Place, tuple[float, Any]] = OrderedDict()
        self._changes = 0

    def get(self, kind: type[R], key: tuple[str | int, ...], read: Callable[[], R | None]) -> R | None:
        """The record, from ``read`` if there is none here that is fresh enough."""
        place, now = (kind, key), self._clock()
        with self._lock:
            since, found = self._kept.get(place, (now - KEPT_SECONDS, None))
            changes = self._changes
        if now - since < KEPT_SECONDS:
            kept: R | None = found
            return kept
        fresh = read()
        if fresh is not None:
            self._keep(place, now, fresh, changes)
        return fresh

    def forget(self, places: Iterable[Place]) -> None:
        """This process has changed these, or tried to."""
        with self._lock:
            self._changes += 1  # a reader at this moment may have read what was there before
            for place in places:
                self._kept.pop(place, None)

    def _keep(self, place: Place, now: float, fresh: object, changes: int) -> None:
        with self._lock:
            if changes != self._changes:
                return
            self._kept[place] = now, fresh
            self._kept.move_to_end(place)
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
