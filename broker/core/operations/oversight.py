"""Operations as people see them: what is under way, what waits and for whom; trying again, and giving up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from threading import BoundedSemaphore, Event

from broker.core.amiss import no_operation
from broker.core.call import Call
from broker.core.errors import Exhausted, InvalidRequest
from broker.core.kinds import OperationState
from broker.core.model import Key, Operation, Target
from broker.core.once import once
from broker.core.operations.plan import Plan
from broker.core.operations.running import Operations
from broker.core.page import Page
from broker.core.policy import guard
from broker.core.policy.guard import BROKER, Guard, Resource
from broker.core.ports import Store, Write
from broker.core.reasons import Reason

LONGEST_WAIT = timedelta(seconds=10)
WAITING = 4
"""Calls that wait at a time: each holds a thread."""

LOOK_EVERY = 0.2
"""Seconds between two looks of a call that waits."""

MAX_NAME = 512
MAX_NUMBER = 1 << 63

_Change = Callable[[Write, Operation], Operation]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """An operation and its plan; None for a kind that this release does not know."""

    operation: Operation
    plan: Plan | None

    @property
    def name(self) -> str:
        """What it is about, and its number."""
        return f"{self.operation.subject}/{self.operation.number}"

    @property
    def place(self) -> str:
        """Whom it waits for; "" when it is over, or of an unknown kind."""
        return "" if self.plan is None or self.operation.state.over else self.plan.place(self.operation)

    @property
    def abortable(self) -> bool:
        """Whether it can be given up."""
        running = self.operation.state is OperationState.RUNNING
        return self.plan is not None and running and self.plan.can_turn


class Oversight:
    """The noun behind OperationService. Whose key or target it is about decides who may."""

    def __init__(self, store: Store, guard: Guard, operations: Operations, ticks: Callable[[], float]) -> None:
        self._store = store
        self._guard = guard
        self._operations = operations
        self._ticks = ticks
        self._places = BoundedSemaphore(WAITING)
        self._never = Event()

    def get(self, call: Call, name: str) -> Shown:
        """One operation; NotFound ``OPERATION_NOT_FOUND`` for those who may know."""
        return self.shown(self._permitted(call, name))

    def page(self, call: Call, subject: str, after: tuple[str | int, ...], limit: int, *, live: bool) -> Page[Shown]:
        """By subject and number; only those that the caller may get, so a page can be shorter than ``limit``.

        ``subject``: those about this, and about what is below it; "": about anything.
        """
        if not _is_sound(subject):
            raise _no_name()
        self._guard.check(call, BROKER)
        rows = self._store.page(Operation, after=after, limit=limit, begins=subject, sound_only=True)
        items = [
            self.shown(row)
            for row in rows
            if f"{row.subject}/".startswith(f"{subject}/" if subject else "")
            and not (live and row.state.over)
            and self._guard.permits(call.principal, "GetOperation", self._resource(row.subject))
        ]
        return Page(items=items, next=(rows[-1].subject, rows[-1].number) if len(rows) == limit else ())

    def wait(self, call: Call, name: str, timeout: timedelta | None) -> Shown:
        """The operation once it is over, or as it is when ``timeout`` (at most 10 s) has passed."""
        row = self._permitted(call, name)
        if not self._places.acquire(blocking=False):
            raise Exhausted(
                Reason.WAITERS_BUSY,
                f"{WAITING} calls wait for operations already; try again in a few seconds, or ask for it by "
                "GetOperation, which waits for nothing.",
            )
        try:
            return self.shown(self._over(row, LONGEST_WAIT if timeout is None else min(timeout, LONGEST_WAIT)))
        finally:
            self._places.release()

    def retry(self, call: Call, name: str) -> Shown:
        """Have it tried again at once, instead of after its pause; one that is over stays as it is."""
        return self._changed(call, name, lambda row: row, self._operations.retry)

    def abort(self, call: Call, name: str) -> Shown:
        """Give it up: the background undoes it. WrongState ``OPERATION_OVER``, ``OPERATION_ONLY_FORWARD``."""
        return self._changed(
            call, name, self._operations.aborted, lambda write, row: self._operations.abort(write, call, row)
        )

    def _over(self, row: Operation, seconds: timedelta) -> Operation:
        until = self._ticks() + seconds.total_seconds()
        while not row.state.over and self._ticks() < until:
            self._never.wait(LOOK_EVERY)
            row = self._store.get(Operation, row.subject, row.number) or row
        return row

    def _changed(self, call: Call, name: str, check: Callable[[Operation], Operation], change: _Change) -> Shown:
        row = self._permitted(call, name)
        if call.validate_only:
            return self.shown(check(row))

        def now(write: Write) -> Operation:
            return write.get(Operation, row.subject, row.number) or row

        done = once(
            self._store,
            call,
            row.subject,
            lambda write: change(write, now(write)),
            lambda write, _: now(write),
            version=row.number,
        )
        return self.shown(done)

    def _permitted(self, call: Call, name: str) -> Operation:
        subject, number = _parsed(name)
        self._guard.check(call, self._resource(subject))
        row = self._store.get(Operation, subject, number)
        if row is None:
            raise no_operation(name)
        return row

    def shown(self, row: Operation) -> Shown:
        """With its plan."""
        return Shown(operation=row, plan=self._operations.plans.get(row.kind))

    def _resource(self, subject: str) -> Resource:
        """The key or target that the subject names, existing or not; the broker for all that is its own."""
        kind, _, rest = subject.partition("/")
        name = rest.partition("/")[0]
        if kind in {"key", "import"} and name:
            key = self._store.get(Key, name)
            return guard.of_key(key) if key else guard.of_unknown_key(name)
        if kind == "target" and name:
            target = self._store.get(Target, name)
            return guard.of_target(target) if target else guard.of_unknown_target(name)
        return BROKER


def _parsed(name: str) -> tuple[str, int]:
    subject, _, number = name.rpartition("/")
    if not _is_sound(name) or not (subject and number.isdecimal() and int(number) < MAX_NUMBER):
        raise _no_name()
    return subject, int(number)


def _is_sound(name: str) -> bool:
    return len(name) <= MAX_NAME and name.isascii() and name.isprintable()


def _no_name() -> InvalidRequest:
    return InvalidRequest(
        Reason.OPERATION_NAME_INVALID,
        "That is no name of an operation; `broker operation list` shows those there are, as key/payments/3/1.",
    )
