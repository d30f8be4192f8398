"""The plans as they are: rows of these kinds may exist in databases, so none changes its steps any more."""

from __future__ import annotations

from tests.crash.harness import World

STEPS = {
    "confirm-key": ("prove",),
    "confirm-key-on-terms": ("prove", "terms"),
    "create-kek": ("make",),
    "destroy-key": ("destroy",),
    "discard-key-version": ("destroy",),
    "discard-root-key": ("destroy",),
    "export-key": ("wrap",),
    "import-key": ("send", "prove"),
    "import-key-on-terms": ("send", "prove", "terms"),
    "keep-key-version": ("adopt",),
    "make-key-version": ("generate",),
    "make-root-key": ("generate",),
    "retire-root-key": ("destroy",),
    "seal-key": ("seal",),
}


def test_S_18_no_plan_changes_its_steps() -> None:
    """Another shape is another kind: it is added here, and the former one stays as long as rows of it may exist."""
    plans = World().operations.plans
    assert {kind: tuple(step.name for step in plan.steps) for kind, plan in plans.items()} == STEPS
