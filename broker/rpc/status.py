"""The one table from the broker's errors to gRPC status, and the shape of every refusal (AIP-193).

A refusal carries a ``google.rpc.Status`` with one ``ErrorInfo``: the stable reason, the domain "broker", and the
variable parts as metadata, the call id among them. Where items of a request are refused each on its own, RefusedItems
names all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import grpc
from broker_api.v1.sessions_pb2 import RefusedItems
from google.protobuf.any_pb2 import Any
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status

from broker.core import errors

DOMAIN = "broker"

CODES: Mapping[type[errors.BrokerError], grpc.StatusCode] = {
    errors.InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.PermissionDenied: grpc.StatusCode.PERMISSION_DENIED,
    errors.NotFound: grpc.StatusCode.NOT_FOUND,
    errors.AlreadyExists: grpc.StatusCode.ALREADY_EXISTS,
    errors.WrongState: grpc.StatusCode.FAILED_PRECONDITION,
    errors.Exhausted: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE,
}

MAX_SENTENCE = 1024
"""Characters of a sentence; with the limits below a refusal fits the 8 KiB of metadata that any client takes."""

MAX_GROUPS = 6
MAX_ITEM = 256
"""Reasons that the items of a request are refused for, and characters of the sentence of each."""

MAX_PARTS = 16
MAX_PART = 128


FAILED = "The broker failed; its log tells more of call {}."
"""What a caller is told of a bug, with the call's id, and nothing else."""


@dataclass(frozen=True, slots=True)
class Plain(grpc.Status):
    """A status without details, for what has no reason code: health checks."""

    code: grpc.StatusCode
    details: str
    trailing_metadata: tuple[tuple[str, str | bytes], ...] = ()


def code_of(error: errors.BrokerError) -> grpc.StatusCode:
    """The status of an error, by its class or the nearest class above it; a bare BrokerError is a bug (INTERNAL)."""
    return next((CODES[kind] for kind in type(error).__mro__ if kind in CODES), grpc.StatusCode.INTERNAL)


def broken(call_id: str) -> grpc.Status:
    """The refusal for a bug."""
    return refusal(grpc.StatusCode.INTERNAL, "INTERNAL", FAILED.format(call_id), call_id)


def refusal(
    code: grpc.StatusCode,
    reason: str,
    sentence: str,
    call_id: str,
    metadata: Mapping[str, str] | None = None,
    refused: Sequence[errors.Refused] = (),
) -> grpc.Status:
    """A status to abort a call with; too long texts are cut."""
    parts = {name: str(value)[:MAX_PART] for name, value in list((metadata or {}).items())[:MAX_PARTS]}
    details = [_packed(ErrorInfo(reason=reason, domain=DOMAIN, metadata={**parts, "call_id": call_id}))]
    if refused:
        details.append(_packed(_items(refused)))
    number, _ = code.value
    return rpc_status.to_status(Status(code=number, message=sentence[:MAX_SENTENCE], details=details))


def _packed(message: Message) -> Any:
    detail = Any()
    detail.Pack(message)
    return detail


def _items(refused: Sequence[errors.Refused]) -> RefusedItems:
    groups = [
        RefusedItems.Group(reason=one.reason, message=one.message[:MAX_ITEM], places=one.places)
        for one in refused[:MAX_GROUPS]
    ]
    return RefusedItems(groups=groups)
