"""Calls as the gate makes them, at a time that the test sets."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

from broker.core.call import Call
from broker.core.gate.asking import Asking
from broker.core.model import PolicyDocument, Principal
from broker.core.policy.cedar import FIRST_POLICY
from broker.core.policy.guard import Guard
from broker.core.traits import NO_METHOD, Traits
from broker.rpc import table

TRAITS = {
    f"{service.name}/{each.name}": table.traits(each)
    for service in table.declared().values()
    for each in service.methods
}


class Clock:
    """``now`` that only moves when it is told to."""

    def __init__(self) -> None:
        self.time = datetime(2026, 5, 4, 3, 2, 1, 345678, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.time

    def forward(self, **duration: float) -> None:
        self.time += timedelta(**duration)


def traits_of(rpc: str) -> Traits:
    """What the method is, or that there is none."""
    return TRAITS.get(rpc, NO_METHOD)


def operator(name: str = "alice", *groups: str) -> Principal:
    return Principal(kind="operator", name=name, groups=groups, method="mtls", credential="0a1b")


ADMIN = operator("alice", "admins")


def call(
    rpc: str,
    principal: Principal = ADMIN,
    clock: Callable[[], datetime] | None = None,
    *,
    request_id: str = "",
    validate_only: bool = False,
    digest: str = "0" * 64,
) -> Call:
    """A call that the gate let through; there is no other way to one in tests."""
    return Call(
        id=uuid4().hex,
        rpc=rpc,
        principal=principal,
        peer="ipv4:127.0.0.1:4000",
        now=clock or Clock(),
        request_id=request_id,
        validate_only=validate_only,
        digest=digest,
    )


def asking(store: Any) -> Asking:
    """The part of the gate that knows of approvals, under the first policy; nothing needs one there."""
    return Asking(store, Guard(document()))


def document(text: str = FIRST_POLICY, version: int = 1) -> PolicyDocument:
    return PolicyDocument(version=version, text=text, author="", created_at=datetime(2026, 5, 4, tzinfo=UTC))
