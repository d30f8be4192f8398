"""Keys that are sealed by themselves: each version once it is in force and proven at every target that was named.

    watched ─ a version is ready ─▶ sealed in the HSM, and in the record ─▶ watched, for the next one

The key stays exportable, so that its next version can be brought to the targets. What protects nothing any more is not
imported either, and sealed too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta

from broker.core.amiss import no_target
from broker.core.call import Call
from broker.core.errors import InvalidRequest, WrongState
from broker.core.keys.phases import ALLOWED, Use
from broker.core.keys.refs import ref
from broker.core.keys.states import USABLE, as_decided, key_named, require, versions_of
from broker.core.kinds import ImportState, KeyState, Phase, VersionState
from broker.core.model import Import, Key, KeyVersion, Target
from broker.core.names import check_name
from broker.core.once import once
from broker.core.operations.plan import NotYet, Plan, Step, Work
from broker.core.operations.running import Operations
from broker.core.policy.guard import Guard, of_target
from broker.core.ports import Hsm, Store, Write
from broker.core.reasons import Reason

PATIENCE = timedelta(minutes=1)
LONGEST_PAUSE = timedelta(minutes=1)
"""Between two looks whether a version is ready."""

MOST = 16
"""Targets that a key waits for."""

MAX_COPIES = 1000


class SelfSealing:
    """What seals versions by itself."""

    def __init__(self, store: Store, hsm: Hsm, guard: Guard, operations: Operations) -> None:
        self._store = store
        self._hsm = hsm
        self._guard = guard
        self._operations = operations
        self._plan = operations.admit(
            Plan(
                kind="seal-once",
                steps=(Step(name="watch", act=self._watch),),
                patience=PATIENCE,
                longest_pause=LONGEST_PAUSE,
            )
        )

    def watch(self, call: Call, decided: Key, targets: tuple[str, ...]) -> Key:
        """From now on seal each version once it is ready; no ``targets``: none any more, and none now."""
        wanted = tuple(sorted(set(targets))) or None
        self._check(call, decided, wanted or ())
        if call.validate_only:
            return replace(decided, sealed_once_at=wanted)

        def change(write: Write) -> Key:
            stored = as_decided(write, decided)
            require(stored, USABLE)
            subject = f"key/{stored.name}/seal-once"
            if wanted and self._operations.live(write, subject) is None:
                self._operations.begin(write, call, self._plan, subject, abandoned=True)
            return write.replace(stored, replace(stored, sealed_once_at=wanted))

        name = decided.name
        return once(self._store, call, name, change, lambda write, _: write.get(Key, name) or decided)

    def _check(self, call: Call, key: Key, targets: tuple[str, ...]) -> None:
        """Return if such a key can wait for these; a target that the caller may not get is none to him."""
        if len(targets) > MOST:
            raise InvalidRequest(Reason.FIELD_TOO_LONG, f"A key waits for at most {MOST} targets; name fewer.")
        require(key, USABLE)
        if targets and not key.exportable:
            raise WrongState(
                Reason.KEY_NOT_EXPORTABLE,
                f"The key {key.name} is not exportable, so there is nothing to seal: no version of it leaves the HSM.",
            )
        for name in targets:
            found = self._store.get(Target, check_name(name, "target"))
            if found is None or not self._guard.permits(call.principal, "GetTarget", of_target(found)):
                raise no_target(name)

    def _watch(self, work: Work) -> Mapping[str, str]:
        key = self._store.get(Key, key_named(work.operation))
        if key is None or not key.sealed_once_at or not key.exportable or key.state is KeyState.DESTROYED:
            return {}
        for version in versions_of(self._store, key.name):
            if self._is_ready(key, version):
                self._hsm.seal(ref(key, version))
                self._sealed(work, version)
        raise NotYet

    def _is_ready(self, key: Key, version: KeyVersion) -> bool:
        if version.state is not VersionState.ENABLED or version.sealed:
            return False
        if Use.IMPORT not in ALLOWED[version.standing]:
            return True
        where: dict[str, str | int] = {"key": key.name, "version": version.number, "state": ImportState.PROVEN.value}
        there = {row.target for row in self._store.page(Import, limit=MAX_COPIES, where=where)}
        return version.standing is Phase.ACTIVE and there.issuperset(key.sealed_once_at or ())

    def _sealed(self, work: Work, version: KeyVersion) -> None:
        with self._store.write(work.call.intent()) as write:
            stored = write.get(KeyVersion, version.key, version.number)
            if stored is not None and not stored.sealed:
                write.replace(stored, replace(stored, sealed=True))
            write.note(version=version.number)
