"""gRPC failures as refusals: the broker's own sentence where there is one, ours for what never reached it."""

from __future__ import annotations

from typing import Any, NamedTuple

import grpc
from google.rpc import error_details_pb2

from broker_cli.refusal import UNREACHABLE, Exit, Item, Refusal

MAX_SENTENCE = 2000

EXITS = {
    grpc.StatusCode.PERMISSION_DENIED: Exit.DENIED,
    grpc.StatusCode.UNAUTHENTICATED: Exit.NOT_LOGGED_IN,
    grpc.StatusCode.UNAVAILABLE: Exit.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED: Exit.UNAVAILABLE,
    grpc.StatusCode.NOT_FOUND: Exit.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS: Exit.CONFLICT,
    grpc.StatusCode.FAILED_PRECONDITION: Exit.CONFLICT,
    grpc.StatusCode.ABORTED: Exit.CONFLICT,
}
_DOCTOR = 'With an operator\'s profile, "broker doctor" finds out why.'
_LOCAL = {
    grpc.StatusCode.DEADLINE_EXCEEDED: (
        "DEADLINE_EXCEEDED",
        "The broker at {address} did not answer in time; try again, or wait longer with --timeout.",
    ),
    grpc.StatusCode.UNIMPLEMENTED: (
        "METHOD_UNKNOWN",
        "What listens at {address} does not know this method: is it the pipelines' port, or an older broker? "
        + _DOCTOR,
    ),
    grpc.StatusCode.UNAUTHENTICATED: ("UNAUTHENTICATED", "The broker at {address} does not know you. " + _DOCTOR),
    grpc.StatusCode.PERMISSION_DENIED: ("PERMISSION_DENIED", "The broker at {address} does not allow this."),
    grpc.StatusCode.RESOURCE_EXHAUSTED: ("MESSAGE_TOO_LONG", "The message is longer than the wire carries."),
}


def refusal(error: Any, address: str) -> Refusal:
    """The refusal for a failed call. Only the broker's own sentence is quoted, never the library's debug text."""
    code, text = error.code(), error.details() or ""
    told = _told(error)
    if told is not None:
        refused = Refusal(told.reason or "UNKNOWN", text[:MAX_SENTENCE], EXITS.get(code, Exit.FAILURE), told.call_id)
        refused.retry_after, refused.items = told.retry_after, told.items
        return refused
    if code is grpc.StatusCode.UNAVAILABLE:
        return Refusal(*_away(text, address), Exit.UNAVAILABLE)
    reason, sentence = _LOCAL.get(code, (code.name, "The broker at {address} failed without saying why."))
    return Refusal(reason, sentence.format(address=address), EXITS.get(code, Exit.FAILURE))


def worth_repeating(error: Any) -> bool:
    """True when the broker, or the way to it, was only away; a certificate that is not trusted will not become so."""
    away = error.code() is grpc.StatusCode.UNAVAILABLE
    if not away or _distrust(error.details() or ""):
        return False
    told = _told(error)
    return told is None or not told.retry_after  # when it says how long to wait, sooner is of no use


def passing(error: Any) -> bool:
    """Whether a call that can be sent again may go well in a moment."""
    code, told = error.code(), _told(error)
    if code is grpc.StatusCode.UNAVAILABLE:
        return not _untrusted(error.details() or "")
    crowded = told is not None and told.reason == "TOO_MANY_CALLS"
    return crowded or (code in _CUT_OFF and told is None)


_CUT_OFF = frozenset({grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED})
"""How a try ends that had no answer in its time, on this side or on the other."""


class _Told(NamedTuple):
    reason: str
    call_id: str
    retry_after: int  # seconds, 0 when nothing is said
    items: tuple[Item, ...]


def _told(error: Any) -> _Told | None:
    """What the ErrorInfo says that the broker sends with every refusal; None when it is not from it."""
    from grpc_status import rpc_status  # noqa: PLC0415  only when something failed

    try:
        status = rpc_status.from_call(error)
    except ValueError:
        return None
    for detail in status.details if status is not None else ():
        found = error_details_pb2.ErrorInfo()
        if detail.Unpack(found):
            wait = _seconds(found.metadata.get("retry_after_seconds", ""))
            return _Told(found.reason, _call_id(found, status), wait, _items(status))
    return None


def _call_id(found: Any, status: Any) -> str:
    for detail in status.details:
        request = error_details_pb2.RequestInfo()
        if detail.Unpack(request):
            return str(request.request_id)
    return str(found.metadata.get("call_id", ""))


def _items(status: Any) -> tuple[Item, ...]:
    from broker_api.v1.sessions_pb2 import RefusedItems  # noqa: PLC0415

    found = RefusedItems()
    groups = next((found.groups for detail in status.details if detail.Unpack(found)), ())
    each = (Item(place=at, reason=one.reason, message=one.message) for one in groups for at in one.places)
    return tuple(sorted(each, key=lambda item: item.place))


def _seconds(text: str) -> int:
    return max(1, int(text)) if text.isascii() and text.isdecimal() and len(text) < 6 else 0


def _untrusted(text: str) -> bool:
    return "CERTIFICATE_VERIFY_FAILED" in text or "verification" in text


def _distrust(text: str) -> bool:
    return any(sign in text for sign in ("CERTIFICATE_VERIFY_FAILED", "handshake failed", "handshaker", "verification"))


def _away(text: str, address: str) -> tuple[str, str]:
    if _untrusted(text):
        return "SERVER_NOT_TRUSTED", (
            f"What listens at {address} has no certificate of the broker's CA for that name: it is another server, "
            f"or the CA file or the address is wrong. {_DOCTOR}"
        )
    if _distrust(text):
        return "HANDSHAKE_FAILED", f"No TLS connection with {address} came about: {_DOCTOR}"
    return UNREACHABLE, (
        f"The broker at {address} does not answer: is it running, and is the address right (operators and pipelines "
        f"have a port each)? {_DOCTOR}"
    )
