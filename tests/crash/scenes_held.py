"""Key versions that are held since a restore, and kept or discarded."""

from __future__ import annotations

from contextlib import suppress

from broker.core.errors import Unavailable
from broker.core.keys.refs import ref
from broker.core.kinds import KeyState, Purpose, VersionState
from broker.core.model import Key, KeyVersion
from tests.crash.harness import Scene, World
from tests.crash.scenes_keys import REQUEST, create, rotate

KEEPS, DISCARDS = frozenset({"keep-key-version"}), frozenset({"discard-key-version"})


def held(world: World) -> None:
    """The second version was being made when the database was restored."""
    create(world)
    world.hsm.loses = True
    with suppress(Unavailable):
        rotate(world)
    world.restore()


def first_held(world: World) -> None:
    world.hsm.loses = True
    with suppress(Unavailable):
        create(world)
    world.restore()


def not_adopted(world: World) -> None:
    """Somebody has taken its exportability away in the token, so it is not what was asked for."""
    held(world)
    (second,) = [row for row in world.rows(KeyVersion) if row.number == 2]
    world.ground.hsm.seal(ref(world.rows(Key)[0], second))


def settle(world: World, *, keep: bool, number: int = 2, request_id: str = "") -> Key:
    asked = world.call("KeyService/SettleKeyVersion", request_id)
    return world.settling.settle(asked, "pay", number, keep=keep)


def keep(world: World) -> Key:
    return settle(world, keep=True, request_id=REQUEST)


def discard(world: World) -> Key:
    return settle(world, keep=False, request_id=REQUEST)


def discard_first(world: World) -> Key:
    return settle(world, keep=False, number=1)


def states(world: World) -> list[VersionState]:
    return [row.state for row in world.rows(KeyVersion)]


def kept_or_not(world: World) -> None:
    (key,) = world.rows(Key)
    assert (key.primary, states(world)[1]) in {(2, VersionState.ENABLED), (1, VersionState.HELD)}


def kept(world: World) -> None:
    (key,) = world.rows(Key)
    assert (key.primary, states(world)) == (2, [VersionState.ENABLED, VersionState.ENABLED])


def still_held(world: World) -> None:
    (key,) = world.rows(Key)
    (second,) = [row for row in world.rows(KeyVersion) if row.number == 2]
    assert (key.primary, second.state) == (1, VersionState.HELD)
    assert second.hsm_id in world.ground.keys_of(Purpose.KEY)


def discarded(world: World) -> None:
    (key,) = world.rows(Key)
    assert (key.state, key.primary, states(world)[1]) == (KeyState.ENABLED, 1, VersionState.DESTROYED)


def discarded_whole_or_not(world: World) -> None:
    (key,) = world.rows(Key)
    assert (key.state, states(world)) in (
        (KeyState.DESTROYED, [VersionState.DESTROYED]),
        (KeyState.PENDING, [VersionState.HELD]),
    )


SCENES = {
    "held, kept": Scene(kinds=KEEPS, prepare=held, act=lambda world: settle(world, keep=True), check=kept_or_not),
    "held, kept, asked again": Scene(kinds=KEEPS, prepare=held, act=keep, again=keep, check=kept),
    "held, not adopted": Scene(kinds=KEEPS, prepare=not_adopted, act=keep, check=still_held),
    "held, discarded, asked again": Scene(kinds=DISCARDS, prepare=held, act=discard, again=discard, check=discarded),
    "held, the first one, discarded": Scene(
        kinds=DISCARDS, prepare=first_held, act=discard_first, check=discarded_whole_or_not
    ),
}
