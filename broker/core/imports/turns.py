"""One at a time, by name: callers that want the same thing wait for each other, all others do not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock


class Turns:
    """Locks that exist only while somebody holds or awaits them."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._wanted: dict[tuple[str, ...], tuple[Lock, int]] = {}

    @contextmanager
    def take(self, *name: str, seconds: float) -> Iterator[bool]:
        """Hold the turn of ``name``; gives False when it was not to be had within ``seconds``."""
        with self._lock:
            turn, count = self._wanted.get(name, (Lock(), 0))
            self._wanted[name] = turn, count + 1
        held = False
        try:
            held = turn.acquire(timeout=seconds)
            yield held
        finally:
            if held:
                turn.release()
            self._leave(name)

    def _leave(self, name: tuple[str, ...]) -> None:
        with self._lock:
            turn, count = self._wanted.pop(name)
            if count > 1:
                self._wanted[name] = turn, count - 1
