"""One copy of a key version at one target: brought there, or put out of use there, each by an operation of its own.

    send-copy      ─ import ─▶ DONE          PROVEN there
    withdraw-copy  ─ disable ─▶ DONE         DISABLED there, or still enabled because the target cannot do that, or
                                             because it is to stay in use after all; FAILED if it is another key

Both only go forward: a target that is away, or refuses, is asked again until it takes it, until an operator mends what
is in the way, or until the target is removed. None of them holds up another, since each waits for its own target.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

from broker.core import ports
from broker.core.behalf import who_asked
from broker.core.call import Call, on_behalf
from broker.core.errors import BrokerError, WrongState
from broker.core.imports.importing import Imports
from broker.core.imports.places import UNDER_WAY
from broker.core.imports.rules import EXPORTED, copies_where
from broker.core.imports.terms import repeated
from broker.core.keys.states import versions_of
from broker.core.kinds import ImportState, KeyState, Phase
from broker.core.model import Import, Key, KeyVersion, Operation, Principal, Target
from broker.core.once import record
from broker.core.operations.plan import Plan, Step, Work
from broker.core.operations.running import Operations
from broker.core.ports import Connect, Store, Write
from broker.core.reasons import Reason
from broker.core.records import key_of
from broker.core.rotations.withdrawal import doubt_of, in_use_there, is_unwanted, provide, withdrawn

PATIENCE = timedelta(minutes=2)
LONGEST_PAUSE = timedelta(seconds=30)
"""Between two attempts at a target that is away; so what waits for it is done within a minute of its return."""

SENT_ANEW = frozenset({Reason.PROOF_FAILED, Reason.REMOTE_KEY_MISSING})
"""Verdicts after which the next attempt sends the key again, and so makes one version more there."""

IMPORT = "ImportService/ImportKey"
"""Under what name it is asked whether a copy may be brought."""

MAX_COPIES = 1000
"""Copies of a key, at all targets, that are looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """Where a copy is, or is to be."""

    key: str
    version: int
    target: str
    remote_name: str


def _copy(row: Import) -> Copy:
    return Copy(key=row.key, version=row.version, target=row.target, remote_name=row.remote_name)


def _subject(copy: Copy, *, off: bool) -> str:
    """What the operation is about that brings it there, or puts it out of use."""
    return f"key/{copy.key}/{copy.version}/{'off' if off else 'to'}/{copy.target}/{copy.remote_name}"


def copy_in(operation: Operation) -> Copy:
    """The copy that an operation is about."""
    _, key, version, _, target, remote_name = operation.subject.split("/")
    return Copy(key=key, version=int(version), target=target, remote_name=remote_name)


def target_in(operation: Operation) -> str:
    """Whom an operation waits for."""
    return copy_in(operation).target


def in_use(store: Store, key: str, version: int = 0) -> list[Copy]:
    """The copies that are proven at a target, of one version or of all."""
    where: dict[str, str | int] = {"key": key, "state": ImportState.PROVEN.value}
    rows = store.page(Import, limit=MAX_COPIES, where={**where, "version": version} if version else where)
    return [_copy(row) for row in rows]


def reachable(store: Store, key: str, version: int) -> list[Copy]:
    """The copies of a version that are, or may be, at a target that can be asked; what is on its way is not yet.

    What came to nothing is among them, what was put out of use before, and what people were to carry there: any of it
    may have been brought, or put back to use, by somebody there.
    """
    rows = copies_where(store, key=key, version=version)
    return [_copy(row) for row in rows if row.may_be_there and _settled(row) and row.state is not ImportState.UNKNOWN]


def _settled(row: Import) -> bool:
    return row.state not in UNDER_WAY or row.failure == EXPORTED


def places(store: Store, key: str, version: int) -> list[Copy]:
    """Where a version is to be: wherever the key is in use now, or was until its version there was compromised."""
    found = {(one.target, one.remote_name) for one in in_use(store, key)} | _vacant(store, key)
    return [Copy(key=key, version=version, target=target, remote_name=name) for target, name in sorted(found)]


def _vacant(store: Store, key: str) -> set[tuple[str, str]]:
    """Where a compromised version was the last one, and the key itself is still wanted."""
    found: set[tuple[str, str]] = set()
    versions = versions_of(store, key)
    gone: set[tuple[str, str]] = set()
    for version in reversed(versions if any(one.phase is Phase.COMPROMISED for one in versions) else []):
        for row in copies_where(store, key=key, version=version.number):
            place = (row.target, row.remote_name)
            if row.state in {ImportState.GONE, ImportState.UNKNOWN}:
                gone.add(place)
            elif row.state is ImportState.DISABLED and version.phase is Phase.COMPROMISED and place not in gone:
                found.add(place)
    return found


class Copies:
    """What brings copies to targets and puts them out of use there, on behalf of those who asked for it."""

    def __init__(self, store: Store, operations: Operations, imports: Imports, connect: Connect) -> None:
        self._store = store
        self._operations = operations
        self._imports = imports
        self._connect = connect
        self._sending = operations.admit(
            Plan(
                kind="send-copy",
                steps=(Step(name="import", act=self._import, keep=self._wake),),
                patience=PATIENCE,
                place=target_in,
                longest_pause=LONGEST_PAUSE,
                slow=SENT_ANEW,
                alarm=_stuck,
            )
        )
        self._withdrawing = operations.admit(
            Plan(
                kind="withdraw-copy",
                steps=(Step(name="disable", act=self._disable, keep=self._disabled),),
                patience=PATIENCE,
                place=target_in,
                longest_pause=LONGEST_PAUSE,
                alarm=_still_used,
            )
        )

    def begin(self, write: Write, work: Work, copies: list[Copy], *, off: bool = False) -> None:
        """Have the background see to these copies, for the operation that waits for them."""
        memory = {"asked_by": work.operation.principal, "for": f"{work.operation.subject}/{work.operation.number}"}
        self._begin(write, work.call, copies, memory, off=off)

    def withdraw(self, write: Write, call: Call, copies: list[Copy]) -> None:
        """Have the background put these out of use; nobody waits for that."""
        self._begin(write, call, copies, {"asked_by": str(call.principal)}, off=True)

    def _begin(self, write: Write, call: Call, copies: list[Copy], memory: Mapping[str, str], *, off: bool) -> None:
        plan = self._withdrawing if off else self._sending
        for copy in copies:
            if self._operations.live(write, _subject(copy, off=off)) is None:
                bound = {**memory, **_bound(write.get(Target, copy.target))}
                self._operations.begin(write, call, plan, _subject(copy, off=off), bound, abandoned=True)

    def left(self, copies: list[Copy], *, off: bool = False) -> list[Operation]:
        """Those that are not over."""
        found = (self._operations.live(self._store, _subject(copy, off=off)) for copy in copies)
        return [one for one in found if one is not None]

    def sending(self, key: str, version: int) -> list[Operation]:
        """What still brings a version somewhere, whatever has become of the former ones there."""
        return self._under_way(f"key/{key}/{version}/to/")

    def everywhere(self, key: str) -> set[tuple[str, str]]:
        """The targets and names there under which any version is, or may be; also what is only being brought there."""
        rows = [row for version in versions_of(self._store, key) for row in self._of_version(key, version.number)]
        there = [row for row in rows if row.may_be_there and row.state is not ImportState.UNKNOWN]
        coming = map(copy_in, self._coming(key))
        return {(one.target, one.remote_name) for one in there} | {(one.target, one.remote_name) for one in coming}

    def _of_version(self, key: str, version: int) -> list[Import]:
        return copies_where(self._store, key=key, version=version)

    def _coming(self, key: str) -> list[Operation]:
        return [one for one in self._under_way(f"key/{key}/") if one.kind == self._sending.kind]

    def _under_way(self, begins: str) -> list[Operation]:
        """Looked for by the subject alone: of one key there are few, of one state as many as all keys have."""
        found: list[Operation] = []
        after: tuple[str | int, ...] = ()
        while rows := self._store.page(Operation, after=after, limit=MAX_COPIES, begins=begins):
            found += [row for row in rows if not row.state.over]
            if len(rows) < MAX_COPIES:
                break
            after = key_of(rows[-1])
        return found

    def stop_sending(self, write: Write, key: str, version: int) -> None:
        """Bring no more of them; what has begun at a target ends as an import of its own."""
        for operation in self.sending(key, version):
            self._operations.close(write, operation, Reason.GIVEN_UP)

    def are_off(self, work: Work, key: str, version: int) -> bool:
        """Whether a version is out of use wherever it had come; sees to what has arrived since that was last asked."""
        rows = self._of_version(key, version)
        self._withdraw_arrived(work, rows)
        return all(map(_settled, rows)) and not self._under_way(f"key/{key}/{version}/off/")

    def have_settled(self, work: Work, place: Copy, rows: list[Import]) -> bool:
        """Whether nothing arrives any more under one name, of ``rows`` there; sees to what has, as ``are_off`` does."""
        coming = {(one.target, one.remote_name) for one in map(copy_in, self._coming(place.key))}
        arrived = self._withdraw_arrived(work, rows)
        return not arrived and all(map(_settled, rows)) and (place.target, place.remote_name) not in coming

    def _withdraw_arrived(self, work: Work, rows: list[Import]) -> bool:
        """Have put out of use what is proven and nobody sees to; whether there was any."""
        there = [_copy(row) for row in rows if row.state is ImportState.PROVEN]
        cannot = {_copy(row) for row in rows if row.failure == Reason.TARGET_CANNOT_DISABLE}
        new = [copy for copy in there if copy not in cannot and not self.left([copy], off=True)]
        if new:
            with self._store.write(work.call.intent()) as write:
                self.begin(write, work, new, off=True)
        return bool(new)

    # ---- send-copy -----------------------------------------------------------------------------------------------

    def _import(self, work: Work) -> Mapping[str, str]:
        copy = copy_in(work.operation)
        key = self._store.get(Key, copy.key)
        target = self._store.get(Target, copy.target)
        if not _is_meant(work, target) or key is None or key.state is KeyState.DESTROYED:
            return {}  # it was removed meanwhile: there is nowhere to bring it, or nothing to bring
        call = on_behalf(work.call, IMPORT, self._asked_by(work))
        rows = copies_where(self._store, key=copy.key, target=copy.target)
        terms = repeated(rows, copy.version, copy.remote_name, work.call.now())
        try:
            self._imports.import_key(call, copy.key, copy.version, copy.target, copy.remote_name, terms)
        except BrokerError as refusal:
            told = refusal.reason == work.operation.failure  # at an attempt before
            if not (call.closed or told):
                record(self._store, call, call.outcome(refusal.outcome, refusal.reason))
            raise
        self._keep_out_of_use(copy)
        return {}

    def _keep_out_of_use(self, copy: Copy) -> None:
        """A target may have to put a key back to use to take a version of it; a death there leaves others enabled."""
        off = copies_where(self._store, key=copy.key, target=copy.target, state=ImportState.DISABLED.value)
        rows = [row for row in off if _is_beside(row, copy)]
        target = self._store.get(Target, copy.target)
        if not rows or target is None:
            return
        port = self._connect(target.name, target.kind, target.settings)
        enabled = {one.version for one in port.versions(copy.remote_name) if one.enabled}
        for row in rows:
            if row.remote_version in enabled:
                port.disable(row.remote_name, row.remote_version)

    def _asked_by(self, work: Work) -> Principal:
        cure = "give the rotation up (`broker operation abort`), and rotate anew"
        return who_asked(self._store, work.memory["asked_by"], "background", cure)

    # ---- withdraw-copy -------------------------------------------------------------------------------------------

    def _disable(self, work: Work) -> Mapping[str, str]:
        copy = copy_in(work.operation)
        target, row, held = self._store.get(Target, copy.target), self._row(self._store, copy), self._held(copy)
        if target is None or row is None or held is None or not row.may_be_there or not is_unwanted(*held):
            return {}
        try:
            return self._put_out_of_use(work, self._connect(target.name, target.kind, target.settings), row, held)
        except BrokerError:
            provide(self._imports.ledger.hsm, work, *held)
            raise

    def _put_out_of_use(
        self, work: Work, port: ports.Target, row: Import, held: tuple[Key, KeyVersion]
    ) -> Mapping[str, str]:
        version, there = held[1], in_use_there(port, row, held[1])
        doubt = doubt_of(self._imports.ledger.hsm, work, port, *held, there[0]) if there else {}
        if doubt.get("doubt") == Reason.PROOF_FAILED and version.phase is not Phase.COMPROMISED:
            return doubt
        try:
            for one in there:
                port.disable(row.remote_name, one.version)
        except WrongState as error:
            if error.reason != Reason.TARGET_CANNOT_DISABLE:
                raise
            return {**doubt, "cannot": "1"}
        if still := in_use_there(port, row, version):
            raise WrongState(
                Reason.REMOTE_KEY_STILL_ENABLED,
                f"The target {row.target} has taken the request to disable version {still[0].version} of "
                f"{row.remote_name}, and shows it as enabled still; it is asked again.",
            )
        return {**doubt, "disabled": "1"}

    def _held(self, copy: Copy) -> tuple[Key, KeyVersion] | None:
        key, version = self._store.get(Key, copy.key), self._store.get(KeyVersion, copy.key, copy.version)
        return (key, version) if key is not None and version is not None else None

    def _disabled(self, write: Write, work: Work) -> None:
        row = self._row(write, copy_in(work.operation))
        if row is not None and row.state not in UNDER_WAY:
            write.replace(row, withdrawn(row, work.memory))
        self._wake(write, work)

    # ---- both ----------------------------------------------------------------------------------------------------

    def _wake(self, _write: Write, work: Work) -> None:
        subject, _, number = work.memory.get("for", "").rpartition("/")
        if number:
            self._operations.wake(subject, int(number))

    def _row(self, rows: Store | Write, copy: Copy) -> Import | None:
        return rows.get(Import, copy.key, copy.version, copy.target, copy.remote_name)


_NOT_PERMITTED = frozenset({Reason.POLICY_DENIED, Reason.OPERATOR_NOT_FOUND})
_AWAY = frozenset({Reason.TARGET_SEALED, Reason.TARGET_THROTTLED, Reason.TARGET_UNREACHABLE})


def _still_used(operation: Operation) -> str:
    """Why a version is not put out of use, as the log says it."""
    if operation.failure == Reason.REMOTE_KEY_SHARED:
        return (
            "whether a symmetric key in use at a target is a destroyed one of the broker's cannot be told any more: "
            "somebody has to disable it there if it is, and the broker goes on"
        )
    return "a key version that is retired may still be used at a target"


def _stuck(operation: Operation) -> str:
    """Why a version does not come to its target, as the log says it."""
    if operation.failure in _NOT_PERMITTED:
        return "who asked for a rotation may not bring its key to a target"
    if operation.failure == Reason.KEY_STATE:
        return "a key is not enabled, so its rotation brings it nowhere"
    return "a rotation waits for a target" if operation.failure in _AWAY else "a rotation is refused at a target"


_REGISTERED = "registered"


def _bound(target: Target | None) -> dict[str, str]:
    """What tells this target from one that is registered under its name later."""
    return {_REGISTERED: target.created_at.isoformat()} if target else {}


def _is_meant(work: Work, target: Target | None) -> bool:
    """Whether it is the target that the version is to be brought to; an older release has not written down which."""
    now = _bound(target)
    return bool(now) and work.memory.get(_REGISTERED, now[_REGISTERED]) == now[_REGISTERED]


def _is_beside(row: Import, copy: Copy) -> bool:
    return row.remote_name == copy.remote_name and row.version != copy.version
