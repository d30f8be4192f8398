"""The one table from the outcomes of calls to gRPC status, and the shape of every refusal (AIP-193).

A refusal carries a ``google.rpc.Status`` with one ``ErrorInfo``: the stable reason, the domain "broker", and the
variable parts as metadata, the call id among them. Where items of a request are refused each on its own, RefusedItems
names all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import grpc
from broker_api.v1.sessions_pb2 import RefusedItems
from google.protobuf.any_pb2 import Any
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status

from broker.core.errors import Outcome, Refused
from broker.core.gate.method import End

DOMAIN = "broker"

CODES: Mapping[Outcome, grpc.StatusCode] = MappingProxyType({each: grpc.StatusCode[each.name] for each in Outcome})

MAX_SENTENCE = 1024
"""Characters of a sentence; with the limits below a refusal fits the 8 KiB of metadata that any client takes."""

MAX_GROUPS = 6
MAX_ITEM = 256
"""Reasons that the items of a request are refused for, and characters of the sentence of each."""

MAX_PARTS = 16
MAX_PART = 128


@dataclass(frozen=True, slots=True)
class Plain(grpc.Status):
    """A status without details, for what has no reason code: health checks."""

    code: grpc.StatusCode
    details: str
    trailing_metadata: tuple[tuple[str, str | bytes], ...] = ()


def refusal(end: End) -> grpc.Status:
    """A status to abort a call with; too long texts are cut."""
    parts = {name: str(value)[:MAX_PART] for name, value in list(end.metadata.items())[:MAX_PARTS]}
    details = [_packed(ErrorInfo(reason=end.reason, domain=DOMAIN, metadata={**parts, "call_id": end.call_id}))]
    if end.refused:
        details.append(_packed(_items(end.refused)))
    number, _ = CODES[end.outcome].value
    return rpc_status.to_status(Status(code=number, message=end.sentence[:MAX_SENTENCE], details=details))


def _packed(message: Message) -> Any:
    detail = Any()
    detail.Pack(message)
    return detail


def _items(refused: Sequence[Refused]) -> RefusedItems:
    groups = [
        RefusedItems.Group(reason=one.reason, message=one.message[:MAX_ITEM], places=one.places)
        for one in refused[:MAX_GROUPS]
    ]
    return RefusedItems(groups=groups)
