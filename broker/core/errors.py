"""The one error vocabulary of the broker.

    BrokerError
    ├── InvalidRequest      the request can never work as it stands
    ├── Unauthenticated     who is calling could not be established
    ├── PermissionDenied    known caller, not allowed
    ├── NotFound            no such thing
    ├── AlreadyExists       the name is taken
    ├── WrongState          right request, wrong moment (disabled, not exportable, changed meanwhile)
    ├── Exhausted           a limit or quota was reached
    ├── Unavailable         something the broker needs is away; the same call may work later
    ├── Unsupported         there is no such method
    ├── Gone                the caller went away before anything was done
    └── Late                the request did not arrive in time

Each carries a *reason* (UPPER_SNAKE, stable, for programs), a *message* (one clear sentence for people:
what, why, what to do) and *metadata* (the variable parts). All three reach the caller, so none may hold
secret material; the cause of a failure travels only as ``__cause__`` and stays in the broker.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from broker.core.reasons import Reason


class Outcome(StrEnum):
    """How a call ended, as the audit writes it. Every door has its own word for each; gRPC has these very names."""

    OK = "ok"
    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    UNAUTHENTICATED = "UNAUTHENTICATED"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    NOT_FOUND = "NOT_FOUND"
    ALREADY_EXISTS = "ALREADY_EXISTS"
    FAILED_PRECONDITION = "FAILED_PRECONDITION"
    RESOURCE_EXHAUSTED = "RESOURCE_EXHAUSTED"
    UNAVAILABLE = "UNAVAILABLE"
    UNIMPLEMENTED = "UNIMPLEMENTED"
    CANCELLED = "CANCELLED"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    ABORTED = "ABORTED"
    INTERNAL = Reason.INTERNAL


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """Items of one request that are refused for one reason; ``places`` count from 0."""

    reason: str
    message: str
    places: tuple[int, ...]


class BrokerError(Exception):
    """Base of every refusal the broker makes on purpose.

    ``reason`` is a member of ``Reason``; what is kept of it, and leaves, is its text. ``message`` is safe to show.
    """

    facts: Mapping[str, str | int] = MappingProxyType({})
    """What the audit is told and the caller is not (names from ``audit.FACTS``)."""

    refused: tuple[Refused, ...] = ()
    """Which items of the request, where it has several that stand or fall each on its own."""

    outcome = Outcome.INTERNAL
    """How a call ends that is refused so; a bare BrokerError is a bug."""

    def __init__(self, reason: str, message: str, **metadata: str) -> None:
        super().__init__(message)
        self.reason = str(reason)
        self.message = message
        self.metadata = metadata


class InvalidRequest(BrokerError):
    """The request can never succeed as it stands."""

    outcome = Outcome.INVALID_ARGUMENT


class Unauthenticated(BrokerError):
    """The caller's identity could not be established."""

    outcome = Outcome.UNAUTHENTICATED


class PermissionDenied(BrokerError):
    """The caller is known and may not do this."""

    outcome = Outcome.PERMISSION_DENIED


class NotFound(BrokerError):
    """The thing named does not exist."""

    outcome = Outcome.NOT_FOUND


class AlreadyExists(BrokerError):
    """The name is taken, or the request id was used for another request."""

    outcome = Outcome.ALREADY_EXISTS


class WrongState(BrokerError):
    """The thing exists but its state forbids the operation now."""

    outcome = Outcome.FAILED_PRECONDITION


class Exhausted(BrokerError):
    """A size, rate or count limit was reached."""

    outcome = Outcome.RESOURCE_EXHAUSTED


class Unavailable(BrokerError):
    """A part the broker depends on does not answer; retrying later can help."""

    outcome = Outcome.UNAVAILABLE


class Unsupported(BrokerError):
    """The broker has no such method."""

    outcome = Outcome.UNIMPLEMENTED


class Gone(BrokerError):
    """The caller cancelled, or the transport ended the call, before its message was there."""

    outcome = Outcome.CANCELLED


class Late(BrokerError):
    """The message did not arrive in time, and the call was ended."""

    outcome = Outcome.DEADLINE_EXCEEDED


def together(refusals: Mapping[int, BrokerError], items: str, among: int) -> BrokerError:
    """One refusal for several items of a request, by their places (from 0): of the kind and reason of the first.

    It has all of them in ``refused``, and says their places from 1. ``items``: the word for them.
    """
    by_reason: dict[tuple[str, str], list[int]] = {}
    for place, refusal in sorted(refusals.items()):
        by_reason.setdefault((refusal.reason, refusal.message), []).append(place)
    first = refusals[min(refusals)]
    message = first.message
    if len(refusals) > 1:
        places = ", ".join(f"{place + 1} ({refusal.reason})" for place, refusal in sorted(refusals.items()))
        message = f"{len(refusals)} of {among} {items} are refused: {places}. The first: {message}"
    elif among > 1:
        message += f" It is number {min(refusals) + 1} of {among} {items}."
    error = type(first)(first.reason, message, **first.metadata)
    error.facts = first.facts
    error.refused = tuple(
        Refused(reason=reason, message=text, places=tuple(places)) for (reason, text), places in by_reason.items()
    )
    return error
