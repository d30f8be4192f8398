"""Rotations dead at every place: one version signs, each target has what the record says, nothing is under way."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta

import pytest

from broker.core.errors import BrokerError
from broker.core.kinds import ImportState, KeyState, Phase, VersionState
from broker.core.model import KeyVersion, Operation
from tests.crash.harness import Died
from tests.crash.rotation_house import REQUEST, TARGETS, House

GRACE = timedelta(minutes=1)


def settled(house: House) -> None:
    """What the background does in the days that follow."""
    house.rounds(12, seconds=10)
    house.rounds(30, minutes=7)
    house.rounds(4, hours=25)
    house.rounds(12, seconds=40)


def rotate(house: House) -> None:
    house.rotate(GRACE, request_id=REQUEST)
    settled(house)


def compromise(house: House) -> None:
    asked = house.call("KeyService/CompromiseKeyVersion", REQUEST)
    house.rotations.compromise(asked, "pay", 1, "leaked")
    settled(house)


def give_up(house: House) -> None:
    house.away("prod")
    house.rotate(GRACE, request_id=REQUEST)
    house.rounds(3)
    asked = house.call("OperationService/AbortOperation")
    with house.store.write(asked.outcome()) as write:
        house.operations.abort(write, asked, house.rotation())
    house.back("prod")
    settled(house)


def one_signs(house: House) -> None:
    """What must be so whatever died."""
    assert [row for row in house.rows(Operation) if not row.state.over] == []
    house.check()
    key, phases = house.key(), house.phases()
    assert key.state is KeyState.ENABLED
    made = {row.number for row in house.rows(KeyVersion) if row.state is VersionState.ENABLED}
    for (target, version), state in house.copies().items():
        assert state in {ImportState.PROVEN, ImportState.DISABLED, ImportState.FAILED}
        usable = house.shelves[target].held["pay"] if house.shelves[target].held else []
        public = next(row.public_key for row in house.rows(KeyVersion) if row.number == version)
        enabled = [one for one in usable if one.enabled and one.public_key == public]
        assert len(enabled) == (1 if state is ImportState.PROVEN else 0)
        assert state is not ImportState.PROVEN or phases[version] is Phase.ACTIVE
    assert all(phases[number] is not Phase.PRE_ACTIVE for number in made), "nothing waits for ever"


def rotated(house: House) -> None:
    one_signs(house)
    newest = house.signs()
    assert {(name, newest) for name in TARGETS} <= {
        place for place, state in house.copies().items() if state is ImportState.PROVEN
    }


def contained(house: House) -> None:
    one_signs(house)
    if house.phases()[1] is Phase.COMPROMISED:
        assert set(house.copies().values()) == {ImportState.DISABLED}
        assert house.refusal(house.signs) == "KEY_VERSION_PHASE"


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    act: Callable[[House], None]
    again: Callable[[House], object] | None
    check: Callable[[House], None]


STORIES = {
    "rotated, and nobody comes back": Story(act=rotate, again=None, check=rotated),
    "rotated, and the same request comes back": Story(act=rotate, again=rotate, check=rotated),
    "compromised, and nobody comes back": Story(act=compromise, again=None, check=contained),
    "compromised, and the same request comes back": Story(act=compromise, again=compromise, check=contained),
    "given up": Story(act=give_up, again=None, check=one_signs),
}
KINDS = {"rotate-key", "contain-key-version", "send-copy", "withdraw-copy"}


def acted(story: Story, at: int) -> House:
    house = House()
    house.furnish()
    house.fate.begin(at)
    with suppress(Died, BrokerError):
        story.act(house)
    return house


@pytest.mark.parametrize("title", STORIES)
def test_K_18_a_rotation_that_dies_anywhere_is_brought_to_its_end(title: str) -> None:
    story = STORIES[title]
    places = list(acted(story, 0).fate.passed)
    assert len(places) > 10
    for at in range(1, len(places) + 1):
        house = acted(story, at).restarted()
        for name in TARGETS:
            house.back(name)
        if story.again is not None:
            with suppress(BrokerError):
                story.again(house)
        settled(house)
        try:
            story.check(house)
        except AssertionError as error:
            raise AssertionError(f"died {places[at - 1]} (place {at} of {len(places)})") from error


def test_the_stories_walk_every_plan_of_the_room() -> None:
    ran = {row.kind for story in STORIES.values() for row in acted(story, 0).rows(Operation)}
    assert ran >= KINDS
