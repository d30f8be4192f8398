"""Every scene."""

from __future__ import annotations

from tests.crash import (
    scenes_authorities,
    scenes_held,
    scenes_imports,
    scenes_keys,
    scenes_roots,
    scenes_rotations,
    scenes_targets,
)

SCENES = {
    **scenes_keys.SCENES,
    **scenes_held.SCENES,
    **scenes_roots.SCENES,
    **scenes_targets.SCENES,
    **scenes_imports.SCENES,
    **scenes_rotations.SCENES,
    **scenes_authorities.SCENES,
}
