"""Every plan, dead at every place: whether nobody comes next or the same request, it ends whole."""

from __future__ import annotations

import pytest

from tests.crash import scenes_imports
from tests.crash.scenes import SCENES


@pytest.mark.parametrize("title", sorted(SCENES.keys() - scenes_imports.SCENES.keys()))
def test_K_18_a_process_that_dies_anywhere_leaves_what_the_next_one_brings_to_its_end(title: str) -> None:
    SCENES[title].dies_everywhere()
