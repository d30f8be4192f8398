"""The copies of a key that is to be destroyed: disabled at once, deleted when its time has come, looked for until gone.

    delete-copy   waits for the time ─ delete ─▶ not shown any more ─ gone ─▶ GONE, once nothing there could come back

One for each name at a target, since a target deletes a key with all its versions. It only goes forward, until nothing
is left, or the destruction was called off. What stands there under the same name and is not the broker's is never
deleted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import timedelta

from broker.core import ports
from broker.core.call import Call
from broker.core.errors import WrongState
from broker.core.imports.rules import MISSING, copies_where
from broker.core.keys.states import TABLES, versions_of
from broker.core.kinds import ImportState, Sent
from broker.core.model import Import, Key, Operation, Target
from broker.core.operations.plan import NotYet, Plan, Step, Work
from broker.core.operations.running import Operations
from broker.core.ports import Connect, Now, Store, Write
from broker.core.reasons import Reason
from broker.core.rotations.copies import Copies, Copy, copy_in, reachable, target_in
from broker.core.rotations.withdrawal import DOUBTFUL, is_ending
from broker.core.rows import refuse_doubt

PATIENCE = timedelta(minutes=2)
LONGEST_PAUSE = timedelta(minutes=10)
LOOK_AGAIN = timedelta(days=1)
"""Between two looks for what a target keeps of a deleted key, or what has arrived there of one that waits."""

TABLES_OF_COPIES = TABLES | {"imports", "targets"}


class Deleting:
    """What deletes the copies of destroyed keys."""

    def __init__(
        self, store: Store, operations: Operations, copies: Copies, connect: Connect, now: Now, sole: Callable[[], None]
    ) -> None:
        self._store = store
        self._sole = sole
        self._operations = operations
        self._copies = copies
        self._connect = connect
        self._now = now
        self._plan = operations.admit(
            Plan(
                kind="delete-copy",
                steps=(
                    Step(name="delete", act=self._delete, keep=self._deleted),
                    Step(name="gone", act=self._look, keep=self._gone),
                ),
                patience=PATIENCE,
                place=target_in,
                longest_pause=LONGEST_PAUSE,
                alarm=_alarm,
            )
        )

    def begin(self, write: Write, call: Call, key: Key) -> None:
        """Have all copies disabled, now or once they have arrived, and deleted at the key's ``destroy_at``."""
        for version in versions_of(self._store, key.name):
            self._copies.withdraw(write, call, reachable(self._store, key.name, version.number))
        for target, name in sorted(self._copies.everywhere(key.name)):
            subject = f"key/{key.name}/0/gone/{target}/{name}"
            if self._operations.live(write, subject) is None:
                self._operations.begin(write, call, self._plan, subject, abandoned=True)

    # ---- delete --------------------------------------------------------------------------------------------------

    def _delete(self, work: Work) -> Mapping[str, str]:
        copy = copy_in(work.operation)
        key, target = self._store.get(Key, copy.key), self._store.get(Target, copy.target)
        if key is None or target is None or not is_ending(key):
            return {"over": "1"}
        rows = self._rows(copy)
        if not self._copies.have_settled(work, copy, rows):
            raise NotYet
        self._await_time(key)
        if not rows:
            return {"over": "1"}  # nothing of it has ever come there; what has that name is somebody else's
        refuse_doubt(self._store, TABLES_OF_COPIES, copy.key)
        self._sole()
        port = self._connect(target.name, target.kind, target.settings)
        self._refuse_shared(port, copy, rows)
        port.delete(copy.remote_name)
        if port.versions(copy.remote_name):
            raise WrongState(
                Reason.TARGET_CANNOT_DELETE,
                f"The target {copy.target} has taken the request to delete {copy.remote_name}, and shows it still; it "
                "is asked again.",
            )
        return {}

    def _await_time(self, key: Key) -> None:
        """Return when its time has come; until then it is looked each day for what has arrived."""
        now = self._now()
        if key.destroy_at is not None and now < key.destroy_at:
            raise NotYet(min(key.destroy_at, now + LOOK_AGAIN))

    def _refuse_shared(self, port: ports.Target, copy: Copy, rows: list[Import]) -> None:
        """Return if all that is there under the name is this key's; what is not has an owner who was not asked."""
        there = port.versions(copy.remote_name)
        held = {one.number: one.public_key for one in versions_of(self._store, copy.key)}
        publics = set(held.values()) - {None}
        sure = [row for row in rows if row.failure not in DOUBTFUL]
        recorded, shown = {row.remote_version for row in sure}, {one.public_key for one in there} - {None}
        unseen = {row.remote_version for row in sure if held.get(row.version) not in shown}
        for number in port.hidden(copy.remote_name):
            if number not in unseen:
                raise _shared(number, copy, " (it is hidden there)")
        for one in there:
            # A symmetric key cannot be told from another in its place; but ours was put out of use when this began.
            named = one.public_key is None and one.version in recorded
            if one.public_key in publics or (named and not one.enabled):
                continue
            disabled = ", or has disabled it if it is the broker's (`broker operation retry` then)" if named else ""
            raise _shared(one.version, copy, way_out=disabled)

    def _deleted(self, write: Write, work: Work) -> None:
        """Not shown any more; whether it can come back is looked at next."""
        if "over" in work.memory:
            return
        for row in self._rows_in(write, work):
            write.replace(row, replace(row, state=ImportState.FAILED, failure=MISSING))

    # ---- gone ----------------------------------------------------------------------------------------------------

    def _look(self, work: Work) -> Mapping[str, str]:
        copy = copy_in(work.operation)
        target = self._store.get(Target, copy.target)
        if "over" in work.memory or target is None:
            return {}
        port = self._connect(target.name, target.kind, target.settings)
        if port.versions(copy.remote_name) or port.remains(copy.remote_name):
            raise NotYet(self._now() + LOOK_AGAIN)
        return {"gone": "1"}

    def _gone(self, write: Write, work: Work) -> None:
        if "gone" not in work.memory:
            return
        for row in self._rows_in(write, work):
            if row.state is ImportState.FAILED and (row.sent is not Sent.FILE or row.remote_version):
                write.replace(row, replace(row, state=ImportState.GONE))

    def _rows(self, copy: Copy) -> list[Import]:
        return _those(copies_where(self._store, key=copy.key, target=copy.target), copy)

    def _rows_in(self, write: Write, work: Work) -> Iterator[Import]:
        copy = copy_in(work.operation)
        for row in self._rows(copy):
            stored = write.get(Import, row.key, row.version, row.target, row.remote_name)
            if stored is not None:
                yield stored


def _those(rows: list[Import], copy: Copy) -> list[Import]:
    return [row for row in rows if row.remote_name == copy.remote_name and row.may_be_there]


def _alarm(operation: Operation) -> str:
    """Why a key is not deleted, as the log says it."""
    if operation.failure == Reason.REMOTE_KEY_SHARED:
        return (
            "a destroyed key shares its name at a target with another one: somebody has to take that away, or to "
            "delete the destroyed one there"
        )
    return "a key that is destroyed may still be at a target"


def _shared(version: str, copy: Copy, what: str = "", way_out: str = "") -> WrongState:
    return WrongState(
        Reason.REMOTE_KEY_SHARED,
        f"Version {version} of {copy.remote_name} at {copy.target}{what} is not known to be the broker's, and a target "
        f"deletes all versions of a key together. It is done once its owner has taken it away{way_out}. Or delete it "
        "there.",
    )
