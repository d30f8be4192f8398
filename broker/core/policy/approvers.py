"""Who may give an approval: other operators, whom the policy permits it, and only as long as it does."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from broker.core.approval import Approval
from broker.core.errors import WrongState
from broker.core.kinds import OperatorState
from broker.core.model import Operator, PolicyDocument, Principal
from broker.core.policy.guard import Guard, Resource, asked_for, of_approval
from broker.core.ports import Store, Write
from broker.core.reasons import Reason

APPROVE = "Approve"
STEP = 100


def count(store: Store, guard: Guard, asked: Resource, enough: int) -> int:
    """How many operators other than the requester may approve what is ``asked``; no more than ``enough`` are sought."""
    found, requester = 0, str(asked.attributes["requester"])
    for row in _enabled(store) if enough else ():
        found += _may(guard, row, requester, asked)
        if found >= enough:
            break
    return found


def lacking(store: Store, guard: Guard) -> str:
    """A sentence on the action that has the fewest approvers for what it needs, "" where all have enough.

    Whoever approves may ask as well, and then counts for nothing: so it takes one more than are needed.
    """
    for action, needed in sorted(guard.asks().items(), key=lambda one: (-one[1], one[0])):
        there = count(store, guard, asked_for(action, "", ""), needed + 1)
        if there <= needed:
            return (
                f"{action} can need {needed} approval(s) of others, and {there} operator(s) may approve it: permit "
                f"Approve to {needed + 1} at least, so that none of them is the only one"
            )
    return ""


def counting(guard: Guard) -> Callable[[Write, Approval], int]:
    """How many of an approval's grants count now: an operator who may not approve any more has not."""

    def granted(write: Write, approval: Approval) -> int:
        newest = write.last(PolicyDocument, lock=False)
        if newest is not None and newest.version > guard.document.version:  # another process has set it a moment ago
            guard.load(newest)
        resource = of_approval(approval.id, approval)
        names = {one.by.removeprefix("operator/") for one in approval.grants}
        rows = [write.get(Operator, name) for name in sorted(names)]
        return sum(row is not None and _may(guard, row, approval.requester, resource) for row in rows)

    return granted


def missing(what: str, needed: int, there: int) -> WrongState:
    """``APPROVERS_MISSING``; ``what`` is not possible therefore."""
    return WrongState(
        Reason.APPROVERS_MISSING,
        f"{what}: it needs {needed} approval(s) of other operators, and only {there} may give one; permit Approve to "
        "more operators, or ask for fewer. Where that needs approvals as well, set `suspended = true` under "
        "[approvals] of the broker's configuration and start it again, for as long as it takes.",
    )


def _may(guard: Guard, row: Operator, requester: str, resource: Resource) -> bool:
    principal = Principal(kind="operator", name=row.name, groups=row.groups)
    if row.state is not OperatorState.ENABLED or str(principal) == requester:
        return False
    return guard.permits(principal, APPROVE, resource)


def _enabled(store: Store) -> Iterator[Operator]:
    after: tuple[str | int, ...] = ()
    where = {"state": OperatorState.ENABLED.value}
    while rows := store.page(Operator, after=after, limit=STEP, where=where, sound_only=True):
        yield from rows
        after = (rows[-1].name,)
