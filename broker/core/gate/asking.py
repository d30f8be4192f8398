"""How a call that lacks approvals is refused: others are asked for them, durably, and the caller is told how.

What is asked for is what the call would have done by now: it is permitted, and all of it was checked.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial

from broker.core.approvable import APPROVABLE
from broker.core.approval import Approval
from broker.core.call import Call
from broker.core.clearance import ApprovalRequired, Clearance, over
from broker.core.errors import BrokerError, Exhausted, InvalidRequest, Outcome
from broker.core.gate.excess import excess
from broker.core.gate.method import Request
from broker.core.kinds import ApprovalState
from broker.core.once import closing
from broker.core.policy import approvers
from broker.core.policy.guard import Guard, asked_for
from broker.core.ports import Store, Write
from broker.core.reasons import Reason

MAX_DETAILS = 128 * 1024
"""Characters of a request that others may be asked to read: room for a policy twice as long as may be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ApprovalLimits:
    """How long an approval may be given and used, and how many are open at once. ``suspended``: none is asked for.

    Of those that are over so many times as many are kept as may be open.
    """

    lifetime: timedelta = timedelta(hours=24)
    per_requester: int = 10
    in_all: int = 100
    suspended: bool = False
    over_for_each: int = 5


NO_LIMITS_OF_ITS_OWN = ApprovalLimits()


class Asking:
    """What the gate needs to know of approvals. Thread-safe."""

    def __init__(self, store: Store, guard: Guard, limits: ApprovalLimits = NO_LIMITS_OF_ITS_OWN) -> None:
        self._store = store
        self._limits = limits
        self._count = approvers.counting(guard)
        self._others = partial(approvers.count, store, guard)

    def clearance(self, call: Call, request: Request) -> Clearance | None:
        """That of a call which has come in; None for what never needs approvals, as for a dry run."""
        if call.action not in APPROVABLE or call.validate_only or self._limits.suspended:
            return None
        return Clearance(
            call_id=call.id,
            rpc=call.rpc,
            requester=str(call.principal),
            now=call.now,
            exact=request.exact,
            details=request.details,
            count=self._count,
            facts=call.facts,
        )

    def ask(self, call: Call) -> BrokerError:
        """The refusal of the call, which is closed by it; the same request again finds the approval that is open.

        WrongState ``APPROVERS_MISSING``: nobody is asked, for too few could approve. Exhausted ``APPROVAL_QUOTA``.
        """
        clearance = call.clearance
        if clearance is None:
            raise TypeError(f"{call.rpc} lacks approvals that nobody asked for")
        there = self._others(asked_for(call.action, clearance.requester, call.resource), clearance.needs)
        if there < clearance.needs:
            return approvers.missing(f"{call.action} cannot be done now", clearance.needs, there)
        draft, most = self._draft(call, clearance), self._limits
        times, now = most.over_for_each, call.now()
        surplus = excess(self._store, draft.requester, times * most.per_requester, times * most.in_all, now)
        entry = call.outcome(Outcome.FAILED_PRECONDITION, Reason.APPROVAL_REQUIRED)
        with closing(call), self._store.write(entry) as write:
            row = self._open(write, clearance, draft)
            _forget(write, surplus)
            write.note(approval=row.id, approval_digest=row.digest)
        return _refusal(call, row)

    def _draft(self, call: Call, clearance: Clearance) -> Approval:
        details = {**clearance.details(), **{f"found: {name}": text for name, text in clearance.found().items()}}
        if sum(len(name) + len(text) for name, text in details.items()) > MAX_DETAILS:
            raise InvalidRequest(
                Reason.APPROVAL_TOO_LARGE,
                f"The request needs approvals and is longer than {MAX_DETAILS // 1024} KiB, which nobody could be "
                "asked to read; do it in several smaller ones.",
            )
        now, values = call.now(), clearance.values
        return Approval(
            id=secrets.token_hex(6),
            digest=clearance.digest,
            rpc=call.rpc,
            resource=call.resource,
            requester=clearance.requester,
            details=details,
            values_mac=values.mac() if values else None,
            needed=clearance.needs,
            grants=(),
            state=ApprovalState.OPEN,
            call="",
            ended_by="",
            why="",
            created_at=now,
            expires_at=now + self._limits.lifetime,
            due_at=now + self._limits.lifetime,
        )

    def _open(self, write: Write, clearance: Clearance, draft: Approval) -> Approval:
        """The open approval of this very request: one that is there already, or a new one, if there is room."""
        where = {"state": ApprovalState.OPEN.value}
        now, found = clearance.now(), write.page(Approval, limit=self._limits.in_all + 1, where=where)
        rows = [_aged(write, row, now) for row in found]
        live = [row for row in rows if row.state is ApprovalState.OPEN]
        same = next((row for row in live if clearance.fits(row)), None)
        if same is not None:
            more = replace(same, needed=clearance.needs)
            return same if more == same else write.replace(same, more)
        self._check_room(live, clearance.requester)
        write.add(draft)
        return draft

    def _check_room(self, live: list[Approval], requester: str) -> None:
        mine = sum(row.requester == requester for row in live)
        if mine >= self._limits.per_requester:
            raise Exhausted(
                Reason.APPROVAL_QUOTA,
                f"You have {mine} requests that wait for approvals, and may have {self._limits.per_requester}; "
                "withdraw some (`broker approval list`, `broker approval reject`), or wait until they are settled.",
            )
        if len(live) >= self._limits.in_all:
            raise Exhausted(
                Reason.APPROVAL_QUOTA,
                f"{len(live)} requests wait for approvals, and no more may; have them settled first (`broker approval "
                "list`), or wait until they expire.",
            )


def _forget(write: Write, rows: list[Approval]) -> None:
    for row in rows:
        stored = write.get(Approval, row.id)
        if stored is not None and stored.state is not ApprovalState.OPEN:
            write.delete(stored)


def _aged(write: Write, row: Approval, now: datetime) -> Approval:
    """What is past its time takes no room, whether or not the background has come by."""
    return row if row.expires_at > now else write.replace(row, over(row, ApprovalState.EXPIRED, now))


def _refusal(call: Call, row: Approval) -> ApprovalRequired:
    given = len(row.grants)
    return ApprovalRequired(
        Reason.APPROVAL_REQUIRED,
        f"{call.action} on {row.resource} is permitted, and needs {row.needed} approval(s) of other operators; "
        f"{given} gave theirs. Until {row.expires_at:%Y-%m-%d %H:%M} UTC another operator can look at it with `broker "
        f"approval show {row.id}` and approve it with `broker approval approve {row.id}`; then send the same request "
        "again.",
        approval=row.id,
        approval_digest=row.digest,
    )
