"""The background's part in imports, at the pace of a bench's clock."""

from __future__ import annotations

from broker.core.call import background_call
from broker.core.errors import BrokerError
from broker.loop import OPERATIONS_EVERY
from tests.live.imports.bench import Ground


class Background:
    """Looks every other second for what is to be done about operations that nobody came back for."""

    def __init__(self, bench: Ground) -> None:
        self.bench = bench
        self.operations = bench.imports.ledger.operations

    def run(self, seconds: float) -> list[BrokerError]:
        """Let so many seconds of the bench's clock pass; what was answered meanwhile."""
        errors: list[BrokerError] = []
        for _ in range(int(seconds / OPERATIONS_EVERY.total_seconds())):
            for rows in self.operations.due().values():
                found = [
                    self.operations.carry_on(background_call(row.subject, 0, self.bench.clock), row) for row in rows
                ]
                errors += [error for error in found if error]
            self.bench.clock.forward(seconds=OPERATIONS_EVERY.total_seconds())
        return errors
