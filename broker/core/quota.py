"""How many leases there may be."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from datetime import datetime, timedelta

from broker.core.errors import Exhausted
from broker.core.kinds import LeaseState
from broker.core.model import Lease
from broker.core.ports import Now, Store

RECOUNT = timedelta(seconds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Leases at once, for one principal and in all; the length of a session that does not ask for one.

    A principal has at most as many sessions as leases. Two calls at the same moment may both take the last place.
    """

    per_principal: int = 1000
    in_all: int = 100_000
    usual: timedelta = timedelta(minutes=5)


class Tally:
    """How many leases there are in all: counted at most once a second, and by what is added meanwhile."""

    def __init__(self, store: Store, now: Now) -> None:
        self._store = store
        self._now = now
        self._lock = threading.Lock()
        self._count = 0
        self._counted_at: datetime | None = None

    def admit(self, principal: str, more: int, limits: Limits) -> None:
        """Exhausted ``LEASE_QUOTA`` or ``LEASE_CAP`` when there is no room for that many more."""
        held = self._store.count(Lease, {"principal": principal, "state": LeaseState.ACTIVE.value})
        if held + more > limits.per_principal:
            raise Exhausted(
                "LEASE_QUOTA", "This pipeline holds too many leases; end sessions, or wait until they lapse."
            )
        with self._lock:
            now = self._now()
            if self._counted_at is None or abs(now - self._counted_at) >= RECOUNT:
                self._count, self._counted_at = self._store.count(Lease, {"state": LeaseState.ACTIVE.value}), now
            if self._count + more > limits.in_all:
                raise Exhausted("LEASE_CAP", "The broker holds as many leases as it is set to; try again later.")
            self._count += more
