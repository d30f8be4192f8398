"""Held key versions: an operator says of each whether it is kept or discarded (``holding`` tells how they came about).

    HELD ─ kept: adopt what the HSM has ─▶ ENABLED
      │      └ refused ─▶ HELD, as it was
      └─ discarded: destroy ─▶ DESTROYED

To keep one adopts what the HSM has under its id and makes nothing; to discard one destroys that. Either is refused for
a version that is not held, unless it has come to the same already. What is begun goes on in the background.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta

from broker.core import receipts
from broker.core.amiss import key_changed, no_key, no_key_version
from broker.core.call import Call
from broker.core.errors import InvalidRequest, WrongState
from broker.core.keys.making import enable, exportable, found, subject_of, version_named, with_version
from broker.core.keys.refs import ref
from broker.core.kinds import KeyState, OperationState, Phase, VersionState
from broker.core.model import Key, KeyVersion
from broker.core.names import check_name
from broker.core.once import once
from broker.core.operations.plan import Plan, Step, Work
from broker.core.operations.running import Operations, running
from broker.core.policy.guard import Guard, of_key, of_unknown_key
from broker.core.ports import Hsm, Store, Write
from broker.core.reasons import Reason

LISTED = 1000
"""Held versions of one key, or of all, that are told at most."""

PATIENCE = timedelta(minutes=1)


class Settling:
    """The part of KeyService that is about held versions. Permission first, only BrokerError raised."""

    def __init__(self, store: Store, hsm: Hsm, guard: Guard, operations: Operations) -> None:
        self._store = store
        self._hsm = hsm
        self._guard = guard
        self._operations = operations
        self._keeping = operations.admit(
            Plan(
                kind="keep-key-version",
                steps=(Step(name="adopt", act=self._adopt, keep=self._kept),),
                patience=PATIENCE,
                undo=self._leave,
                undone_reason=Reason.KEY_VERSION_STAYS_HELD,
            )
        )
        self._discarding = operations.admit(
            Plan(
                kind="discard-key-version",
                steps=(Step(name="destroy", act=self._destroy, keep=self._discarded),),
                patience=PATIENCE,
            )
        )

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
        if call.validate_only:
            return with_version(key, version) if keep else _without(key)
        self._run(call, key, version, self._keeping if keep else self._discarding)
        return self._store.get(Key, name) or key

    # ---- keep-key-version ----------------------------------------------------------------------------------------

    def _adopt(self, work: Work) -> Mapping[str, str]:
        key, version = self._held(self._store, work)
        self._hsm.public_key(ref(key, version))
        return found(self._hsm.generate(ref(key, version), exportable=exportable(work)))

    def _kept(self, write: Write, work: Work) -> None:
        key, version = self._held(write, work)
        version = enable(write, work, key, version)
        if version.phase is not Phase.PRE_ACTIVE:  # its rotation was given up with the restore
            _change(write, key, with_version(key, version))

    def _leave(self, work: Work) -> None:
        """What could not be adopted stays what and where it is, and held."""

    # ---- discard-key-version -------------------------------------------------------------------------------------

    def _destroy(self, work: Work) -> None:
        key, version = self._rows(self._store, work)
        if key is not None and version is not None:
            self._hsm.destroy(ref(key, version))

    def _discarded(self, write: Write, work: Work) -> None:
        key, version = self._rows(write, work)
        if key is not None and version is not None:
            write.replace(version, replace(version, state=VersionState.DESTROYED))
            _change(write, key, _without(key))

    # ---- the parts of it -----------------------------------------------------------------------------------------

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
            once(
                self._store,
                call,
                key.name,
                lambda write: _refuse_change(write, key),
                lambda write, _: _refuse_change(write, key),
                version=version.number,
            )
        return key

    def _run(self, call: Call, key: Key, version: KeyVersion, plan: Plan) -> None:
        """Settle it; what another call has begun to the same end is completed."""
        subject = subject_of(version.key, version.number)
        with self._store.write(call.intent()) as write:
            _refuse_change(write, key)
            operation = self._operations.live(write, subject)
            if operation is None:
                write.replace(version, version)  # it is still as it was read
                operation = self._operations.begin(write, call, plan, subject, {"exportable": str(int(key.exportable))})
            if operation.kind != plan.kind:
                raise running(operation)
            if receipts.replay(write, call) is None:
                receipts.keep(write, call, key.name, version.number, operation=operation)
        if self._operations.run(call, operation).state is not OperationState.DONE:
            raise key_changed(key.name)

    def _rows(self, rows: Store | Write, work: Work) -> tuple[Key | None, KeyVersion | None]:
        """What the operation is about; no version if it is not held any more."""
        name, number = version_named(work.operation)
        key, version = rows.get(Key, name), rows.get(KeyVersion, name, number)
        return key, version if version is not None and version.state is VersionState.HELD else None

    def _held(self, rows: Store | Write, work: Work) -> tuple[Key, KeyVersion]:
        key, version = self._rows(rows, work)
        if key is None or version is None:
            raise key_changed(version_named(work.operation)[0])
        return key, version


def _refuse_change(write: Write, key: Key) -> None:
    """Return if the key is still what the permission was decided on (AZ-15)."""
    if write.get(Key, key.name) != key:
        raise key_changed(key.name)


def _change(write: Write, key: Key, changed: Key) -> None:
    if changed != key:
        write.replace(key, changed)


def _without(key: Key) -> Key:
    """The name of a key that never had another version stays taken: it may have been in use since the backup."""
    return replace(key, state=KeyState.DESTROYED) if key.state is KeyState.PENDING else key


def _not_held(version: KeyVersion) -> WrongState:
    return WrongState(
        Reason.KEY_VERSION_NOT_HELD,
        f"Version {version.number} of the key {version.key} is {version.state}, not held; there is nothing to settle.",
    )
