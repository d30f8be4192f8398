"""After a rotation: the data keys that older root keys wrap are wrapped anew, in small steps that may be repeated."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime
from functools import partial

from broker.core.call import Call
from broker.core.errors import Outcome, WrongState
from broker.core.model import RootKey, SecretVersion
from broker.core.once import last_write, record
from broker.core.ports import Store
from broker.core.reasons import Reason
from broker.core.records import key_of
from broker.core.secrets.root_rows import KnownRoots
from broker.core.secrets.sealing import Sealing

STEP = 50
REPORTED = 1000


class Rewrapping:
    """What wraps anew. What does not open is reported once for each process, and holds up nothing else."""

    def __init__(self, store: Store, sealing: Sealing, known: KnownRoots) -> None:
        self._store = store
        self._sealing = sealing
        self._known = known
        self._reported: set[tuple[str, int, int]] = set()

    def chores(self, root: RootKey) -> Iterator[tuple[str, Callable[[Call], None]]]:
        """What still hangs on a root key that was followed by another."""
        after: tuple[str | int, ...] = ()
        where = {"root": root.version}
        while batch := self._store.page(SecretVersion, after=after, limit=STEP, where=where, sound_only=True):
            yield f"root/{root.version}", partial(self._rewrap, batch)
            after = key_of(batch[-1])

    def _rewrap(self, batch: list[SecretVersion], call: Call) -> None:
        learnt = self._known.learnt()
        wrapped: list[tuple[SecretVersion, int, bytes]] = []
        damaged: list[SecretVersion] = []
        for version in batch:
            try:
                again = self._sealing.rewrap(version.secret, version.number, version.root, version.data_key)
            except WrongState as refusal:
                if refusal.reason != Reason.SECRET_DAMAGED:
                    raise
                damaged.append(version)
            else:
                wrapped.append((version, *again))
        if wrapped:
            self._keep(wrapped, learnt, call)
        for version in damaged:
            self._report(version, call)

    def _keep(self, wrapped: list[tuple[SecretVersion, int, bytes]], learnt: datetime, call: Call) -> None:
        with last_write(self._store, call) as write:
            count = 0
            for version, root, data_key in wrapped:
                stored = write.get(SecretVersion, version.secret, version.number)
                if stored is not None and stored.revision == version.revision:
                    write.replace(stored, replace(stored, root=root, data_key=data_key))
                    count += 1
            write.note(count=count, version=wrapped[0][1])
            self._known.check_sure(learnt)

    def _report(self, version: SecretVersion, call: Call) -> None:
        """Say in the audit that a stored version does not open (ST-02)."""
        which = (version.secret, version.number, version.revision)
        if which in self._reported or len(self._reported) >= REPORTED:
            return
        call.resource = f"secret/{version.secret}"
        call.note(version=version.number)
        record(self._store, call, call.outcome(Outcome.FAILED_PRECONDITION, Reason.SECRET_DAMAGED))
        self._reported.add(which)
