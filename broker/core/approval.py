"""The record of a request that waits for other people's word; it is one of those in ``model``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from broker.core.kinds import ApprovalState


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """One operator's word for an approval."""

    by: str  # "operator/bob"
    at: datetime
    reason: str  # what they gave, or ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Approval:
    """A request that waits for other people's word; bound to the request by ``digest`` and ``values_mac``."""

    id: str  # 12 hex digits
    digest: str  # SHA-256 of what it is about (``clearance``), hex
    rpc: str  # "ImportService/ExportKey"
    resource: str  # as the audit has it: "key/payments,target/prod"
    requester: str  # "operator/alice"
    details: Mapping[str, str]  # the request, field by field, and what was found out for it; never a secret value
    values_mac: bytes | None  # of the secret values that came with it (``value_macs``); None: none came
    needed: int
    grants: tuple[Grant, ...]  # one an operator
    state: ApprovalState
    call: str  # the id of the call that used it, or ""
    ended_by: str  # who rejected it, or ""
    why: str  # the reason given for that, or ""
    created_at: datetime
    expires_at: datetime
    due_at: datetime  # open: when it expires; over: when it is forgotten
    revision: int = 1
