"""Calls end in time: a message must arrive soon after its headers, and no call lasts longer than the server allows.

grpc's blocking server parks one thread a call while the message is on its way, and knows no deadline of its own; this
is what keeps a slow writer from holding threads (NT-05).
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import grpc

TICK = 0.25
"""Seconds between two looks; the limits are kept to this accuracy."""

CLOSING = 0.1
"""Seconds that grpc may take to tell that a call without a message was cancelled rather than closed."""


class Late(Exception):
    """The message did not arrive in time, and the call was ended."""


class Gone(Exception):
    """The caller cancelled, or the transport refused the message (far too large, compressed) and ended the call."""


class Missing(Exception):
    """The caller closed its side without sending the message."""


class Deadlines:
    """Reads messages and watches calls; ``sweep`` is called every ``TICK`` seconds by the server."""

    def __init__(self, read: float, total: float, clock: Callable[[], float]) -> None:
        self._read = read
        self._total = total
        self._clock = clock
        # Both are in the order of beginning, so a sweep stops at the first call that still has time.
        self._reading: dict[grpc.ServicerContext, float] = {}
        self._running: dict[grpc.ServicerContext, float] = {}

    def begin(self, context: grpc.ServicerContext) -> None:
        """Watch a call from now on."""
        self._running[context] = self._clock()

    def end(self, context: grpc.ServicerContext) -> None:
        """The call is over."""
        self._running.pop(context, None)

    def message(self, requests: object, context: grpc.ServicerContext) -> bytes:
        """The one message of a unary call, as bytes; ``Late``, ``Gone`` or ``Missing`` when none will come."""
        self._reading[context] = self._clock()
        try:
            wire = next(requests, None)  # type: ignore[call-overload]  # grpc's iterator of raw messages
        except grpc.RpcError:
            wire = None
        in_time = self._reading.pop(context, None) is not None
        if wire is not None:
            return bytes(wire)
        if not in_time:
            raise Late
        raise Gone if _ended(context) else Missing

    def sweep(self) -> None:
        """End every call that is over its time; the caller sees CANCELLED."""
        now = self._clock()
        for calls, limit in ((self._reading, self._read), (self._running, self._total)):
            for context, since in list(calls.items()):
                if now - since < limit:
                    break
                calls.pop(context, None)
                context.cancel()  # type: ignore[no-untyped-call]  # an outdated stub


def _ended(context: grpc.ServicerContext) -> bool:
    """Whether the call is over, not just its requests: grpc tells of the one a moment after the other."""
    ended = threading.Event()
    return not context.add_callback(ended.set) or ended.wait(CLOSING)


class Ticker:
    """A thread that calls ``tick`` every ``TICK`` seconds until it is stopped."""

    def __init__(self, tick: Callable[[], None]) -> None:
        self._tick = tick
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rpc-deadlines", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, and wait for the last tick."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(TICK):
            self._tick()
