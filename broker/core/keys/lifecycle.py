"""Keys: generated in the HSM, rotated, disabled, sealed and destroyed there. Their use is in ``key_use``.

Whatever makes, seals or destroys key material is an operation: ``making``, ``seals`` and ``destroying`` have the plans.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from broker.core import signatures
from broker.core.amiss import no_key, no_key_version
from broker.core.call import Call
from broker.core.errors import AlreadyExists, InvalidRequest, WrongState
from broker.core.keys.destroying import Destroying
from broker.core.keys.generation import GenerationTurns
from broker.core.keys.making import Making
from broker.core.keys.seals import Seals
from broker.core.keys.self_sealing import SelfSealing
from broker.core.keys.states import ENABLED, SCHEDULED, USABLE, as_decided, require
from broker.core.kinds import KeyState, KeyType, KeyUsage
from broker.core.model import Key, KeyVersion
from broker.core.names import check_labels, check_name, check_owner
from broker.core.once import once
from broker.core.operations.running import Operations
from broker.core.page import Page
from broker.core.policy.guard import Guard, of_key, of_unknown_key
from broker.core.ports import Hsm, Now, Store, Write
from broker.core.reasons import Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class DestructionDelay:
    """How long a key can still be saved after its destruction was asked for."""

    least: timedelta = timedelta(days=1)
    usual: timedelta = timedelta(days=7)
    most: timedelta = timedelta(days=30)


class Keys:
    """The noun behind KeyService's lifecycle. Each method checks the permission first and raises only BrokerError."""

    def __init__(
        self,
        store: Store,
        hsm: Hsm,
        guard: Guard,
        operations: Operations,
        now: Now,
        delay: DestructionDelay | None = None,
        *,
        generating: int = 8,
    ) -> None:
        """``generating``: how many keys one principal may have made at a time, those that wait for the HSM included."""
        self._store = store
        self._hsm = hsm
        self._guard = guard
        self._now = now
        self._delay = delay or DestructionDelay()
        self.making = Making(store, hsm, operations, now, GenerationTurns(generating))
        self._sealing = Seals(store, hsm, operations)
        self._self_sealing = SelfSealing(store, hsm, guard, operations)
        self._destroying = Destroying(store, hsm, operations, now)

    def create(
        self,
        call: Call,
        name: str,
        key_type: KeyType,
        usage: KeyUsage,
        *,
        exportable: bool,
        labels: dict[str, str],
        owner: str,
    ) -> Key:
        """Make a key with its first version; AlreadyExists ``NAME_TAKEN``."""
        key = Key(
            name=check_name(name, "key"),
            type=key_type,
            usage=usage,
            exportable=exportable,
            labels=check_labels(labels),
            owner=check_owner(owner or str(call.principal)),
            state=KeyState.PENDING,
            primary=0,
            latest=1,
            created_at=self._now(),
        )
        self._guard.check(call, of_key(key))
        self.check_makeable(key)
        call.note(key_type=key_type.value, key_usage=usage.value, exportable=int(exportable), version=1)
        if call.validate_only:
            if self._store.get(Key, name):
                raise AlreadyExists(Reason.NAME_TAKEN, f"The key {name} exists or existed; choose another name.")
            return key
        return self.making.first(call, key)

    def rotate(self, call: Call, name: str) -> Key:
        """Make a new primary version; the older ones stay for verify and decrypt.

        WrongState ``KEY_ROTATION_RUNNING`` while another one is on its way to the key's targets.
        """
        key = self._permitted(call, name)
        self.check_makeable(key)
        if call.validate_only:
            self.making.check_alone(self._store, name)
            require(key, ENABLED)
            return replace(key, primary=key.latest + 1, latest=key.latest + 1)
        return self.making.next(call, key)

    def versions(self, call: Call, name: str, after: tuple[str | int, ...], limit: int) -> tuple[Key, Page[KeyVersion]]:
        """One key and its versions, oldest first."""
        key = self._permitted(call, name)
        items = self._store.page(KeyVersion, under=(name,), after=after, limit=limit, sound_only=True)
        return key, Page(items=items, next=(name, items[-1].number) if len(items) == limit else ())

    def public_key(self, call: Call, name: str, version: int) -> tuple[Key, KeyVersion]:
        """A version with its public key; WrongState ``NO_PUBLIC_KEY`` for symmetric keys."""
        key = self._permitted(call, name)
        if key.type.symmetric:
            raise WrongState(Reason.NO_PUBLIC_KEY, f"The key {name} is symmetric and so has no public key.")
        found = self._store.get(KeyVersion, name, version or key.primary)
        if found is None or found.public_key is None:
            raise no_key_version(name, version, "was completed")
        call.note(version=found.number)
        return key, found

    def enable(self, call: Call, name: str) -> Key:
        """DISABLED → ENABLED; enabling twice is the same as once."""
        return self._move(call, self._permitted(call, name), KeyState.ENABLED, USABLE)

    def disable(self, call: Call, name: str) -> Key:
        """ENABLED → DISABLED: no use at all until it is enabled again."""
        return self._move(call, self._permitted(call, name), KeyState.DISABLED, USABLE)

    def cancel_destruction(self, call: Call, name: str) -> Key:
        """DESTROY_SCHEDULED, as long as the time has not come, or HELD → DISABLED."""
        return self._move(call, self._permitted(call, name), KeyState.DISABLED, SCHEDULED)

    def schedule_destruction(
        self, call: Call, name: str, delay: timedelta | None, also: Callable[[Write, Key], None] | None = None
    ) -> Key:
        """Stop all use now, and destroy every version in the HSM when ``delay`` is over.

        ``also``: what is begun with it at the targets; without, copies there stay as they are.
        """
        key = self._permitted(call, name)
        wait = self._delay.usual if delay is None else delay
        if not self._delay.least <= wait <= self._delay.most:
            raise InvalidRequest(
                Reason.DELAY_OUT_OF_RANGE,
                f"The delay before destruction must be between {self._delay.least} and {self._delay.most}.",
            )
        due = self._now() + wait
        call.note(destroy_at=due.isoformat(timespec="seconds"))
        return self._move(call, key, KeyState.DESTROY_SCHEDULED, USABLE | {KeyState.HELD}, due, also)

    def seal(self, call: Call, name: str) -> Key:
        """Take the right to be exported away from every version, in the HSM and for good. Repeating it completes it."""
        key = self._permitted(call, name)
        if call.validate_only:
            require(key, USABLE)
            return replace(key, exportable=False)
        return self._sealing.seal(call, key)

    def seal_once_at(self, call: Call, name: str, targets: tuple[str, ...]) -> Key:
        """Seal each version by itself once it is in force and proven at all of these; none: none any more."""
        return self._self_sealing.watch(call, self._permitted(call, name), targets)

    def chores(self) -> Iterator[tuple[str, Callable[[Call], None]]]:
        """What the background loop has to do now: (resource, work); each piece stands alone and may be repeated.

        Keys whose time has come are destroyed, and versions from before there were operations are looked after. A
        damaged row holds up nothing but its own key (TL-18).
        """
        yield from self.making.chores()
        yield from self._destroying.chores()

    def _permitted(self, call: Call, name: str) -> Key:
        key = self._store.get(Key, check_name(name, "key"))
        self._guard.check(call, of_key(key) if key else of_unknown_key(name))
        if key is None:
            raise no_key(name)
        return key

    def check_makeable(self, key: Key) -> None:
        """Return if the HSM can make a version of such a key, for its usage."""
        signs = bool(signatures.ALGORITHMS[key.type])
        encrypts = key.type.symmetric or key.type in signatures.RSA_TYPES
        if not (signs if key.usage is KeyUsage.SIGN else encrypts):
            raise InvalidRequest(
                Reason.USAGE_MISMATCH,
                f"A key of type {key.type} cannot be made to {key.usage}; choose the other usage or another type.",
            )
        if key.exportable and key.type is KeyType.ED25519:
            raise InvalidRequest(
                Reason.KEY_NOT_EXPORTABLE, "No token wraps an Ed25519 key; create it without --exportable."
            )
        report = self._hsm.report()
        lacking = report.lacking(f"{key.type} {key.usage}")
        if lacking or key.type not in report.key_types:
            sentence = f"This HSM cannot make keys of type {key.type} to {key.usage}; see `broker hsm`. {lacking}"
            raise WrongState(Reason.HSM_MECHANISM_MISSING, sentence.rstrip())

    def _move(
        self,
        call: Call,
        key: Key,
        to: KeyState,
        allowed: frozenset[KeyState],
        destroy_at: datetime | None = None,
        also: Callable[[Write, Key], None] | None = None,
    ) -> Key:
        new: dict[str, Any] = {"state": to, "destroy_at": destroy_at, "destroyed_at_targets": True if also else None}
        if call.validate_only:
            self._check_movable(self._store, key, allowed)
            return replace(key, **new)
        call.note(state=to.value)

        def change(write: Write) -> Key:
            stored = as_decided(write, key)
            self._check_movable(write, stored, allowed)
            moved = write.replace(stored, replace(stored, **new))
            if also is not None:
                also(write, moved)
            return moved

        return once(self._store, call, key.name, change, lambda write, _: write.get(Key, key.name) or key)

    def _check_movable(self, rows: Store | Write, key: Key, allowed: frozenset[KeyState]) -> None:
        require(key, allowed)
        due = key.destroy_at is not None and key.destroy_at <= self._now()
        if due or self._destroying.has_begun(rows, key):
            raise WrongState(
                Reason.DESTRUCTION_DUE, f"The time to save the key {key.name} is over; it is being destroyed."
            )
