"""How many approvals that are over are kept: the oldest go first, before their time if need be; the audit has all."""

from __future__ import annotations

from datetime import datetime, timedelta

from broker.core.approval import Approval
from broker.core.clearance import KEEP
from broker.core.errors import Exhausted
from broker.core.kinds import ApprovalState
from broker.core.ports import Store
from broker.core.reasons import Reason

OVER = (ApprovalState.USED, ApprovalState.REJECTED, ApprovalState.EXPIRED)

IN_USE = timedelta(hours=1)
"""How long a call may be at what it has used up; longer than any call may last."""

BATCH = 100
"""Rows that one call makes room by at most."""


def excess(store: Store, requester: str, per_requester: int, in_all: int, now: datetime) -> list[Approval]:
    """What is to be forgotten so that one more has room; what one requester has had drives out nobody else's first.

    Exhausted ``APPROVAL_QUOTA`` where so many were used within the last hour.
    """
    mine = _oldest(store, per_requester, now, requester=requester)
    others = _oldest(store, in_all, now)
    return list({row.id: row for row in (*mine, *others)}.values())


def _oldest(store: Store, most: int, now: datetime, **whose: str) -> list[Approval]:
    counts = {state: store.count(Approval, {**whose, "state": state.value}) for state in OVER}
    surplus = min(sum(counts.values()) + 1 - most, BATCH)
    if surplus <= 0:
        return []
    rows = [row for state in OVER for row in _of(store, state, counts[state] if whose else surplus, now, whose)]
    rows.sort(key=lambda row: row.due_at)
    free = [row for row in rows if row.state is not ApprovalState.USED or row.due_at - KEEP + IN_USE < now]
    if not free:
        raise Exhausted(
            Reason.APPROVAL_QUOTA,
            f"{most} requests that needed approvals{' of yours' if whose else ''} were carried out within the last "
            "hour, and no more are kept in mind (`broker approval list`); try again in an hour.",
        )
    return free[:surplus]


def _of(store: Store, state: ApprovalState, limit: int, now: datetime, whose: dict[str, str]) -> list[Approval]:
    """Of one requester all, of everybody's the oldest."""
    if whose:
        return store.page(Approval, limit=limit + 1, where={**whose, "state": state.value}, sound_only=True)
    return store.due(Approval, now + 2 * KEEP, limit=limit, state=state.value)
