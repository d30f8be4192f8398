"""Keys that never leave the HSM again: EXTRACTABLE is taken away from every version, for good.

    exportable ─▶ not exportable, in the record ─ seal ─▶ and in the HSM

It only goes forward: what a crash leaves half done is completed in the background. A rotation that is under way notices
the record and gives its version up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta

from broker.core import receipts
from broker.core.call import Call
from broker.core.keys.refs import ref
from broker.core.keys.states import USABLE, as_decided, key_named, require, versions_of
from broker.core.kinds import VersionState
from broker.core.model import Key, KeyVersion
from broker.core.operations.plan import Plan, Step, Work
from broker.core.operations.running import Operations
from broker.core.ports import Hsm, Store, Write

PATIENCE = timedelta(minutes=1)


class Seals:
    """What seals keys."""

    def __init__(self, store: Store, hsm: Hsm, operations: Operations) -> None:
        self._store = store
        self._hsm = hsm
        self._operations = operations
        self._plan = operations.admit(
            Plan(
                kind="seal-key",
                steps=(Step(name="seal", act=self._seal, keep=self._sealed),),
                patience=PATIENCE,
            )
        )

    def seal(self, call: Call, decided: Key) -> Key:
        """Seal a key; one that another call has begun to seal is completed."""
        with self._store.write(call.intent()) as write:
            key = as_decided(write, decided)
            operation = self._operations.live(write, _subject(key.name))
            if receipts.replay(write, call) is None:
                require(key, USABLE)
                operation = operation or self._operations.begin(write, call, self._plan, _subject(key.name))
                receipts.keep(write, call, key.name, operation=operation)
            key = write.replace(key, replace(key, exportable=False)) if key.exportable else key
        if operation is not None:
            self._operations.run(call, operation)
        return key

    def _seal(self, work: Work) -> Mapping[str, str]:
        name = key_named(work.operation)
        key = self._store.get(Key, name)
        if key is None:
            return {"versions": ""}
        open_versions = [version for version in versions_of(self._store, name) if _is_open(version)]
        for version in open_versions:
            self._hsm.seal(ref(key, version))
        return {"versions": " ".join(str(version.number) for version in open_versions)}

    def _sealed(self, write: Write, work: Work) -> None:
        for number in work.memory["versions"].split():
            version = write.get(KeyVersion, key_named(work.operation), int(number))
            if version is not None and _is_open(version):
                write.replace(version, replace(version, sealed=True))


def _is_open(version: KeyVersion) -> bool:
    return version.state is VersionState.ENABLED and not version.sealed


def _subject(name: str) -> str:
    return f"key/{name}/seal"
