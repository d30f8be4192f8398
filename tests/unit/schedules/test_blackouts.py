"""Windows in which no rotation begins: how they are written, and when the next moment outside all of them comes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from broker.core.errors import InvalidRequest
from broker.core.schedules.blackouts import LEAST_FREE, check, opening, parsed
from broker.zones import time_zone
from tests.fakes.refusals import refused

WEDNESDAY = datetime(2026, 5, 6, 10, 30, tzinfo=UTC)


def at(text: str) -> datetime:
    return datetime.fromisoformat(f"{text}+00:00")


@pytest.mark.parametrize(
    ("windows", "moment", "opens"),
    [
        ([], "2026-05-06T10:30", "2026-05-06T10:30"),
        (["08:00-18:00"], "2026-05-06T10:30", "2026-05-06T18:00"),
        (["08:00-18:00"], "2026-05-06T18:00", "2026-05-06T18:00"),
        (["08:00-18:00 UTC"], "2026-05-06T07:59", "2026-05-06T07:59"),
        (["22:00-06:00"], "2026-05-06T03:00", "2026-05-06T06:00"),
        (["22:00-06:00"], "2026-05-06T23:00", "2026-05-07T06:00"),
        (["daily 08:00-09:00", "09:00-10:00"], "2026-05-06T08:30", "2026-05-06T10:00"),
        (["Mon-Fri 00:00-24:00"], "2026-05-06T10:30", "2026-05-09T00:00"),
        (["Fri-Mon 00:00-24:00"], "2026-05-08T01:00", "2026-05-12T00:00"),
        (["sat,sun 00:00-24:00"], "2026-05-09T01:00", "2026-05-11T00:00"),
        (["Sun 22:00-22:00"], "2026-05-11T12:00", "2026-05-11T22:00"),
        (["Mon-Fri 08:00-18:00 Europe/Berlin"], "2026-05-06T06:30", "2026-05-06T16:00"),
        (["Mon-Fri 08:00-18:00 Europe/Berlin"], "2026-12-02T06:30", "2026-12-02T06:30"),
        (["Mon-Fri 08:00-18:00 Europe/Berlin"], "2026-12-02T08:30", "2026-12-02T17:00"),
        (["08:00-18:00 Pacific/Kiritimati"], "2026-05-06T19:00", "2026-05-07T04:00"),
    ],
)
def test_the_next_moment_outside_all_windows(windows: list[str], moment: str, opens: str) -> None:
    assert opening(parsed(windows, time_zone), at(moment)) == at(opens)


@pytest.mark.parametrize(("moment", "opens"), [
    ("2026-10-25T00:15", "2026-10-25T00:30"),  # 02:15, the first time; the window closes at 02:30, the first time
    ("2026-03-29T00:45", "2026-03-29T01:30"),  # 01:45; 02:30 is not on that day's clock, and comes with 03:30
])  # fmt: skip
def test_the_clock_of_a_zone_that_is_put_forward_or_back(moment: str, opens: str) -> None:
    assert opening(parsed(["01:00-02:30 Europe/Berlin"], time_zone), at(moment)) == at(opens)


@pytest.mark.parametrize("windows", [
    ["00:00-24:00"],
    ["Mon-Sun 00:00-24:00 Europe/Berlin"],
    ["00:00-12:00", "12:00-00:00"],
    ["Mon-Fri 00:00-24:00", "Sat,Sun 00:00-24:00 UTC"],
    ["00:30-00:00"],  # half an hour is left each day
    ["00:00-12:00", "12:59-24:00"],
])  # fmt: skip
def test_windows_that_cover_everything_are_refused(windows: list[str]) -> None:
    refused(lambda: check(windows, time_zone, WEDNESDAY), InvalidRequest, "BLACKOUT_TOTAL")


def test_an_hour_of_the_week_is_enough() -> None:
    windows = check(["Mon-Sat 00:00-24:00", "Sun 00:00-12:00", "Sun 13:00-24:00"], time_zone, WEDNESDAY)
    assert opening(windows, WEDNESDAY, LEAST_FREE) == at("2026-05-10T12:00")


@pytest.mark.parametrize("window", [
    "", "08:00", "8:00-18:00", "08:00-24:01", "25:00-26:00", "24:00-08:00", "08:00-18:60",
    "Mon 08:00-18:00 Berlin City",
    "Mon-Fri,08:00-18:00", "Monday 08:00-18:00", "Mon--Fri 08:00-18:00", "08:00-18:00 \x1b[31m", "x" * 101,
    "٠٨:00-18:00",
])  # fmt: skip
def test_what_is_no_window_is_refused(window: str) -> None:
    refused(lambda: parsed([window], time_zone), InvalidRequest, "BLACKOUT_INVALID")


@pytest.mark.parametrize("zone", ["Europe/Atlantis", "Europe", "../etc/passwd", "/etc/localtime"])
def test_a_zone_that_the_host_does_not_know_is_refused(zone: str) -> None:
    error = refused(lambda: parsed([f"08:00-18:00 {zone}"], time_zone))
    assert error.reason in {"ZONE_UNKNOWN", "BLACKOUT_INVALID"}


def test_windows_have_a_limit() -> None:
    refused(lambda: check(["08:00-09:00"] * 21, time_zone, WEDNESDAY), InvalidRequest, "BLACKOUT_INVALID")
    assert len(check(["08:00-09:00"] * 20, time_zone, WEDNESDAY)) == 20


def test_a_window_is_found_from_any_moment_of_a_year() -> None:
    """Against a plain look at the wall's clock, minute by minute."""
    windows = parsed(["Mon-Fri 08:00-18:00 America/New_York", "Sat 22:00-06:00 Asia/Kolkata"], time_zone)

    def closed(moment: datetime) -> bool:
        york, delhi = (moment.astimezone(time_zone(name)) for name in ("America/New_York", "Asia/Kolkata"))
        late, early = (delhi.weekday() == 5 and delhi.hour >= 22), (delhi.weekday() == 6 and delhi.hour < 6)
        return (york.weekday() < 5 and 8 <= york.hour < 18) or late or early

    moment = at("2026-01-01T00:00")
    while moment < at("2026-12-31T00:00"):
        opens = opening(windows, moment)
        assert opens is not None
        assert not closed(opens)
        assert (opens == moment) == (not closed(moment))
        assert opens == moment or closed(opens - timedelta(minutes=1))
        moment += timedelta(hours=7, minutes=13)
