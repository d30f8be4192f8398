"""Keys at targets that came to nothing there and may still be used: disabled as soon as the target lets it (BY-05).

An import says so in its row: DISABLING, or PENDING as ``UNPROVEN``, when the target took the key and then could not be
asked about it. The row is the alarm; it stands until the target has disabled the key, or no longer has it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from broker.core import ports
from broker.core.call import Call
from broker.core.errors import BrokerError, Unavailable, WrongState
from broker.core.imports.ledger import Ledger
from broker.core.imports.rules import TERMS_UNSETTLED
from broker.core.kinds import ImportState
from broker.core.model import Import, Target
from broker.core.reasons import Reason
from broker.core.targets.copies import alarms, place_of

FIRST_PAUSE, LONGEST_PAUSE = 2.0, 20.0
"""Seconds between two attempts; with a request that hangs for 20 s the longest is still within the minute."""

Row = tuple[str, int, str, str]


@dataclass(slots=True)
class _Waiting:
    until: float = 0.0
    pause: float = FIRST_PAUSE
    reason: str = ""  # what was last written down of it


class Withdrawals:
    """What the background does about such keys. ``ticks``: seconds, never set back.

    The pauses are kept in memory: another process, or this one after a restart, begins at once.
    """

    def __init__(self, ledger: Ledger, ticks: Callable[[], float]) -> None:
        self._ledger = ledger
        self._ticks = ticks
        self._waiting: dict[Row, _Waiting] = {}

    def due(self) -> dict[str, list[Import]]:
        """The imports whose turn it is, by target."""
        rows = alarms(self._ledger.store, "")
        self._waiting = {place_of(row): self._waiting.get(place_of(row), _Waiting()) for row in rows}
        found: dict[str, list[Import]] = {}
        for row in rows:
            if self._waiting[place_of(row)].until <= self._ticks():
                found.setdefault(row.target, []).append(row)
        return found

    def attempt(self, call: Call, row: Import) -> BrokerError | None:
        """Disable one, or find out whether it must be; why that did not work, or None.

        That it did not work is recorded once for each reason, not at each attempt.
        """
        call.note(target=row.target, version=row.version, remote_name=row.remote_name)
        try:
            self._withdraw(call, row)
        except BrokerError as error:
            self._put_off(call, row, error)
            return error
        return None

    def _withdraw(self, call: Call, row: Import) -> None:
        ledger = self._ledger
        with ledger.idle(row) as held:
            now, target = ledger.store.get(Import, *place_of(row)), ledger.store.get(Target, row.target)
            if not held or now is None or target is None or now.revision != row.revision:
                return
            port = ledger.port(target)
            if now.state is ImportState.DISABLING:
                ledger.disabled(call, port, now)
            else:
                self._find_out(call, port, now)
        if not call.settled:
            ledger.store.record(call.outcome())
            call.settled = True

    def _find_out(self, call: Call, port: ports.Target, row: Import) -> None:
        """Prove what an upload has left there; it is disabled if it is not ours."""
        there = self._ledger.arrival_of(row, port)
        left = there.left() if there else None
        if there is None or left is None:
            raise WrongState(
                Reason.IMPORT_UNSETTLED,
                f"Which version of {row.remote_name} at the target is the one that was uploaded cannot be told; "
                "disable there what its owner does not know.",
            )
        row = replace(row, remote_version=left.remote.version)
        try:
            there.prove(left.remote, enable=False)
        except Unavailable:
            raise
        except BrokerError as error:
            last = self._ledger.undone(call, port, row, error)
            if not call.settled:
                raise last from error
        else:
            self._ledger.mark(call, row, TERMS_UNSETTLED)

    def _put_off(self, call: Call, row: Import, error: BrokerError) -> None:
        waiting = self._waiting.get(place_of(row)) or _Waiting()
        waiting.until = self._ticks() + waiting.pause
        waiting.pause = min(2 * waiting.pause, LONGEST_PAUSE)
        if waiting.reason != error.reason and not call.settled:
            self._ledger.store.record(call.outcome(error.outcome, error.reason))
            call.settled = True
        waiting.reason = error.reason


def is_away(error: BrokerError) -> bool:
    """Whether the target as a whole does not answer, so that its other keys need not be tried now."""
    return isinstance(error, Unavailable) or isinstance(error.__cause__, Unavailable)
