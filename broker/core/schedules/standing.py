"""Where a key stands in its schedule: when it is to be rotated next, and whether that is late or near."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime, timedelta

from broker.core.kinds import KeyState
from broker.core.model import Key, KeyVersion, Secret
from broker.core.schedule import KeySchedule

SHORTEST = timedelta(hours=1)
LONGEST = timedelta(days=3660)
"""Between these is every period and every age that can be set."""

TOLERANCE = timedelta(minutes=15)
"""How long after its time something is not called overdue yet: the background does it meanwhile."""

LONGEST_WARNING = timedelta(days=14)


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """``next_at``: when it is due; None: at no time."""

    next_at: datetime | None = None
    overdue: bool = False
    soon: bool = False


NO_SCHEDULE = Standing()


def standing(key: Key, schedule: KeySchedule | None, primary: KeyVersion | None, now: datetime) -> Standing:
    """Of a key. One that is not enabled is neither overdue nor soon due: nothing is done with it at all."""
    if schedule is None:
        return NO_SCHEDULE
    next_at = schedule.next_at
    if primary is not None and primary.number != schedule.version:  # rotated since; the background writes it down later
        next_at = due_at(schedule, primary, now)
    return _standing(next_at, timedelta(seconds=schedule.warn), now, counts=key.state is KeyState.ENABLED)


def standing_of_secret(secret: Secret, now: datetime) -> Standing:
    """Of a secret, by the age that its latest version may reach. One that has expired is not fetched anyway."""
    if secret.renew_at is None or secret.max_age is None:
        return NO_SCHEDULE
    expired = secret.expires_at is not None and secret.expires_at <= now
    return _standing(secret.renew_at, usual_warning(timedelta(seconds=secret.max_age)), now, counts=not expired)


def _standing(next_at: datetime, warn: timedelta, now: datetime, *, counts: bool) -> Standing:
    overdue = counts and next_at + TOLERANCE < now
    return Standing(next_at=next_at, overdue=overdue, soon=counts and not overdue and next_at - warn <= now)


def usual_warning(period: timedelta) -> timedelta:
    """How long before the end of a period it is told, unless somebody says otherwise."""
    return min(LONGEST_WARNING, period / 10)


def due_at(schedule: KeySchedule, primary: KeyVersion, now: datetime) -> datetime:
    """When this version is to be replaced, whatever the blackouts; never in the past.

    A version that was made in the future (the clock has been set back since) counts from now.
    """
    due = min(primary.created_at, now) + timedelta(seconds=schedule.every)
    return max(due, now) + timedelta(seconds=_drawn(schedule, primary.number))


def _drawn(schedule: KeySchedule, number: int) -> int:
    """How much of the jitter one version gets: the same at each reckoning and in each process."""
    digest = hashlib.sha256(f"{schedule.key}/{number}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % (schedule.jitter + 1)
