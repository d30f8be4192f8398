"""Who brings keys to places: begins the operation that does it, takes one up that was left, and answers for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial

from broker.core.call import Call
from broker.core.errors import AlreadyExists, WrongState
from broker.core.imports.arrival import Arrival, Found
from broker.core.imports.delivery import Delivery
from broker.core.imports.ledger import Asked, Imported, Ledger, unchanged
from broker.core.imports.places import ARRIVAL_GRACE, UNDER_WAY, Before, recalled, subject_of
from broker.core.imports.road import Road, remembered
from broker.core.imports.rules import EXPORTED, NO_TERMS, TERMS_UNSETTLED, in_progress, make_room, resumed
from broker.core.imports.steps import Steps
from broker.core.kinds import ImportState, OperationState
from broker.core.model import Import, Operation, Terms
from broker.core.operations.plan import Plan
from broker.core.operations.running import GivenUp, UnderWay
from broker.core.ports import Carries, Write
from broker.core.reasons import Reason
from broker.core.receipts import keep, replay
from broker.core.targets.copies import place_of

STEP = 100

QUICKER = frozenset({Reason.NAME_TAKEN, Reason.CHANGED_MEANWHILE, Reason.OPERATION_RUNNING})
"""How it shows that another process has begun the same."""


class Bringing:
    """What brings keys to targets. All nouns that import share one, so that they take turns at a key and target."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self._steps = Steps(ledger)

    # ---- what the nouns ask for ----------------------------------------------------------------------------------

    def before(self, asked: Asked) -> Before:
        """How the place was found. What an earlier attempt has left enabled is disabled first, or nothing goes on.

        The same goes for what it has left under other names at the target.
        """
        row, rows = self.ledger.rows(asked)
        mine = [one for one in rows if one.version == asked.version.number and one.state in UNDER_WAY]
        left = [one for one in mine if one == row or one.state is ImportState.DISABLING]
        undone = [] if asked.call.validate_only else [self._undo(asked.call, one) for one in left]
        if any(undone):
            row, rows = self.ledger.rows(asked)
        live = row is not None and row.state in UNDER_WAY | {ImportState.HELD}
        return Before(row=row, rows=rows, operation=self._live(row) if row and live else None)

    def bring(self, asked: Asked, delivery: Delivery, before: Before, found: Found | None, terms: Terms) -> Imported:
        """Send it, unless it was ``found`` there, and prove it."""
        road = Road(there=delivery.there, target=asked.target, delivery=delivery, found=found)
        new = resumed(self.ledger.begun(asked, delivery, before.row), before.row, found)
        plan = self._steps.importing(terms)
        return self._run(asked, plan, new, before, road, terms)

    def confirm(
        self, asked: Asked, there: Arrival, row: Import, before: Before, found: Found, terms: Terms
    ) -> Imported:
        """Prove what was ``found`` there."""
        road = Road(there=there, target=asked.target, found=found)
        new = resumed(replace(row, state=ImportState.PENDING), row, found)
        plan = self._steps.confirming(terms)
        return self._run(asked, plan, new, before, road, terms)

    def export(
        self, asked: Asked, delivery: Delivery, new: Import, before: Before, files: Carries
    ) -> tuple[Import, bytes]:
        """Wrap it into a file, for people to carry there."""
        if before.is_there:
            raise in_progress("what was uploaded before is at the target and being proven; import or confirm it")
        road = Road(there=delivery.there, target=asked.target, delivery=delivery, files=files)
        done = self._run(asked, self._steps.export, new, before, road, NO_TERMS)
        return done.row, road.file

    def chores(self) -> Iterator[tuple[str, Callable[[Call], None]]]:
        """Rows that an older release has left under way become operations, and are settled as those are.

        But what waits for people waits on, and so does what has proven itself and was to be held to terms, which no row
        tells.
        """
        for state in UNDER_WAY:
            after: tuple[str | int, ...] = ()
            where: dict[str, str | int] = {"state": state.value}
            while rows := self.ledger.store.page(Import, after=after, limit=STEP, where=where, sound_only=True):
                after = place_of(rows[-1])
                for row in rows:
                    if self._is_forgotten(row):
                        yield f"key/{row.key},target/{row.target}", partial(self._take_up, row)

    # ---- who is at it --------------------------------------------------------------------------------------------

    def _run(self, asked: Asked, plan: Plan, new: Import, before: Before, road: Road, terms: Terms) -> Imported:
        road.row, operation = self._begun(asked, plan, new, before, remembered(before, road.found, terms))
        place = place_of(new)
        try:
            self.ledger.operations.run(asked.call, operation, given=road)
        except (UnderWay, GivenUp) as error:
            return Imported(row=self.ledger.overtaken(place, error), extra=road.extra)
        proven = plan is self._steps.export or road.row.state is ImportState.PROVEN
        row = road.row if proven else self.ledger.store.get(Import, *place)
        return Imported(row=row or road.row, extra=road.extra)

    def _begun(
        self, asked: Asked, plan: Plan, new: Import, before: Before, memory: Mapping[str, str]
    ) -> tuple[Import, Operation]:
        """Write the intent; the same request carries on what it began, any other one takes the place over."""
        forgotten = make_room(self.ledger.store, new) if before.row is None else []
        call, operations, live = asked.call, self.ledger.operations, before.operation
        try:
            with self.ledger.store.write(call.intent()) as write:
                receipt = replay(write, call)
                unchanged(write, asked, sends=plan not in self._steps.confirmings)
                row = write.replace(before.row, new) if before.row else _added(write, new, forgotten)
                its_own = receipt is not None and live is not None and receipt.operation == live.number
                if live is not None and its_own and live.kind == plan.kind and "remote_version" in memory:
                    return row, operations.renew(write, live)
                if live is not None:
                    operations.close(write, live, "TAKEN_OVER")
                operation = operations.begin(write, call, plan, subject_of(new), memory)
                if receipt is None:
                    keep(write, call, new.key, new.version, operation=operation)
                return row, operation
        except (AlreadyExists, WrongState, UnderWay) as error:
            if error.reason in QUICKER:
                raise in_progress("another call has begun it; try again") from error
            raise

    def _live(self, row: Import) -> Operation | None:
        return self.ledger.operations.live(self.ledger.store, subject_of(row))

    def _undo(self, call: Call, row: Import) -> bool:
        """Bring what is being undone to its end; whether there was something."""
        operation = self._live(row)
        if operation is None and row.state is ImportState.DISABLING:
            operation = self._adopted(call, row)
        if operation is None or operation.state is not OperationState.UNDOING:
            return False
        try:
            self.ledger.operations.run(call, operation)
        except UnderWay as error:
            raise in_progress("an earlier attempt is being undone; try again") from error
        return True

    def _is_forgotten(self, row: Import) -> bool:
        waits = row.state is ImportState.PENDING and row.failure in {EXPORTED, TERMS_UNSETTLED}
        old = row.started_at + ARRIVAL_GRACE <= self.ledger.now()
        return old and not waits and self._live(row) is None

    def _take_up(self, row: Import, call: Call) -> None:
        self.ledger.operations.run(call, self._adopted(call, row))

    def _adopted(self, call: Call, row: Import) -> Operation:
        """The operation of a row that was begun before there were any."""
        undo_for = (row.failure or "UNKNOWN") if row.state is ImportState.DISABLING else ""
        with self.ledger.store.write(call.intent()) as write:
            write.replace(row, row)  # it is still as it was read
            return self.ledger.operations.begin(
                write, call, self._steps.importing(), subject_of(row), recalled(row), undo_for=undo_for
            )


def _added(write: Write, row: Import, forgotten: list[Import]) -> Import:
    for one in forgotten:
        stored = write.get(Import, *place_of(one))
        if stored is not None and stored.state is ImportState.GONE:
            write.delete(stored)
    write.add(row)
    return row
