"""Approvals: what waits for other people's word, and giving or refusing it.

    OPEN ──(enough grants, and the request again)──▶ USED
     ├──(rejected, or withdrawn)──▶ REJECTED
     └──(its time is over)──▶ EXPIRED          each is forgotten after ``clearance.KEEP``,
                                              or once there are too many (``gate.excess``)

They are made by the gate (``gate.asking``), and used up where the call is recorded (``clearance``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

from broker.core.approvable import APPROVABLE
from broker.core.approval import Approval, Grant
from broker.core.call import Call
from broker.core.clearance import over
from broker.core.errors import NotFound, PermissionDenied, WrongState
from broker.core.gate.excess import OVER
from broker.core.given_reason import given_reason
from broker.core.kinds import ApprovalState
from broker.core.names import check_approval_id
from broker.core.once import last_write, once
from broker.core.page import Page
from broker.core.policy.guard import BROKER, Guard, of_approval
from broker.core.ports import Now, Store, Write
from broker.core.reasons import Reason

BATCH = 20
"""Rows that one piece of the background's work changes."""

PIECES = 50

Chore = tuple[str, Callable[[Call], None]]


class Approvals:
    """The noun behind ApprovalService."""

    def __init__(self, store: Store, guard: Guard, now: Now) -> None:
        self._store = store
        self._guard = guard
        self._now = now

    def get(self, call: Call, name: str) -> Approval:
        """NotFound ``APPROVAL_NOT_FOUND``."""
        return self._standing(self._permitted(call, name))

    def page(self, call: Call, after: tuple[str | int, ...], limit: int, *, waiting: bool) -> Page[Approval]:
        """By id; only those that the caller may get. ``waiting``: only those that can still be approved or used."""
        self._guard.check(call, BROKER)
        where = {"state": ApprovalState.OPEN.value} if waiting else None
        rows = self._store.page(Approval, after=after, limit=limit, where=where, sound_only=True)
        standing = [self._standing(row) for row in rows]
        items = [row for row in standing if not (waiting and row.state in OVER) and self._may_see(call, row)]
        return Page(items=items, next=(rows[-1].id,) if len(rows) == limit else ())

    def approve(self, call: Call, name: str, digest: str, reason: str) -> Approval:
        """Add the caller's word, once. ``digest``: of what they have seen; "" for whatever it is.

        PermissionDenied ``APPROVAL_OWN``; WrongState ``APPROVAL_GIVEN``, ``APPROVAL_DIFFERS``, ``APPROVAL_OVER``.
        """
        reason = given_reason(reason, Reason.APPROVAL_REASON_INVALID)
        self._permitted(call, name)

        def granted(row: Approval) -> Approval:
            self._refuse(call, row, digest)
            grant = Grant(by=str(call.principal), at=self._now(), reason=reason)
            return replace(row, grants=(*row.grants, grant))

        return self._changed(call, name, granted)

    def reject(self, call: Call, name: str, reason: str) -> Approval:
        """Refuse it for good, or withdraw what one has asked for oneself. WrongState ``APPROVAL_OVER``."""
        reason = given_reason(reason, Reason.APPROVAL_REASON_INVALID)
        self._permitted(call, name)

        def rejected(row: Approval) -> Approval:
            self._refuse_over(row)
            by = str(call.principal)
            found = over(row, ApprovalState.REJECTED, self._now(), by=by, why=reason)
            return replace(found, details={}) if by == row.requester else found  # of what is withdrawn nothing stays

        return self._changed(call, name, rejected)

    def chores(self) -> Iterator[Chore]:
        """What is past its time expires, and what is over is forgotten."""
        for state in (ApprovalState.OPEN, *OVER):
            work = self._expire if state is ApprovalState.OPEN else self._forget
            for _ in range(PIECES):
                found = self._store.due(Approval, self._now(), limit=BATCH, state=state.value)
                if not found:
                    break
                yield f"approval/{state}", partial(work, found)

    def _permitted(self, call: Call, name: str) -> Approval:
        row = self._store.get(Approval, check_approval_id(name))
        self._guard.check(call, of_approval(name, row))
        return _existing(row, name)

    def _may_see(self, call: Call, row: Approval) -> bool:
        return self._guard.permits(call.principal, "GetApproval", of_approval(row.id, row))

    def _standing(self, row: Approval) -> Approval:
        """As it stands, whether or not the background has come by."""
        lapsed = row.state is ApprovalState.OPEN and row.expires_at <= self._now()
        return replace(row, state=ApprovalState.EXPIRED) if lapsed else row

    def _changed(self, call: Call, name: str, change: Callable[[Approval], Approval]) -> Approval:
        def now(rows: Store | Write) -> Approval:
            return _existing(rows.get(Approval, name), name)

        def changed(write: Write) -> Approval:
            row = now(write)
            write.note(approval=row.id, approval_digest=row.digest)
            return write.replace(row, change(row))

        if call.validate_only:
            return change(now(self._store))
        return once(self._store, call, f"approval/{name}", changed, lambda write, _: self._standing(now(write)))

    def _refuse(self, call: Call, row: Approval, digest: str) -> None:
        if str(call.principal) == row.requester:
            raise PermissionDenied(
                Reason.APPROVAL_OWN,
                "Nobody approves what they have asked for themselves; another operator has to, with `broker approval "
                f"approve {row.id}`.",
            )
        self._refuse_over(row)
        if digest and digest != row.digest:
            raise WrongState(
                Reason.APPROVAL_DIFFERS,
                f"The approval {row.id} is about another request than the one with that digest; look at it again "
                f"(`broker approval show {row.id}`).",
            )
        if str(call.principal) in {one.by for one in row.grants}:
            raise WrongState(
                Reason.APPROVAL_GIVEN,
                f"You have approved {row.id} already, and one operator counts once; `broker approval show {row.id}` "
                "tells who else has.",
            )

    def _refuse_over(self, row: Approval) -> None:
        if (standing := self._standing(row)).state in OVER:
            raise WrongState(
                Reason.APPROVAL_OVER,
                f"The approval {row.id} is {standing.state}, and that is for good; who still wants it sends the "
                "request again, which asks for a new one (`broker approval list`).",
            )

    def _expire(self, found: list[Approval], call: Call) -> None:
        with last_write(self._store, call) as write:
            for row in found:
                write.replace(row, over(row, ApprovalState.EXPIRED, self._now()))
            write.note(count=len(found))

    def _forget(self, found: list[Approval], call: Call) -> None:
        with last_write(self._store, call) as write:
            for row in found:
                write.delete(row)
            write.note(count=len(found))


def in_words(row: Approval) -> str:
    """What is asked for, in a sentence."""
    action = row.rpc.rpartition("/")[2]
    return f"{row.requester} asks to {APPROVABLE.get(action, f'call {action}')}: {row.resource}."


def _existing(row: Approval | None, name: str) -> Approval:
    if row is None:
        raise NotFound(
            Reason.APPROVAL_NOT_FOUND,
            f"There is no approval {name}; `broker approval list` shows those there are, and what is over is forgotten "
            "after 7 days, or sooner where there is much of it.",
        )
    return row
