"""Who fetched a secret last: remembered in memory, written down some seconds later, so that a fetch writes nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from threading import Lock

from broker.core.call import Call
from broker.core.model import SecretRead
from broker.core.ports import Now, Store, Write

MOST = 100_000
STEP = 100


class LastReads:
    """The reads of this process that are not written down yet; the newest of each secret. Thread-safe."""

    def __init__(self, store: Store, now: Now) -> None:
        self._store = store
        self._now = now
        self._reads: dict[str, SecretRead] = {}
        self._lock = Lock()

    def add(self, principal: str, names: list[str]) -> None:
        """Remember a read. Beyond ``MOST`` secrets in some seconds it is left to the audit, which has every read."""
        now = self._now()
        with self._lock:
            for name in names:
                if name in self._reads or len(self._reads) < MOST:
                    self._reads[name] = SecretRead(secret=name, principal=principal, read_at=now)

    def flush(self, make_call: Callable[[str], Call]) -> None:
        """Write them down, some in each transaction; what could not be written is kept for the next time."""
        with self._lock:
            reads, self._reads = self._reads, {}
        waiting = [
            reads[name] for name in sorted(reads)
        ]  # in one order in every process, so that none waits for another
        try:
            while waiting:
                self._write(waiting[:STEP], make_call("secret/*"))
                del waiting[:STEP]
        finally:
            with self._lock:
                self._reads = {read.secret: read for read in waiting} | self._reads

    def _write(self, reads: list[SecretRead], call: Call) -> None:
        call.note(count=len(reads))
        with self._store.write(call.outcome()) as write:
            for read in reads:
                _keep(write, read)
        call.settled = True


def _keep(write: Write, read: SecretRead) -> None:
    stored = write.get(SecretRead, read.secret)
    if stored is None:
        write.add(read)
    elif stored.read_at < read.read_at:
        write.replace(stored, replace(stored, principal=read.principal, read_at=read.read_at))
