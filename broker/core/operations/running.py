"""Runs operations: by the call that began them, by its repetition, or in the background when nobody comes back.

What is durable before anything outside is touched is the row; whoever moves it on writes over the revision that was
read, so of two who carry on the same operation one stops at its next write. What they have done outside twice does no
harm, since each step looks first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial

from broker.core.call import Call
from broker.core.entries import AuditEntry
from broker.core.errors import BrokerError, Outcome, Unavailable, WrongState
from broker.core.kinds import OperationState
from broker.core.model import Operation
from broker.core.operations.plan import Keep, Plan, Work, nothing
from broker.core.ports import Now, Store, Write
from broker.core.reasons import Reason

KEEP = timedelta(hours=24)
"""How long an operation that is over stays on record; the audit has it for good."""

FIRST_PAUSE = timedelta(seconds=2)
BATCH = 100
LIVE = (OperationState.RUNNING, OperationState.UNDOING)
OVER = (OperationState.DONE, OperationState.UNDONE)

Chore = tuple[str, Callable[[Call], None]]


class _OvertakenError(Exception):
    """Somebody else has moved the operation on."""


@dataclass(slots=True)
class _Pause:
    until: float = 0.0  # ticks
    seconds: float = 0.0


class Operations:
    """Every operation there is. ``ticks``: seconds, never set back, for the pauses between attempts.

    The pauses are kept in memory: another process, or this one after a restart, begins at once.
    """

    def __init__(self, store: Store, now: Now, ticks: Callable[[], float]) -> None:
        self._store = store
        self._now = now
        self._ticks = ticks
        self._plans: dict[str, Plan] = {}
        self._pauses: dict[tuple[str, int], _Pause] = {}

    @property
    def plans(self) -> Mapping[str, Plan]:
        """All plans by kind."""
        return self._plans

    def admit(self, plan: Plan) -> Plan:
        """Make a plan known, once, before any operation of its kind is begun or found."""
        if plan.kind in self._plans:
            raise ValueError(f"there are two plans of the kind {plan.kind}")
        self._plans[plan.kind] = plan
        return plan

    # ---- in the transaction that begins it -----------------------------------------------------------------------

    def begin(
        self, write: Write, call: Call, plan: Plan, subject: str, memory: Mapping[str, str] | None = None
    ) -> Operation:
        """Write the intent; WrongState ``OPERATION_RUNNING`` while another one of the same subject is not over."""
        former = write.last(Operation, subject, lock=False)
        if former and not former.state.over:
            raise running(former)
        now = self._now()
        operation = Operation(
            subject=subject,
            number=former.number + 1 if former else 1,
            kind=self._plans[plan.kind].kind,
            state=OperationState.RUNNING,
            step=0,
            memory=memory or {},
            principal=str(call.principal),
            failure="",
            attempts=0,
            created_at=now,
            due_at=now + plan.patience,
        )
        write.add(operation)
        return operation

    def live(self, rows: Write | Store, subject: str) -> Operation | None:
        """The operation of a subject that is not over."""
        found = rows.last(Operation, subject)
        return None if found is None or found.state.over else found

    def of(self, subject: str, number: int | None) -> Operation | None:
        """The operation of this number, if it is still on record."""
        return self._store.get(Operation, subject, number) if number else None

    def close(self, write: Write, operation: Operation, reason: str) -> Operation:
        """End one whose subject has been dealt with otherwise; nothing is done about it any more."""
        over = replace(operation, state=OperationState.UNDONE, failure=reason, memory={}, due_at=self._now() + KEEP)
        return write.replace(operation, over)

    # ---- to its end ----------------------------------------------------------------------------------------------

    def run(self, call: Call, operation: Operation, *, fresh: bool = False) -> Operation:
        """Carry it on to its end. The refusal of a step is raised once what was done before it is undone.

        ``Unavailable`` leaves it where it is, for a repetition or the background. Unavailable ``OPERATION_RUNNING``
        when somebody else is at it, WrongState ``CHANGED_MEANWHILE`` when somebody else has given it up.
        """
        plan = self._plan(operation)
        try:
            while operation.state is OperationState.RUNNING:
                operation = self._advanced(call, plan, operation, fresh=fresh)
            if operation.state is OperationState.UNDOING:
                operation = self._undone(call, plan, operation)
        except _OvertakenError:
            return self._elsewhere(operation)
        return operation

    def _advanced(self, call: Call, plan: Plan, operation: Operation, *, fresh: bool) -> Operation:
        step, last = plan.steps[operation.step], operation.step + 1 == len(plan.steps)
        try:
            found = step.act(Work(call=call, operation=operation, fresh=fresh)) or {}
            new = replace(operation, step=operation.step + 1, memory={**operation.memory, **found}, failure="")
            if not last:
                return self._moved(call, call.intent(), operation, new, step.keep)
            done = replace(new, state=OperationState.DONE, due_at=self._now() + KEEP)
            return self._moved(call, call.outcome(), operation, done, step.keep, over=True)
        except Unavailable:
            raise
        except BrokerError as refusal:
            if plan.undo is None:
                raise
            self._undo_for(refusal, call, plan, operation)
            raise

    def _undo_for(self, refusal: BrokerError, call: Call, plan: Plan, operation: Operation) -> None:
        operation = self._turned_back(call, operation, refusal.reason)
        with suppress(BrokerError):  # the background tries again, and says why that does not work either
            self._undone(call, plan, operation)

    def _turned_back(self, call: Call, operation: Operation, reason: str) -> Operation:
        """From here on nobody completes it."""
        undoing = replace(operation, state=OperationState.UNDOING, failure=reason, due_at=self._now())
        return self._moved(call, call.intent(), operation, undoing, nothing)

    def _undone(self, call: Call, plan: Plan, operation: Operation) -> Operation:
        if plan.undo is None:
            raise WrongState(Reason.OPERATION_ONLY_FORWARD, f"An operation of the kind {plan.kind} is never undone.")
        plan.undo(Work(call=call, operation=operation))
        undone = replace(operation, state=OperationState.UNDONE, due_at=self._now() + KEEP)
        return self._moved(call, call.outcome(Outcome.ABORTED, plan.undone_reason), operation, undone, plan.undone)

    def _moved(
        self, call: Call, entry: AuditEntry, old: Operation, new: Operation, keep: Keep, *, over: bool = False
    ) -> Operation:
        """Write where it has got to, with what came of it; what it remembered is of no use once it is over."""
        with self._store.write(entry) as write:
            stored = write.get(Operation, old.subject, old.number)
            if stored is None or stored.revision != old.revision:
                raise _OvertakenError
            keep(write, Work(call=call, operation=new))
            moved = write.replace(stored, replace(new, memory={}) if new.state.over else new)
        call.settled = call.settled or over
        return moved

    def _elsewhere(self, operation: Operation) -> Operation:
        found = self._store.get(Operation, operation.subject, operation.number)
        if found is None or found.state is OperationState.DONE:
            return found or operation
        if found.state is OperationState.RUNNING:
            raise Unavailable(Reason.OPERATION_RUNNING, "Another call carries this on; send the same request again.")
        raise WrongState(
            Reason.CHANGED_MEANWHILE,
            f"{operation.subject} was changed meanwhile, so this was given up; send it anew, under a fresh request id.",
        )

    # ---- in the background ---------------------------------------------------------------------------------------

    def due(self) -> dict[str, list[Operation]]:
        """What nobody has come back for, or is to be tried again, by whom it waits for; the oldest first."""
        rows = [
            row for state in LIVE for row in self._store.due(Operation, self._now(), limit=BATCH, state=state.value)
        ]
        waiting = {(row.subject, row.number) for row in rows}
        for name in self._pauses.keys() - waiting:
            self._pauses.pop(name, None)
        found: dict[str, list[Operation]] = {}
        for row in rows:
            if self._pause(row).until <= self._ticks():
                plan = self._plans.get(row.kind)
                found.setdefault(plan.place(row) if plan else "", []).append(row)
        return found

    def carry_on(self, call: Call, operation: Operation) -> BrokerError | None:
        """Try to bring one to its end; why that did not work, or None.

        A failure is recorded once for each reason, not at each attempt.
        """
        try:
            plan = self._plan(operation)
            if operation.state is OperationState.RUNNING and plan.abandoned_is_undone:
                operation = self._turned_back(call, operation, "ABANDONED")
            self.run(call, operation)
        except _OvertakenError:
            return None
        except BrokerError as refusal:
            self._put_off(call, operation, refusal)
            return refusal
        return None

    def _put_off(self, call: Call, operation: Operation, refusal: BrokerError) -> None:
        plan, pause = self._plans.get(operation.kind), self._pause(operation)
        longest = plan.longest_pause.total_seconds() if plan else KEEP.total_seconds()
        pause.seconds = min(2 * pause.seconds, longest) if pause.seconds else FIRST_PAUSE.total_seconds()
        pause.until = self._ticks() + pause.seconds
        stored = self._store.get(Operation, operation.subject, operation.number)
        if stored is None or stored.state.over or stored.failure == refusal.reason:
            return
        with self._store.write(call.outcome(refusal.outcome, refusal.reason)) as write:
            write.replace(stored, replace(stored, failure=refusal.reason, attempts=stored.attempts + 1))
        call.settled = True

    def chores(self) -> Iterator[Chore]:
        """What the background has to do besides: forget what was over long ago."""
        for state in OVER:
            while rows := self._store.due(Operation, self._now(), limit=BATCH, state=state.value):
                yield "operation/*", partial(self._forget, rows)

    def _forget(self, rows: list[Operation], call: Call) -> None:
        with self._store.write(call.outcome()) as write:
            for row in rows:
                write.delete(row)
        call.settled = True

    def _pause(self, row: Operation) -> _Pause:
        return self._pauses.setdefault((row.subject, row.number), _Pause())

    def _plan(self, operation: Operation) -> Plan:
        plan = self._plans.get(operation.kind)
        if plan is None or operation.step > len(plan.steps):
            raise WrongState(
                Reason.OPERATION_KIND_UNKNOWN,
                f"This release does not know operations of the kind {operation.kind}; {operation.subject} stays as it "
                "is until the newest release that has used this database is started.",
            )
        return plan


def running(operation: Operation) -> Unavailable:
    """The refusal to begin what is under way already."""
    return Unavailable(
        Reason.OPERATION_RUNNING, f"An operation on {operation.subject} is under way; try again when it is over."
    )
