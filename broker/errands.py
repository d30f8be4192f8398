"""Work that may take long, or waits for somebody else's server: done beside the heartbeat, which waits for none."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

MOST = 8
"""Errands at once: as many servers can hang without keeping others from being asked."""


class Errands:
    """A daemon thread an errand, one errand a name at a time."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._running: dict[str, threading.Thread] = {}
        self.ending = threading.Event()
        """Set once ``stop`` was called; an errand of several steps looks at it between them."""

    def start(self, name: str, work: Callable[[], object]) -> bool:
        """Begin; False, and nothing is done, when one of this name is under way, or too many are."""
        with self._lock:
            if name in self._running or len(self._running) >= self._most or self.ending.is_set():
                return False
            thread = threading.Thread(target=self._run, args=(name, work), name=f"errand-{name}", daemon=True)
            thread.start()  # first: one that is not given does not count as running for ever
            self._running[name] = thread  # its end waits for the lock that is held here
        return True

    def stop(self, seconds: float) -> bool:
        """Begin no more, and wait for those under way; whether all have ended."""
        with self._lock:
            self.ending.set()
        return self.wait(seconds)

    def wait(self, seconds: float) -> bool:
        """Wait for those under way; whether all have ended."""
        with self._lock:
            threads = list(self._running.values())
        until = time.monotonic() + seconds
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))
        return not any(thread.is_alive() for thread in threads)

    def _run(self, name: str, work: Callable[[], object]) -> None:
        try:
            work()
        finally:
            with self._lock:
                del self._running[name]
