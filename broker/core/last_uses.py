"""Who used something last: remembered in memory, written down some seconds later, so that a use writes nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from threading import Lock
from typing import Generic, TypeVar

from broker.core.call import Call
from broker.core.model import KeyUsed, SecretRead
from broker.core.once import last_write
from broker.core.ports import Now, Store
from broker.core.records import key_of

MOST = 100_000
STEP = 100

R = TypeVar("R", KeyUsed, SecretRead)


class LastUses(Generic[R]):
    """The uses in this process that are not written down yet; the newest of each thing. Thread-safe.

    ``make``: the record of one, of the thing's name, who, and when; ``at``: when that is; ``what``: "secret".
    """

    def __init__(
        self, store: Store, now: Now, what: str, make: Callable[[str, str, datetime], R], at: Callable[[R], datetime]
    ) -> None:
        self._store = store
        self._now = now
        self._what = what
        self._make: Callable[[str, str, datetime], R] = make
        self._at: Callable[[R], datetime] = at
        self._uses: dict[str, R] = {}
        self._lock = Lock()

    def add(self, principal: str, names: list[str]) -> None:
        """Remember a use. Beyond ``MOST`` things in some seconds it is left to the audit, which has every use."""
        now = self._now()
        with self._lock:
            for name in names:
                if name in self._uses or len(self._uses) < MOST:
                    self._uses[name] = self._make(name, principal, now)

    def flush(self, make_call: Callable[[str], Call]) -> None:
        """Write them down, some in each transaction; what could not be written is kept for the next time."""
        with self._lock:
            uses, self._uses = self._uses, {}
        waiting = [(name, uses[name]) for name in sorted(uses)]  # in one order in all processes: none waits for another
        try:
            while waiting:
                self._write([use for _, use in waiting[:STEP]], make_call(f"{self._what}/*"))
                del waiting[:STEP]
        finally:
            with self._lock:
                self._uses = dict(waiting) | self._uses

    def _write(self, uses: list[R], call: Call) -> None:
        call.note(count=len(uses))
        with last_write(self._store, call) as write:
            for use in uses:
                stored = write.get(type(use), *key_of(use))
                if stored is None:
                    write.add(use)
                elif self._at(stored) < self._at(use):
                    write.replace(stored, replace(use, revision=stored.revision))
