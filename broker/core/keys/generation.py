"""Turns at the HSM, which makes one key at a time: one caller's many do not keep the others from theirs (NT-10)."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Lock

from broker.core.errors import Exhausted, Unavailable
from broker.core.reasons import Reason

SECONDS = 25.0
"""How long a call waits for its turn."""


class GenerationTurns:
    """Requests that wait are served in rotation of their callers, not in the order of the requests.

    ``each`` is how many requests one caller may have under way, the waiting ones too.
    """

    def __init__(self, each: int) -> None:
        self._each = each
        self._lock = Lock()
        self._under_way: Counter[str] = Counter()
        self._waiting: dict[str, deque[Event]] = {}  # in the order in which the callers' turns come
        self._taken = False

    @contextmanager
    def enter(self, who: str) -> Iterator[None]:
        """Be one of those that this caller has under way; Exhausted ``KEYS_UNDER_WAY`` when there are too many."""
        with self._lock:
            entered = self._under_way[who] < self._each
            self._under_way[who] += entered
        if not entered:
            raise Exhausted(
                Reason.KEYS_UNDER_WAY,
                f"You have {self._each} keys being made, the most that one caller may have at a time; send this "
                "request again when one of them is done.",
            )
        try:
            yield
        finally:
            with self._lock:
                self._under_way[who] -= 1
                if not self._under_way[who]:
                    del self._under_way[who]

    @contextmanager
    def turn(self, who: str, seconds: float = SECONDS) -> Iterator[None]:
        """Hold the one turn there is; Unavailable ``HSM_BUSY`` when it was not to be had within ``seconds``."""
        mine = Event()
        with self._lock:
            if self._taken:
                self._waiting.setdefault(who, deque()).append(mine)
            else:
                self._taken = True
                mine.set()
        if not mine.wait(seconds) and not self._given_up(who, mine):
            raise Unavailable(
                Reason.HSM_BUSY,
                "The HSM makes keys one at a time, and those of others took too long; send the same request again.",
            )
        try:
            yield
        finally:
            self._pass_on()

    def _given_up(self, who: str, mine: Event) -> bool:
        """Leave the queue; True when the turn has come in this very moment."""
        with self._lock:
            if mine.is_set():
                return True
            self._waiting[who].remove(mine)
            if not self._waiting[who]:
                del self._waiting[who]
            return False

    def _pass_on(self) -> None:
        with self._lock:
            if not self._waiting:
                self._taken = False
                return
            who = next(iter(self._waiting))
            queue = self._waiting.pop(who)
            queue.popleft().set()
            if queue:
                self._waiting[who] = queue  # behind all others
