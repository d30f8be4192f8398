"""The broker's time: what ends sessions, and who may use a token (FT-23, FT-24).

Three clocks are held against each other: the one that this counts on by itself and that nobody can set, the host's,
and, where several brokers share a database, the database's, which is the same for all of them. Two that agree are
right. A broker whose own time does not agree with the database's does not judge: others, whose time does, go on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from threading import Lock

from broker.core.errors import Unavailable
from broker.core.identity import Credentials
from broker.core.model import Principal
from broker.core.ports import Authenticator, Now
from broker.core.reasons import Reason

ALLOWANCE = timedelta(seconds=5)
"""How far clocks may differ before it is told, and before a broker that differs from its database stops judging."""

STRIDE = timedelta(milliseconds=100)
"""How much of a smaller difference from the database is made up for at each look, so that no time is passed over."""

LOOKS = 3
"""Answers of the database that are timed at each look; the quickest is the one that says most."""

NONE = timedelta()


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """What the last look found: how far the others are ahead of the broker's time, beyond what timing them can tell."""

    host: timedelta = NONE
    database: timedelta = NONE


class Clock:
    """Counts by ``ticks`` from the host's time at its making; they go on while the host sleeps. Thread-safe."""

    def __init__(self, host: Now, ticks: Callable[[], timedelta]) -> None:
        self._host = host
        self._ticks = ticks
        self._start = host() - ticks()
        self._sight = Sight()
        self._looked = False
        self._turn = Lock()

    def now(self) -> datetime:
        """The broker's time."""
        return self._start + self._ticks()

    def look(self, database: Callable[[], datetime | None]) -> None:
        """Compare with the host's clock, and with the database's where it has one (else it says None)."""
        with self._turn:
            told = self._told(database)
            host = self._host() - self.now()
            if told is None:
                self._sight = Sight(host=host)
                return
            ahead, unsure = told
            step = self._step(ahead, host, unsure)
            self._start += step
            self._sight = Sight(host=host - step, database=_beyond(ahead - step, unsure))
            self._looked = True

    @property
    def in_doubt(self) -> bool:
        """Whether the broker's time is not the database's, so that it must not judge by it."""
        return abs(self._sight.database) > ALLOWANCE

    @property
    def trouble(self) -> str:
        """What is wrong with the clocks, a sentence; "" when they agree."""
        if self.in_doubt:
            return (
                f"The database's clock is {_seconds(self._sight.database)} this broker's, so it lets no pipeline in "
                "and ends no session; set both hosts by NTP."
            )
        if abs(self._sight.host) > ALLOWANCE:
            return (
                f"The host's clock was set: it is {_seconds(self._sight.host)} this broker's, which goes on as before; "
                "set it by NTP, and restart the broker if the new time is right."
            )
        return ""

    def check(self) -> None:
        """Return if the broker's time can be judged by; else Unavailable ``CLOCK_OFF``."""
        if self.in_doubt:
            raise Unavailable(Reason.CLOCK_OFF, self.trouble)

    def _told(self, database: Callable[[], datetime | None]) -> tuple[timedelta, timedelta] | None:
        """(how far the database is ahead, how much of that its way there and back may account for)."""
        found = []
        for _ in range(LOOKS):
            asked = self.now()
            told = database()
            if told is None:
                return None
            half = (self.now() - asked) / 2
            found.append((half, told - asked - half))
        unsure, ahead = min(found)
        return ahead, unsure

    def _step(self, ahead: timedelta, host: timedelta, unsure: timedelta) -> timedelta:
        """How much of what the database is ahead is made up for now: only what the host's clock bears out."""
        if abs(ahead - host) > ALLOWANCE + unsure or abs(ahead) <= unsure:
            return NONE
        if abs(ahead) > ALLOWANCE + unsure or not self._looked:
            return ahead  # two of three say so; or nobody was judged by this time yet
        return max(-STRIDE, min(ahead, STRIDE))


class Timely:
    """An authenticator of those who show a token: none of them is judged by a time that is in doubt."""

    def __init__(self, clock: Clock, inner: Authenticator) -> None:
        self._clock = clock
        self._inner = inner

    def authenticate(self, credentials: Credentials) -> Principal | None:
        """See ``Authenticator``; Unavailable ``CLOCK_OFF``."""
        if "authorization" in credentials.metadata:
            self._clock.check()
        return self._inner.authenticate(credentials)


def _beyond(difference: timedelta, unsure: timedelta) -> timedelta:
    """What is left of a difference when its measuring was as wrong as it can be."""
    left = max(NONE, abs(difference) - unsure)
    return left if difference >= NONE else -left


def _seconds(ahead: timedelta) -> str:
    return f"{abs(ahead).total_seconds():.0f} s {'ahead of' if ahead > NONE else 'behind'}"
