"""Rotations: a key's next version made, brought everywhere, put in force; the former one retired, or contained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

from broker.core.amiss import key_changed, no_key, no_key_version
from broker.core.call import Call, on_behalf
from broker.core.errors import Exhausted, InvalidRequest, PermissionDenied, WrongState
from broker.core.given_reason import given_reason
from broker.core.imports.importing import Imports
from broker.core.keys import phases
from broker.core.keys.lifecycle import Keys
from broker.core.keys.states import ENABLED, USABLE, as_decided, require
from broker.core.kinds import Phase, VersionState
from broker.core.model import Key, KeyMove, KeyVersion, Principal, Target
from broker.core.names import check_name
from broker.core.once import once
from broker.core.operations.running import Operations
from broker.core.page import Page
from broker.core.policy.guard import Guard, of_key, of_target, of_unknown_key, of_unknown_target, under
from broker.core.ports import Connect, Now, Store, Write
from broker.core.reasons import Reason
from broker.core.rotations.containing import NOT_ASKED, Contained, Containing, Replacement
from broker.core.rotations.copies import IMPORT, Copies, Copy, places
from broker.core.rotations.deleting import Deleting
from broker.core.rotations.rotating import Rotated, Rotating, activate, give_up, refuse_stay, sound_grace

ROTATE = "KeyService/RotateKey"
TAKES = ROTATE_KEY, IMPORT_KEY = "RotateKey", "ImportKey"
"""The actions that a rotation takes."""


class Rotations:
    """The part of KeyService that is about a key's versions wherever they live. Permission first.

    ``sole``: asked before a copy is deleted; what it raises ends that.
    """

    def __init__(
        self,
        store: Store,
        guard: Guard,
        operations: Operations,
        keys: Keys,
        imports: Imports,
        connect: Connect,
        now: Now,
        sole: Callable[[], None],
    ) -> None:
        self._store = store
        self._operations = operations
        self._guard = guard
        self._now = now
        self._keys = keys
        self._imports = imports
        copies = Copies(store, operations, imports, connect)
        self._rotating = Rotating(store, operations, keys.making, copies, now)
        self._containing = Containing(store, operations, copies, now)
        self._deleting = Deleting(store, operations, copies, connect, now, sole)

    def rotate(self, call: Call, name: str, grace: timedelta | None) -> Rotated:
        """Make the next version, bring it to every target, put it in force, and retire the former after the grace."""
        key = self._permitted(call, name)
        wait = sound_grace(grace)
        self._keys.check_makeable(key)
        there = places(self._store, key.name, key.latest + 1)
        self._may_import(call, key, there)
        if call.validate_only:
            require(key, ENABLED)
            return self._rotating.would(key, there)
        return self._rotating.rotate(call, key, wait, there)

    def check(self, call: Call, key: Key) -> None:
        """Return if ``rotate`` would begin for this caller, were the key enabled; refuses what that refuses else."""
        self._guard.check(call, of_key(key))
        self._keys.check_makeable(key)
        there = places(self._store, key.name, key.latest + 1)
        self._may_import(call, key, there)
        refuse_stay(self._store, key, there)

    def approvals(self, principal: Principal, key: Key) -> int:
        """How many approvals a call of theirs to ``rotate`` would need now, for the key and wherever it goes."""
        found = self._guard.needed(principal, ROTATE_KEY, of_key(key))
        for one in places(self._store, key.name, key.latest + 1):
            target = self._store.get(Target, one.target)
            place = of_target(target) if target else of_unknown_target(one.target)
            spelled = self._imports.ledger.port(target).spelled(one.remote_name) if target else one.remote_name
            for resource in (of_key(key), place):
                found = max(found, self._guard.needed(principal, IMPORT_KEY, under(spelled, resource)))
        return found

    def asks_approvals(self) -> bool:
        """Whether any rotation may need some."""
        return not self._guard.asks().keys().isdisjoint(TAKES)

    def is_running(self, name: str) -> bool:
        """Whether a rotation of the key is not over."""
        return self._rotating.is_running(name)

    def _may_import(self, call: Call, key: Key, there: list[Copy]) -> None:
        """Return if the caller may import the key wherever it is: else the rotation would wait there for ever."""
        for one in there:
            asked = on_behalf(call, IMPORT, call.principal)
            self._imports.ledger.permitted(asked, key.name, key.primary, one.target, one.remote_name)

    def prepare(self, call: Call, name: str) -> Key:
        """Make the next version, PRE_ACTIVE: it can be imported, and nothing else."""
        key = self._permitted(call, name)
        self._keys.check_makeable(key)
        if call.validate_only:
            require(key, ENABLED)
            return replace(key, latest=key.latest + 1)
        return self._keys.making.next(call, key, Phase.PRE_ACTIVE)

    def activate(self, call: Call, name: str, number: int) -> Key:
        """Put a PRE_ACTIVE version in force; it becomes the primary one. Once it is, that is the same again."""
        key, version = self._version(call, name, number)
        in_force = version.number == key.primary and version.standing is Phase.ACTIVE
        if version.phase is not Phase.PRE_ACTIVE and not in_force:
            raise WrongState(
                Reason.KEY_VERSION_PHASE,
                f"Version {number} of the key {name} is {version.standing}, and only a pre-active one is "
                f"activated; `broker key versions {name}` shows the phase of each.",
            )
        return self._move(call, key, version, Phase.ACTIVE)

    def retire(self, call: Call, name: str, number: int) -> Key:
        """Have a version protect nothing any more; it still verifies and decrypts. WrongState for the primary one."""
        key, version = self._version(call, name, number)
        if version.number == key.primary:
            raise WrongState(
                Reason.KEY_VERSION_PRIMARY,
                f"Version {number} is the one that the key {name} signs and encrypts with; rotate it first.",
            )
        return self._move(call, key, version, Phase.DEACTIVATED)

    def compromise(self, call: Call, name: str, number: int, why: str, *, successor: bool = False) -> Contained:
        """Have a version protect nothing from now on, and disabled at every target; ``why`` is kept with the move.

        ``successor``: if it is the primary one, the rotation that replaces it begins in the same write. It needs the
        permissions of a rotation, and where they or anything else are lacking the version is contained all the same.
        """
        key = self._permitted(call, name)
        why = given_reason(why, Reason.COMPROMISE_REASON_INVALID, needed=True)
        number = number or key.primary
        version = self._store.get(KeyVersion, name, number)
        if version is None:
            raise no_key_version(name, number, "could be compromised")
        call.note(version=number)
        follows = self._replacement(call, key) if successor and number == key.primary else NOT_ASKED
        if call.validate_only:
            return self._containing.would(key, version, follows)
        return self._containing.contain(call, key, number, why, follows)

    def _replacement(self, call: Call, key: Key) -> Replacement:
        """How the primary version is replaced, if the caller may rotate the key, and without waiting for anybody."""
        asked = on_behalf(call, ROTATE, call.principal)
        asked.clearance = replace(call.clearance, needs=0, spent="") if call.clearance else None
        try:
            require(key, ENABLED)
            self.check(asked, key)
        except (InvalidRequest, PermissionDenied, WrongState, Exhausted) as refusal:
            return Replacement(hindered=refusal.message)
        if asked.clearance and asked.clearance.needs:
            return Replacement(
                hindered="A rotation needs approvals, for which a containment does not wait: ask for them with "
                f"`broker key rotate {key.name}`."
            )
        there = places(self._store, key.name, key.latest + 1)
        return Replacement(begin=lambda write, now: self._rotating.replace(write, call, now, there))

    def destroy(self, call: Call, name: str, delay: timedelta | None) -> Key:
        """As ``Keys.schedule_destruction``, and at the targets too: every copy is disabled now, and deleted in the end.

        Who may destroy the key may end its copies: nothing is asked about the targets.
        """

        def begin(write: Write, key: Key) -> None:
            self._deleting.begin(write, call, key)

        return self._keys.schedule_destruction(call, name, delay, begin)

    def moves(self, call: Call, name: str, after: tuple[str | int, ...], limit: int) -> Page[KeyMove]:
        """How the versions of a key came into their phases, by version and in the order of the moves."""
        self._permitted(call, name)
        items = self._store.page(KeyMove, under=(name,), after=after, limit=limit, sound_only=True)
        last = items[-1] if len(items) == limit else None
        return Page(items=items, next=(name, last.version, last.number) if last else ())

    def _move(self, call: Call, key: Key, version: KeyVersion, phase: Phase) -> Key:
        require(key, USABLE)
        if version.state is not VersionState.ENABLED:
            raise no_key_version(key.name, version.number, "was completed and is still there")
        call.note(version=version.number, phase=phase.value)
        primary = max(key.primary, version.number) if phase is Phase.ACTIVE else key.primary
        if call.validate_only:
            return replace(key, primary=primary)
        at, actor, number = self._now(), str(call.principal), version.number

        def change(write: Write) -> Key:
            stored = as_decided(write, key)
            if phase is Phase.DEACTIVATED and stored.primary == number:  # put in force since it was looked at
                raise key_changed(key.name)
            if phase is Phase.ACTIVE:
                return activate(write, key.name, number, at, actor, "activated")
            phases.move(write, write.get(KeyVersion, key.name, number) or version, phase, at, actor, "retired")
            give_up(self._operations, write, call, key.name, number)
            return stored

        return once(
            self._store, call, key.name, change, lambda write, _: write.get(Key, key.name) or key, version=number
        )

    def _version(self, call: Call, name: str, number: int) -> tuple[Key, KeyVersion]:
        key = self._permitted(call, name)
        if not number:
            raise InvalidRequest(
                Reason.VERSION_INVALID, f"Name the version; `broker key versions {name}` shows those there are."
            )
        version = self._store.get(KeyVersion, name, number)
        if version is None:
            raise no_key_version(name, number, "was completed")
        return key, version

    def _permitted(self, call: Call, name: str) -> Key:
        key = self._store.get(Key, check_name(name, "key"))
        self._guard.check(call, of_key(key) if key else of_unknown_key(name))
        if key is None:
            raise no_key(name)
        return key
