"""The plans as they are: rows of these kinds may exist in databases, so none changes its steps any more."""

from __future__ import annotations

from pathlib import Path

from broker.app import Broker
from broker.config import load
from tests.crash.harness import World
from tests.crash.scenes import SCENES
from tests.servers.live import Live
from tests.servers.softhsm import alone

STEPS = {
    "check-drift": ("look",),
    "confirm-key": ("prove",),
    "confirm-key-on-terms": ("prove", "terms"),
    "contain-key-version": ("withdraw",),
    "create-kek": ("make",),
    "delete-copy": ("delete", "gone"),
    "destroy-key": ("destroy",),
    "discard-key-version": ("destroy",),
    "discard-root-key": ("destroy",),
    "export-key": ("wrap",),
    "import-key": ("send", "prove"),
    "import-key-on-terms": ("send", "prove", "terms"),
    "keep-key-version": ("adopt",),
    "make-key-version": ("generate",),
    "make-root-key": ("generate",),
    "retire-own-key": ("destroy",),
    "retire-root-key": ("destroy",),
    "retire-former": ("retire", "withdraw"),
    "rotate-key": ("generate", "arrive", "activate"),
    "rotate-own-key": ("make", "introduce"),
    "seal-key": ("seal",),
    "seal-once": ("watch",),
    "send-copy": ("import",),
    "withdraw-copy": ("disable",),
}


def admitted(config: Path) -> dict[str, tuple[str, ...]]:
    """The steps of each plan that a broker with this configuration carries on."""
    broker = Broker(load(config))
    try:
        return {kind: tuple(step.name for step in plan.steps) for kind, plan in broker.operations.plans.items()}
    finally:
        broker.close()


def test_S_18_no_plan_changes_its_steps_and_every_plan_of_the_broker_has_a_scene(tmp_path: Path) -> None:
    """Another shape is another kind: it is added here, and the former one stays as long as rows of it may exist."""
    broker = Live(tmp_path / "broker", warm=True)
    nowhere = ("--operators-address", "127.0.0.1:0", "--pipelines-address", "127.0.0.1:0")
    made = broker.command("init", str(broker.folder), *nowhere)
    assert made.returncode == 0, made.stderr
    assert alone(admitted, broker.config) == STEPS
    assert frozenset[str]().union(*(scene.kinds for scene in SCENES.values())) == STEPS.keys()


def test_the_scenes_are_acted_with_the_plans_of_the_broker() -> None:
    assert {kind: tuple(step.name for step in plan.steps) for kind, plan in World().operations.plans.items()} == STEPS
