"""How many leases there may be, and versions of one secret."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta

from broker.core.errors import Exhausted
from broker.core.kinds import LeaseState, SecretVersionState
from broker.core.model import Lease, SecretVersion
from broker.core.ports import Now, Store
from broker.core.reasons import Reason

RECOUNT = timedelta(seconds=1)

MAX_KEPT = 10_000
"""Versions of one secret that are not destroyed: room for a rotation each hour of a year."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseQuota:
    """Leases at once, for one principal and in all; the length of a session that does not ask for one.

    One process never passes ``per_principal``. Of several processes each sees what the others have written, and not
    what they are about to write: together they may pass it by what the others have under way, at most 100 leases for
    each of their threads; and ``in_all`` by what the others add in a second. A principal has at most as many sessions
    as leases, and one more for each other login of the same moment.
    """

    per_principal: int = 1000
    in_all: int = 100_000
    usual: timedelta = timedelta(minutes=5)


class Tally:
    """How many leases there are: those that are written, and those that this process is about to write.

    Those in all are counted at most once a second, and by what is added meanwhile.
    """

    def __init__(self, store: Store, now: Now, limits: LeaseQuota) -> None:
        self._store = store
        self._now = now
        self._limits = limits
        self._lock = threading.Lock()
        self._adding: Counter[str] = Counter()
        self._count = 0
        self._counted_at: datetime | None = None

    @contextmanager
    def room(self, principal: str, more: int) -> Iterator[None]:
        """Keep room for so many more leases until they are written; Exhausted ``LEASE_QUOTA`` or ``LEASE_CAP``.

        What others add is looked at before what is written: so a lease that is written in between counts twice, and
        none is ever missed.
        """
        with self._lock:
            adding = self._adding[principal]
            self._adding[principal] += more
        try:
            self._check_principal(principal, adding + more)
            self._check_all(more)
            yield
        finally:
            with self._lock:
                self._adding[principal] -= more
                if not self._adding[principal]:
                    del self._adding[principal]

    def _check_principal(self, principal: str, more: int) -> None:
        held = self._store.count(Lease, {"principal": principal, "state": LeaseState.ACTIVE.value})
        if held + more > self._limits.per_principal:
            raise Exhausted(
                Reason.LEASE_QUOTA,
                f"This pipeline holds {held} leases of the {self._limits.per_principal} that one may have; each ends "
                f"with its session, and an operator ends those with `broker session revoke --principal {principal}` "
                "or raises leases_per_pipeline under [sessions].",
            )

    def _check_all(self, more: int) -> None:
        with self._lock:
            now = self._now()
            if self._counted_at is None or abs(now - self._counted_at) >= RECOUNT:
                adding = self._adding.total() - more
                written = self._store.count(Lease, {"state": LeaseState.ACTIVE.value})
                self._count, self._counted_at = written + adding, now
            if self._count + more > self._limits.in_all:
                raise Exhausted(
                    Reason.LEASE_CAP,
                    f"All pipelines together hold the {self._limits.in_all} leases that there may be; each ends with "
                    "its session, and an operator finds who holds them with `broker lease list` or raises "
                    "leases_in_all under [sessions].",
                )
            self._count += more


def check_versions(store: Store, secret: str, number: int) -> None:
    """Exhausted ``VERSION_QUOTA`` when a secret has no room for its version ``number``; asks only when it may be so."""
    if number <= MAX_KEPT:
        return
    gone = store.count(SecretVersion, {"secret": secret, "state": SecretVersionState.DESTROYED.value})
    if store.count(SecretVersion, {"secret": secret}) - gone >= MAX_KEPT:
        raise Exhausted(
            Reason.VERSION_QUOTA,
            f"The secret {secret} has {MAX_KEPT} versions that are not destroyed; destroy old ones first (`broker "
            f"secret destroy {secret} --version N`).",
        )
