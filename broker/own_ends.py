"""How old the broker's own keys are, and what of them ends soon, in sentences: for the doctor and the log."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

from broker.core.authorities.lifecycle import IN_TIME, ends
from broker.core.kinds import Own, OwnKeyState
from broker.core.own_key import OwnKey

OLD = timedelta(days=3 * 365)
"""How long a key that ends by nothing else is used at most (NIST SP 800-57 part 1, 5.3.6)."""

BEFORE = timedelta(days=30)
"""How long before that it is told."""


def ending(versions: Iterable[OwnKey], now: datetime) -> list[str]:
    """What should be done about them, one sentence each; [] when nothing should."""
    return [sentence for one in versions if (sentence := _sentence(one, now))]


def ages(versions: Iterable[OwnKey], now: datetime) -> str:
    """Each in force, with its age and the end of its certificate."""
    return "; ".join(_age(one, now) for one in versions if one.state is OwnKeyState.ACTIVE)


def _sentence(one: OwnKey, now: datetime) -> str:
    if one.certificate:
        return _of_ca(one, ends(one), now)
    age = now - (one.since or one.created_at)
    if one.state is OwnKeyState.ACTIVE and age > OLD - BEFORE:
        return f"The {one.name} key is {_days(age)} old: `broker authority rotate {one.name}`."
    return ""


def _of_ca(one: OwnKey, end: datetime, now: datetime) -> str:
    if not now < end < now + IN_TIME:
        return ""
    if one.state is OwnKeyState.ACTIVE:
        return (
            f"The CA {one.name} ends {end:%Y-%m-%d} and should have been rotated by itself: `broker authority rotate "
            f"{one.name}`."
        )
    if one.name == Own.SERVER_CA and one.state in {OwnKeyState.FORMER, OwnKeyState.DESTROYED}:
        return (
            f"Clients that trust version {one.version} of server-ca alone do not know the broker any more after "
            f"{end:%Y-%m-%d}: give them the CA file of today (`broker authority trust`; `broker operator renew` does "
            "it in a profile)."
        )
    return ""


def _age(one: OwnKey, now: datetime) -> str:
    end = f", until {ends(one):%Y-%m-%d}" if one.certificate else ""
    return f"{one.name} version {one.version}: {_days(now - (one.since or one.created_at))} old{end}"


def _days(age: timedelta) -> str:
    return f"{max(0, age.days)} days"
