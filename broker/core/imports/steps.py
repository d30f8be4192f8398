"""Keys on their way to targets, each place by an operation of its own.

    import-key   PENDING ─ send ─▶ there ─ prove ─▶ PROVEN
    confirm-key  PENDING ─────────────────  prove ─▶ PROVEN
                        with terms: … ─ prove ─▶ TERMS_UNSETTLED ─ terms ─▶ PROVEN
    export-key   PENDING ─ wrap ─▶ EXPORTED, which waits for people and is no operation any more

    refused      ─▶ DISABLING, if something is there ─ disable ─▶ FAILED

The process that takes one up looks first what is at the target, and proves it (BY-06, BY-15). Only a call that was
permitted just now sends anything: in the background what is not there has FAILED, and what cannot be proven is disabled
(BY-05).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from broker.core import ports
from broker.core.errors import BrokerError, Unavailable, WrongState
from broker.core.imports.arrival import Found
from broker.core.imports.ledger import TURN_SECONDS, Ledger
from broker.core.imports.places import ARRIVAL_GRACE, EXPORT, UNDER_WAY, look, place_in, target_in
from broker.core.imports.road import Road, sent, uploaded
from broker.core.imports.rules import EARLIER, EXPORTED, MISSING, NO_TERMS, TERMS_UNSETTLED, in_progress, still_enabled
from broker.core.imports.terms import read
from broker.core.kinds import ImportState, OperationState, Sent
from broker.core.model import Import, Operation, Target, Terms
from broker.core.operations.plan import Over, Plan, Step, Work
from broker.core.ports import Write
from broker.core.reasons import Reason
from broker.core.targets.copies import UNPROVEN
from broker.core.targets.keks import remedied
from broker.core.targets.parts import terms_of

T = TypeVar("T")

PATIENCE = 2 * ARRIVAL_GRACE
"""From when on the background settles what nobody came back for: longer than all the requests of an import take."""


class Steps:
    """The plans. ``ledger``: the one of the imports."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        send = Step(name="send", act=self._alone(self._send), keep=self._there)
        prove = Step(name="prove", act=self._alone(self._prove), keep=self._proven)
        unlimited = Step(name="prove", act=self._alone(self._prove), keep=self._unlimited)
        terms = Step(name="terms", act=self._alone(self._settle), keep=self._proven)
        self._imports = {
            False: self._plan("import-key", send, prove),
            True: self._plan("import-key-on-terms", send, unlimited, terms),
        }
        self._confirms = {
            False: self._plan("confirm-key", prove),
            True: self._plan("confirm-key-on-terms", unlimited, terms),
        }
        self.export = ledger.operations.admit(
            Plan(
                kind=EXPORT,
                steps=(Step(name="wrap", act=self._wrap, keep=self._exported),),
                patience=PATIENCE,
                undo=lambda _: None,
                undone=self._not_exported,
                undone_reason="",
                turned=self._turned,
                abandoned_is_undone=True,
                place=target_in,
            )
        )

    def importing(self, terms: Terms = NO_TERMS) -> Plan:
        """The plan that sends a key and proves it."""
        return self._imports[terms != NO_TERMS]

    def confirming(self, terms: Terms) -> Plan:
        """The plan that proves a key which is there."""
        return self._confirms[terms != NO_TERMS]

    @property
    def confirmings(self) -> tuple[Plan, ...]:
        """Those that send nothing."""
        return tuple(self._confirms.values())

    def _plan(self, kind: str, *steps: Step) -> Plan:
        return self._ledger.operations.admit(
            Plan(
                kind=kind,
                steps=steps,
                patience=PATIENCE,
                paused=self._waits,
                urgent=_is_alarm,
                turned=self._turned,
                undo=self._alone(self._disable),
                undone=self._failed,
                undone_reason="",
                told=_still_enabled_after,
                alarm=_alarm,
                place=target_in,
            )
        )

    # ---- the steps, and what each keeps --------------------------------------------------------------------------

    def _send(self, work: Work) -> Mapping[str, str]:
        road = self._road(work)
        if road.found is None and not work.attended:
            road.found = self._looked_for(work, road)
        if road.found is None:
            try:
                road.found = uploaded(work, road)
            except WrongState as error:
                raise remedied(error, road.there.port, road.target) from error
        return {"remote_version": road.found.remote.version}

    def _there(self, write: Write, work: Work) -> None:
        self._keep(write, work)

    def _prove(self, work: Work) -> Mapping[str, str]:
        road = self._road(work)
        found = road.found or self._looked_for(work, road)
        work.learn(remote_version=found.remote.version)
        if "proven" not in work.memory:
            disabled_for = work.memory.get("disabled_for", "")
            if disabled_for and not work.attended and not found.remote.enabled:
                raise WrongState(disabled_for, EARLIER)  # it stays so: who enables it has to ask for that
            road.there.prove(found.remote, enable=bool(disabled_for) and work.attended)
        road.extra = road.there.tidy(found)
        if road.extra:
            marked = (f"{one.version}{'' if one.disabled else '!'}" for one in road.extra)
            work.call.note(extra_versions=" ".join(marked))
        return {"proven": "1"}

    def _unlimited(self, write: Write, work: Work) -> None:
        """Once it is held to its terms it may not be able to prove itself any more, so that it did is kept before."""
        self._keep(write, work, failure=TERMS_UNSETTLED)

    def _settle(self, work: Work) -> Mapping[str, str]:
        road, version, terms = self._road(work), work.memory["remote_version"], read(work.memory["terms"])
        port, name = road.there.port, road.there.remote_name
        if not work.attended and version not in {one.version for one in port.versions(name) if one.enabled}:
            terms = replace(terms, enabled=False)  # people have disabled it since, and nobody asks to undo that
        terms_of(port).apply(name, version, terms)
        return {}

    def _proven(self, write: Write, work: Work) -> None:
        """What was sent anew is held to what was asked for this time; what was found, to what it was before too."""
        proven: dict[str, Any] = {"state": ImportState.PROVEN, "failure": "", "proven_at": self._ledger.now()}
        if work.memory.keys() & {"terms", "blob_sha256"}:
            proven["terms"] = work.memory.get("terms")
        self._keep(write, work, **proven)

    def _waits(self, write: Write, work: Work) -> None:
        """A target that went away leaves it PENDING, and the row says why; what is there unproven is an alarm."""
        why = UNPROVEN if _is_alarm(work.operation) else work.operation.failure
        self._keep(write, work, failure=TERMS_UNSETTLED if "proven" in work.memory else why, gone_is_fine=True)

    def _turned(self, write: Write, work: Work) -> None:
        there = "remote_version" in work.memory
        state = ImportState.DISABLING if there else ImportState.PENDING
        self._keep(write, work, state=state, failure=work.operation.failure, gone_is_fine=True)

    def _disable(self, work: Work) -> None:
        row, target = self._rows(work)
        if row is None or target is None or row.state not in UNDER_WAY:
            return
        port = self._ledger.port(target)
        version = row.remote_version if row.state is ImportState.DISABLING else self._left_behind(work, row, port)
        if not version:
            return
        try:
            port.disable(row.remote_name, version)
        except BrokerError as error:
            raise still_enabled(error) from error

    def _left_behind(self, work: Work, row: Import, port: ports.Target) -> str:
        """Of one that people have given up: what its call may have brought there, and did not live to write down."""
        there = self._ledger.arrival_of(row, port) if work.operation.failure == Reason.GIVEN_UP else None
        if there is None:
            return ""
        found = look(there, work.memory)
        work.learn(sent=(Sent.FILE if row.sent is Sent.FILE else Sent.UPLOAD).value)
        if found is not None:
            work.learn(remote_version=found.remote.version)
        return found.remote.version if found else ""

    def _failed(self, write: Write, work: Work) -> None:
        self._keep(write, work, state=ImportState.FAILED, proven_at=None, gone_is_fine=True)

    def _wrap(self, work: Work) -> Mapping[str, str]:
        road = work.given
        kek = road.delivery.kek if isinstance(road, Road) and road.delivery else None
        if not isinstance(road, Road) or road.delivery is None or road.files is None or kek is None:
            raise _changed()  # nobody waits for the file
        there, delivery = road.there, road.delivery
        try:
            blob = delivery.wrap(kek)
        except Unavailable as error:
            raise Over(error) from error
        road.file = road.files.transfer_file(there.key.type, there.key.usage, blob, kek, delivery.oaep_hash)
        digest = hashlib.sha256(blob).hexdigest()
        work.call.note(blob_sha256=digest)
        return {"blob_sha256": digest, "sent": Sent.FILE.value}

    def _exported(self, write: Write, work: Work) -> None:
        self._keep(write, work, failure=EXPORTED)

    def _not_exported(self, write: Write, work: Work) -> None:
        """A file that was handed out before can still be carried there; of this one nobody has anything."""
        row, _ = self._rows(work)
        if row is not None and row.sent is Sent.FILE and work.operation.failure == Reason.ABANDONED:
            self._keep(write, work, failure=EXPORTED, gone_is_fine=True)
        else:
            self._failed(write, work)

    def _keep(self, write: Write, work: Work, *, gone_is_fine: bool = False, **changes: Any) -> None:
        """Write the row, with what was learned of it; nothing if it was dealt with otherwise (``gone_is_fine``)."""
        row = write.get(Import, *place_in(work.operation))
        if row is None or row.state not in UNDER_WAY:
            if gone_is_fine:
                return
            raise _changed()
        learned: dict[str, Any] = {name: work.memory[name] for name in _ROW if name in work.memory}
        if "sent" in work.memory:
            learned["sent"] = Sent(work.memory["sent"])
        row = write.replace(row, replace(row, **learned, **changes))
        facts = {"remote_version": row.remote_version, "state": row.state.value}
        write.note(target=row.target, version=row.version, remote_name=row.remote_name, **facts)
        work.call.note(**facts)
        if isinstance(work.given, Road):
            work.given.row = row

    def _road(self, work: Work) -> Road:
        """As the call has looked it up, else as the rows tell of it now."""
        if isinstance(work.given, Road):
            return work.given
        row, target = self._rows(work)
        there = (
            self._ledger.arrival_of(row, self._ledger.port(target)) if row is not None and target is not None else None
        )
        if there is None or row is None or target is None or row.state not in UNDER_WAY:
            raise _changed()
        return Road(there=there, target=target, row=row)

    def _rows(self, work: Work) -> tuple[Import | None, Target | None]:
        store = self._ledger.store
        return store.get(Import, *place_in(work.operation)), store.get(Target, target_in(work.operation))

    def _looked_for(self, work: Work, road: Road) -> Found:
        """What an attempt has left there that nobody came back for; ``REMOTE_KEY_MISSING`` when that is nothing."""
        found = look(road.there, work.memory)
        if found is not None:
            return found
        recent = work.operation.created_at + PATIENCE > self._ledger.now()
        if "confirmed" in work.memory and (recent or road.there.is_doubtful()):
            raise Unavailable(
                Reason.IMPORT_UNSETTLED,
                f"Which version of {road.there.remote_name} at the target is the one that was uploaded cannot be told; "
                "disable there what its owner does not know.",
            )
        work.learn(sent=sent(road).value)  # its call may have died before that was written down
        raise WrongState(MISSING, f"The target has no version of {road.there.remote_name} that is this key.")

    def _alone(self, act: Callable[[Work], T]) -> Callable[[Work], T]:
        """``act``, in the background only when no call of this process is at the same key and target.

        One that has been at it meanwhile may have wanted something else; then nothing is done.
        """

        def alone(work: Work) -> T:
            if work.attended:
                return act(work)
            key, _, target, _ = place_in(work.operation)
            with self._ledger.alone(key, target, TURN_SECONDS) as held:
                stored = self._ledger.store.get(Operation, work.operation.subject, work.operation.number)
                if not held or stored is None or stored.revision != work.operation.revision:
                    raise in_progress("a call is at it")
                return act(work)

        return alone


_ROW = ("remote_version", "blob_sha256", "kek_thumbprint")


def _is_alarm(operation: Operation) -> bool:
    """Whether something is there that has not proven itself: it may be used, and should not be."""
    memory = operation.memory
    return "proven" not in memory and ("confirmed" in memory or "remote_version" in memory)


def _alarm(operation: Operation) -> str:
    there = operation.state is OperationState.UNDOING and "remote_version" in operation.memory
    alarm = "a key that is not proven may still be used at a target"
    return alarm if there or _is_alarm(operation) else "an import waits"


def _still_enabled_after(refusal: BrokerError, second: BrokerError) -> BrokerError:
    why = second.__cause__
    return still_enabled(why, refusal.message) if isinstance(why, BrokerError) else second


def _changed() -> WrongState:
    return WrongState(Reason.CHANGED_MEANWHILE, "It was dealt with otherwise meanwhile; see `broker key where`.")
