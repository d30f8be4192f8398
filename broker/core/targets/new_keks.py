"""Targets that are registered with a KEK which is made there for it.

    asked for ─ make ─▶ registered
       │ refused, or nobody came back
       └─ look what stays there ─▶ given up, and the audit says what stays

The target marks what it makes, so that a repetition takes the KEK whose answer was lost, and nobody takes another key
for it. A KEK that stays can do nothing but import: it is left to the target's owner, and can be registered by its id.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta

from broker.core import ports, receipts
from broker.core.call import Call
from broker.core.errors import BrokerError, Unavailable, WrongState
from broker.core.kinds import OperationState
from broker.core.model import Operation, Receipt, Target, WrappingKey
from broker.core.operations.plan import Plan, Step, Work
from broker.core.operations.running import Operations, running
from broker.core.reasons import Reason
from broker.core.targets.keks import KEK, check_kek
from broker.core.targets.parts import kek_fixed, keks_of

PATIENCE = timedelta(minutes=2)
LONGEST_PAUSE = timedelta(minutes=1)
LOOKED_FOR = timedelta(hours=1)
"""After so long nobody asks a target that is away what stays there; its name is free again."""


class NewKeks:
    """What registers targets with new KEKs."""

    def __init__(self, store: ports.Store, connect: ports.Connect, operations: Operations, now: ports.Now) -> None:
        self._store = store
        self._connect = connect
        self._operations = operations
        self._now = now
        self._plan = operations.admit(
            Plan(
                kind="create-kek",
                steps=(Step(name="make", act=self._make, keep=self._register),),
                patience=PATIENCE,
                undo=self._look,
                undone_reason=Reason.TARGET_NOT_ADDED,
                abandoned_is_undone=True,
                place=_name_of,
                longest_pause=LONGEST_PAUSE,
            )
        )

    def check(self, target: Target) -> None:
        """WrongState ``TARGET_KEK_EXISTS`` or ``TARGET_KEK_FIXED`` if the KEK of the settings could not be made."""
        wanted = _wanted(target)
        if wanted in self._keks(target).names():
            raise WrongState(
                Reason.TARGET_KEK_EXISTS,
                f"The target has a key named {wanted}; give its versioned id, or have one made under another name.",
            )

    def add(self, call: Call, target: Target) -> Target:
        """Register it; what another call has begun for the same target is completed."""
        _wanted(target)
        mark = secrets.token_hex(16)
        if self._operations.live(self._store, _subject(target.name)) is None:
            self._keks(target).made_wrapping_key(mark)  # refused before anything is begun
        with self._store.write(call.intent()) as write:
            receipt = receipts.replay(write, call)
            if receipt is None:
                operation = self._begin(write, call, target, mark)
                receipts.keep(write, call, target.name, operation=operation)
        return self.resumed(call, receipt) if receipt else self._run(call, operation)

    def resumed(self, call: Call, receipt: Receipt) -> Target:
        """Answer a repeated request: with what it registered, or by completing what its first try left open."""
        operation = self._operations.of(_subject(receipt.resource), receipt.operation)
        if operation is not None:
            return self._run(call, operation)
        target = self._store.get(Target, receipt.resource)
        if target is None:  # the operation is over for long, and forgotten
            raise receipts.undone()
        return target

    def refuse_going(self, rows: ports.Store | ports.Write, name: str) -> None:
        """Return unless a target of this name is being registered with a new KEK."""
        operation = self._operations.live(rows, _subject(name))
        if operation is not None:
            raise running(operation)

    # ---- the plan ------------------------------------------------------------------------------------------------

    def _begin(self, write: ports.Write, call: Call, target: Target, mark: str) -> Operation:
        asked = {"kind": target.kind, "settings": json.dumps(dict(target.settings), sort_keys=True)}
        operation = self._operations.live(write, _subject(target.name))
        if operation is None:
            return self._operations.begin(write, call, self._plan, _subject(target.name), {**asked, "mark": mark})
        if not asked.items() <= operation.memory.items():
            raise running(operation)
        return operation

    def _make(self, work: Work) -> Mapping[str, str]:
        kek = self._keks(self._asked(work)).create_wrapping_key(work.memory["mark"])
        check_kek(kek)
        return {"kek_id": kek.id, "kek_thumbprint": kek.thumbprint}

    def _register(self, write: ports.Write, work: Work) -> None:
        """From now on the settings name the KEK's version, and so that one alone."""
        asked, kek, print_ = self._asked(work), work.memory["kek_id"], work.memory["kek_thumbprint"]
        write.add(replace(asked, settings={**asked.settings, KEK: kek}, kek_id=kek, kek_thumbprint=print_))
        write.note(target=asked.name, kek_thumbprint=print_)

    def _look(self, work: Work) -> None:
        """Say in the audit what stays at the target."""
        asked = self._asked(work)
        work.call.note(target=asked.name, remote_name=_wanted(asked))
        try:
            kek = self._keks(asked).made_wrapping_key(work.memory["mark"])
        except Unavailable:
            if self._now() < work.operation.created_at + LOOKED_FOR:
                raise
            work.call.note(state="kek-unknown")
        except BrokerError as refusal:
            other = refusal.reason == Reason.TARGET_KEK_EXISTS  # a key of that name, which is not ours
            work.call.note(state="kek-absent" if other else "kek-unknown")
        else:
            _note(work.call, kek)

    # ---- the parts of it -----------------------------------------------------------------------------------------

    def _run(self, call: Call, operation: Operation) -> Target:
        done = self._operations.run(call, operation)
        target = self._store.get(Target, _name_of(operation))
        if target is None or done.state is not OperationState.DONE:
            raise receipts.undone()
        return target

    def _asked(self, work: Work) -> Target:
        return Target(
            name=_name_of(work.operation),
            kind=work.memory["kind"],
            settings=json.loads(work.memory["settings"]),
            kek_id="",
            kek_thumbprint="",
            created_at=self._now(),
        )

    def _keks(self, target: Target) -> ports.MakesKek:
        return keks_of(self._connect(target.name, target.kind, target.settings))


def _note(call: Call, kek: WrappingKey | None) -> None:
    if kek is None:
        call.note(state="kek-absent")
    else:
        call.note(state="kek-stays", kek_thumbprint=kek.thumbprint)


def _wanted(target: Target) -> str:
    wanted = target.settings.get(KEK)
    if wanted is None:
        raise kek_fixed()
    return wanted


def _subject(name: str) -> str:
    return f"target/{name}"


def _name_of(operation: Operation) -> str:
    return operation.subject.removeprefix("target/")
