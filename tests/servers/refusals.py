"""How a refusal looks from outside: to a caller on the wire, and to the user of the command line.

For one that the core raises there is ``tests.fakes.refusals``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from broker_cli.refusal import Exit, Refusal
from google.rpc.error_details_pb2 import ErrorInfo
from grpc_status import rpc_status


@dataclass(eq=False)
class Refused(Exception):
    """How a call was refused, as its caller sees it."""

    code: str
    reason: str
    sentence: str
    call_id: str
    metadata: dict[str, str] = field(default_factory=dict)


def on_the_wire(error: grpc.RpcError) -> Refused:
    """The parts of an error that a caller can tell."""
    found: Any = error
    info = ErrorInfo()
    status = rpc_status.from_call(found)
    if status is not None:
        assert status.details[0].Unpack(info)
        assert info.domain == "broker"
    metadata = dict(info.metadata)
    return Refused(found.code().name, info.reason, found.details() or "", metadata.get("call_id", ""), metadata)


def refused_on_the_wire(act: Callable[[], object]) -> Refused:
    """The refusal that the call ends in."""
    with pytest.raises(grpc.RpcError) as caught:
        act()
    return on_the_wire(caught.value)


def refused_by_the_cli(act: Callable[[], object], code: Exit | None = None, reason: str = "") -> Refusal:
    """The refusal of the command line itself, before it calls."""
    with pytest.raises(Refusal) as caught:
        act()
    assert code is None or caught.value.code is code
    assert not reason or caught.value.reason == reason
    return caught.value
