"""The background's share in operations, at a time that the test sets."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from broker.core.call import background_call
from broker.core.operations.running import Operations
from broker.core.ports import Store

Now = Callable[[], datetime]


def operations(store: Store, now: Now) -> Operations:
    """Operations whose pauses go by the test's clock."""

    def ticks() -> float:
        return now().timestamp()

    return Operations(store, now, ticks)


def carry_on(operations: Operations, now: Now) -> int:
    """Carry on what is due, once each; how many came to their end."""
    due = [row for rows in operations.due().values() for row in rows]
    return sum(operations.carry_on(background_call(f"operation/{row.subject}", 0, now), row) is None for row in due)
