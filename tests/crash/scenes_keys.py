"""Keys that are made, rotated, sealed and destroyed."""

from __future__ import annotations

from datetime import timedelta

from broker.core.kinds import KeyState, KeyType, KeyUsage, VersionState
from broker.core.model import Key, KeyVersion
from tests.crash.harness import Scene, World

REQUEST = "0b7e8f3e-1f5f-4c7e-9d59-0f6a4b3a2c1d"
MAKES, SEALS, DESTROYS = frozenset({"make-key-version"}), frozenset({"seal-key"}), frozenset({"destroy-key"})


def create(world: World, request_id: str = "", *, exportable: bool = True) -> Key:
    asked = world.call("KeyService/CreateKey", request_id)
    return world.keys.create(asked, "pay", KeyType.EC_P256, KeyUsage.SIGN, exportable=exportable, labels={}, owner="")


def rotate(world: World, request_id: str = "") -> Key:
    return world.keys.rotate(world.call("KeyService/RotateKey", request_id), "pay")


def seal(world: World, request_id: str = "") -> Key:
    return world.keys.seal(world.call("KeyService/SealKey", request_id), "pay")


def two_versions(world: World) -> None:
    create(world)
    rotate(world)


def refusing(world: World) -> None:
    world.ground.make_no_keys()


def created_or_not(world: World) -> None:
    keys = world.rows(Key)
    assert [key.state for key in keys] in ([], [KeyState.ENABLED])


def created(world: World) -> None:
    (key,) = world.rows(Key)
    assert (key.state, key.primary) == (KeyState.ENABLED, 1)


def not_created(world: World) -> None:
    assert world.rows(Key) == world.rows(KeyVersion) == []


def still_in_use(world: World) -> None:
    (key,) = world.rows(Key)
    states = [row.state for row in world.rows(KeyVersion)]
    assert key.state is KeyState.ENABLED
    assert states[key.primary - 1] is VersionState.ENABLED


def sealed_or_not(world: World) -> None:
    """Nothing says that it is sealed while it could leave; what has begun is brought to its end."""
    (key,) = world.rows(Key)
    assert {row.sealed for row in world.rows(KeyVersion)} == {not key.exportable}


def sealed(world: World) -> None:
    (key,) = world.rows(Key)
    assert not key.exportable
    sealed_or_not(world)


def due(world: World) -> None:
    two_versions(world)
    world.keys.schedule_destruction(world.call("KeyService/ScheduleKeyDestruction"), "pay", timedelta(days=1))
    world.clock.time += timedelta(days=1)


def background(world: World) -> None:
    for resource, work in world.keys.chores():
        work(world.own(resource))


def destroyed(world: World) -> None:
    (key,) = world.rows(Key)
    assert key.state is KeyState.DESTROYED
    assert {row.state for row in world.rows(KeyVersion)} == {VersionState.DESTROYED}


SCENES = {
    "create": Scene(kinds=MAKES, act=create, check=created_or_not),
    "create, asked again": Scene(
        kinds=MAKES, act=lambda world: create(world, REQUEST), again=lambda world: create(world, REQUEST), check=created
    ),
    "create, refused": Scene(kinds=MAKES, prepare=refusing, act=create, check=not_created),
    "rotate": Scene(kinds=MAKES, prepare=create, act=rotate, check=still_in_use),
    "rotate, asked again": Scene(
        kinds=MAKES,
        prepare=create,
        act=lambda world: rotate(world, REQUEST),
        again=lambda world: rotate(world, REQUEST),
        check=still_in_use,
    ),
    "seal": Scene(kinds=SEALS, prepare=two_versions, act=seal, check=sealed_or_not),
    "seal, asked again": Scene(
        kinds=SEALS,
        prepare=two_versions,
        act=lambda world: seal(world, REQUEST),
        again=lambda world: seal(world, REQUEST),
        check=sealed,
    ),
    "destroy": Scene(kinds=DESTROYS, prepare=due, act=background, check=destroyed),
}
