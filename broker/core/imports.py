"""Imports: a key version wrapped in the HSM, uploaded, read back and proven at a target.

The row is PENDING before anything leaves and until the target has proven itself, so whatever happens between is
settled by reading back, and a key is never uploaded twice while the first upload may still arrive (BY-06, BY-15).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from broker.core import guard, ports
from broker.core.call import Call
from broker.core.delivery import Delivery, Sibling
from broker.core.errors import AlreadyExists, BrokerError, InvalidRequest, NotFound, Unavailable, WrongState
from broker.core.guard import Guard
from broker.core.import_rules import await_lease, importable, in_progress, provable, remote_name_of
from broker.core.kinds import ImportState, KeyState
from broker.core.model import Import, Key, KeyVersion, RemoteKey, Target
from broker.core.names import check_name
from broker.core.page import Page
from broker.core.ports import KeyRef, Write
from broker.core.proof import prove
from broker.core.receipts import keep, replay
from broker.core.targets import Connect, check_pin
from broker.core.turns import Turns

TURN_SECONDS = 20.0
"""How long a call waits for another one that imports the same key to the same target."""

MAX_VERSIONS = 1000
"""Versions of one key at one target that are looked at."""

VERDICTS = frozenset({"PROOF_FAILED", "REMOTE_KEY_DISABLED", "REMOTE_KEY_EXPOSED", "REMOTE_KEY_MISSING"})
"""Refusals that say something of the key at the target; any other only says that it could not be asked."""


class _OtherVersion(Exception):
    """The request was sent before, when another version was the primary one; that one is meant."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """What the caller wants and may have: this version at this target."""

    call: Call
    key: Key
    version: KeyVersion
    target: Target

    @property
    def ref(self) -> KeyRef:
        return _ref(self.key, self.version)


class Imports:
    """The noun behind ImportService."""

    def __init__(self, store: ports.Store, hsm: ports.Hsm, guard: Guard, connect: Connect, now: ports.Now) -> None:
        self._store = store
        self._hsm = hsm
        self._guard = guard
        self._connect = connect
        self._now = now
        self._turns = Turns()

    def import_key(self, call: Call, name: str, version: int, target: str, remote_name: str) -> Import:
        """Import one version (0: the primary) and prove it; the import that is there when it is proven already.

        A failed import may be tried again; a pending one is settled. Whether an ``Unavailable`` one arrived is found
        out by calling again.
        """
        if remote_name:
            check_name(remote_name, "remote key")
        try:
            return self._import(self._permitted(call, name, version, target), remote_name)
        except _OtherVersion as other:
            return self._import(self._permitted(call, name, other.number, target), remote_name)

    def prove(self, call: Call, name: str, version: int, target: str) -> Import:
        """Read back and prove by use again. A verdict against the key at the target makes the import FAILED.

        Nothing is disabled here: the key has been in use there, so that is for people to decide.
        """
        asked = self._permitted(call, name, version, target)
        if asked.key.type.symmetric and asked.key.state is not KeyState.ENABLED:
            raise WrongState(
                "KEY_STATE", f"The key is {asked.key.state}; a symmetric key is proven by its use, so enable it first."
            )
        with self._turn(asked):
            row = provable(self._store.get(Import, name, asked.version.number, target))
            call.note(target=target, version=row.version, remote_name=row.remote_name)
            try:
                remote = self._proven_again(asked, row)
            except WrongState as error:
                if error.reason in VERDICTS:
                    self._fail(call, row, error)
                raise
            return self._succeed(call, row, remote)

    def page(self, call: Call, name: str, target: str, after: tuple[str | int, ...], limit: int) -> Page[Import]:
        """What is where, of one key or target or of all; only of keys that the caller may get."""
        where: dict[str, str | int] = {}
        if name:
            where["key"] = check_name(name, "key")
        if target:
            where["target"] = check_name(target, "target")
        self._guard.check(call, guard.BROKER)
        rows = self._store.page(Import, after=after, limit=limit, where=where)
        shown = {key for key in {row.key for row in rows} if self._may_get(call, key)}
        last = rows[-1] if len(rows) == limit else None
        return Page(
            items=[row for row in rows if row.key in shown],
            next=(last.key, last.version, last.target) if last else (),
        )

    # ---- one import, step by step --------------------------------------------------------------------------------

    def _import(self, asked: _Asked, remote_name: str) -> Import:
        importable(asked.key, asked.version)
        with self._turn(asked):
            where = {"key": asked.key.name, "target": asked.target.name}
            rows = self._store.page(Import, limit=MAX_VERSIONS, where=where)
            row = next((row for row in rows if row.version == asked.version.number), None)
            remote_name = remote_name_of(asked.key, row, rows, remote_name)
            asked.call.note(target=asked.target.name, version=asked.version.number, remote_name=remote_name)
            if row is not None and row.state is ImportState.PROVEN:
                return self._again(asked.call, row)
            delivery = self._delivery(asked, remote_name, row, rows)
            if asked.call.validate_only:
                return self._would(asked, delivery)
            return self._run(asked, delivery, row)

    def _delivery(self, asked: _Asked, remote_name: str, row: Import | None, rows: list[Import]) -> Delivery:
        port = self._connect(asked.target.kind, asked.target.settings)
        port.supports(asked.key.type, asked.key.usage)
        oaep_hash = port.oaep_hash(self._hsm.report().oaep_hashes)
        kek = port.wrapping_key()
        asked.call.note(kek_thumbprint=kek.thumbprint)
        check_pin(asked.target, kek)
        siblings = [one for one in rows if one.state is ImportState.PROVEN and one.remote_name == remote_name]
        return Delivery(
            hsm=self._hsm,
            port=port,
            key=asked.ref,
            remote_name=remote_name,
            kek=kek,
            oaep_hash=oaep_hash,
            newest=self._sibling(asked.key, siblings[-1]) if siblings else None,
            taken=frozenset(one.remote_version for one in siblings),
            known=row.remote_version if row else "",
        )

    def _would(self, asked: _Asked, delivery: Delivery) -> Import:
        """The import as it would begin; refuses what the import would refuse, and changes nothing."""
        if delivery.find() is None and delivery.is_first() and delivery.port.versions(delivery.remote_name):
            raise delivery.name_taken()
        return self._begun(asked, delivery)

    def _run(self, asked: _Asked, delivery: Delivery, earlier: Import | None) -> Import:
        there = delivery.find() if earlier else None
        if earlier and there is None:
            await_lease(earlier, self._now())
        row = self._begin(asked, delivery, earlier)
        if there is None:
            there, row = self._send(asked.call, delivery, row)
        try:
            delivery.prove(there, again=earlier is not None)
        except BrokerError as error:
            raise self._undone(asked.call, delivery, replace(row, remote_version=there.version), error) from error
        return self._succeed(asked.call, row, there)

    def _send(self, call: Call, delivery: Delivery, row: Import) -> tuple[RemoteKey, Import]:
        """Wrap and upload; what is at the target now, and the row with what was sent."""
        try:
            first = delivery.is_first()
            blob = delivery.wrap()
        except BrokerError as error:  # nothing has left, so this attempt is over, whatever it was
            self._fail(call, row, error)
            raise
        row = replace(row, blob_sha256=hashlib.sha256(blob).hexdigest())
        call.note(blob_sha256=row.blob_sha256)
        try:
            return delivery.upload(blob, first=first), row
        except Unavailable:  # it may have arrived: the row stays PENDING, and the next attempt reads back first
            raise
        except BrokerError as error:
            self._fail(call, row, error)
            raise

    def _undone(self, call: Call, delivery: Delivery, row: Import, error: BrokerError) -> BrokerError:
        """Disable what could not be proven, and write that down; the error to raise.

        A target that went away meanwhile leaves the row PENDING: the next attempt reads back and proves.
        """
        if isinstance(error, Unavailable):
            return error
        try:
            delivery.port.disable(row.remote_name, row.remote_version)
        except Unavailable:
            return error
        except BrokerError as second:
            error = WrongState(second.reason, f"{error.message} {second.message}")
        self._fail(call, row, error)
        return error

    def _proven_again(self, asked: _Asked, row: Import) -> RemoteKey:
        port = self._connect(asked.target.kind, asked.target.settings)
        there = next((one for one in port.versions(row.remote_name) if one.version == row.remote_version), None)
        if there is None:
            raise WrongState(
                "REMOTE_KEY_MISSING",
                f"The target no longer shows version {row.remote_version} of {row.remote_name}; import the key again.",
            )
        prove(self._hsm, port, asked.ref, there)
        return there

    # ---- what is written -----------------------------------------------------------------------------------------

    def _begun(self, asked: _Asked, delivery: Delivery) -> Import:
        return Import(
            key=asked.key.name,
            version=asked.version.number,
            target=asked.target.name,
            remote_name=delivery.remote_name,
            remote_version="",
            state=ImportState.PENDING,
            kek_thumbprint=delivery.kek.thumbprint,
            blob_sha256="",
            failure="",
            started_at=self._now(),
        )

    def _begin(self, asked: _Asked, delivery: Delivery, earlier: Import | None) -> Import:
        new = self._begun(asked, delivery)
        try:
            with self._store.write(asked.call.intent()) as write:
                _remember(write, asked.call, new)
                _unchanged(write, asked)
                if earlier is not None:
                    return write.replace(earlier, new)
                write.add(new)
                return new
        except (AlreadyExists, WrongState) as error:
            if error.reason in {"NAME_TAKEN", "CHANGED_MEANWHILE"}:  # another broker process was quicker
                raise in_progress("another call has begun it; try again") from error
            raise

    def _again(self, call: Call, row: Import) -> Import:
        call.note(remote_version=row.remote_version, state=row.state.value)
        if not call.validate_only:
            with self._store.write(call.outcome()) as write:
                _remember(write, call, row)
            call.settled = True
        return row

    def _succeed(self, call: Call, row: Import, remote: RemoteKey) -> Import:
        call.note(remote_version=remote.version, state=ImportState.PROVEN.value)
        proven = replace(
            row, state=ImportState.PROVEN, remote_version=remote.version, failure="", proven_at=self._now()
        )
        try:
            with self._store.write(call.outcome()) as write:
                proven = write.replace(row, proven)
        except WrongState as error:
            return self._overtaken(row, error)
        call.settled = True
        return proven

    def _overtaken(self, row: Import, error: WrongState) -> Import:
        """Another broker process wrote the row meanwhile: its result, if that is a proven import."""
        found = self._store.get(Import, row.key, row.version, row.target)
        if error.reason == "CHANGED_MEANWHILE" and found is not None and found.state is ImportState.PROVEN:
            return found
        raise in_progress("another call has taken it over; try again") from error

    def _fail(self, call: Call, row: Import, error: BrokerError) -> None:
        call.note(state=ImportState.FAILED.value)
        with self._store.write(call.outcome(_status(error), error.reason)) as write:
            stored = write.get(Import, row.key, row.version, row.target)
            # Only what this attempt began is marked; if another one has taken over, the row is that one's.
            if stored is not None and stored.revision == row.revision:
                write.replace(stored, replace(row, state=ImportState.FAILED, failure=error.reason, proven_at=None))
        call.settled = True

    # ---- who may, and what is there ------------------------------------------------------------------------------

    def _permitted(self, call: Call, name: str, version: int, target: str) -> _Asked:
        check_name(name, "key")
        check_name(target, "target")
        if not 0 <= version < 1 << 31:
            raise InvalidRequest("VERSION_INVALID", "The version is not a positive number; 0 means the primary one.")
        found = self._store.version(name, version)
        key = found[0] if found else self._store.get(Key, name)
        place = self._store.get(Target, target)
        self._guard.check(call, guard.of_key(key) if key else guard.of_unknown_key(name))
        self._guard.check(call, guard.of_target(place) if place else guard.of_unknown_target(target))
        if key is None:
            raise NotFound("KEY_NOT_FOUND", "There is no key of this name; `broker key list` shows those there are.")
        if found is None:
            raise NotFound("KEY_VERSION_NOT_FOUND", "The key has no such version that was completed.")
        if place is None:
            raise NotFound(
                "TARGET_NOT_FOUND", "There is no target of this name; `broker target list` shows those there are."
            )
        return _Asked(call=call, key=found[0], version=found[1], target=place)

    def _may_get(self, call: Call, name: str) -> bool:
        key = self._store.get(Key, name)
        resource = guard.of_key(key) if key else guard.of_unknown_key(name)
        return self._guard.permits(call.principal, "GetKey", resource)

    def _sibling(self, key: Key, row: Import) -> Sibling | None:
        held = self._store.get(KeyVersion, key.name, row.version)
        return Sibling(key=_ref(key, held), remote_version=row.remote_version) if held else None

    @contextmanager
    def _turn(self, asked: _Asked) -> Iterator[None]:
        with self._turns.take(asked.key.name, asked.target.name, seconds=TURN_SECONDS) as held:
            if not held:
                raise in_progress("another call is at it; try again")
            yield


def _ref(key: Key, held: KeyVersion) -> KeyRef:
    return KeyRef(hsm_id=held.hsm_id, type=key.type, usage=key.usage, public_key=held.public_key)


def _remember(write: Write, call: Call, row: Import) -> None:
    receipt = replay(write, call)
    if receipt is None:
        keep(write, call, row.key, row.version)
    elif receipt.version != row.version:
        raise _OtherVersion(receipt.version)


def _unchanged(write: Write, asked: _Asked) -> None:
    """What was decided on is still so now that nobody can change it any more."""
    key, target = write.get(Key, asked.key.name), write.get(Target, asked.target.name)
    if key is None or key.state is not KeyState.ENABLED or target is None or target.revision != asked.target.revision:
        raise WrongState(
            "CHANGED_DURING_CALL", "The key or the target was changed while it was being imported; try again."
        )


def _status(error: BrokerError) -> str:
    if isinstance(error, Unavailable):
        return "UNAVAILABLE"
    if isinstance(error, InvalidRequest):
        return "INVALID_ARGUMENT"
    return "NOT_FOUND" if isinstance(error, NotFound) else "FAILED_PRECONDITION"
