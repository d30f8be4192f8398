"""Where the Store's contract is held: on each database and in memory, as fixtures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

import pytest

from broker.core.ports import Store
from broker.store.config import StoreConfig
from broker.store.sql import SqlStore
from tests.contracts.store.places import emptied, new_sqlite
from tests.contracts.store.samples import now, opened, read_chains, read_journal
from tests.fakes.memory_store import Memory, MemoryStore

Journal = dict[str, list[dict[str, Any]]]


class Ground(Protocol):
    """A store that can be opened again and again, and its journal."""

    def opened(self) -> AbstractContextManager[Store]: ...

    def journal(self) -> Journal: ...


class OnDatabase:
    def __init__(self, place: StoreConfig) -> None:
        self.place = place

    def opened(self) -> AbstractContextManager[SqlStore]:
        return opened(self.place)

    def journal(self) -> Journal:
        return read_journal(self.place.journal)


class InMemory:
    def __init__(self) -> None:
        self._memory = Memory()

    @contextmanager
    def opened(self) -> Iterator[MemoryStore]:
        store = MemoryStore(self._memory, now)
        store.check()  # as a process that serves begins its chain
        try:
            yield store
        finally:
            store.close()

    def journal(self) -> Journal:
        return read_chains((name, name, b"\n".join([*lines, b""])) for name, lines in self._memory.chains.items())


@pytest.fixture(params=["sqlite", "postgresql", "memory"])
def ground(request: pytest.FixtureRequest, tmp_path: Path) -> Ground:
    """An empty store of each implementation."""
    if request.param == "memory":
        return InMemory()
    return OnDatabase(new_sqlite(tmp_path) if request.param == "sqlite" else emptied(request, tmp_path))


@pytest.fixture
def store(ground: Ground) -> Iterator[Store]:
    with ground.opened() as found:
        yield found


def calls(ground: Ground) -> list[str]:
    """The call ids of all entries, in order, without the first record of each chain."""
    lines = (line for chain in ground.journal().values() for line in chain)
    return [line["call"] for line in lines if line["kind"] == "entry" and line["rpc"] != "-"]
