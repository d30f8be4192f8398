"""A compromised key version, contained: it protects nothing from now on, and is put out of use everywhere.

    begin        COMPROMISED in the very write of the intent, and its copies are withdrawn, each by itself; a rotation
                 that was to put it in force is given up. If it is the primary one and that is asked for, the rotation
                 that replaces it begins in this write too, and the background carries it on
      └ withdraw   until the last target has disabled it, or has said that it cannot

It only goes forward. How long it took from the command to the last target stands in the audit (``seconds``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta

from broker.core import receipts
from broker.core.amiss import key_changed, no_key_version
from broker.core.call import Call
from broker.core.errors import Exhausted, WrongState
from broker.core.keys import phases
from broker.core.keys.states import as_decided, rotation_of
from broker.core.kinds import Phase, VersionState
from broker.core.model import Key, KeyVersion, Operation
from broker.core.operations.plan import NotYet, Plan, Step, Work
from broker.core.operations.running import Operations
from broker.core.ports import Now, Store, Write
from broker.core.reasons import Reason
from broker.core.rotations.copies import Copies, Copy, reachable
from broker.core.rotations.rotating import give_up

PATIENCE = timedelta(minutes=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Contained:
    """The version as it is now, the operation that goes on (None of a dry run), and where it is or may be."""

    key: Key
    version: KeyVersion
    operation: Operation | None
    places: tuple[Copy, ...]
    replacement: Operation | None = None  # also None when the containment was over before the same request came back
    no_replacement: str = ""  # why there is none, though it was asked for


@dataclass(frozen=True, slots=True, kw_only=True)
class Replacement:
    """How a compromised version that is the primary one is replaced: ``begin``, or ``hindered`` says why it is not."""

    begin: Callable[[Write, Key], Operation] | None = None
    hindered: str = ""


NOT_ASKED = Replacement()


class Containing:
    """What contains versions."""

    def __init__(self, store: Store, operations: Operations, copies: Copies, now: Now) -> None:
        self._store = store
        self._operations = operations
        self._copies = copies
        self._now = now
        self._plan = operations.admit(
            Plan(
                kind="contain-key-version",
                steps=(Step(name="withdraw", act=self._withdraw, keep=self._withdrawn),),
                patience=PATIENCE,
                alarm=lambda _: "a compromised key version may still be used at a target",
            )
        )

    def would(self, key: Key, version: KeyVersion, successor: Replacement) -> Contained:
        """As ``contain`` would begin; refuses what that does."""
        _refuse_gone(version)
        there = tuple(reachable(self._store, key.name, version.number))
        return Contained(key=key, version=version, operation=None, places=there, no_replacement=successor.hindered)

    def contain(self, call: Call, decided: Key, number: int, why: str, successor: Replacement) -> Contained:
        """Begin, the replacement in the very same write, and leave the targets to the background.

        The same request tells how far that is.
        """
        with self._store.write(call.intent()) as write:
            receipt = receipts.replay(write, call)
            if receipt is None:
                operation = self._begun(write, call, as_decided(write, decided), number, why, successor)
                receipts.keep(write, call, decided.name, number, operation=operation)
        number = receipt.version if receipt else number  # the primary one may be another since
        found = self._operations.of(_subject(decided.name, number), receipt.operation) if receipt else operation
        if found is not None and not found.state.over:
            found = self._operations.run(call, found)
        key, version = self._store.get(Key, decided.name), self._store.get(KeyVersion, decided.name, number)
        if key is None or version is None:
            raise key_changed(decided.name)
        there = tuple(reachable(self._store, key.name, number))
        memory = found.memory if found else {}
        return Contained(
            key=key,
            version=version,
            operation=found,
            places=there,
            replacement=self._operations.of(rotation_of(key.name), int(memory.get("replacement", "0"))),
            no_replacement=memory.get("no_replacement", ""),
        )

    def _begun(self, write: Write, call: Call, key: Key, number: int, why: str, successor: Replacement) -> Operation:
        version = write.get(KeyVersion, key.name, number)
        if version is None:
            raise no_key_version(key.name, number, "could be compromised")
        _refuse_gone(version)
        phases.move(write, version, Phase.COMPROMISED, self._now(), str(call.principal), why)
        give_up(self._operations, write, call, key.name, number)
        memory = _replaced(write, key, successor)
        write.note(version=number)
        operation = self._operations.begin(write, call, self._plan, _subject(key.name, number), memory)
        work = Work(call=call, operation=operation)
        self._copies.begin(write, work, reachable(self._store, key.name, number), off=True)
        return operation

    def _withdraw(self, work: Work) -> Mapping[str, str]:
        _, name, number, _ = work.operation.subject.split("/")
        if not self._copies.are_off(work, name, int(number)):
            raise NotYet
        return {}

    def _withdrawn(self, write: Write, work: Work) -> None:
        write.note(seconds=int((self._now() - work.operation.created_at).total_seconds()))


def _replaced(write: Write, key: Key, successor: Replacement) -> Mapping[str, str]:
    """Begin the replacement; what hinders it must not hinder the containment, and is told."""
    if successor.begin is None:
        return {"no_replacement": successor.hindered} if successor.hindered else {}
    try:
        return {"replacement": str(successor.begin(write, key).number)}
    except (WrongState, Exhausted) as refusal:
        return {"no_replacement": refusal.message}


def _refuse_gone(version: KeyVersion) -> None:
    if version.state is not VersionState.ENABLED:
        raise WrongState(
            Reason.KEY_STATE,
            f"Version {version.number} of the key {version.key} is {version.state}, so there is nothing to contain.",
        )
    if version.phase is Phase.COMPROMISED:
        raise WrongState(
            Reason.KEY_VERSION_PHASE,
            f"Version {version.number} of the key {version.key} is compromised already; `broker operation list "
            f"key/{version.key}` shows which targets are still to disable it.",
        )


def _subject(name: str, number: int) -> str:
    return f"key/{name}/{number}/contain"
