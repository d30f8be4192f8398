"""Every scene."""

from __future__ import annotations

from tests.crash import scenes_keys

SCENES = {**scenes_keys.SCENES}
