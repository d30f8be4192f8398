"""Keys whose time has come: every version is destroyed in the HSM.

    DESTROY_SCHEDULED, and due ─ destroy ─▶ DESTROYED

From its beginning nobody saves the key any more, and it only goes forward; but nothing is destroyed while the database
is not as brokers left it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import timedelta
from functools import partial

from broker.core.call import Call
from broker.core.keys.refs import ref
from broker.core.keys.states import TABLES, key_named, versions_of
from broker.core.kinds import KeyState, VersionState
from broker.core.model import Key
from broker.core.operations.plan import Plan, Step, Work
from broker.core.operations.running import Operations
from broker.core.ports import Hsm, Now, Store, Write
from broker.core.rows import refuse_doubt

PATIENCE = timedelta(minutes=1)
STEP = 100


class Destroying:
    """What destroys keys."""

    def __init__(self, store: Store, hsm: Hsm, operations: Operations, now: Now) -> None:
        self._store = store
        self._hsm = hsm
        self._operations = operations
        self._now = now
        self._plan = operations.admit(
            Plan(
                kind="destroy-key",
                steps=(Step(name="destroy", act=self._destroy, keep=self._destroyed),),
                patience=PATIENCE,
            )
        )

    def has_begun(self, rows: Store | Write, key: Key) -> bool:
        """Whether it is too late to save the key, whatever the clock says."""
        return key.destroy_at is not None and self._operations.live(rows, _subject(key.name)) is not None

    def chores(self) -> Iterator[tuple[str, Callable[[Call], None]]]:
        """The keys that are due."""
        after: tuple[str | int, ...] = ()
        where: dict[str, str | int] = {"state": KeyState.DESTROY_SCHEDULED.value}
        while rows := self._store.page(Key, after=after, limit=STEP, where=where, sound_only=True):
            after = (rows[-1].name,)
            for key in rows:
                if self._is_due(key) and self._operations.live(self._store, _subject(key.name)) is None:
                    yield f"key/{key.name}", partial(self._begin, key)

    def _is_due(self, key: Key) -> bool:
        return key.state is KeyState.DESTROY_SCHEDULED and key.destroy_at is not None and key.destroy_at <= self._now()

    def _begin(self, key: Key, call: Call) -> None:
        with self._store.write(call.intent()) as write:
            write.replace(key, key)  # it is still as it was read, and nobody saves it meanwhile
            operation = self._operations.begin(write, call, self._plan, _subject(key.name))
        self._operations.run(call, operation)

    def _destroy(self, work: Work) -> Mapping[str, str]:
        name = key_named(work.operation)
        key, versions = self._store.get(Key, name), versions_of(self._store, name)
        refuse_doubt(self._store, TABLES, name)
        if key is not None and key.state is KeyState.DESTROY_SCHEDULED:
            for version in versions:
                self._hsm.destroy(ref(key, version))
        return {}

    def _destroyed(self, write: Write, work: Work) -> None:
        name = key_named(work.operation)
        key = write.get(Key, name)
        if key is None or key.state is not KeyState.DESTROY_SCHEDULED:
            return
        for version in versions_of(self._store, name):
            write.replace(version, replace(version, state=VersionState.DESTROYED))
        write.replace(key, replace(key, state=KeyState.DESTROYED))


def _subject(name: str) -> str:
    return f"key/{name}/destroy"
