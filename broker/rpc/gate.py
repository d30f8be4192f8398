"""gRPC's door to the gate: how many calls at a time, on which threads, what of a call is shown, how its end is said."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from typing import Any
from urllib.parse import unquote

import grpc

from broker.core.errors import Exhausted, Outcome, Unauthenticated
from broker.core.gate.bugs import log_bug
from broker.core.gate.gate import Gate
from broker.core.gate.method import broken
from broker.core.identity import Credentials, Patience
from broker.core.model import Principal
from broker.core.reasons import Reason
from broker.core.traits import Traits
from broker.rpc import health, status, tls
from broker.rpc.deadlines import Deadlines, gone
from broker.rpc.table import Method

SHOWN = frozenset({"authorization", "broker-trust-rule"})
"""The headers that an authenticator is shown, each at most once; no other means anything."""

PATIENCE = 20.0
"""Seconds that a call may wait for something outside before it is known who calls; the rest of its time is for it."""

MARGIN = 2.0
"""Seconds of its caller's time that a call keeps for itself after waiting."""

Metadata = Sequence[tuple[str, str | bytes]]

Behavior = Callable[[Any, grpc.ServicerContext], bytes | grpc.Status]
"""Reads the requests of a call and gives its answer, or the status that it is refused with."""


class Door(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # generic in the stub only
    """All methods of the server; at most ``max_calls`` in flight. ``pool`` answers health and refusals under load.

    Methods that make keys have threads of their own (``generation``), so that a caller that asks for many does not keep
    the others from using theirs. ``greeted`` is told the peer of each call, ``known`` once its caller is known.
    ``aside``: where a call waits for something outside, as one of so many at most, while another one has its thread's
    turn.
    """

    def __init__(  # noqa: PLR0913 (the parts of the door, each named)
        self,
        gate: Gate,
        methods: Mapping[str, Method],
        *,
        deadlines: Deadlines,
        health_check: Behavior,
        pool: ThreadPoolExecutor,
        generation: ThreadPoolExecutor,
        aside: Callable[[int], AbstractContextManager[None]],
        greeted: Callable[[str], None],
        known: Callable[[str], None],
        max_calls: int,
        max_metadata: int,
    ) -> None:
        self.gate = gate
        self.deadlines = deadlines
        self.max_metadata = max_metadata
        self.greeted = greeted
        self.known = known
        self.room = max_calls - max(1, max_calls // 10)
        self.aside = partial(aside, self.room)
        self._max_calls = max_calls
        self._free = max_calls
        self._changed = threading.Condition()
        self._generations = max(1, max_calls // 4)
        self._generating = frozenset(path for path, method in methods.items() if method.traits.makes_key)
        self._methods = {
            path: _unary(partial(self._serve, method), generation if path in self._generating else None)
            for path, method in methods.items()
        }
        self._other = _unary(partial(self._serve, None))
        self._health = _unary(partial(health_check), pool)
        self._busy = _unary(self._refuse_busy, pool)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        """Route by the exact path. Runs on grpc's own thread for each call, so it only counts."""
        path = handler_call_details.method
        if path == health.CHECK:
            return self._health
        generates = path in self._generating
        with self._changed:
            if self._free <= 0 or (generates and self._generations <= 0):
                return self._busy
            self._free -= 1
            self._generations -= generates
        return self._methods.get(path, self._other)

    def idle(self, timeout: float) -> bool:
        """Wait until no call is in flight, at most ``timeout`` seconds; whether that came to be."""
        with self._changed:
            return self._changed.wait_for(lambda: self._free == self._max_calls, timeout)

    def _serve(self, method: Method | None, requests: Any, context: grpc.ServicerContext) -> bytes | grpc.Status:
        try:
            self.deadlines.begin(context)
            end = self.gate.serve(method, Visit(self, requests, context))
        finally:
            self.deadlines.end(context)
            with self._changed:
                self._free += 1
                self._generations += method is not None and method.traits.makes_key
                self._changed.notify_all()
        return end.answer if end.outcome is Outcome.OK else status.refusal(end)

    def _refuse_busy(self, _requests: Any, _context: grpc.ServicerContext) -> grpc.Status:
        return status.refusal(self.gate.turn_away())


class Visit:
    """One call over gRPC."""

    def __init__(self, door: Door, requests: Any, context: grpc.ServicerContext) -> None:
        self._door = door
        self._requests = requests
        self._context = context
        self._caller = ""
        peer = context.peer()
        self.peer = unquote(peer) if "%" in peer else peer

    def credentials(self, rpc: str, traits: Traits) -> Credentials:
        """The connection's certificate and at most one authorization value; nothing else counts."""
        if not self._context.is_active():
            raise gone()
        metadata = self._context.invocation_metadata() or ()
        # HTTP/2's own measure (RFC 9113 6.5.2), which grpc applies only to a peer that has acknowledged its settings.
        if sum(len(name) + len(value) + 32 for name, value in metadata) > self._door.max_metadata:
            raise Exhausted(
                Reason.METADATA_TOO_LARGE, "The call's headers are larger than the broker takes; send fewer."
            )
        self._door.greeted(self.peer)
        connection: Mapping[str, Sequence[Any]] = self._context.auth_context()
        if not tls.current(connection):
            raise Unauthenticated(Reason.TLS_TOO_OLD, tls.TOO_OLD)
        shown = _shown(metadata)
        pem = next(iter(connection.get("x509_pem_cert", ())), None)
        return Credentials(
            certificate=pem,
            # Only the operators' port asks for a certificate, and there the handshake fails unless the chain is good.
            chain_verified=pem is not None and connection.get("transport_security_type") == [b"ssl"],
            metadata=shown,
            peer=self.peer,
            rpc=rpc,
            traits=traits,
            patience=self._patience() if traits.waits and shown else None,  # who shows nothing waits for nobody
        )

    def known(self, principal: Principal) -> None:
        """Its connection has an authenticated caller from now on."""
        self._caller = str(principal)
        self._door.known(self.peer)

    def message(self) -> bytes:
        """The one message, as bytes; see ``Deadlines.message``."""
        return self._door.deadlines.message(self._requests, self._context, self._caller)

    def _patience(self) -> Patience:
        left = self._context.time_remaining()
        seconds = PATIENCE if left is None else min(PATIENCE, left - MARGIN)
        return Patience(
            until=time.monotonic() + seconds,
            room=self._door.room,
            aside=self._door.aside,
            alive=self._context.is_active,
        )


def _shown(metadata: Metadata) -> dict[str, str]:
    shown = [(name, str(value)) for name, value in metadata if name in SHOWN]
    if len(shown) > len(dict(shown)):
        raise Unauthenticated(Reason.CREDENTIALS_AMBIGUOUS, "The call carries more than one authorization; send one.")
    return dict(shown)


def _unary(behavior: Behavior, pool: ThreadPoolExecutor | None = None) -> grpc.RpcMethodHandler[bytes, bytes]:
    """A unary method to its callers; inside, the message is only waited for once the gate asks for it, as bytes.

    grpc would tell the caller the text of an Exception, and leave him without an answer after any other error.
    """

    def answer(requests: Any, context: grpc.ServicerContext) -> bytes:
        try:
            found = behavior(requests, context)
        except BaseException as error:  # noqa: BLE001 (a bug in what was to end the call)
            call_id = secrets.token_hex(16)
            log_bug(error, rpc="-", call_id=call_id)
            found = status.refusal(broken(call_id))
        if not isinstance(found, bytes):
            context.abort_with_status(found)
        return found

    answer.experimental_thread_pool = pool  # type: ignore[attr-defined]  # where grpc looks for it
    return grpc.stream_unary_rpc_method_handler(answer)
