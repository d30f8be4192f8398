"""Root keys, made and destroyed in the HSM.

    PENDING ─ generate ─▶ ENABLED ─ nothing hangs on it: destroy ─▶ gone
       │ refused                     HELD ─ discarded: destroy ─▶ gone
       └─ destroy ─▶ gone

Whether a repetition of the request or the background carries it on, it goes forward: a root key that nobody came back
for is completed, and one that is to go is destroyed. Only what the HSM refuses to make is taken back. What is done in
the HSM goes by the id that was drawn when the operation began: a version's number may be given again.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta

from broker.core import receipts
from broker.core.call import Call
from broker.core.errors import Exhausted, WrongState
from broker.core.kinds import OperationState, RootKeyState
from broker.core.model import Operation, Receipt, RootKey
from broker.core.operations.plan import Plan, Step, Work
from broker.core.operations.running import Operations, running
from broker.core.ports import Hsm, Now, Store, Write
from broker.core.reasons import Reason
from broker.core.rows import refuse_doubt
from broker.core.secrets.root_rows import MOST, in_use, ref

FINISH_AFTER = timedelta(minutes=5)
"""A root key that is still PENDING after this long belongs to a call that died."""

PATIENCE = timedelta(minutes=1)
TABLES = frozenset({"root_keys", "secret_versions"})


class RootPlans:
    """What makes and destroys root keys."""

    def __init__(self, store: Store, hsm: Hsm, operations: Operations, now: Now) -> None:
        self._store = store
        self._hsm = hsm
        self._operations = operations
        self._now = now
        self._making = operations.admit(
            Plan(
                kind="make-root-key",
                steps=(Step(name="generate", act=self._generate, keep=self._enable),),
                patience=FINISH_AFTER,
                undo=self._destroy_half_made,
                undone=self._take_back,
                undone_reason=Reason.KEY_NOT_MADE,
            )
        )
        self._retiring = operations.admit(
            Plan(
                kind="retire-root-key",
                steps=(Step(name="destroy", act=self._destroy_unused, keep=self._forget),),
                patience=PATIENCE,
            )
        )
        self._discarding = operations.admit(
            Plan(
                kind="discard-root-key",
                steps=(Step(name="destroy", act=self._destroy_held, keep=self._forget),),
                patience=PATIENCE,
            )
        )

    # ---- what begins them ----------------------------------------------------------------------------------------

    def first(self, call: Call) -> None:
        """Make the first root key, or complete it."""
        if not self._first(call):
            self._first(call)  # an earlier one was being taken back, and now is

    def next(self, call: Call) -> int:
        """Make the next root key; its version."""
        with self._store.write(call.intent()) as write:
            receipt = receipts.replay(write, call)
            if receipt is None:
                root = self._drafted(write)
                operation = self._begin(write, call, self._making, root)
                receipts.keep(write, call, "root", root.version, operation=operation)
        if receipt is not None:
            return self._resumed(call, receipt)
        call.note(version=root.version)
        self._operations.run(call, operation)
        return root.version

    def adopt(self, root: RootKey, call: Call) -> None:
        """Complete one that was begun before there were operations."""
        self._operations.run(call, self._operation(call, self._making, root))

    def retire(self, root: RootKey, call: Call) -> None:
        """Destroy one that nothing hangs on; WrongState ``ROOT_KEY_IN_USE``."""
        with self._store.write(call.intent()) as write:
            write.replace(root, root)  # it is still as it was read
            _refuse_use(write, root)
            operation = self._begin(write, call, self._retiring, root)
        self._operations.run(call, operation)

    def discard(self, call: Call, root: RootKey) -> None:
        """Destroy one that is HELD; what another call has begun to discard is completed."""
        with self._store.write(call.intent()) as write:
            operation = self.live(write, root)
            if operation is None:
                write.replace(root, root)  # from here on nobody else settles it
                operation = self._begin(write, call, self._discarding, root)
            if operation.kind != self._discarding.kind:
                raise running(operation)
            if receipts.replay(write, call) is None:
                receipts.keep(write, call, "root", root.version, operation=operation)
        self._operations.run(call, operation)

    def live(self, rows: Store | Write, root: RootKey) -> Operation | None:
        """What is under way with a root key."""
        return self._operations.live(rows, _subject(root))

    # ---- make-root-key -------------------------------------------------------------------------------------------

    def _generate(self, work: Work) -> Mapping[str, str]:
        root = _meant(self._store, work, RootKeyState.PENDING)
        if root is None:
            raise _changed(work)
        self._hsm.generate(ref(root), exportable=False)
        check = self.check_value(root)
        return {"check_value": check.hex()} if check is not None else {}

    def _enable(self, write: Write, work: Work) -> None:
        root = _meant(write, work, RootKeyState.PENDING)
        if root is None:
            raise _changed(work)
        check = bytes.fromhex(work.memory["check_value"]) if "check_value" in work.memory else None
        # Ready from now on, and not earlier: when older ones may be destroyed is counted from here.
        made = replace(root, state=RootKeyState.ENABLED, created_at=self._now(), check_value=check)
        write.replace(root, made)
        write.note(version=root.version)

    def _destroy_half_made(self, work: Work) -> None:
        root = _meant(self._store, work, RootKeyState.PENDING)
        if root is None:
            return
        if not work.attended:
            refuse_doubt(self._store, TABLES, str(root.version))
        self._hsm.destroy(ref(root))

    def _take_back(self, write: Write, work: Work) -> None:
        root = _meant(write, work, RootKeyState.PENDING)
        if root is None:
            return
        write.delete(root)
        for receipt in write.page(Receipt, limit=10, where={"resource": "root", "version": root.version}):
            write.delete(receipt)

    # ---- retire-root-key, discard-root-key -----------------------------------------------------------------------

    def _destroy_unused(self, work: Work) -> None:
        root = _meant(self._store, work, RootKeyState.ENABLED)
        if root is None:
            return
        _refuse_use(self._store, root)
        refuse_doubt(self._store, TABLES, str(root.version))
        self._hsm.destroy(ref(root))

    def _destroy_held(self, work: Work) -> None:
        root = _meant(self._store, work, RootKeyState.HELD)
        if root is not None:
            self._hsm.destroy(ref(root))

    def _forget(self, write: Write, work: Work) -> None:
        was = RootKeyState.ENABLED if work.operation.kind == self._retiring.kind else RootKeyState.HELD
        root = _meant(write, work, was)
        if root is not None:
            write.delete(root)
            write.note(version=root.version)

    # ---- the parts of it -----------------------------------------------------------------------------------------

    def check_value(self, root: RootKey) -> bytes | None:
        """What tells this root key from any other; None from a token that could encrypt nothing with it anyway."""
        try:
            return self._hsm.check_value(ref(root))
        except WrongState as refusal:
            if refusal.reason != Reason.HSM_MECHANISM_MISSING:
                raise
            return None

    def _first(self, call: Call) -> bool:
        with self._store.write(call.intent()) as write:
            root = write.get(RootKey, 1)
            if root is None:
                root = _draft(1, self._now)
                write.add(root)
            if root.state is RootKeyState.HELD:
                raise WrongState(
                    Reason.ROOT_KEY_HELD,
                    "The first root key is held since a restore; start the broker, and keep or discard it with "
                    "`broker secret settle-root 1`.",
                )
            if root.state is not RootKeyState.PENDING:
                return True  # another process was faster
            operation = self.live(write, root) or self._begin(write, call, self._making, root)
        return self._operations.run(call, operation).state is OperationState.DONE

    def _drafted(self, write: Write) -> RootKey:
        rows = write.page(RootKey, limit=MOST)
        if any(root.state is RootKeyState.PENDING for root in rows):
            raise being_made()
        if len(rows) == MOST:
            raise Exhausted(
                Reason.ROOT_KEYS_MANY,
                f"There are {MOST} root keys, the most there may be; `broker secret root` shows how many versions "
                "still wait to be moved off the old ones. Rotate again when none does.",
            )
        root = _draft(rows[-1].version + 1 if rows else 1, self._now)
        write.add(root)
        write.note(version=root.version)
        return root

    def _resumed(self, call: Call, receipt: Receipt) -> int:
        """Answer a repeated request: with what it made, or by completing what its first try left open."""
        root = self._store.get(RootKey, receipt.version)
        if root is None:
            raise receipts.undone()
        call.note(version=root.version)
        if root.state is RootKeyState.PENDING:
            done = self._operations.run(call, self._operation(call, self._making, root))
            if done.state is not OperationState.DONE:
                raise receipts.undone()
        return root.version

    def _operation(self, call: Call, plan: Plan, root: RootKey) -> Operation:
        """The one that is under way; one of an older release had none."""
        operation = self.live(self._store, root)
        if operation is not None:
            return operation
        with self._store.write(call.intent()) as write:
            write.replace(root, root)
            return self._begin(write, call, plan, root)

    def _begin(self, write: Write, call: Call, plan: Plan, root: RootKey) -> Operation:
        return self._operations.begin(write, call, plan, _subject(root), {"hsm_id": root.hsm_id.hex()})


def being_made() -> WrongState:
    """The refusal of what has to wait until a root key is made."""
    return WrongState(Reason.ROTATION_RUNNING, "A root key is being made already; try again in some minutes.")


def _draft(version: int, now: Now) -> RootKey:
    return RootKey(version=version, hsm_id=secrets.token_bytes(16), created_at=now(), state=RootKeyState.PENDING)


def _subject(root: RootKey) -> str:
    return f"root/{root.version}"


def _meant(rows: Store | Write, work: Work, state: RootKeyState) -> RootKey | None:
    """The root key that the operation is about, if it is still in this state."""
    root = rows.get(RootKey, int(work.operation.subject.removeprefix("root/")))
    same = root is not None and root.state is state and root.hsm_id.hex() == work.memory["hsm_id"]
    return root if same else None


def _changed(work: Work) -> WrongState:
    return WrongState(
        Reason.CHANGED_MEANWHILE, f"{work.operation.subject} was changed meanwhile; send the request again."
    )


def _refuse_use(rows: Store | Write, root: RootKey) -> None:
    if in_use(rows, root):
        raise WrongState(
            Reason.ROOT_KEY_IN_USE, f"A secret still hangs on version {root.version} of the root key, so it is kept."
        )
