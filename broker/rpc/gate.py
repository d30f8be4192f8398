"""The one gate around every method: who calls, a sound request, the answer, one error table, one audit record.

Nothing is read from a stranger: the identity comes from the connection and the headers, before the message is waited
for. The outcome is durable before the response leaves; when it cannot be made durable, the response is dropped.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.parse import unquote

import grpc

from broker.core import entries as audit
from broker.core import names, ports
from broker.core.call import Call
from broker.core.errors import BrokerError, Exhausted, Refused, Unauthenticated
from broker.core.identity import Credentials, Patience
from broker.core.model import Principal
from broker.rpc import health, status, tls
from broker.rpc.bugs import log_bug
from broker.rpc.deadlines import Deadlines, Gone, Late, Missing
from broker.rpc.flood import Flood
from broker.rpc.table import Method

NOBODY = Principal(kind="", name="")
OTHER = "_OTHER"
"""The name in the audit of a method that does not exist; what the caller wrote instead is not recorded."""

SHOWN = frozenset({"authorization", "broker-trust-rule"})
"""The headers that an authenticator is shown, each at most once; no other means anything."""

BIRTHS = frozenset({"KeyService/CreateKey", "KeyService/RotateKey"})
"""The methods that make keys, for which an HSM may take seconds each, one after the other: they have their own threads,
so that whoever asks for many does not keep the others from using theirs."""

PATIENCE = 20.0
"""Seconds that a call may wait for something outside before it is known who calls; the rest of its time is for it."""

MARGIN = 2.0
"""Seconds of its caller's time that a call keeps for itself after waiting."""

Metadata = Sequence[tuple[str, str | bytes]]

Behavior = Callable[[Any, grpc.ServicerContext], bytes | grpc.Status]
"""Reads the requests of a call and gives its answer, or the status that it is refused with."""


@dataclass(frozen=True, slots=True)
class End:
    """How a call ended: ``wire`` for the caller, or a refusal."""

    code: grpc.StatusCode
    reason: str = ""
    sentence: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    refused: Sequence[Refused] = ()
    wire: bytes = b""

    @property
    def outcome(self) -> str:
        """As the audit writes it."""
        return "ok" if self.code is grpc.StatusCode.OK else self.code.name


class Gate(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # generic in the stub only
    """All methods of the server; at most ``max_calls`` in flight. ``pool`` answers health and refusals under load.

    ``greeted`` is told the peer of each call, ``known`` once its caller is known. ``aside``: where a call waits for
    something outside, as one of so many at most, while another one has its thread's turn.
    """

    def __init__(  # noqa: PLR0913 (the parts of the gate, each named)
        self,
        methods: Mapping[str, Method],
        *,
        authenticators: Sequence[ports.Authenticator],
        store: ports.Store,
        now: ports.Now,
        deadlines: Deadlines,
        flood: Flood,
        health_check: Behavior,
        pool: ThreadPoolExecutor,
        births: ThreadPoolExecutor,
        aside: Callable[[int], AbstractContextManager[None]],
        greeted: Callable[[str], None],
        known: Callable[[str], None],
        max_calls: int,
        max_metadata: int,
    ) -> None:
        self._authenticators = tuple(authenticators)
        self._store = store
        self._now = now
        self._deadlines = deadlines
        self._flood = flood
        self._max_metadata = max_metadata
        self._greeted = greeted
        self._known = known
        self._max_calls = max_calls
        self._free = max_calls
        self._changed = threading.Condition()
        self._births = max(1, max_calls // 4)
        self._room = max_calls - max(1, max_calls // 10)
        self._aside = partial(aside, self._room)
        self._born_at = frozenset(path for path, method in methods.items() if method.rpc in BIRTHS)
        self._methods = {
            path: _unary(partial(self._serve, method), births if path in self._born_at else None)
            for path, method in methods.items()
        }
        self._other = _unary(partial(self._serve, None))
        self._health = _unary(partial(health_check), pool)
        self._busy = _unary(partial(self._refuse_busy), pool)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        """Route by the exact path. Runs on grpc's own thread for each call, so it only counts."""
        path = handler_call_details.method
        if path == health.CHECK:
            return self._health
        birth = path in self._born_at
        with self._changed:
            if self._free <= 0 or (birth and self._births <= 0):
                return self._busy
            self._free -= 1
            self._births -= birth
        return self._methods.get(path, self._other)

    def idle(self, timeout: float) -> bool:
        """Wait until no call is in flight, at most ``timeout`` seconds; whether that came to be."""
        with self._changed:
            return self._changed.wait_for(lambda: self._free == self._max_calls, timeout)

    def tally(self) -> None:
        """Record how many refusals were only counted, if there were any; nothing is lost when that fails."""
        count = self._flood.unrecorded()
        if not count:
            return
        call = Call(id=secrets.token_hex(16), rpc="-", principal=NOBODY, peer="", now=self._now)
        call.note(count=count)
        try:
            self._store.record(call.outcome(grpc.StatusCode.UNAUTHENTICATED.name, "REFUSALS_COUNTED"))
        except BaseException as error:  # noqa: BLE001 (logged; the next tally tries again)
            log_bug(error, rpc=call.rpc, call_id=call.id)
            for _ in range(count):
                self._flood.count()

    def _serve(self, method: Method | None, requests: Any, context: grpc.ServicerContext) -> bytes | grpc.Status:
        try:
            self._deadlines.begin(context)
            call = self._call(method, context)
            end = self._settle(call, self._end(method, call, requests, context))
        finally:
            self._deadlines.end(context)
            with self._changed:
                self._free += 1
                self._births += method is not None and method.rpc in BIRTHS
                self._changed.notify_all()
        if end.code is grpc.StatusCode.OK:
            return end.wire
        return status.refusal(end.code, end.reason, end.sentence, call.id, end.metadata, end.refused)

    def _refuse_busy(self, _requests: Any, _context: grpc.ServicerContext) -> grpc.Status:
        self._flood.count()
        code, sentence = grpc.StatusCode.RESOURCE_EXHAUSTED, "Too many calls are in progress; try again in a second."
        return status.refusal(code, "TOO_MANY_CALLS", sentence, secrets.token_hex(16))

    def _call(self, method: Method | None, context: grpc.ServicerContext) -> Call:
        peer = context.peer()
        return Call(
            id=secrets.token_hex(16),
            rpc=method.rpc if method else OTHER,
            principal=NOBODY,
            peer=unquote(peer) if "%" in peer else peer,
            now=self._now,
        )

    def _end(self, method: Method | None, call: Call, requests: Any, context: grpc.ServicerContext) -> End:
        """Whatever happens, an end: a library's panic (pyo3's, say) is no Exception, and nor is SystemExit (NT-14)."""
        try:
            return self._known_end(method, call, requests, context)
        except BaseException as error:  # noqa: BLE001 (a bug must end in a fixed text and a record)
            log_bug(error, rpc=call.rpc, call_id=call.id)
            return End(grpc.StatusCode.INTERNAL, "INTERNAL", status.FAILED.format(call.id))

    def _known_end(self, method: Method | None, call: Call, requests: Any, context: grpc.ServicerContext) -> End:
        try:
            return self._perform(method, call, requests, context)
        except BrokerError as error:
            _note_identity(call, error)
            return End(status.code_of(error), error.reason, error.message, error.metadata, error.refused)
        except Gone:
            return End(grpc.StatusCode.CANCELLED, "CALL_ENDED", "The call was ended before it was carried out.")
        except Missing:
            return End(grpc.StatusCode.INVALID_ARGUMENT, "MESSAGE_MISSING", "The call carried no request message.")
        except Late:
            return End(grpc.StatusCode.DEADLINE_EXCEEDED, "MESSAGE_LATE", "The request did not arrive in time.")

    def _perform(self, method: Method | None, call: Call, requests: Any, context: grpc.ServicerContext) -> End:
        if not context.is_active():
            raise Gone
        metadata = context.invocation_metadata() or ()
        # HTTP/2's own measure (RFC 9113 6.5.2), which grpc applies only to a peer that has acknowledged its settings.
        if sum(len(name) + len(value) + 32 for name, value in metadata) > self._max_metadata:
            raise Exhausted("METADATA_TOO_LARGE", "The call's headers are larger than the broker takes; send fewer.")
        self._greeted(call.peer)
        call.principal = self._identify(context, metadata, call)
        self._known(call.peer)
        if method is None:
            return End(grpc.StatusCode.UNIMPLEMENTED, "METHOD_UNKNOWN", "The broker has no such method.")
        request = method.plan.decode(self._deadlines.message(requests, context, str(call.principal)))
        _describe(call, method, request)
        response = method.answer(call, request)
        if type(response) is not method.response:
            raise TypeError(f"{method.rpc} answered with {type(response).__name__}")
        return End(grpc.StatusCode.OK, wire=response.SerializeToString())

    def _identify(self, context: grpc.ServicerContext, metadata: Metadata, call: Call) -> Principal:
        """The principal, from the connection's certificate and at most one authorization value; nothing else counts."""
        connection: Mapping[str, Sequence[Any]] = context.auth_context()
        if not tls.current(connection):
            raise Unauthenticated("TLS_TOO_OLD", tls.TOO_OLD)
        shown = [(name, str(value)) for name, value in metadata if name in SHOWN]
        if len(shown) > len(dict(shown)):
            raise Unauthenticated("CREDENTIALS_AMBIGUOUS", "The call carries more than one authorization; send one.")
        pem = next(iter(connection.get("x509_pem_cert", ())), None)
        credentials = Credentials(
            certificate=pem,
            # Only the operators' port asks for a certificate, and there the handshake fails unless the chain is good.
            chain_verified=pem is not None and connection.get("transport_security_type") == [b"ssl"],
            metadata=dict(shown),
            peer=call.peer,
            rpc=call.rpc,
            patience=self._patience(context) if shown else None,  # who shows nothing waits for nobody
        )
        return _one([found for each in self._authenticators if (found := each.authenticate(credentials))])

    def _patience(self, context: grpc.ServicerContext) -> Patience:
        left = context.time_remaining()
        seconds = PATIENCE if left is None else min(PATIENCE, left - MARGIN)
        return Patience(until=time.monotonic() + seconds, room=self._room, aside=self._aside, alive=context.is_active)

    def _settle(self, call: Call, end: End) -> End:
        """The end that may leave: the one given once it is durable in the audit, else a refusal."""
        if call.settled:
            return end
        if not call.principal.name:
            counted = self._flood.admit(call.peer)
            if counted is None:
                return end
            if counted:
                call.note(count=counted)
        try:
            self._store.record(call.outcome(end.outcome, end.reason))
        except BaseException as error:  # noqa: BLE001 (whatever the reason: no record, no answer)
            log_bug(error, rpc=call.rpc, call_id=call.id)
            sentence = "The audit record of this call could not be written, so its result was dropped; try again later."
            return End(grpc.StatusCode.UNAVAILABLE, "AUDIT_UNAVAILABLE", sentence)
        call.settled = True
        return end


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
            found = status.broken(call_id)
        if not isinstance(found, bytes):
            context.abort_with_status(found)
        return found

    answer.experimental_thread_pool = pool  # type: ignore[attr-defined]  # where grpc looks for it
    return grpc.stream_unary_rpc_method_handler(answer)


def _one(principals: list[Principal]) -> Principal:
    if not principals:
        raise Unauthenticated(
            "CREDENTIALS_MISSING",
            "The call carries no identity; operators call the operators' port with their certificate.",
        )
    if len(principals) > 1:
        raise Unauthenticated("CREDENTIALS_AMBIGUOUS", "The call carries more than one identity; send one.")
    return principals[0]


def _describe(call: Call, method: Method, request: Any) -> None:
    """Fill in what the request says of itself: its idempotency id with the digest that it stands for, and dry run."""
    if method.plan.has_validate_only and request.validate_only:
        call.validate_only = True
        call.note(validate_only=1)  # here, so that no record of a mere check reads as if something had been changed
    if method.plan.has_request_id and request.request_id:
        call.request_id = names.check_request_id(request.request_id)
        # The method is part of it: enable and disable look the same on the wire. Deterministic, because a client may
        # write a map in another order when it repeats itself.
        wire = method.plan.without_values(request).SerializeToString(deterministic=True)
        call.digest = hashlib.sha256(method.rpc.encode("ascii") + b"\0" + wire).hexdigest()


def _note_identity(call: Call, error: BrokerError) -> None:
    """Keep who a refused caller claimed to be, and why; only facts on the allow-list can be noted."""
    call.note(**{name: value for name, value in error.facts.items() if name in audit.FACTS})
    if isinstance(error, Unauthenticated):
        call.note(**{name: value for name, value in error.metadata.items() if name in audit.FACTS})
