"""Targets that are registered with a KEK that is made for them."""

from __future__ import annotations

from broker.core.model import Target
from tests.crash.harness import Scene, World

REQUEST = "5b1c7c9a-6a53-4f0e-9d8e-2f4d2a7c9b10"
MAKES = frozenset({"create-kek"})


def add(world: World, request_id: str = "") -> Target:
    asked = world.call("TargetService/CreateTarget", request_id)
    kind, settings = world.ground.new_target()
    return world.targets.create(asked, "vault", kind, settings, "", create_kek=True)


def asked_again(world: World) -> Target:
    return add(world, REQUEST)


def refusing(world: World) -> None:
    world.ground.make_no_keks()


def announced(world: World) -> None:
    """A KEK is at the target only if the journal said before what was going to be made."""
    assert not world.ground.keks() or "target/vault" in {entry.resource for entry in world.ground.announced_before()}


def registered(world: World) -> None:
    announced(world)
    (kek,) = world.ground.keks()
    (target,) = world.rows(Target)
    assert (target.kek_id, target.kek_thumbprint) == (kek.id, kek.thumbprint)


def registered_or_told(world: World) -> None:
    """Either it is the target's KEK, or the audit says that it stays there, and which one."""
    announced(world)
    if world.rows(Target):
        registered(world)
        return
    told = [entry for entry in world.ground.entries() if entry.reason == "TARGET_NOT_ADDED"]
    stays = {entry.facts.get("kek_thumbprint") for entry in told if entry.facts["state"] == "kek-stays"}
    assert stays == {kek.thumbprint for kek in world.ground.keks()}


def nothing(world: World) -> None:
    assert (world.rows(Target), world.ground.keks()) == ([], [])


SCENES = {
    "kek": Scene(kinds=MAKES, act=add, check=registered_or_told),
    "kek, asked again": Scene(kinds=MAKES, act=asked_again, again=asked_again, check=registered),
    "kek, added again by hand": Scene(kinds=MAKES, act=add, again=add, check=registered),
    "kek, refused": Scene(kinds=MAKES, prepare=refusing, act=add, check=nothing),
}
