"""What the gate asks of a door, and what it gives back.

A door (gRPC, HTTP, a function call) brings each call as a ``Visit`` and each thing that can be called as a ``Method``;
it gets an ``End``, which it says in its own words: an ``Outcome`` is a gRPC status, or a status of HTTP. Who calls,
what is recorded, what is counted and which sentence a refusal has is none of its business.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from broker.core.call import Call
from broker.core.errors import BrokerError, Outcome, Refused
from broker.core.identity import Credentials
from broker.core.model import Principal
from broker.core.reasons import Reason
from broker.core.traits import Traits

MAX_BYTES = 1 << 20
"""No message is larger, whichever door it came in by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A message that was found sound."""

    message: Any
    request_id: str = ""  # as it was sent
    validate_only: bool = False
    essence: Callable[[], bytes]
    """What a request id stands for: the message in one form, the same for the same request, without secret values."""
    exact: Callable[[], bytes] = bytes
    """What an approval stands for: as ``essence``, and the same under another request id."""
    details: Callable[[], Mapping[str, str]] = dict
    """The message field by field, as people read it, without secret values and without the request id."""


class Method(Protocol):
    """One thing that can be called. Both of its functions raise ``BrokerError`` for what is the caller's fault."""

    @property
    def rpc(self) -> str:
        """Its name in the audit and, after the slash, in the policies: "KeyService/Sign"."""

    @property
    def traits(self) -> Traits:
        """What it is, from its declaration in the API."""

    def decode(self, message: bytes) -> Request:
        """The request in a message of at most ``MAX_BYTES``."""

    def answer(self, call: Call, request: Request) -> bytes:
        """Let the core decide and act; the response as this door sends it."""


class Visit(Protocol):
    """One call as it came in. Nothing that it says is believed before an authenticator has."""

    @property
    def peer(self) -> str:
        """Where it came from, for the audit and for counting."""

    def credentials(self, rpc: str, traits: Traits) -> Credentials:
        """What it shows of its caller; Unauthenticated or Exhausted when the door lets no such call in."""

    def known(self, principal: Principal) -> None:
        """Its caller is this one."""

    def message(self) -> bytes:
        """Its message, waited for only now; ``Gone``, ``Late`` or InvalidRequest when none comes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """How a call ended: ``answer`` for the caller, or a refusal."""

    call_id: str
    outcome: Outcome
    reason: str = ""
    sentence: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    refused: Sequence[Refused] = ()
    answer: bytes = b""


def answered(call: Call, answer: bytes) -> End:
    """The end of a call that is answered."""
    return End(call_id=call.id, outcome=Outcome.OK, answer=answer)


def refusal(call_id: str, error: BrokerError) -> End:
    """The end of a call that is refused with ``error``."""
    return End(
        call_id=call_id,
        outcome=error.outcome,
        reason=error.reason,
        sentence=error.message,
        metadata=error.metadata,
        refused=error.refused,
    )


def broken(call_id: str) -> End:
    """The end of a call in which the broker failed: the caller is told the call's id, and nothing else."""
    sentence = f"The broker failed; its log tells more of call {call_id}."
    return End(call_id=call_id, outcome=Outcome.INTERNAL, reason=Reason.INTERNAL, sentence=sentence)
