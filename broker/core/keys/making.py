"""Key versions, made in the HSM: the first of a new key, and each that a rotation adds.

    PENDING ─ generate ─▶ ENABLED
       │ refused, or nobody came back
       └─ destroy ─▶ FAILED, or nothing at all of a key that never had another version

A repetition of the request carries the operation on; what nobody comes back for is undone.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import timedelta
from functools import partial

from broker.core import receipts
from broker.core.amiss import key_changed
from broker.core.call import Call
from broker.core.errors import WrongState
from broker.core.holding import version_held
from broker.core.keys import phases
from broker.core.keys.generation import GenerationTurns
from broker.core.keys.refs import ref
from broker.core.keys.states import ENABLED, TABLES, as_decided, refuse_rotating, require, rotation_of
from broker.core.kinds import KeyState, OperationState, Phase, VersionState
from broker.core.model import Key, KeyVersion, Operation, Receipt
from broker.core.operations.plan import Plan, Step, Work
from broker.core.operations.running import Operations
from broker.core.ports import Hsm, Now, Store, Write
from broker.core.reasons import Reason
from broker.core.rows import refuse_doubt

UNDO_AFTER = timedelta(minutes=5)
"""A version that is still PENDING after this long belongs to a call that died: no HSM takes longer to make a key."""


class Making:
    """What makes versions. ``turns``: whose turn it is at the HSM."""

    def __init__(self, store: Store, hsm: Hsm, operations: Operations, now: Now, turns: GenerationTurns) -> None:
        self._store = store
        self._hsm = hsm
        self._operations = operations
        self._now = now
        self._turns = turns
        self._plan = operations.admit(
            Plan(
                kind="make-key-version",
                steps=(Step(name="generate", act=self._generate, keep=self._enable),),
                patience=UNDO_AFTER,
                undo=self._destroy,
                undone=self._forget,
                undone_reason=Reason.KEY_NOT_MADE,
                abandoned_is_undone=True,
            )
        )

    def first(self, call: Call, key: Key) -> Key:
        """Add a key, and make its first version."""
        with self._turns.enter(str(call.principal)):
            with self._store.write(call.intent()) as write:
                receipt = receipts.replay(write, call)
                if receipt is None:
                    write.add(key)
                    operation = self._begin(write, call, key, 1, Phase.ACTIVE)
                    receipts.keep(write, call, key.name, 1, operation=operation)
            return self._resume(call, receipt) if receipt else self._run(call, key.name, operation, fresh=True)

    def next(self, call: Call, decided: Key, phase: Phase = Phase.ACTIVE) -> Key:
        """Make the next version, which becomes the primary one if it is ACTIVE."""
        with self._turns.enter(str(call.principal)):
            with self._store.write(call.intent()) as write:
                receipt = receipts.replay(write, call)
                if receipt is None:
                    key = as_decided(write, decided)
                    if phase is Phase.ACTIVE:
                        self.check_alone(write, key.name)
                    key, operation = self.begun(write, call, key, phase)
                    receipts.keep(write, call, key.name, key.latest, operation=operation)
            if receipt:
                return self._resume(call, receipt)
            call.note(version=key.latest)
            return self._run(call, key.name, operation, fresh=True)

    def check_alone(self, rows: Store | Write, name: str) -> None:
        """Return if no version of the key is on its way to its targets, which one that is made here only would pass."""
        refuse_rotating(self._operations.live(rows, rotation_of(name)), name)

    def begun(self, write: Write, call: Call, key: Key, phase: Phase) -> tuple[Key, Operation]:
        """The key with one version more, which is to be in that phase once it is made; ``complete`` makes it."""
        require(key, ENABLED)
        key = write.replace(key, replace(key, latest=key.latest + 1))
        write.note(version=key.latest)
        return key, self._begin(write, call, key, key.latest, phase)

    def complete(self, call: Call, name: str, number: int, *, fresh: bool = False) -> None:
        """Make what was ``begun``, if it is not made yet; WrongState ``EARLIER_TRY_UNDONE`` when it came to nothing.

        ``fresh``: it was begun just now by this very call.
        """
        operation = self._operations.live(self._store, subject_of(name, number))
        if operation is not None:
            with self._turns.enter(str(call.principal)):
                self._operations.run(call, operation, fresh=fresh)
        version = self._store.get(KeyVersion, name, number)
        if version is None or version.state is not VersionState.ENABLED:
            raise receipts.undone()

    def chores(self) -> Iterator[tuple[str, Callable[[Call], None]]]:
        """Versions that an older release has left PENDING become operations, which the background then undoes."""
        where: dict[str, str | int] = {"state": VersionState.PENDING.value}
        for version in self._store.page(KeyVersion, limit=100, where=where, sound_only=True):
            if (
                self._given_up(version)
                and self._operations.live(self._store, subject_of(version.key, version.number)) is None
            ):
                yield f"key/{version.key}", partial(self._adopt, version)

    # ---- the plan, in the order of its steps ---------------------------------------------------------------------

    def _begin(self, write: Write, call: Call, key: Key, number: int, phase: Phase) -> Operation:
        version = KeyVersion(
            key=key.name,
            number=number,
            state=VersionState.PENDING,
            hsm_id=secrets.token_bytes(16),
            public_key=None,
            sealed=False,
            created_at=self._now(),
            phase=phase,
        )
        write.add(version)
        subject = subject_of(key.name, number)
        return self._operations.begin(write, call, self._plan, subject, _memory(key, version))

    def _generate(self, work: Work) -> Mapping[str, str]:
        key, version = self._named(self._store, work)
        with self._turns.turn(str(work.call.principal)):
            public = self._hsm.generate(ref(key, version), exportable=exportable(work), fresh=work.fresh)
        return found(public)

    def _enable(self, write: Write, work: Work) -> None:
        key, version = self._named(write, work)
        version = enable(write, work, key, version)
        phases.note(write, version, version.standing, self._now(), work.operation.principal, "created")
        if version.phase is not Phase.PRE_ACTIVE:
            write.replace(key, with_version(key, version))

    def _destroy(self, work: Work) -> None:
        """Destroy what may have been made. In the background it is asked before whether somebody put the row back."""
        key, version = _rows(self._store, work)
        if key is None or version is None or version.state is not VersionState.PENDING:
            return
        if not work.attended:
            refuse_doubt(self._store, TABLES, key.name)
        self._hsm.destroy(ref(key, version))

    def _forget(self, write: Write, work: Work) -> None:
        """Take back a version that was never made; a key that never had one goes with it, and its name is free."""
        key, version = _rows(write, work)
        if key is None or version is None or version.state is not VersionState.PENDING:
            return
        if key.state is not KeyState.PENDING:
            write.replace(version, replace(version, state=VersionState.FAILED))
            return
        write.delete(version)
        write.delete(key)
        for receipt in write.page(Receipt, limit=10, where={"resource": key.name, "version": version.number}):
            write.delete(receipt)

    # ---- who carries it on ---------------------------------------------------------------------------------------

    def _run(self, call: Call, name: str, operation: Operation, *, fresh: bool = False) -> Key:
        done = self._operations.run(call, operation, fresh=fresh)
        key = self._store.get(Key, name)
        if key is None or done.state is not OperationState.DONE:
            raise receipts.undone()
        return key

    def _resume(self, call: Call, receipt: Receipt) -> Key:
        """Answer a repeated request: with what it made, or by completing what its first try left open."""
        name, number = receipt.resource, receipt.version
        key, version = self._store.get(Key, name), self._store.get(KeyVersion, name, number)
        if key is None or version is None or version.state is VersionState.FAILED or self._given_up(version):
            raise receipts.undone()
        if version.state is VersionState.HELD:
            raise version_held(version)
        if version.state is not VersionState.PENDING:
            return key
        operation = self._operations.of(subject_of(name, number), receipt.operation)
        return self._run(call, name, operation or self._adopted(call, key, version))

    def _given_up(self, version: KeyVersion) -> bool:
        return version.state is VersionState.PENDING and version.created_at + UNDO_AFTER < self._now()

    def _adopt(self, version: KeyVersion, call: Call) -> None:
        key = self._store.get(Key, version.key)
        if key is not None:
            self._operations.run(call, self._adopted(call, key, version))

    def _adopted(self, call: Call, key: Key, version: KeyVersion) -> Operation:
        """The operation of a version that was begun before there were any."""
        with self._store.write(call.intent()) as write:
            subject = subject_of(key.name, version.number)
            return self._operations.begin(write, call, self._plan, subject, _memory(key, version))

    def _named(self, rows: Store | Write, work: Work) -> tuple[Key, KeyVersion]:
        """What the operation is about; WrongState ``CHANGED_MEANWHILE`` when that is not to be completed any more."""
        key, version = _rows(rows, work)
        if version is not None and version.state is VersionState.HELD:
            raise version_held(version)
        if key is None or version is None or version.state is not VersionState.PENDING:
            name, _ = version_named(work.operation)
            raise WrongState(Reason.CHANGED_MEANWHILE, f"The key {name} was changed meanwhile; send the request again.")
        return key, version


def subject_of(name: str, number: int) -> str:
    """What the operations on one version of a key are about."""
    return f"key/{name}/{number}"


def version_named(operation: Operation) -> tuple[str, int]:
    """The key and the number of the version that an operation is about."""
    _, name, number = operation.subject.split("/")
    return name, int(number)


def exportable(work: Work) -> bool:
    """Whether the version was begun as one that may leave the HSM."""
    return work.memory["exportable"] == "1"


def found(public: bytes | None) -> dict[str, str]:
    """What ``enable`` needs of the HSM's answer."""
    return {"public_key": public.hex()} if public is not None else {}


def enable(write: Write, work: Work, key: Key, version: KeyVersion) -> KeyVersion:
    """Have the version used as the HSM has it; WrongState ``CHANGED_MEANWHILE`` if its key was sealed meanwhile."""
    if key.exportable is not exportable(work):
        raise key_changed(key.name)
    public = bytes.fromhex(work.memory["public_key"]) if "public_key" in work.memory else None
    if public is not None:
        write.note(public_key_sha256=hashlib.sha256(public).hexdigest())
    return write.replace(version, replace(version, state=VersionState.ENABLED, public_key=public))


def with_version(key: Key, version: KeyVersion) -> Key:
    """The key with one version more, the primary one if it is the newest."""
    state = KeyState.ENABLED if key.state is KeyState.PENDING else key.state
    return replace(key, state=state, primary=max(key.primary, version.number))


def _memory(key: Key, version: KeyVersion) -> dict[str, str]:
    return {"exportable": str(int(key.exportable)), "hsm_id": version.hsm_id.hex()}


def _rows(rows: Store | Write, work: Work) -> tuple[Key | None, KeyVersion | None]:
    """The rows that the operation began; no version of a key that has come under the same name since."""
    name, number = version_named(work.operation)
    key, version = rows.get(Key, name), rows.get(KeyVersion, name, number)
    return key, version if version and version.hsm_id.hex() == work.memory["hsm_id"] else None
