"""How many refusals of unauthenticated callers are written down one by one; the others are counted (AU-15)."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable

EVERYBODY = b"*"
MAX_PEERS = 4096


class Flood:
    """Token buckets, one a peer network and one for all together.

    ``rate`` is records a second, ``burst`` how many at once, for one network; all together get ten times as much.
    ``clock`` gives seconds that never go back, ``network`` what of a peer one party can have whole.
    """

    def __init__(self, rate: float, burst: int, clock: Callable[[], float], network: Callable[[str], bytes]) -> None:
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._network = network
        self._lock = threading.Lock()
        self._buckets: OrderedDict[bytes, tuple[float, float]] = OrderedDict()  # network → (tokens, when)
        self._unrecorded = 0

    def admit(self, peer: str) -> int | None:
        """None: count this refusal only. A number: write it down, together with so many that were only counted."""
        with self._lock:
            if self._take(self._network(peer), 1) and self._take(EVERYBODY, 10):
                return self._reset()
            self._unrecorded += 1
            return None

    def count(self) -> None:
        """One more refusal that nobody will write down on its own."""
        with self._lock:
            self._unrecorded += 1

    def unrecorded(self) -> int:
        """How many were only counted since the last time this was asked or told."""
        with self._lock:
            return self._reset()

    def _reset(self) -> int:
        unrecorded, self._unrecorded = self._unrecorded, 0
        return unrecorded

    def _take(self, network: bytes, share: int) -> bool:
        now = self._clock()
        tokens, since = self._buckets.pop(network, (float(self._burst * share), now))
        tokens = min(self._burst * share, tokens + (now - since) * self._rate * share)
        taken = tokens >= 1
        self._buckets[network] = (tokens - 1 if taken else tokens, now)
        if len(self._buckets) > MAX_PEERS:
            self._buckets.popitem(last=False)
        return taken
