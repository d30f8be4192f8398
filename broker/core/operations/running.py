"""Runs operations: by the call that began them, by its repetition, or in the background when nobody comes back.

What is durable before anything outside is touched is the row; the process that moves it on writes over the revision
that was read, so of two that carry on the same operation one stops at its next write. What they have done outside twice
does no harm, since each step looks first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial

from broker.core.call import Call
from broker.core.entries import AuditEntry
from broker.core.errors import BrokerError, Outcome, Unavailable, WrongState
from broker.core.kinds import OperationState
from broker.core.model import Operation
from broker.core.operations.pauses import Pauses
from broker.core.operations.plan import Keep, NotYet, Over, Plan, Work, nothing
from broker.core.ports import Now, Store, Write
from broker.core.reasons import Reason

KEEP = timedelta(hours=24)
"""How long an operation that is over stays on record; the audit has it for good."""

SLOW = timedelta(hours=1)
"""The longest pause where each attempt leaves something outside."""

BATCH = 100
MOST = 10_000
"""Operations that are looked at in one round, so that those that wait for one place do not hide all others."""

LIVE = (OperationState.RUNNING, OperationState.UNDOING)
OVER = (OperationState.DONE, OperationState.UNDONE)

Chore = tuple[str, Callable[[Call], None]]


class UnderWay(Unavailable):
    """Another call, or the background, carries the operation on."""


class GivenUp(WrongState):
    """Somebody else has given the operation up."""


class _WaitsError(Exception):
    """Its time has not come; ``operation`` is as it waits."""

    def __init__(self, operation: Operation) -> None:
        super().__init__(operation)
        self.operation = operation


class _OvertakenError(Exception):
    """Somebody else has moved the operation on."""


class Operations:
    """Every operation there is. ``ticks``: seconds, never set back, for the pauses between attempts.

    The pauses are kept in memory: another process, or this one after a restart, begins at once.
    """

    def __init__(self, store: Store, now: Now, ticks: Callable[[], float]) -> None:
        self._store = store
        self._now = now
        self._plans: dict[str, Plan] = {}
        self._pauses = Pauses(ticks)

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
        self,
        write: Write,
        call: Call,
        plan: Plan,
        subject: str,
        memory: Mapping[str, str] | None = None,
        *,
        undo_for: str = "",
        abandoned: bool = False,
        until: datetime | None = None,
    ) -> Operation:
        """Write the intent; ``UnderWay`` while another one of the same subject is not over.

        ``abandoned``: this call does not carry it on; the background takes it up at once, or at the time ``until``.

        ``undo_for``: the reason for which it is to be undone from the start, of what was begun before there were any.
        """
        former, now = write.last(Operation, subject, lock=False), self._now()
        if former is not None and not former.state.over:
            raise running(former)
        operation = Operation(
            subject=subject,
            number=former.number + 1 if former else 1,
            kind=self._plans[plan.kind].kind,
            state=OperationState.UNDOING if undo_for else OperationState.RUNNING,
            step=0,
            memory=memory or {},
            principal=str(call.principal),
            failure=undo_for,
            attempts=0,
            created_at=now,
            due_at=(until or now) if undo_for or abandoned else now + plan.patience,
        )
        write.add(operation)
        return operation

    def renew(self, write: Write, operation: Operation) -> Operation:
        """Take one up again for its own request: for a patience nobody else does, and the one that was at it stops."""
        due_at = self._now() + self._plan(operation).patience
        return write.replace(operation, replace(operation, due_at=due_at))

    def live(self, rows: Write | Store, subject: str) -> Operation | None:
        """The operation of a subject that is not over."""
        found = rows.last(Operation, subject)
        return None if found is None or found.state.over else found

    def of(self, subject: str, number: int | None) -> Operation | None:
        """The operation of this number, if it is still on record."""
        return self._store.get(Operation, subject, number) if number else None

    def retry(self, write: Write, operation: Operation) -> Operation:
        """Have it tried again in the background without a pause: a row that was written since is tried at once.

        But not while a call may be at it, which no second one is to overtake: what that sends or makes outside would be
        on no record. One that is over stays as it is, and what waits for a time waits on.
        """
        return operation if operation.state.over else write.replace(operation, operation)

    def aborted(self, operation: Operation) -> Operation:
        """As ``abort`` would leave it; refuses what that does."""
        _must_be_live(operation)
        if not self._plan(operation).can_turn:
            raise WrongState(
                Reason.OPERATION_ONLY_FORWARD,
                f"An operation of the kind {operation.kind} only goes forward: half done it would leave things worse. "
                "It is tried again and again; `broker operation retry` does so at once.",
            )
        return _turned(operation, Reason.GIVEN_UP, max(self._now(), operation.due_at))  # a call may be at it until then

    def abort(self, write: Write, call: Call, operation: Operation) -> Operation:
        """Turn one back, for the background to undo; ``OPERATION_OVER``, ``OPERATION_ONLY_FORWARD``."""
        aborted = self.aborted(operation)
        if operation.state is OperationState.UNDOING:
            return operation
        self._plan(operation).turned(write, Work(call=call, operation=aborted))
        return write.replace(operation, aborted)

    def close(self, write: Write, operation: Operation, reason: str) -> Operation:
        """End one whose subject has been dealt with otherwise; nothing is done about it any more."""
        return write.replace(operation, closed(operation, reason, self._now()))

    # ---- to its end ----------------------------------------------------------------------------------------------

    def run(self, call: Call, operation: Operation, *, fresh: bool = False, given: object = None) -> Operation:
        """Carry it on to its end, or to where it waits. A step's refusal is raised once what was done before is undone.

        ``Unavailable`` leaves it where it is, for a repetition or the background. ``UnderWay`` when somebody else is
        at it, ``GivenUp`` when somebody else has given it up. ``fresh`` and ``given``: see ``Work``.
        """
        plan = self._plan(operation)
        work = Work(call=call, operation=operation, fresh=fresh, given=given)
        try:
            while work.operation.state is OperationState.RUNNING:
                work = replace(work, operation=self._advanced(plan, work), learned={})
            if work.operation.state is OperationState.UNDOING:
                return self._undone(plan, work, None)
        except _OvertakenError:
            return self._elsewhere(work.operation)
        except _WaitsError as waits:
            return waits.operation
        return work.operation

    def _advanced(self, plan: Plan, work: Work) -> Operation:
        call, operation = work.call, work.operation
        step, last = plan.steps[operation.step], operation.step + 1 == len(plan.steps)
        try:
            found = step.act(work) or {}
            new = replace(_learned(work), step=operation.step + 1, failure="")
            new = replace(new, memory={**new.memory, **found})
            if not last:
                return self._moved(work, call.intent(), new, step.keep)
            done = replace(new, state=OperationState.DONE, due_at=self._now() + KEEP)
            return self._moved(work, call.outcome(), done, step.keep, over=True)
        except NotYet as not_yet:
            raise _WaitsError(self._put_by(not_yet.until, work)) from None
        except Unavailable as away:
            self._paused(away, plan, work)
            raise
        except Over as over:
            refusal = over.refusal
        except BrokerError as error:
            refusal = error
        told = self._undo_for(refusal, plan, work) if plan.can_turn else refusal
        if not plan.can_turn:
            self._remember(work)
        raise told from (refusal if told is not refusal else refusal.__cause__)

    def _paused(self, away: Unavailable, plan: Plan, work: Work) -> None:
        """Leave it where it is, and say why; the background says it once for each reason."""
        if plan.paused is None:
            self._remember(work)
            return
        if not work.attended and work.operation.failure == away.reason and not work.learned:
            return
        paused = replace(_learned(work), failure=away.reason)
        if plan.urgent(paused):
            paused = replace(paused, due_at=self._now())
        self._moved(work, work.call.outcome(away.outcome, away.reason), paused, plan.paused, over=True)

    def _remember(self, work: Work) -> None:
        """Write down what a step has learned that is tried again."""
        if not work.learned.items() <= work.memory.items():
            self._moved(work, work.call.intent(), _learned(work), nothing)

    def _put_by(self, until: datetime | None, work: Work) -> Operation:
        """Leave it where it is for the background, until its time has come; that is no failure."""
        operation, due_at = work.operation, until or self._now()
        if not (work.attended or work.learned or operation.failure or (until and until != operation.due_at)):
            return operation
        waits = replace(_learned(work), failure="", due_at=due_at)
        return self._moved(work, work.call.outcome(), waits, nothing, over=True)

    def _undo_for(self, refusal: BrokerError, plan: Plan, work: Work) -> BrokerError:
        """Undo it; what the caller is to be told."""
        work = replace(work, operation=self._turned_back(plan, work, refusal.reason), learned={})
        try:
            self._undone(plan, work, refusal)
        except _OvertakenError:
            return refusal  # somebody else has undone it, or is at it
        except BrokerError as second:  # the background tries again, and says why that does not work either
            return plan.told(refusal, second)
        return refusal

    def _turned_back(self, plan: Plan, work: Work, reason: str) -> Operation:
        """From here on nobody completes it."""
        return self._moved(work, work.call.intent(), _turned(_learned(work), reason, self._now()), plan.turned)

    def _undone(self, plan: Plan, work: Work, refusal: BrokerError | None) -> Operation:
        if plan.undo is None:
            raise WrongState(Reason.OPERATION_ONLY_FORWARD, f"An operation of the kind {plan.kind} is never undone.")
        plan.undo(work)
        undone = replace(_learned(work), state=OperationState.UNDONE, due_at=self._now() + KEEP)
        entry, over = _last_word(plan, work, refusal)
        return self._moved(work, entry, undone, plan.undone, over=over)

    def _moved(self, work: Work, entry: AuditEntry, new: Operation, keep: Keep, *, over: bool = False) -> Operation:
        """Write where it has got to, with what came of it; what it remembered is of no use once it is over."""
        old = work.operation
        with self._store.write(entry) as write:
            stored = write.get(Operation, old.subject, old.number)
            if stored is None or stored.revision != old.revision:
                raise _OvertakenError
            keep(write, replace(work, operation=new))
            moved = write.replace(stored, replace(new, memory={}) if new.state.over else new)
        work.call.closed = work.call.closed or over
        return moved

    def _elsewhere(self, operation: Operation) -> Operation:
        found = self._store.get(Operation, operation.subject, operation.number)
        undone = (operation.state, found and found.state) == (OperationState.UNDOING, OperationState.UNDONE)
        if found is None or found.state is OperationState.DONE or undone:
            return found or operation
        if found.state is OperationState.RUNNING or found.state is operation.state:
            raise UnderWay(Reason.OPERATION_RUNNING, "Another call carries this on; send the same request again.")
        raise GivenUp(
            Reason.CHANGED_MEANWHILE,
            f"{operation.subject} was changed meanwhile, so this was given up; send it anew, under a fresh request id.",
        )

    # ---- in the background ---------------------------------------------------------------------------------------

    def due(self) -> dict[str, list[Operation]]:
        """What nobody has come back for, or is to be tried again, by whom it waits for; the oldest first."""
        rows = [row for state in LIVE for row in self._store.due(Operation, self._now(), limit=MOST, state=state.value)]
        self._pauses.keep_those_of(rows)
        found: dict[str, list[Operation]] = {}
        for row in rows:
            if self._pauses.over(row):
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
                operation = self._turned_back(plan, Work(call=call, operation=operation), Reason.ABANDONED)
            left = self.run(call, operation)
            if not left.state.over and left.due_at <= self._now():
                self._pauses.begin(left, plan.longest_pause)
        except _OvertakenError:
            return None
        except BrokerError as refusal:
            return refusal if self._put_off(call, operation, refusal) else None
        return None

    def _put_off(self, call: Call, operation: Operation, refusal: BrokerError) -> bool:
        """Whether there is still something to do about it, which is tried again after a pause."""
        plan = self._plans.get(operation.kind)
        stored = self._store.get(Operation, operation.subject, operation.number)
        if stored is None or stored.state.over:
            return False
        if stored.failure != refusal.reason:
            with self._store.write(call.outcome(refusal.outcome, refusal.reason)) as write:
                failed = replace(stored, failure=refusal.reason, attempts=stored.attempts + 1)
                stored = write.replace(stored, failed)
            call.closed = True
        longest = plan.longest_pause if plan else KEEP
        self._pauses.begin(stored, SLOW if plan and refusal.reason in plan.slow else longest)
        return True

    def wake(self, subject: str, number: int) -> None:
        """Have one that waits for others looked at in the next round; those it waits for say so when they are done."""
        self._pauses.end(subject, number)

    def alarm(self, operation: Operation) -> str:
        """What the log is to say as long as this one cannot go on."""
        plan = self._plans.get(operation.kind)
        return plan.alarm(operation) if plan else "an operation waits"

    def chores(self) -> Iterator[Chore]:
        """What the background has to do besides: forget what was over long ago."""
        for state in OVER:
            before: list[Operation] = []
            while (rows := self._store.due(Operation, self._now(), limit=BATCH, state=state.value)) and rows != before:
                yield "operation/*", partial(self._forget, rows)
                before = rows  # the same again: that piece has failed

    def _forget(self, rows: list[Operation], call: Call) -> None:
        with self._store.write(call.outcome()) as write:
            for row in rows:
                write.delete(row)
        call.closed = True

    def _plan(self, operation: Operation) -> Plan:
        plan = self._plans.get(operation.kind)
        if plan is None or operation.step > len(plan.steps):
            raise WrongState(
                Reason.OPERATION_KIND_UNKNOWN,
                f"This release does not know operations of the kind {operation.kind}; {operation.subject} stays as it "
                "is until the newest release that has used this database is started.",
            )
        return plan


def closed(operation: Operation, reason: str, at: datetime) -> Operation:
    """The operation, ended at ``at`` without anything being done about it."""
    return replace(operation, state=OperationState.UNDONE, failure=reason, memory={}, due_at=at + KEEP)


def _turned(operation: Operation, reason: str, now: datetime) -> Operation:
    return replace(operation, state=OperationState.UNDOING, failure=reason, due_at=now)


def _must_be_live(operation: Operation) -> None:
    if operation.state.over:
        raise WrongState(
            Reason.OPERATION_OVER, f"This operation on {operation.subject} is {operation.state}; nothing is left to do."
        )


def running(operation: Operation) -> UnderWay:
    """The refusal to begin what is under way already."""
    return UnderWay(
        Reason.OPERATION_RUNNING, f"An operation on {operation.subject} is under way; try again when it is over."
    )


def _learned(work: Work) -> Operation:
    return replace(work.operation, memory={**work.memory, **work.learned})


def _last_word(plan: Plan, work: Work, refusal: BrokerError | None) -> tuple[AuditEntry, bool]:
    """The entry of an undoing, and whether it closes the call."""
    if plan.undone_reason:
        return work.call.outcome(Outcome.ABORTED, plan.undone_reason), False
    if refusal is not None:
        return work.call.outcome(refusal.outcome, refusal.reason), True
    return (work.call.intent(), False) if work.attended else (work.call.outcome(), True)
