"""The background's part in imports that came to nothing, at the pace of a bench's clock."""

from __future__ import annotations

from broker.core.call import background_call
from broker.core.errors import BrokerError
from broker.core.imports.withdrawal import Withdrawals
from broker.loop import WITHDRAWALS_EVERY
from tests.integration.import_bench import Ground


class Background:
    """Looks every other second for what is to be disabled; begun anew, it remembers nothing."""

    def __init__(self, bench: Ground) -> None:
        self.bench = bench
        self.begun = bench.clock()
        self.withdrawals = Withdrawals(bench.imports.ledger, self.ticks)

    def ticks(self) -> float:
        return (self.bench.clock() - self.begun).total_seconds()

    def run(self, seconds: float) -> list[BrokerError]:
        """Let so many seconds of the bench's clock pass; what was answered meanwhile."""
        errors: list[BrokerError] = []
        for _ in range(int(seconds / WITHDRAWALS_EVERY.total_seconds())):
            for rows in self.withdrawals.due().values():
                found = [
                    self.withdrawals.attempt(background_call(f"key/{row.key}", 0, self.bench.clock), row)
                    for row in rows
                ]
                errors += [error for error in found if error]
            self.bench.clock.forward(seconds=WITHDRAWALS_EVERY.total_seconds())
        return errors
