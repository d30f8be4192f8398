"""Root keys that are made, retired, and settled after a restore."""

from __future__ import annotations

from contextlib import suppress
from datetime import timedelta

from broker.core.errors import Unavailable
from broker.core.kinds import Purpose, RootKeyState
from broker.core.model import Receipt, RootKey
from broker.core.secrets.lifecycle import parse_reference
from tests.crash.harness import Scene, World

REQUEST = "3d0f7c4e-54a1-4c0e-8f60-6a2a5f6d6c11"
MAKES, RETIRES, DISCARDS = (frozenset({f"{what}-root-key"}) for what in ("make", "retire", "discard"))
FIELDS = {"password": b"canary-7741"}


def ensure(world: World) -> None:
    world.secrets.roots.ensure(world.own("root/1"))


def with_secret(world: World) -> None:
    ensure(world)
    asked = world.call("SecretService/PutSecret")
    world.secrets.put(asked, "team/db", FIELDS, expected_version=None, labels={}, expires_at=None)


def rotate(world: World, request_id: str = "") -> int:
    return world.secrets.rotate_root(world.call("SecretService/RotateRootKey", request_id))


def refusing(world: World) -> None:
    with_secret(world)
    world.ground.make_no_keys()


def followed(world: World) -> None:
    """The first root key is due to be destroyed."""
    with_secret(world)
    rotate(world)
    background(world)
    world.clock.time += timedelta(days=2)


def background(world: World) -> None:
    for resource, work in world.secrets.chores():
        work(world.own(resource))


def restored(world: World) -> None:
    """The second root key was being made when the database was restored."""
    with_secret(world)
    world.roots.loses = True
    with suppress(Unavailable):
        rotate(world)
    world.restore()


def discard(world: World) -> None:
    world.secrets.roots.settle(world.call("SecretService/SettleRootKey", REQUEST), 2, keep=False)


# ---- what is there in the end ----------------------------------------------------------------------------------------


def whole(world: World) -> None:
    """The token has the root keys of the rows and no other."""
    roots = world.rows(RootKey)
    assert not any(root.state is RootKeyState.PENDING for root in roots)
    assert world.ground.keys_of(Purpose.ROOT) == {root.hsm_id: False for root in roots}


def opens(world: World) -> None:
    whole(world)
    asked = world.call("SessionService/FetchSecrets")
    assert world.secrets.read(asked, parse_reference("team/db")).fields == FIELDS


def first(world: World) -> None:
    whole(world)
    if not world.rows(RootKey):
        ensure(world)  # nothing was begun, and the next `init` makes it
    assert [(root.version, root.state) for root in world.rows(RootKey)] == [(1, RootKeyState.ENABLED)]


def rotated(world: World) -> None:
    opens(world)
    assert world.rows(RootKey)[-1].version == 2


def not_rotated(world: World) -> None:
    opens(world)
    assert [root.version for root in world.rows(RootKey)] == [1]
    assert not [row for row in world.rows(Receipt) if row.resource == "root"]


def retired(world: World) -> None:
    opens(world)
    assert [root.version for root in world.rows(RootKey)] == [2]


def discarded(world: World) -> None:
    opens(world)
    assert [root.version for root in world.rows(RootKey)] == [1]


SCENES = {
    "root, the first": Scene(kinds=MAKES, act=ensure, check=first),
    "root, the first, again": Scene(kinds=MAKES, act=ensure, again=ensure, check=first),
    "root, rotated": Scene(kinds=MAKES, prepare=with_secret, act=rotate, check=opens),
    "root, rotated, asked again": Scene(
        kinds=MAKES,
        prepare=with_secret,
        act=lambda world: rotate(world, REQUEST),
        again=lambda world: rotate(world, REQUEST),
        check=rotated,
    ),
    "root, refused": Scene(kinds=MAKES, prepare=refusing, act=lambda world: rotate(world, REQUEST), check=not_rotated),
    "root, retired": Scene(kinds=RETIRES, prepare=followed, act=background, check=retired),
    "root, discarded": Scene(
        kinds=DISCARDS,
        prepare=restored,
        act=discard,
        again=discard,
        check=discarded,
    ),
}
