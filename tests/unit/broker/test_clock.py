"""Three clocks that the test drives: what the broker takes for the time, and what it says and does about the others."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from broker.core.clock import ALLOWANCE, Clock, Timely
from broker.core.errors import Unavailable
from broker.core.identity import Credentials
from broker.core.model import Principal

TRUE = datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
SECOND = timedelta(seconds=1)
NONE = timedelta()


class World:
    """True time goes by; each clock is as far off as it is set. ``way``: how long a word to the database takes."""

    def __init__(self, host: timedelta = NONE, database: timedelta | None = NONE) -> None:
        self.gone, self.paused = NONE, NONE
        self.host, self.database = host, database
        self.way = self.back = timedelta(milliseconds=1)
        self.clock = Clock(lambda: TRUE + self.gone + self.host, lambda: self.gone - self.paused)
        self.start = TRUE

    def forward(self, by: timedelta) -> None:
        self.gone += by

    def told(self) -> datetime | None:
        if self.database is None:
            return None
        self.gone += self.way
        said = TRUE + self.gone + self.database
        self.gone += self.back
        return said

    def look(self, rounds: int = 1) -> None:
        for _ in range(rounds):
            self.forward(3 * SECOND)
            self.clock.look(self.told)

    @property
    def off(self) -> timedelta:
        """How far the broker's time is from the true one."""
        return self.clock.now() - (TRUE + self.gone)


def close(found: timedelta, wanted: timedelta = NONE, by: timedelta = SECOND / 100) -> bool:
    return abs(found - wanted) <= by


def test_clocks_that_agree_are_no_trouble() -> None:
    world = World()
    world.look(5)
    assert (world.clock.in_doubt, world.clock.trouble) == (False, "")
    assert close(world.off)
    world.clock.check()


@pytest.mark.parametrize("database", [NONE, None])
@pytest.mark.parametrize("jump", [HOUR, -HOUR, 8760 * HOUR, timedelta(minutes=-5)])
def test_FT_23_a_host_clock_that_jumps_moves_no_end_and_is_told(jump: timedelta, database: timedelta | None) -> None:
    world = World(database=database)
    world.look()
    world.host = jump
    assert close(world.off)
    world.look(30)
    assert close(world.off)
    assert not world.clock.in_doubt
    assert f"{abs(jump).total_seconds():.0f} s {'ahead of' if jump > NONE else 'behind'}" in world.clock.trouble
    world.host = NONE
    world.look()
    assert world.clock.trouble == ""


@pytest.mark.parametrize("off", [timedelta(minutes=5), timedelta(minutes=-5), 6 * SECOND, -6 * SECOND])
def test_FT_24_a_broker_that_starts_with_another_time_than_the_database_judges_nothing_by_it(off: timedelta) -> None:
    world = World(host=off)
    world.look()
    assert world.clock.in_doubt
    with pytest.raises(Unavailable) as found:
        world.clock.check()
    assert (found.value.reason, "NTP" in found.value.message) == ("CLOCK_OFF", True)
    world.host = NONE  # set right
    world.look()
    assert close(world.off)
    world.clock.check()
    assert world.clock.trouble == ""


@pytest.mark.parametrize("off", [4 * SECOND, -4 * SECOND])
def test_FT_24_a_smaller_difference_is_made_up_for_before_anybody_is_judged(off: timedelta) -> None:
    world = World(host=off)
    world.look()
    assert close(world.off)
    assert world.clock.trouble == ""


def test_FT_24_brokers_that_differ_agree_on_every_end_within_a_fraction_of_a_second() -> None:
    worlds = [World(host=off) for off in (-4 * SECOND, NONE, 4 * SECOND)]
    for world in worlds:
        world.look(10)
    assert all(close(world.off) for world in worlds)


@pytest.mark.parametrize("jump", [HOUR, -HOUR])
def test_FT_46_a_database_clock_that_jumps_is_not_followed(jump: timedelta) -> None:
    world = World()
    world.look()
    world.database = jump
    world.look(30)
    assert world.clock.in_doubt
    assert close(world.off)
    world.database = NONE
    world.look()
    assert not world.clock.in_doubt


def test_FT_46_a_database_clock_that_creeps_leads_nobody_further_than_the_allowance() -> None:
    world = World()
    for _ in range(1000):
        assert world.database is not None
        world.database += timedelta(milliseconds=50)
        world.look()
    assert abs(world.off) <= ALLOWANCE + SECOND
    assert world.clock.in_doubt


def test_FT_23_a_virtual_machine_that_stood_still_judges_again_when_its_host_clock_is_set() -> None:
    world = World()
    world.look()
    world.forward(HOUR)
    world.paused, world.host = HOUR, -HOUR  # neither clock has counted
    world.look()
    assert world.clock.in_doubt
    world.host = NONE
    world.look()
    assert not world.clock.in_doubt
    assert close(world.off)


def test_a_small_difference_is_made_up_for_in_small_steps() -> None:
    world = World()
    world.look()
    world.database = world.host = 2 * SECOND
    before = world.off
    for _ in range(25):
        world.look()
        assert NONE <= world.off - before <= timedelta(milliseconds=101)
        before = world.off
    assert close(world.off, 2 * SECOND)


@pytest.mark.parametrize(("way", "back"), [(0.4, 0.0), (0.0, 0.4), (0.2, 0.2)])
def test_a_slow_way_to_the_database_is_no_difference(way: float, back: float) -> None:
    world = World(host=ALLOWANCE - SECOND / 10)
    world.way, world.back = timedelta(seconds=way), timedelta(seconds=back)
    world.look(20)
    assert not world.clock.in_doubt
    assert abs(world.off) <= timedelta(seconds=0.21)


def test_the_quickest_answer_is_believed() -> None:
    world = World()
    ways = iter([timedelta(seconds=0.7), timedelta(milliseconds=1), timedelta(seconds=0.7)] * 10)

    def told() -> datetime | None:
        world.way = next(ways)
        return world.told()

    world.host = 3 * SECOND
    world.clock = Clock(lambda: TRUE + world.gone + world.host, lambda: world.gone)
    world.clock.look(told)
    assert close(world.off)


class Anybody:
    def authenticate(self, credentials: Credentials) -> Principal | None:
        return Principal(kind="pipeline", name="deploy") if credentials.metadata else None


def test_FT_24_no_token_is_judged_by_a_time_in_doubt() -> None:
    world = World(host=HOUR)
    world.look()
    timely = Timely(world.clock, Anybody())
    shown = Credentials(certificate=None, chain_verified=False, metadata={"authorization": "bearer brs_x"}, peer="p")
    with pytest.raises(Unavailable):
        timely.authenticate(shown)
    none = Credentials(certificate=None, chain_verified=False, metadata={}, peer="p")
    assert timely.authenticate(none) is None  # who shows a certificate is let in to see to it
    world.host = NONE
    world.look()
    assert timely.authenticate(shown) == Principal(kind="pipeline", name="deploy")


def test_a_database_that_does_not_answer_changes_nothing() -> None:
    world = World(host=HOUR)
    world.look()

    def away() -> datetime | None:
        raise Unavailable("STORE_UNAVAILABLE", "Away.")

    look: Callable[[], None] = lambda: world.clock.look(away)  # noqa: E731
    with pytest.raises(Unavailable):
        look()
    assert world.clock.in_doubt
