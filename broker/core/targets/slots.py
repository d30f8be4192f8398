"""How many calls may wait for targets at a time: each holds a thread, and none may leave the others without one.

A target that hangs, and a caller who asks for much, may hold no more slots than they leave free: the first gets half,
the next half of the rest, and so on. So the next call finds one, unless many targets hang at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

from broker.core.call import Call
from broker.core.errors import Exhausted
from broker.core.reasons import Reason

USUAL = 8


class Slots:
    """``count`` slots. Take one only once the policy has permitted the call: nobody else may hold up anything."""

    def __init__(self, count: int = USUAL) -> None:
        self._lock = Lock()
        self._free = count
        self._held: Counter[tuple[str, str]] = Counter()

    @contextmanager
    def hold(self, call: Call, target: str) -> Iterator[None]:
        """Hold a slot; Exhausted ``TARGETS_BUSY``, ``TARGET_BUSY`` or ``CALLER_BUSY`` at once if there is none."""
        sharers = ("target", target), ("caller", str(call.principal))
        with self._lock:
            self._refuse_more(*sharers)
            self._free -= 1
            self._held.update(sharers)
        try:
            yield
        finally:
            with self._lock:
                self._free += 1
                self._held.subtract(sharers)
                self._held += Counter()  # those that hold none are forgotten

    def _refuse_more(self, target: tuple[str, str], caller: tuple[str, str]) -> None:
        if not self._free:
            raise Exhausted(Reason.TARGETS_BUSY, "Too many calls are waiting for targets; try again in a few seconds.")
        if self._held[target] >= self._free:
            raise Exhausted(
                Reason.TARGET_BUSY,
                "So many calls wait for this target already that one more would take the place of those to others; try "
                "again in a few seconds, and see with `broker target check` whether it answers.",
            )
        if self._held[caller] >= self._free:
            raise Exhausted(
                Reason.CALLER_BUSY,
                "So many of your calls wait for targets already that one more would take another caller's place; try "
                "again when one of them has ended.",
            )
