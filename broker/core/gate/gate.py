"""The one gate around every method: identify, read its traits, decode, let it decide and answer, record, count.

Nothing is read from an unauthenticated caller: the identity comes before the message is waited for. Nothing is answered
that nobody decided on. The outcome is durable before the answer leaves; when it cannot be made durable, the answer is
dropped.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable

from broker.core import entries as audit
from broker.core import names, ports
from broker.core.call import Call
from broker.core.clearance import ApprovalRequired
from broker.core.errors import BrokerError, Exhausted, Outcome, Unauthenticated, Unavailable, Unsupported
from broker.core.gate.asking import Asking
from broker.core.gate.bugs import log_bug
from broker.core.gate.flood import Flood
from broker.core.gate.method import MAX_BYTES, End, Method, Request, Visit, answered, broken, refusal
from broker.core.identity import Credentials
from broker.core.model import Principal
from broker.core.reasons import Reason
from broker.core.traits import NO_METHOD

NOBODY = Principal(kind="", name="")
OTHER = "_OTHER"
"""The name in the audit of a method that does not exist; what the caller wrote instead is not recorded."""


class Gate:
    """Knows no door. Thread-safe."""

    def __init__(
        self,
        authenticators: Iterable[ports.Authenticator],
        store: ports.Store,
        now: ports.Now,
        flood: Flood,
        asking: Asking,
    ) -> None:
        self._authenticators = tuple(authenticators)
        self._asking = asking
        self._store = store
        self._now = now
        self._flood = flood

    def serve(self, method: Method | None, visit: Visit) -> End:
        """Whatever happens, an end that may leave; ``method`` None: the door has none of that name."""
        call = Call(
            id=secrets.token_hex(16),
            rpc=method.rpc if method else OTHER,
            principal=NOBODY,
            peer=visit.peer,
            now=self._now,
        )
        return self._record(call, self._end(method, call, visit))

    def turn_away(self) -> End:
        """The end of a call that there is no room for: nobody looks who it is, and it is only counted."""
        self._flood.count()
        error = Exhausted(Reason.TOO_MANY_CALLS, "Too many calls are in progress; try again in a second.")
        return refusal(secrets.token_hex(16), error)

    def tally(self) -> None:
        """Record how many refusals were only counted, if there were any; nothing is lost when that fails."""
        count = self._flood.unrecorded()
        if not count:
            return
        call = Call(id=secrets.token_hex(16), rpc="-", principal=NOBODY, peer="", now=self._now)
        call.note(count=count)
        try:
            self._store.record(call.outcome(Outcome.UNAUTHENTICATED, Reason.REFUSALS_COUNTED))
        except BaseException as error:  # noqa: BLE001 (logged; the next tally tries again)
            log_bug(error, rpc=call.rpc, call_id=call.id)
            for _ in range(count):
                self._flood.count()

    def _end(self, method: Method | None, call: Call, visit: Visit) -> End:
        """Whatever happens, an end: a library's panic (pyo3's, say) is no Exception, and nor is SystemExit (NT-14)."""
        try:
            return answered(call, self._perform(method, call, visit))
        except BrokerError as error:
            _note_identity(call, error)
            return refusal(call.id, error)
        except BaseException as error:  # noqa: BLE001 (a bug must end in a fixed text and a record)
            log_bug(error, rpc=call.rpc, call_id=call.id)
            return broken(call.id)

    def _perform(self, method: Method | None, call: Call, visit: Visit) -> bytes:
        call.principal = self._identify(visit.credentials(call.rpc, method.traits if method else NO_METHOD))
        visit.known(call.principal)
        if method is None:
            raise Unsupported(Reason.METHOD_UNKNOWN, "The broker has no such method.")
        message = visit.message()
        if len(message) > MAX_BYTES:
            raise Exhausted(Reason.MESSAGE_TOO_LARGE, "The request is larger than 1 MiB; send less at once.")
        request = method.decode(message)
        _describe(call, request)
        answer = self._approved(call, method, request)
        if not (call.decision or call.closed):  # what is closed was decided item by item
            raise TypeError(f"{call.rpc} answered what nobody decided on")
        return answer

    def _approved(self, call: Call, method: Method, request: Request) -> bytes:
        """The answer of a call that has the approvals it needs; else the others are asked, and it is refused."""
        clearance = call.clearance = self._asking.clearance(call, request)
        try:
            answer = method.answer(call, request)
        except ApprovalRequired:
            raise self._asking.ask(call) from None
        if clearance is not None and clearance.lacking:
            raise TypeError(f"{call.rpc} did what needs an approval, and used none")
        return answer

    def _identify(self, credentials: Credentials) -> Principal:
        found = [found for each in self._authenticators if (found := each.authenticate(credentials))]
        if not found:
            raise Unauthenticated(
                Reason.CREDENTIALS_MISSING,
                "The call carries no identity; operators call the operators' port with their certificate.",
            )
        if len(found) > 1:
            raise Unauthenticated(Reason.CREDENTIALS_AMBIGUOUS, "The call carries more than one identity; send one.")
        return found[0]

    def _record(self, call: Call, end: End) -> End:
        """The end that may leave: the one given once it is durable in the audit, else a refusal."""
        if call.closed:
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
            return refusal(call.id, Unavailable(Reason.AUDIT_UNAVAILABLE, sentence))
        call.closed = True
        return end


def _describe(call: Call, request: Request) -> None:
    """Fill in what the request says of itself: its idempotency id with the digest that it stands for, and dry run."""
    if request.validate_only:
        call.validate_only = True
        call.note(validate_only=1)  # here, so that no record of a mere check reads as if something had been changed
    if request.request_id:
        call.request_id = names.check_request_id(request.request_id)
        # The method is part of it: enable and disable look the same.
        call.digest = hashlib.sha256(call.rpc.encode("ascii") + b"\0" + request.essence()).hexdigest()


def _note_identity(call: Call, error: BrokerError) -> None:
    """Keep who a refused caller claimed to be, and why; only facts on the allow-list can be noted."""
    call.note(**{name: value for name, value in error.facts.items() if name in audit.FACTS})
    if isinstance(error, Unauthenticated):
        call.note(**{name: value for name, value in error.metadata.items() if name in audit.FACTS})
