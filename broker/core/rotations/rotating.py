"""A key rotated everywhere it lives: one operation until the new version is in force, and one that ends the former one.

    rotate-key      generate   the next version, PRE_ACTIVE in the HSM
                      └ arrive   the copies are brought to every target, each by itself; given up, all is taken back
                          └ activate   the new version is ACTIVE and the primary one
    retire-former   retire   after the grace the former one is DEACTIVATED
                      └ withdraw   and disabled at every target, each by itself

An operator can give the first one up: the new version is then DEACTIVATED, and disabled wherever it had come. The
second one only goes forward, and no other rotation waits for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from broker.core import receipts
from broker.core.call import Call, background_call
from broker.core.errors import Exhausted, InvalidRequest, Unavailable, WrongState
from broker.core.imports.rules import MAX_COPIES, has_room
from broker.core.keys import phases
from broker.core.keys.making import Making
from broker.core.keys.states import USABLE, as_decided, key_named, rotation_of, versions_of
from broker.core.kinds import Phase, VersionState
from broker.core.model import Key, KeyVersion, Operation
from broker.core.operations.plan import NotYet, Plan, Step, Work
from broker.core.operations.running import Operations
from broker.core.ports import Now, Store, Write
from broker.core.reasons import Reason
from broker.core.rotations.copies import Copies, Copy, in_use, places

USUAL_GRACE = timedelta(hours=24)
LONGEST_GRACE = timedelta(days=366)
PATIENCE = timedelta(minutes=1)
LONGEST_PAUSE = timedelta(seconds=30)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotated:
    """The key as it is now, and the operation that goes on; of a dry run ``operation`` is None.

    ``places``: where the new version is to be.
    """

    key: Key
    operation: Operation | None
    places: tuple[Copy, ...]


class Rotating:
    """What rotates keys everywhere. ``making``: what makes the versions of keys."""

    def __init__(self, store: Store, operations: Operations, making: Making, copies: Copies, now: Now) -> None:
        self._store = store
        self._operations = operations
        self._making = making
        self._copies = copies
        self._now = now
        self._plan = operations.admit(
            Plan(
                kind="rotate-key",
                steps=(
                    Step(name="generate", act=self._generate, keep=self._send),
                    Step(name="arrive", act=self._arrive),
                    Step(name="activate", act=self._activate, keep=self._activated),
                ),
                patience=PATIENCE,
                undo=self._take_back,
                turned=self._turned,
                undone=self._retired_unused,
                undone_reason=Reason.ROTATION_GIVEN_UP,
                longest_pause=LONGEST_PAUSE,
                alarm=lambda _: "a rotation waits",
            )
        )
        self._ending = operations.admit(
            Plan(
                kind="retire-former",
                steps=(
                    Step(name="retire", act=self._retire, keep=self._retired),
                    Step(name="withdraw", act=self._withdraw),
                ),
                patience=PATIENCE,
                longest_pause=LONGEST_PAUSE,
                alarm=lambda _: "a former key version may still be used at a target",
            )
        )

    def rotate(self, call: Call, decided: Key, grace: timedelta, there: list[Copy]) -> Rotated:
        """Begin, and go on as far as nobody is waited for; the same request carries on what it began.

        ``there``: the ``places`` of the next version.
        """
        with self._store.write(call.intent()) as write:
            receipt = receipts.replay(write, call)
            if receipt is None:
                self._refuse_second(write, decided)
                key, operation = self._begun(write, call, as_decided(write, decided), grace, there)
                receipts.keep(write, call, key.name, key.latest, operation=operation)
        number = receipt.version if receipt else key.latest
        found = self._operations.of(rotation_of(decided.name), receipt.operation) if receipt else operation
        if found is not None:
            call.note(version=number)
        if found is not None and not found.state.over:
            found = self._operations.run(call, found, fresh=receipt is None)
        now = self._store.get(Key, decided.name)
        if now is None:
            raise receipts.undone()
        return Rotated(key=now, operation=found, places=tuple(replace(one, version=number) for one in there))

    def replace(self, write: Write, call: Call, key: Key, there: list[Copy]) -> Operation:
        """The rotation that replaces the primary version: one that runs already, or one that begins in this write.

        The background carries it on. WrongState ``KEY_ROTATION_RUNNING`` for one that runs and is given up.
        """
        live = self._operations.live(write, rotation_of(key.name))
        if live is None:
            return self._begun(write, call, key, USUAL_GRACE, there, abandoned=True)[1]
        if live.memory["version"] == str(key.primary):
            self._refuse_second(write, key)
        return live

    def _begun(
        self, write: Write, call: Call, key: Key, grace: timedelta, there: list[Copy], *, abandoned: bool = False
    ) -> tuple[Key, Operation]:
        refuse_stay(self._store, key, there)
        key, _ = self._making.begun(write, call, key, Phase.PRE_ACTIVE)
        memory = {"version": str(key.latest), "grace": str(int(grace.total_seconds()))}
        subject = rotation_of(key.name)
        return key, self._operations.begin(write, call, self._plan, subject, memory, abandoned=abandoned)

    def is_running(self, name: str) -> bool:
        """Whether a rotation of the key is not over."""
        return self._operations.live(self._store, rotation_of(name)) is not None

    def would(self, key: Key, there: list[Copy]) -> Rotated:
        """As ``rotate`` would begin."""
        self._refuse_second(self._store, key)
        refuse_stay(self._store, key, there)
        return Rotated(key=replace(key, latest=key.latest + 1), operation=None, places=tuple(there))

    def _refuse_second(self, rows: Store | Write, key: Key) -> None:
        live = self._operations.live(rows, rotation_of(key.name))
        if live is not None:
            raise WrongState(
                Reason.KEY_ROTATION_RUNNING,
                f"The key {key.name} is being rotated to version {live.memory['version']} already; `broker operation "
                f"show {live.subject}/{live.number}` says how far that has come.",
            )

    # ---- the plan, in the order of its steps ---------------------------------------------------------------------

    def _generate(self, work: Work) -> Mapping[str, str]:
        name, number = key_named(work.operation), _number(work)
        call = background_call(f"key/{name}", work.call.fence, work.call.now, "-/Rotation")
        try:
            self._making.complete(call, name, number, fresh=work.fresh)
        except Exhausted as busy:  # others are being made; its turn comes
            raise Unavailable(Reason.HSM_BUSY, "The HSM makes other keys; this is tried again.") from busy
        return {}

    def _send(self, write: Write, work: Work) -> None:
        name = key_named(work.operation)
        self._copies.begin(write, work, places(self._store, name, _number(work)))

    def _arrive(self, work: Work) -> Mapping[str, str]:
        if self._copies.sending(key_named(work.operation), _number(work)):
            raise NotYet
        return {}

    def _activate(self, work: Work) -> Mapping[str, str]:
        name = key_named(work.operation)
        key = self._store.get(Key, name)
        if key is None or key.state not in USABLE:
            state = key.state if key else "gone"
            raise WrongState(Reason.KEY_STATE, f"The key {name} is {state}, so its new version is not activated.")
        number = _number(work)
        former = [one for one in versions_of(self._store, name) if one.number < number]
        return {"former": " ".join(str(one.number) for one in former)}

    def _activated(self, write: Write, work: Work) -> None:
        name, number = key_named(work.operation), _number(work)
        activate(write, name, number, self._now(), work.operation.principal, "rotated")
        former = self._former(write, work)
        compromised = {one.number for one in former if one.phase is Phase.COMPROMISED}  # no grace for these
        there = [copy for copy in in_use(self._store, name) if copy.version in compromised]
        self._copies.begin(write, work, there, off=True)
        retire_at = self._now() + timedelta(seconds=int(work.memory["grace"]))
        memory = {
            "former": work.memory["former"],
            "retire_at": retire_at.isoformat(),
            "asked_by": work.operation.principal,
        }
        subject = f"key/{name}/{number}/former"
        self._operations.begin(write, work.call, self._ending, subject, memory, abandoned=True, until=retire_at)

    # ---- the former one's end ------------------------------------------------------------------------------------

    def _retire(self, work: Work) -> Mapping[str, str]:
        retire_at = datetime.fromisoformat(work.memory["retire_at"])
        if self._now() < retire_at:
            raise NotYet(retire_at)
        return {}

    def _retired(self, write: Write, work: Work) -> None:
        """Of all before it, also what was made and never put in force: a restore may have closed its rotation."""
        for version in self._former(write, work):
            if version.state is VersionState.ENABLED and version.standing in {Phase.ACTIVE, Phase.PRE_ACTIVE}:
                phases.move(write, version, Phase.DEACTIVATED, self._now(), work.memory["asked_by"], "rotated")
        self._copies.begin(write, work, self._withdrawn(work), off=True)

    def _withdraw(self, work: Work) -> Mapping[str, str]:
        if self._copies.left(self._withdrawn(work), off=True):
            raise NotYet
        return {}

    # ---- given up ------------------------------------------------------------------------------------------------

    def _turned(self, write: Write, work: Work) -> None:
        """From here on no further copy is sent, and nobody protects anything with the version.

        Unless people have put it in force meanwhile: then it stays so, and what has come somewhere stays in use there.
        """
        self._copies.stop_sending(write, key_named(work.operation), _number(work))
        self._retired_unused(write, work)

    def _take_back(self, work: Work) -> None:
        """Have its copies disabled wherever they had come; what is on its way settles first."""
        name, number = key_named(work.operation), _number(work)
        version = self._store.get(KeyVersion, name, number)
        if version is not None and version.phase is Phase.ACTIVE:
            return
        making = version is not None and version.state is VersionState.PENDING
        if making or not self._copies.are_off(work, name, number):
            raise Unavailable(
                Reason.ROTATION_WAITS,
                f"Version {number} of the key {name} is still to be disabled at a target; that is tried again.",
            )

    def _retired_unused(self, write: Write, work: Work) -> None:
        version = write.get(KeyVersion, key_named(work.operation), _number(work))
        if version is not None and version.state is VersionState.ENABLED and version.phase is Phase.PRE_ACTIVE:
            actor = str(work.call.principal)
            phases.move(write, version, Phase.DEACTIVATED, self._now(), actor, "rotation given up")

    # ---- the parts of it -----------------------------------------------------------------------------------------

    def _withdrawn(self, work: Work) -> list[Copy]:
        name, numbers = key_named(work.operation), {int(one) for one in work.memory["former"].split()}
        return [copy for copy in in_use(self._store, name) if copy.version in numbers]

    def _former(self, write: Write, work: Work) -> list[KeyVersion]:
        name = key_named(work.operation)
        found = (write.get(KeyVersion, name, int(one)) for one in work.memory["former"].split())
        return [version for version in found if version is not None]


def activate(write: Write, name: str, number: int, at: datetime, actor: str, reason: str) -> Key:
    """Make a version ACTIVE and the primary one, in the place of whatever is; a newer primary one stays."""
    key, version = write.get(Key, name), write.get(KeyVersion, name, number)
    if key is None or version is None or version.state is not VersionState.ENABLED:
        raise WrongState(
            Reason.CHANGED_MEANWHILE, f"Version {number} of the key {name} is not there to be used any more."
        )
    phases.move(write, version, Phase.ACTIVE, at, actor, reason)
    return write.replace(key, replace(key, primary=max(key.primary, number)))


def refuse_stay(store: Store, key: Key, there: list[Copy]) -> None:
    """Return if the next version can go wherever the key is."""
    if there and not key.exportable:
        raise WrongState(
            Reason.KEY_NOT_EXPORTABLE,
            f"The key {key.name} is in use at {there[0].target}, and none of its versions leaves the HSM since it was "
            f"sealed; `broker key rotate {key.name} --here-only` rotates it in the HSM alone.",
        )
    for target, more in Counter(one.target for one in there).items():
        if not has_room(store, key.name, target, more):
            raise Exhausted(
                Reason.IMPORT_QUOTA,
                f"{MAX_COPIES} copies of the key {key.name} at the target {target} may be there by the record, those "
                "that are disabled too, and it takes no further version: create another key in its place. Until that "
                f"is in use, `broker key rotate {key.name} --here-only` rotates this one in the HSM alone.",
            )


def sound_grace(grace: timedelta | None) -> timedelta:
    """How long the former version goes on protecting; InvalidRequest ``GRACE_OUT_OF_RANGE``."""
    if grace is None:
        return USUAL_GRACE
    if not timedelta(0) <= grace <= LONGEST_GRACE:
        raise InvalidRequest(
            Reason.GRACE_OUT_OF_RANGE, f"The grace of a rotation is between 0 and {LONGEST_GRACE.days} days."
        )
    return grace


def give_up(operations: Operations, write: Write, call: Call, name: str, number: int) -> None:
    """Give up the rotation that brings this version, if there is one: the version is to protect nothing any more."""
    live = operations.live(write, rotation_of(name))
    if live is not None and live.memory["version"] == str(number):
        operations.abort(write, call, live)


def _number(work: Work) -> int:
    return int(work.memory["version"])
