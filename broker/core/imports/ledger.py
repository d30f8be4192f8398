"""What importing, exporting and confirming have in common: who may, whose turn it is, and what is written.

All nouns that write imports share one ledger, so that they take turns at the same key and target. What is on its way
there is ``bringing``'s; here is what is written of the copies that have arrived, or never did.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from broker.core import ports, receipts
from broker.core.amiss import no_key, no_key_version, no_target
from broker.core.call import Call
from broker.core.errors import BrokerError, InvalidRequest, WrongState
from broker.core.imports.arrival import Arrival, Extra
from broker.core.imports.delivery import Delivery, Sibling
from broker.core.imports.rules import (
    NO_TERMS,
    OVER,
    agree,
    copies_where,
    in_progress,
    latest,
    lost,
    remote_name_of,
    sent_before,
    siblings,
)
from broker.core.imports.turns import Turns
from broker.core.keys.phases import Use, require_use
from broker.core.keys.refs import ref
from broker.core.kinds import ImportState, KeyState
from broker.core.model import Import, Key, KeyVersion, Operation, Receipt, RemoteKey, Target, Terms, WrappingKey
from broker.core.names import check_name, check_remote_name
from broker.core.operations.running import Operations
from broker.core.policy import guard
from broker.core.policy.guard import Guard
from broker.core.ports import Write
from broker.core.reasons import Reason
from broker.core.targets.copies import place_of
from broker.core.targets.keks import check_pin, standing
from broker.core.targets.slots import Slots

Place = tuple[str, int, str, str]

TURN_SECONDS = 20.0
"""How long a call waits for another one that imports the same key to the same target."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the caller wants and may have: this version at this target."""

    call: Call
    key: Key
    version: KeyVersion
    target: Target
    remote_name: str  # under which it was decided on; what is there under another one is not touched

    @property
    def ref(self) -> ports.KeyRef:
        """The key as the HSM and the proof know it."""
        return ref(self.key, self.version)


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """An import as it is now, and the further versions of the same key that reading back found."""

    row: Import
    extra: tuple[Extra, ...] = ()


class Ledger:
    """The rows of imports, and the way to the ports that they are about."""

    def __init__(
        self,
        store: ports.Store,
        hsm: ports.Hsm,
        guard: Guard,
        operations: Operations,
        connect: ports.Connect,
        now: ports.Now,
        slots: Slots | None = None,
    ) -> None:
        self.store = store
        self.hsm = hsm
        self.operations = operations
        self.now = now
        self._guard = guard
        self._connect = connect
        self._turns = Turns()
        self._slots = slots or Slots()

    # ---- who may, and what is there ------------------------------------------------------------------------------

    def permitted(self, call: Call, name: str, version: int, target: str, remote_name: str | None = "") -> Asked:
        """The key version and the target, if the caller may do this with both under the key's name at the target.

        ``version`` 0 is the primary one, or the one that was when the same request came first; ``remote_name`` "" is
        the one that importing it would take, None the one that its import has. It is decided on in the target's one
        spelling.
        """
        check_name(name, "key")
        check_name(target, "target")
        if remote_name:
            check_remote_name(remote_name)
        if not 0 <= version < 1 << 31:
            sentence = "The version is no number that a version has: they count from 1, and 0 means the primary one."
            raise InvalidRequest(Reason.VERSION_INVALID, sentence)
        version = version or self._meant(call)
        found = self.store.version(name, version)
        key = found[0] if found else self.store.get(Key, name)
        place = self.store.get(Target, target)
        remote_name = self._remote_name(name, found[1].number if found else 0, place, target, remote_name)
        spelled, unfit = self._spelled(place, remote_name)
        for resource in (
            guard.of_key(key) if key else guard.of_unknown_key(name),
            guard.of_target(place) if place else guard.of_unknown_target(target),
        ):
            self._guard.check(call, guard.under(spelled, resource))
        if unfit is not None:
            raise unfit
        if key is None:
            raise no_key(name)
        if found is None:
            raise no_key_version(name, version, "was completed")
        if place is None:
            raise no_target(target)
        return Asked(call=call, key=found[0], version=found[1], target=place, remote_name=remote_name)

    def port(self, target: Target) -> ports.Target:
        """The way to a target; opens no connection."""
        return self._connect(target.name, target.kind, target.settings)

    def rows(self, asked: Asked) -> tuple[Import | None, list[Import]]:
        """The import of this version under this name, if there is one, and those of all to this target."""
        return self._rows(asked.key.name, asked.version.number, asked.target.name, asked.remote_name)

    def _meant(self, call: Call) -> int:
        receipt = self.seen(call)
        return receipt.version if receipt else 0

    def _rows(self, key: str, version: int, target: str, remote_name: str) -> tuple[Import | None, list[Import]]:
        rows = copies_where(self.store, key=key, target=target)
        return next((row for row in rows if (row.version, row.remote_name) == (version, remote_name)), None), rows

    def _remote_name(self, key: str, version: int, place: Target | None, target: str, wanted: str | None) -> str:
        """The name that is meant, as an import that has it already writes it."""
        rows = copies_where(self.store, key=key, target=target)
        if wanted:
            spelled, _ = self._spelled(place, wanted)
            known = (one.remote_name for one in rows if self._spelled(place, one.remote_name)[0] == spelled)
            return next(known, wanted)
        row = latest(rows, version)
        return row.remote_name if row and wanted is None else remote_name_of(key, version, rows, "")

    def _spelled(self, place: Target | None, remote_name: str) -> tuple[str, InvalidRequest | None]:
        """As policies compare it; with the refusal of a name, or of a place, that will not do."""
        try:
            return (self.port(place).spelled(remote_name) if place else remote_name), None
        except InvalidRequest as error:  # who may not is not told what is wrong with it
            return remote_name, error

    def delivery(
        self,
        asked: Asked,
        row: Import | None,
        rows: list[Import],
        remote_name: str,
        terms: Terms = NO_TERMS,
        kek: WrappingKey | None = None,
    ) -> Delivery:
        """All that is decided before anything is wrapped; ``kek``: got by another way than from the target."""
        port = self.port(asked.target)
        port.supports(asked.key.type, asked.key.usage)
        agree(asked.call, asked.key, port, terms)
        oaep_hash = port.oaep_hash(self.hsm.report().oaep_hashes)
        pinned = kek or standing(port, asked.target)
        if pinned is not None:
            asked.call.note(kek_thumbprint=pinned.thumbprint)
            check_pin(asked.target, pinned)
        before = siblings(rows, remote_name)
        newest = before
        if asked.version.public_key is not None:  # only by that it is known again when it is out of use
            newest = before or siblings(rows, remote_name, ImportState.DISABLED)
        return Delivery(
            there=self.arrival(asked, port, remote_name, row, rows),
            kek=pinned,
            oaep_hash=oaep_hash,
            newest=self._sibling(asked.key, newest[-1]) if newest else None,
            newer=frozenset(one.remote_version for one in before if one.version > asked.version.number),
        )

    def seen(self, call: Call) -> Receipt | None:
        """The receipt of this very request, if it came before."""
        return receipts.seen(self.store, call)

    @contextmanager
    def turn(self, asked: Asked) -> Iterator[None]:
        """Be the only one in this process that is at this key and target; ``IMPORT_IN_PROGRESS`` after 20 s.

        A call that waits holds a thread as well, and so a slot.
        """
        name, target = asked.key.name, asked.target.name
        with self._slots.hold(asked.call, target), self._turns.take(name, target, seconds=TURN_SECONDS) as held:
            if not held:
                raise in_progress("another call is at it; try again")
            yield

    def arrival(
        self, asked: Asked, port: ports.Target, remote_name: str, row: Import | None, rows: list[Import]
    ) -> Arrival:
        """Where to look for the version at the target."""
        return self._arrival(asked.ref, port, remote_name, row, rows)

    def arrival_of(self, row: Import, port: ports.Target) -> Arrival | None:
        """Where to look for what a row is about, without anybody asking; None when its key is gone."""
        found = self.store.version(row.key, row.version)
        _, rows = self._rows(row.key, row.version, row.target, row.remote_name)
        return self._arrival(ref(*found), port, row.remote_name, row, rows) if found else None

    @contextmanager
    def alone(self, key: str, target: str, seconds: float) -> Iterator[bool]:
        """As ``turn``, for the background: gives False when a call of this process is at it for so long."""
        with self._turns.take(key, target, seconds=seconds) as held:
            yield held

    def _arrival(
        self, key: ports.KeyRef, port: ports.Target, remote_name: str, row: Import | None, rows: list[Import]
    ) -> Arrival:
        return Arrival(
            hsm=self.hsm,
            port=port,
            key=key,
            remote_name=remote_name,
            taken=frozenset(one.remote_version for one in siblings(rows, remote_name)),
            known=row.remote_version if row and row.failure != Reason.PROOF_FAILED and not lost(row) else "",
        )

    def _sibling(self, key: Key, row: Import) -> Sibling | None:
        held = self.store.get(KeyVersion, key.name, row.version)
        return Sibling(key=ref(key, held), remote_version=row.remote_version) if held else None

    # ---- what is written -----------------------------------------------------------------------------------------

    def begun(self, asked: Asked, delivery: Delivery, earlier: Import | None) -> Import:
        """The row of an import that begins now, after ``earlier`` under the same name."""
        return Import(
            key=asked.key.name,
            version=asked.version.number,
            target=asked.target.name,
            remote_name=delivery.remote_name,
            remote_version="",
            state=ImportState.PENDING,
            kek_thumbprint=delivery.kek.thumbprint if delivery.kek else "",
            blob_sha256="",
            failure="",
            started_at=self.now(),
            sent=sent_before(earlier),
            terms=earlier.terms if earlier else None,
        )

    def mark(self, call: Call, row: Import, why: str, state: ImportState) -> None:
        """Write down what has become of it, before more is done about it."""
        call.note(remote_version=row.remote_version, state=state.value)
        try:
            with self.store.write(call.intent()) as write:
                write.replace(row, replace(row, failure=why, state=state))
        except WrongState as error:
            if error.reason == Reason.CHANGED_MEANWHILE:
                raise in_progress("another call has taken it over; try again") from error
            raise

    def succeed(self, call: Call, row: Import, remote: RemoteKey, extra: tuple[Extra, ...] = ()) -> Imported:
        """The outcome of a call that has proven ``remote``."""
        call.note(remote_version=remote.version, state=ImportState.PROVEN.value)
        if extra:
            call.note(extra_versions=" ".join(f"{one.version}{'' if one.disabled else '!'}" for one in extra))
        proven = replace(row, state=ImportState.PROVEN, remote_version=remote.version, failure="", proven_at=self.now())
        try:
            with self.store.write(call.outcome()) as write:
                proven = write.replace(row, proven)
        except WrongState as error:
            return Imported(row=self.overtaken(place_of(row), error), extra=extra)
        call.closed = True
        return Imported(row=proven, extra=extra)

    def fail(
        self,
        call: Call,
        row: Import,
        error: BrokerError,
        state: ImportState = ImportState.FAILED,
        operation: Operation | None = None,
    ) -> None:
        """The outcome of what came to nothing, and the end of its ``operation``; what is ``lost`` keeps its proof."""
        call.note(state=state.value)
        new = replace(row, state=state, failure=error.reason)
        again = row.state in {ImportState.PROVEN, ImportState.DISABLED, *OVER}
        with self.store.write(call.outcome(error.outcome, error.reason)) as write:
            stored = write.get(Import, *place_of(row))
            # Only what was looked at is marked; if somebody else has taken it over, the row is theirs.
            if stored is not None and stored.revision == row.revision:
                write.replace(stored, new if again and lost(new) else replace(new, proven_at=None))
                if operation is not None:
                    self.operations.close(write, operation, error.reason)
        call.closed = True

    def overtaken(self, place: Place, error: BrokerError) -> Import:
        """Another broker process wrote the row meanwhile: its result, if that is a proven import."""
        found = self.store.get(Import, *place)
        changed = error.reason in {Reason.CHANGED_MEANWHILE, Reason.OPERATION_RUNNING}
        if changed and found is not None and found.state is ImportState.PROVEN:
            return found
        raise in_progress("another call has taken it over; try again") from error


def unchanged(write: Write, asked: Asked, *, sends: bool) -> None:
    """Return if what was decided on is still so now that nobody can change it any more."""
    version = write.get(KeyVersion, asked.key.name, asked.version.number)
    if sends and version is not None:
        require_use(asked.key, version, Use.IMPORT)
    key, target = write.get(Key, asked.key.name), write.get(Target, asked.target.name)
    if key is None or key.state is not KeyState.ENABLED or target is None or target.revision != asked.target.revision:
        raise WrongState(
            Reason.CHANGED_DURING_CALL,
            f"The key {asked.key.name} was disabled, or the target {asked.target.name} changed, while the one was "
            "being imported to the other; look at both (`broker key show`, `broker target show`) before you import "
            "it again.",
        )
