"""Targets that are registered with a KEK that is made for them."""

from __future__ import annotations

from broker.core.entries import Phase
from broker.core.model import Target
from tests.crash.harness import Scene, World

REQUEST = "5b1c7c9a-6a53-4f0e-9d8e-2f4d2a7c9b10"
MAKES = frozenset({"create-kek"})


def add(world: World, request_id: str = "") -> Target:
    asked = world.call("TargetService/CreateTarget", request_id)
    return world.targets.create(asked, "vault", "hsm", {"kek": "fresh"}, "", create_kek=True)


def asked_again(world: World) -> Target:
    return add(world, REQUEST)


def refusing(world: World) -> None:
    world.ground.vault.refuses = True


def announced(world: World) -> None:
    """A KEK is at the target only if the journal said before what was going to be made."""
    intents = [entry for entry in world.ground.store.entries if entry.phase is Phase.INTENT]
    assert not world.ground.vault.keks or "target/vault" in {entry.resource for entry in intents}


def registered(world: World) -> None:
    announced(world)
    ((_, kek),) = world.ground.vault.keks.values()
    (target,) = world.rows(Target)
    assert (target.kek_id, target.kek_thumbprint) == (kek.id, kek.thumbprint)


def registered_or_told(world: World) -> None:
    """Either it is the target's KEK, or the audit says that it stays there, and which one."""
    announced(world)
    if world.rows(Target):
        registered(world)
        return
    told = [entry for entry in world.ground.store.entries if entry.reason == "TARGET_NOT_ADDED"]
    stays = {entry.facts.get("kek_thumbprint") for entry in told if entry.facts["state"] == "kek-stays"}
    assert stays == {kek.thumbprint for _, kek in world.ground.vault.keks.values()}


def nothing(world: World) -> None:
    assert (world.rows(Target), world.ground.vault.keks) == ([], {})


SCENES = {
    "kek": Scene(kinds=MAKES, act=add, check=registered_or_told, real=False),
    "kek, asked again": Scene(kinds=MAKES, act=asked_again, again=asked_again, check=registered, real=False),
    "kek, added again by hand": Scene(kinds=MAKES, act=add, again=add, check=registered, real=False),
    "kek, refused": Scene(kinds=MAKES, prepare=refusing, act=add, check=nothing, real=False),
}
