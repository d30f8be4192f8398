"""Calls end in time: a message must arrive soon after its headers, and no call lasts longer than the server allows.

grpc's blocking server parks one thread a call while the message is on its way, and knows no deadline of its own; this
is what keeps a slow writer from holding threads (NT-05).
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable

import grpc

from broker.core.errors import Gone, InvalidRequest, Late
from broker.core.gate.bugs import log_bug
from broker.core.reasons import Reason

TICK = 0.25
"""Seconds between two looks; the limits are kept to this accuracy."""

CLOSING = 0.1
"""Seconds that grpc may take to tell that a call without a message was cancelled rather than closed."""


TURN = 0.25
"""Seconds that a message has to arrive in when too many of its caller's are waited for.

On a busy computer grpc takes a twentieth of a second to hand on one that has arrived, and who writes at once is not cut
off; a slow writer's next call has a thread for as long.
"""


class Deadlines:
    """Reads messages and watches calls; ``sweep`` is called every ``TICK`` seconds by the server.

    At most ``at_once`` messages of one caller and ``in_all`` of all are waited for at a time; when one more is to be,
    and none arrives, the call that waits longest is ended, of that caller or of the one who has most: slow writers,
    one or many, must not hold all threads.
    """

    def __init__(self, read: float, total: float, clock: Callable[[], float], at_once: int, in_all: int) -> None:
        self._read = read
        self._total = total
        self._clock = clock
        self._at_once = at_once
        self._in_all = in_all
        self._awaited: defaultdict[str, dict[grpc.ServicerContext, None]] = defaultdict(dict)  # oldest first
        self._arrived = threading.Condition()
        # Both are in the order of beginning, so a sweep stops at the first call that still has time.
        self._reading: dict[grpc.ServicerContext, float] = {}
        self._running: dict[grpc.ServicerContext, float] = {}

    def begin(self, context: grpc.ServicerContext) -> None:
        """Watch a call from now on."""
        self._running[context] = self._clock()

    def end(self, context: grpc.ServicerContext) -> None:
        """The call is over."""
        self._running.pop(context, None)

    def message(self, requests: object, context: grpc.ServicerContext, caller: str) -> bytes:
        """The one message of a unary call, as bytes; ``Late``, ``Gone`` or ``MESSAGE_MISSING`` when none will come.

        ``Gone`` is also what the transport refused: far too large, or compressed.
        """
        self._await(caller, context)
        try:
            return self._next(requests, context)
        finally:
            self._got(caller, context)

    def _next(self, requests: object, context: grpc.ServicerContext) -> bytes:
        self._reading[context] = self._clock()
        try:
            wire = next(requests, None)  # type: ignore[call-overload]  # grpc's iterator of raw messages
        except grpc.RpcError:
            wire = None
        in_time = self._reading.pop(context, None) is not None
        if wire is not None:
            return bytes(wire)
        if not in_time:
            raise Late(Reason.MESSAGE_LATE, "The request did not arrive in time.")
        if _ended(context):
            raise gone()
        raise InvalidRequest(Reason.MESSAGE_MISSING, "The call carried no request message.")

    def _await(self, caller: str, context: grpc.ServicerContext) -> None:
        with self._arrived:
            if self._most(caller) is not None:  # hardly ever: a call of ``wait_for`` costs more than the rest
                self._arrived.wait_for(lambda: self._most(caller) is None, TURN)
            if (most := self._most(caller)) is not None:
                oldest = next(iter(self._awaited[most]))
                del self._awaited[most][oldest]
                _cut_off(oldest, self._reading)
            self._awaited[caller][context] = None

    def _got(self, caller: str, context: grpc.ServicerContext) -> None:
        with self._arrived:
            self._awaited[caller].pop(context, None)
            if not self._awaited[caller]:
                del self._awaited[caller]
            self._arrived.notify_all()

    def _most(self, caller: str) -> str | None:
        """Of whom a call has to be ended before another one of ``caller`` may wait; None: there is room."""
        if len(self._awaited.get(caller, ())) >= self._at_once:
            return caller
        if sum(map(len, self._awaited.values())) < self._in_all:
            return None
        return max(self._awaited, key=lambda each: len(self._awaited[each]))

    def sweep(self) -> None:
        """End every call that is over its time; the caller sees CANCELLED."""
        now = self._clock()
        for calls, limit in ((self._reading, self._read), (self._running, self._total)):
            for context, since in list(calls.items()):
                if now - since < limit:
                    break
                _cut_off(context, calls)


def gone() -> Gone:
    """The refusal of a call that is over before it began."""
    return Gone(Reason.CALL_ENDED, "The call was ended before it was carried out.")


def _cut_off(context: grpc.ServicerContext, calls: dict[grpc.ServicerContext, float]) -> None:
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
            try:
                self._tick()
            except BaseException as error:  # noqa: BLE001 (without this thread no call would end in time)
                log_bug(error, rpc="-/Tick")
