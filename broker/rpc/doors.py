"""The listeners' connections, looked at from outside: grpc accepts them, counts them in all, and tells nothing of them.

What is looked at are the process's own descriptors. It is a thread of its own that looks, and while nobody connects it
does nothing.
"""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence

import structlog

from broker.core.gate.bugs import log_bug
from broker.rpc.networks import Place, place, shown
from broker.rpc.shares import Connection, Gone, Shares, crowded_out
from broker.rpc.sockets import Sockets
from broker.rpc.sockets import place as place_of

LOOK_EVERY = 0.25
"""Seconds between two looks while connections arrive."""

MANY = 32
"""Arrivals for which the next look does not wait so long."""

PAUSE = 0.02
"""Seconds between two looks however many arrive: callers need the processor too."""

AGAIN = 1.0
"""Seconds between two looks while there are connections that have carried no call yet."""

TELL_EVERY = 60.0
"""Seconds between two log lines of one listener."""

_log = structlog.get_logger(__name__)


class Doors:
    """Keeps listeners to their shares. ``clock``: seconds that never go back."""

    def __init__(self, shares: Shares, clock: Callable[[], float]) -> None:
        self._shares = shares
        self._clock = clock
        self._sockets = Sockets()
        self._tale = Tale(clock)
        self._listeners: dict[int, tuple[str, int]] = {}
        self._seen: dict[int, tuple[bytes, int, Connection | None]] = {}  # by descriptor: peer, port, if it counts
        self._known: dict[str, float] = {}  # peers that a known caller calls from, and when last
        self._greeted: dict[str, float] = {}
        self._looked_at = clock()
        self._unused = False
        self._arrivals = 0
        self._many = threading.Event()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rpc-doors", daemon=True)

    def watch(self, port: int, name: str, most: int) -> None:
        """Look after the listener on ``port``, of which grpc takes ``most`` connections."""
        self._listeners[port] = name, most

    def arrived(self) -> None:
        """Somebody has connected. Called by grpc's own threads, so it only counts."""
        self._arrivals += 1
        if self._arrivals >= MANY:
            self._many.set()

    def known(self, peer: str) -> None:
        """A known caller makes a call on this connection."""
        self._known[peer] = self._clock()

    def greeted(self, peer: str) -> None:
        """A call of whomever came in on this connection."""
        self._greeted[peer] = self._clock()

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, and wait for the last look."""
        self._stopped.set()
        self._many.set()
        self._thread.join()
        self._tale.tell(late=True)

    def look(self) -> None:
        """Bring the listeners to their shares, once."""
        before, self._looked_at, self._arrivals = self._looked_at, self._clock(), 0
        self._find(before)
        held = self._held()
        for port, (name, most) in self._listeners.items():
            here = held.get(port, ())
            gone = crowded_out(here, self._shares, self._looked_at)
            for one, _ in gone:
                self._seen[one.descriptor] = one.peer, port, None  # grpc closes it in a moment
            ended = [each for each in gone if self._sockets.shut(each[0].descriptor, each[0].peer)]
            self._tale.add(name, ended, full=len(here) >= most)
        self._unused = any(one and not one.used for _, _, one in self._seen.values())

    def _find(self, before: float) -> None:
        """Bring ``_seen`` up to date with the descriptors that are open now."""
        seen = dict[int, tuple[bytes, int, Connection | None]]()
        for descriptor, peer in self._sockets.connected(max(self._seen, default=0)):
            old = self._seen.get(descriptor)
            if old is None or old[0] != peer:
                port = self._sockets.port(descriptor)
                ours = port in self._listeners
                one = Connection(descriptor, peer, place_of(peer), before, self._looked_at) if ours else None
                old = peer, port, one
            seen[descriptor] = old
        self._seen = seen

    def _held(self) -> Mapping[int, Sequence[Connection]]:
        """The connections by their listener, and what is known of them by now."""
        held = defaultdict[int, list[Connection]](list)
        here: dict[Place, Connection] = {}
        for _, port, one in self._seen.values():
            if one is not None:
                held[port].append(one)
                here[one.place] = one
        for peers, known in ((self._known, True), (self._greeted, False)):
            for peer, at in peers.copy().items():
                found = here.get(place(peer))
                if found is not None and at >= found.since:
                    # until then it is the time of a look, which may be later than the call
                    found.heard = max(at, found.heard) if found.used else at
                    found.used, found.known = True, found.known or known
                elif at < self._looked_at:
                    peers.pop(peer, None)
        return held

    def _run(self) -> None:
        while not self._stopped.is_set():
            if self._many.wait(LOOK_EVERY):
                self._many.clear()
                self._stopped.wait(PAUSE)
            try:
                if self._arrivals or (self._unused and self._clock() - self._looked_at >= AGAIN):
                    self.look()
                self._tale.tell()
            except BaseException as error:  # noqa: BLE001 (without this thread the doors could be held shut)
                log_bug(error, rpc="-/Doors")


class Tale:
    """What the log says of limits that bit: at once, and then once a minute for each listener."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._untold: dict[str, tuple[Counter[str], Counter[bytes]]] = {}  # by listener: limits, networks
        self._told_at: dict[str, float] = {}
        self.ended: Counter[str] = Counter()
        """Connections that had to go since the start, by listener."""

    def add(self, listener: str, ended: Sequence[Gone], *, full: bool) -> None:
        """Connections were ended; ``full``: there were so many that grpc itself turned others away."""
        if not ended and not full:
            return
        limits, networks = self._untold.setdefault(listener, (Counter(), Counter()))
        limits.update(limit for _, limit in ended)
        networks.update(one.net for one, _ in ended)
        limits["full"] += full
        self.ended[listener] += len(ended)

    def tell(self, *, late: bool = False) -> None:
        """Log what is due; with ``late`` all."""
        for listener in list(self._untold):
            if late or self._clock() - self._told_at.get(listener, float("-inf")) >= TELL_EVERY:
                limits, networks = self._untold.pop(listener)
                self._told_at[listener] = self._clock()
                most = networks.most_common(1)
                _log.warning(
                    "connections ended",
                    listener=listener,
                    limits=dict(+limits),
                    most_from=shown(most[0][0]) if most else "",
                    networks=len(networks),
                    since_start=self.ended[listener],
                )
