"""Windows in which no rotation begins: ``Mon-Fri 08:00-18:00 Europe/Berlin``, every week, by the clock on that wall.

Days are those on which a window opens; none: every day. One that closes at or before the time it opens closes on the
next day; ``00:00-24:00`` is the whole day. Without a zone the time is UTC.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta, tzinfo

from broker.core.errors import InvalidRequest, WrongState
from broker.core.reasons import Reason

Zone = Callable[[str], tzinfo | None]
"""A time zone by its name in the IANA data base; None: this host does not know it."""

MOST = 20
LONGEST = 100
"""Characters of one window."""

LEAST_FREE = timedelta(hours=1)
"""What the windows of a schedule must leave at a time, at least once a week."""

HORIZON = timedelta(days=8)
"""How far it is looked ahead: a week, and a day for a window that has begun the day before."""

_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_DAY = f"(?:{'|'.join(_DAYS)})"
_WINDOW = re.compile(
    rf"(?:(?P<days>{_DAY}(?:-{_DAY})?(?:,{_DAY}(?:-{_DAY})?){{0,6}}|daily) +)?"
    r"(?P<opens>[0-2][0-9]:[0-5][0-9])-(?P<closes>[0-2][0-9]:[0-5][0-9])(?: +(?P<zone>[A-Za-z0-9_+/-]{1,64}))?",
    re.ASCII | re.IGNORECASE,
)
_MIDNIGHT = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Window:
    """One of them. ``opens`` and ``closes`` count from midnight; ``closes`` is later, on the next day maybe."""

    days: frozenset[int]  # Monday is 0
    opens: timedelta
    closes: timedelta
    zone: tzinfo

    def around(self, moment: datetime) -> Iterator[tuple[datetime, datetime]]:
        """From when to when it is closed to rotations, of all that touch the ``HORIZON`` behind ``moment``."""
        first = moment.astimezone(self.zone).date() - timedelta(days=2)
        for number in range(HORIZON.days + 3):
            day = first + timedelta(days=number)
            if day.weekday() in self.days:
                midnight = datetime.combine(day, time())
                yield self._instant(midnight + self.opens), self._instant(midnight + self.closes)

    def _instant(self, wall: datetime) -> datetime:
        """When that wall's clock shows this time; of an hour that comes twice, the first one."""
        return wall.replace(tzinfo=self.zone).astimezone(UTC)


def parsed(texts: Iterable[str], zone: Zone) -> list[Window]:
    """The windows; InvalidRequest ``BLACKOUT_INVALID``, WrongState ``ZONE_UNKNOWN``."""
    return [_window(text, zone) for text in texts]


def check(texts: list[str], zone: Zone, now: datetime) -> list[Window]:
    """As ``parsed``; and InvalidRequest ``BLACKOUT_TOTAL`` unless they leave time to rotate at all."""
    if len(texts) > MOST:
        raise InvalidRequest(Reason.BLACKOUT_INVALID, f"A schedule has at most {MOST} blackout windows.")
    windows = parsed(texts, zone)
    if opening(windows, now, LEAST_FREE) is None:
        raise InvalidRequest(
            Reason.BLACKOUT_TOTAL,
            "The blackout windows leave no whole hour of the week in which the key could be rotated; leave one of "
            "them out, or shorten it.",
        )
    return windows


def opening(windows: list[Window], moment: datetime, least: timedelta = timedelta(0)) -> datetime | None:
    """The first time from ``moment`` on that is in no window, nor any in the ``least`` behind it.

    None: there is none within the ``HORIZON``.
    """
    found = moment
    closed = sorted(span for window in windows for span in window.around(moment))
    for begins, ends in closed:
        if begins > found + least or (begins == found + least and least):
            break
        found = max(found, ends)
    return found if found <= moment + HORIZON else None


def _window(text: str, zone: Zone) -> Window:
    found = _WINDOW.fullmatch(text.strip()) if len(text) <= LONGEST else None
    opens, closes = (_clock(found[name]) for name in ("opens", "closes")) if found else (None, None)
    if found is None or opens is None or closes is None or opens == _MIDNIGHT:
        raise InvalidRequest(
            Reason.BLACKOUT_INVALID,
            "A blackout window is not valid: write days, times and zone as in 'Mon-Fri 08:00-18:00 Europe/Berlin', "
            "'Sat,Sun 00:00-24:00' or '22:00-06:00' (every day, UTC).",
        )
    where = UTC if (found["zone"] or "UTC").upper() == "UTC" else zone(found["zone"])
    if where is None:
        raise WrongState(
            Reason.ZONE_UNKNOWN,
            f"The broker's host does not know the time zone {found['zone']}; name it as the IANA time zone data base "
            "does (Europe/Berlin), install that data there (Debian: tzdata), or use UTC.",
        )
    return Window(_days(found["days"]), opens, closes + _MIDNIGHT if closes <= opens else closes, where)


def _clock(text: str) -> timedelta | None:
    """Since midnight; None for a time that no day has."""
    hours, minutes = map(int, text.split(":"))
    since = timedelta(hours=hours, minutes=minutes)
    return since if since <= _MIDNIGHT else None


def _days(text: str | None) -> frozenset[int]:
    if not text or text.lower() == "daily":
        return frozenset(range(7))
    found = set[int]()
    for part in text.lower().split(","):
        first, _, last = part.partition("-")
        begin = _DAYS.index(first)
        count = (_DAYS.index(last) - begin) % 7 if last else 0
        found |= {(begin + step) % 7 for step in range(count + 1)}
    return frozenset(found)
