"""Held key versions: an operator says of each whether it is kept or discarded (``holding`` tells how they came about).

To keep one adopts what the HSM has under its id and makes nothing; to discard one destroys that. Either is refused for
a version that is not held, unless it has come to the same already.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

from broker.core import receipts
from broker.core.amiss import key_changed, no_key, no_key_version
from broker.core.call import Call
from broker.core.errors import InvalidRequest, WrongState
from broker.core.keys.refs import ref
from broker.core.kinds import KeyState, VersionState
from broker.core.model import Key, KeyVersion
from broker.core.names import check_name
from broker.core.policy.guard import Guard, of_key, of_unknown_key
from broker.core.ports import Hsm, Store, Write
from broker.core.reasons import Reason

LISTED = 1000
"""Held versions of one key, or of all, that are told at most."""


class Settling:
    """The part of KeyService that is about held versions. Permission first, only BrokerError raised."""

    def __init__(self, store: Store, hsm: Hsm, guard: Guard) -> None:
        self._store = store
        self._hsm = hsm
        self._guard = guard

    def held(self, name: str = "") -> dict[str, list[int]]:
        """The numbers of the held versions by key: of one key that the caller was permitted to see, or of all."""
        found: dict[str, list[int]] = {}
        of_one, where = (name,) if name else (), {"state": VersionState.HELD.value}
        for version in self._store.page(KeyVersion, under=of_one, limit=LISTED, where=where, sound_only=True):
            found.setdefault(version.key, []).append(version.number)
        return found

    def settle(self, call: Call, name: str, number: int, *, keep: bool) -> Key:
        """Keep (usable from now on, and the primary one if it is the newest) or discard (gone from the HSM) a version.

        NotFound ``KEY_NOT_IN_HSM`` when there is nothing to keep; WrongState ``KEY_VERSION_NOT_HELD``.
        """
        key, version = self._permitted(call, name, number)
        wanted = VersionState.ENABLED if keep else VersionState.DESTROYED
        call.note(version=number, state=wanted.value)
        if version.state is wanted:
            return self._as_it_is(call, key, version)
        if version.state is not VersionState.HELD:
            raise _not_held(version)
        if keep:
            self._hsm.public_key(ref(key, version))  # what is not there cannot be kept, and nothing is made here
        changed = _with(key, version) if keep else _without(key)
        if call.validate_only:
            return changed
        with self._store.write(call.intent()) as write:
            _remember(write, call, key, version)
            version = write.replace(version, version)  # from here on nobody else settles it
        new = self._kept(call, key, version) if keep else self._discarded(key, version)
        with self._store.write(call.outcome()) as write:
            write.replace(version, new)
            key = write.replace(key, changed) if changed != key else key
        call.settled = True
        return key

    def _permitted(self, call: Call, name: str, number: int) -> tuple[Key, KeyVersion]:
        key = self._store.get(Key, check_name(name, "key"))
        self._guard.check(call, of_key(key) if key else of_unknown_key(name))
        if not 1 <= number < 1 << 31:
            raise InvalidRequest(
                Reason.VERSION_INVALID, f"Name the version to settle; `broker key versions {name}` shows them."
            )
        version = self._store.get(KeyVersion, name, number)
        if key is None:
            raise no_key(name)
        if version is None:
            raise no_key_version(name, number, "could be settled")
        return key, version

    def _as_it_is(self, call: Call, key: Key, version: KeyVersion) -> Key:
        """Nothing is left to do, and the request id is used up all the same."""
        if not call.validate_only:
            with self._store.write(call.outcome()) as write:
                _remember(write, call, key, version)
            call.settled = True
        return key

    def _kept(self, call: Call, key: Key, version: KeyVersion) -> KeyVersion:
        public = self._hsm.generate(ref(key, version), exportable=key.exportable)
        if public is not None:
            call.note(public_key_sha256=hashlib.sha256(public).hexdigest())
        return replace(version, state=VersionState.ENABLED, public_key=public)

    def _discarded(self, key: Key, version: KeyVersion) -> KeyVersion:
        self._hsm.destroy(ref(key, version))
        return replace(version, state=VersionState.DESTROYED)


def _remember(write: Write, call: Call, key: Key, version: KeyVersion) -> None:
    """Use the request id up, before anything is touched; and the key is still what the permission was decided on."""
    if receipts.replay(write, call) is None:
        receipts.keep(write, call, key.name, version.number)
    if write.get(Key, key.name) != key:
        raise key_changed(key.name)


def _with(key: Key, version: KeyVersion) -> Key:
    state = KeyState.ENABLED if key.state is KeyState.PENDING else key.state
    return replace(key, state=state, primary=max(key.primary, version.number))


def _without(key: Key) -> Key:
    """The name of a key that never had another version stays taken: it may have been in use since the backup."""
    return replace(key, state=KeyState.DESTROYED) if key.state is KeyState.PENDING else key


def _not_held(version: KeyVersion) -> WrongState:
    return WrongState(
        Reason.KEY_VERSION_NOT_HELD,
        f"Version {version.number} of the key {version.key} is {version.state}, not held; there is nothing to settle.",
    )
