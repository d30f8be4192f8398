"""Every plan, dead at every place: whether nobody comes next or the same request, it ends whole."""

from __future__ import annotations

from contextlib import suppress

import pytest

from broker.core.errors import BrokerError
from tests.crash.harness import World
from tests.crash.scenes import SCENES
from tests.crash.test_crash_imports import SCENES as OF_IMPORTS


@pytest.mark.parametrize("title", sorted(SCENES))
def test_K_18_a_process_that_dies_anywhere_leaves_what_the_next_one_brings_to_its_end(title: str) -> None:
    scene = SCENES[title]
    places = scene.places()
    assert len(places) >= 4
    for at in range(1, len(places) + 1):
        died = scene.acted(at)
        assert died.fate.passed[-1] == places[at - 1]
        world = died.restarted()
        if scene.again is not None:
            with suppress(BrokerError):  # given up meanwhile, or another one is at it
                scene.again(world)
        world.later()
        try:
            world.check()
            scene.check(world)
        except AssertionError as error:
            raise AssertionError(f"died {places[at - 1]} (place {at} of {len(places)})") from error


def test_every_plan_has_a_scene() -> None:
    walked = [*(scene.kinds for scene in SCENES.values()), *(scene.kinds for scene in OF_IMPORTS.values())]
    assert World().operations.plans.keys() == frozenset[str]().union(*walked)
