"""Rotations and containments, with all that the background does of them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta

from broker.core.errors import BrokerError
from broker.core.findings import DriftReport
from broker.core.kinds import ImportState, KeyState, KeyType, OperatorState, Phase, Purpose, VersionState
from broker.core.model import Import, Key, KeyVersion, Operation, Operator
from broker.core.schedule import KeySchedule
from broker.core.schedules.lifecycle import Wish
from tests.crash.harness import Scene, World
from tests.crash.import_house import REQUEST, House

Act = Callable[["Rotating"], object]
GRACE = timedelta(minutes=1)
PERIOD = timedelta(days=90)


class Rotating(House):
    """A process with a key that is at a target."""

    def furnish(self, key_type: KeyType) -> None:
        super().furnish(key_type)
        now = self.clock()
        alice = Operator(name="alice", groups=("admins",), state=OperatorState.ENABLED, not_before=now, created_at=now)
        with self.store.write(self.call("OperatorService/AddOperator").outcome()) as write:
            write.add(alice)
        self.bring(request_id="")

    def on_and_on(self) -> None:
        """The background, until there is nothing left to do; a day passes meanwhile."""
        for _ in range(14):
            self.clock.forward(minutes=6)
            self._carried_on()
        self.clock.forward(days=2)
        for _ in range(4):
            self.clock.forward(minutes=6)
            self._carried_on()

    def _carried_on(self) -> None:
        for rows in self.operations.due().values():
            for row in rows:
                self.operations.carry_on(self.own(row.subject), row)

    def later(self) -> None:
        self.on_and_on()
        super().later()

    def phases(self) -> dict[int, Phase]:
        rows = [row for row in self.rows(KeyVersion) if row.state is VersionState.ENABLED]
        return {row.number: row.phase or Phase.ACTIVE for row in rows}

    def signs(self) -> bool:
        """Whether the key signs, with the version that the record names."""
        key = self.store.get(Key, "pay")
        return key is not None and self.phases().get(key.primary) is Phase.ACTIVE

    def check(self) -> None:
        """What the rows say is what the target has, nothing is under way, and no version waits for ever."""
        World.check(self)
        publics = {row.number: row.public_key for row in self.rows(KeyVersion)}
        enabled = [one.public_key for one in self.shelf.enabled(self.remote)]
        for row in self.rows(Import):
            assert row.state in {ImportState.PROVEN, ImportState.DISABLED, ImportState.FAILED, ImportState.GONE}
            assert enabled.count(publics[row.version]) == (row.state is ImportState.PROVEN)
            assert row.state is not ImportState.PROVEN or self.phases()[row.version] is Phase.ACTIVE
        assert Phase.PRE_ACTIVE not in self.phases().values()


class Watched(Rotating):
    """One whose versions are sealed by themselves, until that is called off at the end."""

    def later(self) -> None:
        super().later()
        self.keys.seal_once_at(self.call("KeyService/SealKey"), "pay", ())
        super().later()


def rotate(world: Rotating) -> None:
    world.rotations.rotate(world.call("KeyService/RotateKey", REQUEST), "pay", GRACE)
    world.on_and_on()


def due(world: Rotating) -> None:
    """A schedule was set, and a period has passed."""
    world.furnish(KeyType.EC_P256)
    world.schedules.set(world.call("KeyService/SetKeySchedule"), "pay", Wish(every=PERIOD, grace=GRACE))
    world.clock.time += PERIOD


def scheduled(world: Rotating) -> None:
    """The background looks."""
    for resource, work in world.schedules.chores():
        work(world.own(resource))


def once(world: Rotating) -> None:
    """Rotated once, whoever died: by this version the key signs, and none was made besides."""
    in_force_somewhere(world)
    key = world.store.get(Key, "pay")
    assert (key.primary, key.latest, world.store.get(KeySchedule, "pay").version) == (2, 2, 2)


def compromise(world: Rotating) -> None:
    world.rotations.compromise(world.call("KeyService/CompromiseKeyVersion", REQUEST), "pay", 1, "leaked")
    world.on_and_on()


def give_up(world: Rotating) -> None:
    """Before its version is in force."""
    world.rotations.rotate(world.call("KeyService/RotateKey", REQUEST), "pay", GRACE)
    asked = world.call("OperationService/AbortOperation")
    live = world.store.last(Operation, "key/pay/rotation")
    with suppress(BrokerError), world.store.write(asked.outcome()) as write:
        world.operations.abort(write, asked, live)
    world.on_and_on()


def destroy(world: Rotating) -> None:
    world.rotations.destroy(world.call("KeyService/ScheduleKeyDestruction", REQUEST), "pay", timedelta(days=1))
    world.on_and_on()


def gone_or_there(world: Rotating) -> None:
    """Once its destruction stands, nothing is left of it at the target, and the record says so."""
    key = world.store.get(Key, "pay")
    if key is not None and key.state is not KeyState.ENABLED:
        assert world.shelf.there(world.remote) == []
        assert [row.state for row in world.rows(Import)] == [ImportState.GONE]


def look(world: Rotating) -> None:
    """By itself, as every so often."""
    for resource, act in list(world.drifts.chores()):
        act(world.own(resource))
    world.on_and_on()


def looked_at(world: Rotating) -> None:
    """It has a report, once a look was begun."""
    if world.store.last(Operation, "target/bao/drift") is not None:
        assert [row.findings for row in world.rows(DriftReport) if row.place == "bao"] == [()]


def seal_once(world: Rotating) -> None:
    world.keys.seal_once_at(world.call("KeyService/SealKey", REQUEST), "pay", ("bao",))
    world.on_and_on()


def sealed_once(world: Rotating) -> None:
    """Once that was asked for, its version is at the target and can leave no more, in the record and in the token."""
    if world.store.last(Operation, "key/pay/seal-once") is not None:
        (version,) = world.rows(KeyVersion)
        assert version.sealed
        assert world.ground.keys_of(Purpose.KEY) == {version.hsm_id: False}


def in_force_somewhere(world: Rotating) -> None:
    """By one version, here and there."""
    assert world.signs()
    assert len(world.shelf.enabled(world.remote)) == 1


def contained(world: Rotating) -> None:
    """Once it is compromised, nobody uses it anywhere."""
    if world.phases()[1] is Phase.COMPROMISED:
        assert world.shelf.enabled(world.remote) == []


def _scene(kinds: set[str], act: Act, check: Act, again: Act | None = None, world: type[Rotating] = Rotating) -> Scene:
    prepare: Act = lambda world: world.furnish(KeyType.EC_P256)  # noqa: E731
    return Scene(kinds=frozenset(kinds), act=act, prepare=prepare, again=again, check=check, world=world)


_ROTATES = {"rotate-key", "retire-former", "send-copy", "withdraw-copy"}
_DELETES = {"delete-copy", "withdraw-copy"}
_CONTAINS = {"contain-key-version", "withdraw-copy"}

SCENES = {
    "rotated, and nobody comes back": _scene(_ROTATES, rotate, in_force_somewhere),
    "rotated, and the same request comes back": _scene(_ROTATES, rotate, in_force_somewhere, rotate),
    "a rotation given up": _scene({"rotate-key"}, give_up, in_force_somewhere),
    "rotated by its schedule, and nobody comes back": replace(_scene({"rotate-key"}, scheduled, once), prepare=due),
    "destroyed everywhere, and nobody comes back": _scene(_DELETES, destroy, gone_or_there),
    "destroyed everywhere, and the same request comes back": _scene(_DELETES, destroy, gone_or_there, destroy),
    "sealed once it is there, and nobody comes back": _scene({"seal-once"}, seal_once, sealed_once, world=Watched),
    "sealed once it is there, and the same request comes back": _scene(
        {"seal-once"}, seal_once, sealed_once, seal_once, world=Watched
    ),
    "looked at, and the process dies": _scene({"check-drift"}, look, looked_at),
    "compromised, and nobody comes back": _scene(_CONTAINS, compromise, contained),
    "compromised, and the same request comes back": _scene(_CONTAINS, compromise, contained, compromise),
}
