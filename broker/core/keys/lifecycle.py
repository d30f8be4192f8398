"""Keys: born in the HSM, rotated, disabled, sealed and destroyed there. Their use is in ``key_use``.

Whatever makes or destroys key material is two writes with the HSM between them, so that a crash leaves a row that
says what was going on: a version stays PENDING until the HSM's answer is stored, and the background loop undoes what
nobody came back for.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import TypeVar

from broker.core import receipts, signatures
from broker.core.amiss import key_changed, no_key, no_key_version
from broker.core.call import Call
from broker.core.errors import AlreadyExists, BrokerError, InvalidRequest, Outcome, Unavailable, WrongState
from broker.core.holding import version_held
from broker.core.keys.generation import Births
from broker.core.keys.refs import ref
from broker.core.kinds import KeyState, KeyType, KeyUsage, VersionState
from broker.core.model import Key, KeyVersion, Receipt
from broker.core.names import check_labels, check_name, check_owner
from broker.core.page import Page
from broker.core.policy.guard import BROKER, Guard, of_key, of_unknown_key
from broker.core.ports import Hsm, Now, Store, Write
from broker.core.reasons import Reason
from broker.core.rows import refuse_doubt

R = TypeVar("R", Key, KeyVersion)
ENABLED = frozenset({KeyState.ENABLED})
USABLE = frozenset({KeyState.ENABLED, KeyState.DISABLED})
TABLES = frozenset({"keys", "key_versions"})
SCHEDULED = frozenset({KeyState.DESTROY_SCHEDULED, KeyState.HELD})
UNDO_AFTER = timedelta(minutes=5)
"""A version that is still PENDING after this long belongs to a call that died: no HSM takes longer to make a key."""


class _NotOursAnyMore(Exception):
    """The version that a call was making is not, or not as it was, for that call to complete."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DestructionDelay:
    """How long a key can still be saved after its destruction was asked for."""

    least: timedelta = timedelta(days=1)
    usual: timedelta = timedelta(days=7)
    most: timedelta = timedelta(days=30)


class Keys:
    """The noun behind KeyService's lifecycle. Each method checks the permission first and raises only BrokerError."""

    def __init__(
        self, store: Store, hsm: Hsm, guard: Guard, now: Now, delay: DestructionDelay | None = None, *, births: int = 8
    ) -> None:
        """``births``: how many keys one principal may have made at a time, those that wait for the HSM included."""
        self._store = store
        self._hsm = hsm
        self._guard = guard
        self._now = now
        self._delay = delay or DestructionDelay()
        self._births = Births(births)

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
        self._check_makeable(key)
        call.note(key_type=key_type.value, key_usage=usage.value, exportable=int(exportable), version=1)
        if call.validate_only:
            if self._store.get(Key, name):
                raise AlreadyExists(Reason.NAME_TAKEN, f"The key {name} exists or existed; choose another name.")
            return key
        version = self._new_version(key, 1)
        with self._births.enter(str(call.principal)):
            with self._store.write(call.intent()) as write:
                receipt = receipts.replay(write, call)
                if receipt is None:
                    write.add(key)
                    write.add(version)
                    receipts.keep(write, call, name, 1)
            return self._resume(call, receipt) if receipt else self._make(call, key, version, fresh=True)

    def rotate(self, call: Call, name: str) -> Key:
        """Make a new primary version; the older ones stay for verify and decrypt."""
        key = self._permitted(call, name)
        self._check_makeable(key)
        if call.validate_only:
            _require(key, ENABLED)
            return replace(key, primary=key.latest + 1, latest=key.latest + 1)
        with self._births.enter(str(call.principal)):
            with self._store.write(call.intent()) as write:
                receipt = receipts.replay(write, call)
                if receipt is None:
                    key, version = self._begin_version(write, key)
                    receipts.keep(write, call, name, version.number)
            if receipt:
                return self._resume(call, receipt)
            call.note(version=version.number)
            return self._make(call, key, version, fresh=True)

    def get(self, call: Call, name: str) -> Key:
        """One key; NotFound ``KEY_NOT_FOUND`` for those who may know."""
        return self._permitted(call, name)

    def page(self, call: Call, after: tuple[str | int, ...], limit: int) -> Page[Key]:
        """Keys by name; only those that the caller may get, so a page can be shorter than ``limit``."""
        self._guard.check(call, BROKER)
        seen = self._store.page(Key, after=after, limit=limit, sound_only=True)
        items = [key for key in seen if self._guard.permits(call.principal, "GetKey", of_key(key))]
        return Page(items=items, next=(seen[-1].name,) if len(seen) == limit else ())

    def versions(self, call: Call, name: str, after: tuple[str | int, ...], limit: int) -> Page[KeyVersion]:
        """The versions of one key, oldest first."""
        self._permitted(call, name)
        where: dict[str, str | int] = {"key": name}
        items = self._store.page(KeyVersion, after=after or (name, 0), limit=limit, where=where, sound_only=True)
        return Page(items=items, next=(name, items[-1].number) if len(items) == limit else ())

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

    def schedule_destruction(self, call: Call, name: str, delay: timedelta | None) -> Key:
        """Stop all use now, and destroy every version in the HSM when ``delay`` is over."""
        key = self._permitted(call, name)
        wait = self._delay.usual if delay is None else delay
        if not self._delay.least <= wait <= self._delay.most:
            raise InvalidRequest(
                Reason.DELAY_OUT_OF_RANGE,
                f"The delay before destruction must be between {self._delay.least} and {self._delay.most}.",
            )
        due = self._now() + wait
        call.note(destroy_at=due.isoformat(timespec="seconds"))
        return self._move(call, key, KeyState.DESTROY_SCHEDULED, USABLE | {KeyState.HELD}, due)

    def seal(self, call: Call, name: str) -> Key:
        """Take the right to be exported away from every version, in the HSM and for good. Repeating it completes it."""
        key = self._permitted(call, name)
        if call.validate_only:
            _require(key, USABLE)
            return replace(key, exportable=False)
        with self._store.write(call.intent()) as write:
            key = _as_decided(write, key)
            if receipts.replay(write, call) is None:
                _require(key, USABLE)
                receipts.keep(write, call, name)
            # A rotation that is under way notices this and gives its version up.
            key = write.replace(key, replace(key, exportable=False)) if key.exportable else key
        open_versions = [
            v for v in self._all(KeyVersion, {"key": name}) if v.state is VersionState.ENABLED and not v.sealed
        ]
        for version in open_versions:
            self._hsm.seal(ref(key, version))
        with self._store.write(call.outcome()) as write:
            for version in open_versions:
                write.replace(version, replace(version, sealed=True))
        call.settled = True
        return key

    def chores(self) -> Iterator[tuple[str, Callable[[Call], None]]]:
        """What the background loop has to do now: (resource, work); each piece stands alone and may be repeated.

        Versions whose call died before the HSM's answer was stored are undone; keys whose time has come are destroyed.
        A spoilt row holds up nothing but its own key (TL-18).
        """
        for version in self._all(KeyVersion, {"state": VersionState.PENDING.value}, sound_only=True):
            if self._given_up(version):
                yield f"key/{version.key}", partial(self._undo, version, sure=True)
        for key in self._all(Key, {"state": KeyState.DESTROY_SCHEDULED.value}, sound_only=True):
            if key.destroy_at is not None and key.destroy_at <= self._now():
                yield f"key/{key.name}", partial(self._destroy, key)

    def _undo(self, version: KeyVersion, call: Call, *, sure: bool = False) -> None:
        """Destroy what may have been made. ``sure``: whether nobody has put the row back is asked before."""
        key = self._store.get(Key, version.key)
        if key is None:
            return
        with self._store.write(call.intent()) as write:
            # From here on nobody completes it: ``_complete`` wants the row to be as its call has read it.
            version = write.replace(version, version)
        if sure:
            refuse_doubt(self._store, TABLES, key.name)
        self._hsm.destroy(ref(key, version))
        self._forget(call, key, version)

    def _destroy(self, key: Key, call: Call) -> None:
        with self._store.write(call.intent()) as write:
            # From here on nobody saves it: ``_move`` looks at the row and at the time inside its own write.
            key = write.replace(key, key)
        versions = list(self._all(KeyVersion, {"key": key.name}))
        refuse_doubt(self._store, TABLES, key.name)
        for version in versions:
            self._hsm.destroy(ref(key, version))
        with self._store.write(call.outcome()) as write:
            for version in versions:
                write.replace(version, replace(version, state=VersionState.DESTROYED))
            write.replace(key, replace(key, state=KeyState.DESTROYED))
        call.settled = True

    def _permitted(self, call: Call, name: str) -> Key:
        key = self._store.get(Key, check_name(name, "key"))
        self._guard.check(call, of_key(key) if key else of_unknown_key(name))
        if key is None:
            raise no_key(name)
        return key

    def _check_makeable(self, key: Key) -> None:
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

    def _new_version(self, key: Key, number: int) -> KeyVersion:
        return KeyVersion(
            key=key.name,
            number=number,
            state=VersionState.PENDING,
            hsm_id=secrets.token_bytes(16),
            public_key=None,
            sealed=False,
            created_at=self._now(),
        )

    def _begin_version(self, write: Write, decided: Key) -> tuple[Key, KeyVersion]:
        key = _as_decided(write, decided)
        _require(key, ENABLED)
        key = write.replace(key, replace(key, latest=key.latest + 1))
        version = self._new_version(key, key.latest)
        write.add(version)
        write.note(version=version.number)
        return key, version

    def _make(self, call: Call, key: Key, version: KeyVersion, *, fresh: bool = False) -> Key:
        try:
            with self._births.turn(str(call.principal)):
                public = self._hsm.generate(ref(key, version), exportable=key.exportable, fresh=fresh)
        except Unavailable:
            raise  # the row stays PENDING: the same request id resumes it, or the background loop undoes it
        except BrokerError:
            self._undo(version, call)
            raise
        try:
            with self._store.write(call.outcome()) as write:
                made = self._complete(write, key, version, public)
        except _NotOursAnyMore:
            return self._overtaken(key, version)
        call.settled = True
        return made

    def _complete(self, write: Write, begun: Key, version: KeyVersion, public: bytes | None) -> Key:
        key, stored = write.get(Key, begun.name), write.get(KeyVersion, begun.name, version.number)
        if key is None or stored != version or key.exportable is not begun.exportable:
            raise _NotOursAnyMore
        write.replace(stored, replace(stored, state=VersionState.ENABLED, public_key=public))
        if public is not None:
            write.note(public_key_sha256=hashlib.sha256(public).hexdigest())
        state = KeyState.ENABLED if key.state is KeyState.PENDING else key.state
        return write.replace(key, replace(key, state=state, primary=max(key.primary, version.number)))

    def _overtaken(self, key: Key, version: KeyVersion) -> Key:
        """The same request at the same moment has completed the version; or it was given up, or its key sealed."""
        found = self._store.version(version.key, version.number)
        if found and found[1].hsm_id == version.hsm_id and found[1].state is VersionState.ENABLED:
            return found[0]
        if found and found[1].state is VersionState.HELD:
            raise version_held(version)
        self._hsm.destroy(ref(key, version))
        raise WrongState(Reason.CHANGED_MEANWHILE, f"The key {key.name} was changed meanwhile; send the request again.")

    def _resume(self, call: Call, receipt: Receipt) -> Key:
        """Answer a repeated request: with what it made, or by completing what its first try left open."""
        key, version = (
            self._store.get(Key, receipt.resource),
            self._store.get(KeyVersion, receipt.resource, receipt.version),
        )
        if key is None or version is None or version.state is VersionState.FAILED or self._given_up(version):
            raise receipts.undone()
        if version.state is VersionState.HELD:
            raise version_held(version)
        return self._make(call, key, version) if version.state is VersionState.PENDING else key

    def _given_up(self, version: KeyVersion) -> bool:
        return version.state is VersionState.PENDING and version.created_at + UNDO_AFTER < self._now()

    def _forget(self, call: Call, key: Key, version: KeyVersion) -> None:
        """Take back a version that was never made; a key that never had one goes with it, and its name is free."""
        with self._store.write(call.outcome(Outcome.ABORTED, Reason.KEY_NOT_MADE)) as write:
            if key.state is not KeyState.PENDING:
                write.replace(version, replace(version, state=VersionState.FAILED))
                return
            write.delete(version)
            write.delete(key)
            for receipt in write.page(Receipt, limit=10, where={"resource": key.name, "version": version.number}):
                write.delete(receipt)

    def _move(
        self, call: Call, key: Key, to: KeyState, allowed: frozenset[KeyState], destroy_at: datetime | None = None
    ) -> Key:
        if call.validate_only:
            self._check_movable(key, allowed)
            return replace(key, state=to, destroy_at=destroy_at)
        call.note(state=to.value)
        with self._store.write(call.outcome()) as write:
            if receipts.replay(write, call):
                key = write.get(Key, key.name) or key
            else:
                stored = _as_decided(write, key)
                self._check_movable(stored, allowed)
                key = write.replace(stored, replace(stored, state=to, destroy_at=destroy_at))
                receipts.keep(write, call, key.name)
        call.settled = True
        return key

    def _check_movable(self, key: Key, allowed: frozenset[KeyState]) -> None:
        _require(key, allowed)
        if key.destroy_at is not None and key.destroy_at <= self._now():
            raise WrongState(
                Reason.DESTRUCTION_DUE, f"The time to save the key {key.name} is over; it is being destroyed."
            )

    def _all(self, kind: type[R], where: dict[str, str | int], *, sound_only: bool = False) -> Iterator[R]:
        after: tuple[str | int, ...] = ()
        while batch := self._store.page(kind, after=after, limit=100, where=where, sound_only=sound_only):
            yield from batch
            last = batch[-1]
            after = (last.key, last.number) if isinstance(last, KeyVersion) else (last.name,)


def _require(key: Key, allowed: frozenset[KeyState]) -> None:
    if key.state not in allowed:
        wanted = " or ".join(sorted(allowed))
        raise WrongState(Reason.KEY_STATE, f"The key {key.name} is {key.state}; this needs it to be {wanted}.")


def _as_decided(write: Write, decided: Key) -> Key:
    """The key as it stands now; WrongState unless it is still what the permission was decided on (AZ-15)."""
    key = write.get(Key, decided.name)
    if key is None or of_key(key) != of_key(decided):
        raise key_changed(decided.name)
    return key
