"""The next version of one of the broker's own keys made and put in force; a former one destroyed.

    PENDING ─ make ─▶ NEXT ─ introduce ─▶ ACTIVE ─ the next one ─▶ FORMER ─ destroy ─▶ DESTROYED
       │ refused       │ refused
       └───────────────┴─ destroy ─▶ gone

Every process takes a NEXT one for a while before it is put in force. The old key introduces it: the audit key signs the
hand-over, a CA certifies its successor. A former key is destroyed when its overlap is over and nothing was made with it
since.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from cryptography import x509

from broker.core import receipts
from broker.core.audit.handover import hand_over
from broker.core.audit.heads import signed_by
from broker.core.authorities.known import MOST, OwnKeys, ref
from broker.core.authorities.page_keys import sealed
from broker.core.call import Call
from broker.core.errors import Exhausted, NotFound, WrongState
from broker.core.kinds import OperationState, Own, OwnKeyState
from broker.core.model import AuditHead, Operation, Receipt
from broker.core.operations.plan import NotYet, Plan, Step, Work
from broker.core.operations.running import Operations
from broker.core.operators.authority import Authority
from broker.core.operators.register import MAX_TTL
from broker.core.own_key import OwnKey
from broker.core.ports import RESERVED_IDS, Device, Now, Store, Write
from broker.core.reasons import Reason
from broker.core.records import key_of
from broker.core.rows import refuse_doubt

OVERLAP: Mapping[Own, timedelta] = {
    Own.AUDIT: timedelta(hours=24),
    Own.OPERATOR_CA: MAX_TTL + timedelta(hours=1),
    Own.SERVER_CA: timedelta(hours=24),
    Own.PAGE: timedelta(hours=1),
}
"""How long after its successor what a key has made is taken: the longest life of an operator's certificate, and a page
that somebody turns; the others so that a process that was held up is not in the dark."""

FOLLOWED = timedelta(minutes=10)
"""After this long no process signs heads with the former audit key, unless something is amiss with it."""

MOST_AT_ONCE = 8
"""Versions of one key that may be there at a time."""

PATIENCE = timedelta(minutes=1)
ID_BYTES = 16
TABLES = frozenset({"own_keys"})
TITLES: Mapping[Own, str] = {Own.OPERATOR_CA: "broker operator CA", Own.SERVER_CA: "broker server CA"}
"""The name of a CA, which its successor has too."""

Publish = Callable[[], None]
"""Has this host take what the rows say, and returns once it does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Footing:
    """What the plans stand on. ``lead``: how long everybody takes a new version before it is put in force."""

    store: Store
    device: Device
    own: OwnKeys
    now: Now
    trust_domain: str
    lead: timedelta
    publish: Publish


class AuthorityPlans:
    """What makes, puts in force and destroys."""

    def __init__(self, ground: Footing, operations: Operations) -> None:
        self._ground = ground
        self._store, self._now = ground.store, ground.now
        self._operations = operations
        self._rotating = operations.admit(
            Plan(
                kind="rotate-own-key",
                steps=(
                    Step(name="make", act=self._make, keep=self._announce),
                    Step(name="introduce", act=self._introduce, keep=self._put_in_force),
                ),
                patience=PATIENCE,
                undo=self._destroy_unused,
                undone=self._take_back,
                undone_reason=Reason.OWN_KEY_NOT_MADE,
                alarm=lambda row: f"the broker's key {_name(row)} cannot be rotated yet",
            )
        )
        self._retiring = operations.admit(
            Plan(
                kind="retire-own-key",
                steps=(Step(name="destroy", act=self._destroy_former, keep=self._forget),),
                patience=PATIENCE,
                alarm=lambda row: f"the former version {row.subject} of a key of the broker's own is not destroyed yet",
            )
        )

    # ---- what begins them ----------------------------------------------------------------------------------------

    def rotate(self, call: Call, name: Own) -> Operation:
        """Begin the next version, and carry it on as far as it goes now; the operation as it is then."""
        with self._store.write(call.intent()) as write:
            receipt = receipts.replay(write, call)
            if receipt is None:
                version = self._drafted(write, name)
                memory = {"hsm_id": version.hsm_id.hex(), "version": str(version.version)}
                operation = self._operations.begin(write, call, self._rotating, subject(name), memory)
                receipts.keep(write, call, subject(name), version.version, operation=operation)
                write.note(version=version.version)
        if receipt is not None:
            operation = self._begun(receipt)
        return self._operations.run(call, operation)

    def refuse_running(self, rows: Store | Write, name: Own) -> None:
        """WrongState ``ROTATION_RUNNING`` while the key is being rotated."""
        if operation := self._operations.live(rows, subject(name)):
            raise WrongState(
                Reason.ROTATION_RUNNING,
                f"The broker's key {name} is being rotated already: `broker operation show {operation.subject}/"
                f"{operation.number}` says how far it is, `broker operation abort` gives it up.",
            )

    def retire(self, call: Call, row: OwnKey) -> None:
        """Destroy a former version whose overlap is over."""
        with self._store.write(call.intent()) as write:
            stored = _stored(write, row)
            if stored is None or stored.state is not OwnKeyState.FORMER or self.live(write, row):
                return
            memory = {"hsm_id": row.hsm_id.hex(), "version": str(row.version)}
            operation = self._operations.begin(write, call, self._retiring, _version_subject(row), memory)
            write.note(version=row.version)
        self._operations.run(call, operation)

    def end(self, write: Write, call: Call, row: OwnKey) -> OwnKey:
        """End the overlap of a former version now, and have the background destroy it at once."""
        if self.live(write, row) is None:
            memory = {"hsm_id": row.hsm_id.hex(), "version": str(row.version)}
            self._operations.begin(write, call, self._retiring, _version_subject(row), memory, abandoned=True)
        write.also(replace(call.intent(), resource=subject(Own(row.name)), facts={"version": row.version}))
        return write.replace(row, replace(row, until=self._now()))

    def live(self, rows: Store | Write, row: OwnKey) -> Operation | None:
        """What destroys it already."""
        return self._operations.live(rows, _version_subject(row))

    def _begun(self, receipt: Receipt) -> Operation:
        operation = self._operations.of(receipt.resource, receipt.operation)
        if operation is None or operation.state in {OperationState.UNDOING, OperationState.UNDONE}:
            raise receipts.undone()
        return operation

    def _drafted(self, write: Write, name: Own) -> OwnKey:
        self.refuse_running(write, name)
        stored = _rows(write, name)
        if not stored:
            [first] = self._ground.own.of(name, [])
            write.add(first)
            stored = [first]
        self.refuse_many(name, stored)
        now = self._now()
        for left in stored:  # of an operation that a restore has closed: nobody takes it any more, and it is destroyed
            if left.state in {OwnKeyState.PENDING, OwnKeyState.NEXT}:
                write.replace(left, replace(left, state=OwnKeyState.FORMER, until=now))
        draft = OwnKey(
            name=name.value,
            version=stored[-1].version + 1,
            state=OwnKeyState.PENDING,
            hsm_id=b"" if name is Own.PAGE else RESERVED_IDS + secrets.token_bytes(ID_BYTES - len(RESERVED_IDS)),
            public_key=None,
            certificate="",
            link="",
            handover={},
            sealed=None,
            created_at=now,
        )
        write.add(draft)
        return draft

    def refuse_many(self, name: Own, stored: list[OwnKey] | tuple[OwnKey, ...]) -> None:
        """Exhausted ``OWN_KEYS_MANY``: each is a key in the token, and a CA that is trusted.

        WrongState ``OWN_KEY_SPENT`` when there never may be more: what has been stays on record.
        """
        if stored[-1].version >= MOST:
            raise WrongState(
                Reason.OWN_KEY_SPENT,
                f"The broker's key {name} has had {MOST} versions, and there are never more: each stays on record for "
                "those who still know the broker by it. The version in force goes on; for another key, make a new "
                "broker (`broker init`) and move to it.",
            )
        there = [one for one in stored if one.state is not OwnKeyState.DESTROYED]
        if len(there) >= MOST_AT_ONCE:
            raise Exhausted(
                Reason.OWN_KEYS_MANY,
                f"{len(there)} versions of the broker's key {name} are still there, and more are not made: `broker "
                "authority list` shows when each former one goes. Rotate again when one has gone.",
            )

    # ---- rotate-own-key ------------------------------------------------------------------------------------------

    def _make(self, work: Work) -> Mapping[str, str]:
        row = self._meant(work, self._store, OwnKeyState.PENDING)
        if row is None:
            raise _changed(work)
        name = Own(row.name)
        if name is Own.PAGE:
            return {"sealed": sealed(self._ground.device, self._ground.trust_domain, row.version).hex()}
        ring = self._ground.device.keyring(name.purpose)
        if name is Own.AUDIT:
            return {"public_key": (ring.generate(ref(row), exportable=False) or b"").hex()}
        key, pem = Authority.make(ring, ref(row), TITLES[name], self._now())
        return {"public_key": (key.public_key or b"").hex(), "certificate": pem.decode("ascii")}

    def _announce(self, write: Write, work: Work) -> None:
        row = self._meant(work, write, OwnKeyState.PENDING)
        if row is None:
            raise _changed(work)
        memory = work.memory
        made = replace(
            row,
            state=OwnKeyState.NEXT,
            public_key=bytes.fromhex(memory["public_key"]) if "public_key" in memory else None,
            certificate=memory.get("certificate", ""),
            sealed=bytes.fromhex(memory["sealed"]) if "sealed" in memory else None,
            created_at=self._now(),
        )
        write.replace(row, made)
        write.note(version=row.version, state=made.state.value, **_fingerprint(made))

    def _introduce(self, work: Work) -> Mapping[str, str]:
        row = self._meant(work, self._store, OwnKeyState.NEXT)
        if row is None:
            raise _changed(work)
        self._ground.own.refresh()
        name = Own(row.name)
        former = self._ground.own.active(name)
        over = bool(former.certificate) and _ends(former) <= self._now()  # nobody trusts it, so there is no overlap
        if not over and self._now() < (due := row.created_at + self._ground.lead):
            raise NotYet(due)
        self._ground.publish()  # before anybody shows this host what the new one has made
        if name is Own.PAGE:
            return {}
        ring = self._ground.device.keyring(name.purpose)
        if name is Own.AUDIT:
            return hand_over(ring, ref(former), ref(row), self._now())
        if over:
            return {}
        return {"link": self._ground.own.authority(name).link(row.certificate.encode()).decode("ascii")}

    def _put_in_force(self, write: Write, work: Work) -> None:
        row, now = self._meant(work, write, OwnKeyState.NEXT), self._now()
        if row is None:
            raise _changed(work)
        name = Own(row.name)
        for former in _rows(write, name):
            if former.state is OwnKeyState.ACTIVE:
                write.replace(former, replace(former, state=OwnKeyState.FORMER, until=now + OVERLAP[name]))
        known = {key: value for key, value in work.memory.items() if key.endswith(("_key", "_signature", "_time"))}
        handover = {key: value for key, value in known.items() if key != "public_key"}
        write.replace(
            row,
            replace(row, state=OwnKeyState.ACTIVE, since=now, link=work.memory.get("link", ""), handover=handover),
        )
        write.note(version=row.version, state=OwnKeyState.ACTIVE.value, **_fingerprint(row))

    def _destroy_unused(self, work: Work) -> None:
        row = self._meant(work, self._store, OwnKeyState.PENDING, OwnKeyState.NEXT)
        if row is None or row.name == Own.PAGE:
            return
        if not work.attended:
            refuse_doubt(self._store, TABLES, row.name)
        self._ground.device.keyring(Own(row.name).purpose).destroy(ref(row))

    def _take_back(self, write: Write, work: Work) -> None:
        row = self._meant(work, write, OwnKeyState.PENDING, OwnKeyState.NEXT)
        if row is not None:
            write.delete(row)

    # ---- retire-own-key ------------------------------------------------------------------------------------------

    def _destroy_former(self, work: Work) -> None:
        row = self._meant(work, self._store, OwnKeyState.FORMER)
        if row is None:
            return
        name = Own(row.name)
        self._ground.own.refresh()
        self._ground.publish()  # what this host still has of it goes over first
        active = self._ground.own.active(name)
        refuse_doubt(self._store, TABLES, row.name)
        if name is Own.PAGE:
            return
        ring = self._ground.device.keyring(name.purpose)
        _refuse_lost(ring.public_key(ref(active)), active)
        if name is Own.AUDIT and row.public_key and active.since:
            self._refuse_stragglers(row.public_key, active.since + FOLLOWED)
        ring.destroy(ref(row))

    def _refuse_stragglers(self, public_key: bytes, since: datetime) -> None:
        """WrongState ``OWN_KEY_IN_USE`` while a process signs with it all the same."""
        genuine, after = signed_by(public_key), ()
        while first := self._store.page(AuditHead, after=after, limit=1):
            newest = self._store.last(AuditHead, first[0].chain) or first[0]
            if newest.signed_at > since and genuine(newest):
                raise WrongState(
                    Reason.OWN_KEY_IN_USE,
                    f"The chain {newest.chain} was still signed with the former audit key at {newest.signed_at:%H:%M} "
                    "UTC, so that is not destroyed: restart the broker that writes this chain, and see its log.",
                )
            after = key_of(newest)

    def _forget(self, write: Write, work: Work) -> None:
        row = self._meant(work, write, OwnKeyState.FORMER)
        if row is not None:
            write.replace(row, replace(row, state=OwnKeyState.DESTROYED, sealed=None))
            write.note(version=row.version, state=OwnKeyState.DESTROYED.value, **_fingerprint(row))

    # ---- the parts of it -----------------------------------------------------------------------------------------

    def _meant(self, work: Work, rows: Store | Write, *states: OwnKeyState) -> OwnKey | None:
        """The version that the operation is about, if it is still in one of these states."""
        row = rows.get(OwnKey, _name(work.operation), int(work.memory["version"]))
        same = row is not None and row.state in states and row.hsm_id.hex() == work.memory["hsm_id"]
        return row if same else None


def subject(name: Own) -> str:
    """What a rotation of the key is called."""
    return f"own/{name}"


def _version_subject(row: OwnKey) -> str:
    return f"own/{row.name}/{row.version}"


def _name(operation: Operation) -> str:
    return operation.subject.split("/")[1]


def _ends(row: OwnKey) -> datetime:
    return x509.load_pem_x509_certificate(row.certificate.encode()).not_valid_after_utc


def _rows(write: Write, name: Own) -> list[OwnKey]:
    return write.page(OwnKey, limit=MOST + 1, where={"name": name.value})


def _stored(write: Write, row: OwnKey) -> OwnKey | None:
    return write.get(OwnKey, row.name, row.version)


def _fingerprint(row: OwnKey) -> dict[str, str]:
    return {"public_key_sha256": hashlib.sha256(row.public_key).hexdigest()} if row.public_key else {}


def _changed(work: Work) -> WrongState:
    return WrongState(
        Reason.CHANGED_MEANWHILE, f"{work.operation.subject} was changed meanwhile; send the request again."
    )


def _refuse_lost(there: bytes | None, active: OwnKey) -> None:
    """NotFound ``KEY_NOT_IN_HSM`` unless the successor is there: else nothing could sign any more."""
    if there != active.public_key:
        raise NotFound(
            Reason.KEY_NOT_IN_HSM,
            f"Version {active.version} of the broker's key {active.name} is not what the token holds, so the version "
            "before it is kept; put the right token back.",
        )
