"""Processes that die at every place of every plan, and what is there once another one has gone on.

A *place* is before or after an effect outside the store, or before or after a commit. A scene is acted out again and
again, each time with a process that dies at the next place. Then another process starts on what is left, the clock
moves on, the background does what it does, and what is outside must be what the rows say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from typing import Any

from broker.core.call import Call, background_call
from broker.core.entries import AuditEntry, Phase
from broker.core.errors import BrokerError, WrongState
from broker.core.keys.lifecycle import Keys
from broker.core.keys.refs import ref
from broker.core.kinds import Purpose, VersionState
from broker.core.model import Key, KeyVersion, Operation, Record
from broker.core.operations.running import Operations
from broker.core.policy.guard import Guard
from broker.core.ports import KeyRef, Write
from tests.fakes.background import operations
from tests.fakes.calls import Clock, call, document, operator
from tests.fakes.hsm import SoftwareHsm
from tests.fakes.memory_store import MemoryStore

MUCH_LATER = timedelta(hours=1)
ROUNDS = 5
"""In how many rounds of the background everything has come to its end."""


class Died(BaseException):
    """The process is no more. No Exception: nothing may go on after it."""


@dataclass(slots=True)
class Fate:
    """Where the process dies: at the place of this number, from 1; 0: nowhere."""

    at: int = 0
    passed: list[str] = field(default_factory=list)

    def place(self, name: str) -> None:
        self.passed.append(name)
        if len(self.passed) == self.at:
            self.die()

    def die(self) -> None:
        raise Died(self.passed[-1])


class MortalStore(MemoryStore):
    """Dies before and after each commit."""

    fate = Fate()

    @contextmanager
    def _write(self, entry: AuditEntry) -> Iterator[Write]:
        with super()._write(entry) as write:
            yield write
            self.fate.place("before a commit")
        self.fate.place("after a commit")


class MortalHsm(SoftwareHsm):
    """Dies before and after each change of the token. ``effects``: of which key, and how long the journal was then.

    ``refuses``: from now on it makes no key.
    """

    fate = Fate()
    refuses = False

    def __init__(self, journal: list[AuditEntry]) -> None:
        super().__init__()
        self.effects: list[tuple[str, int]] = []
        self.journal = journal

    def _before(self, what: str, key: KeyRef) -> None:
        self.fate.place(f"before a key is {what}")
        self.effects.append((key.name.partition("/")[0], len(self.journal)))

    def generate(self, key: KeyRef, *, exportable: bool, fresh: bool = False) -> bytes | None:
        self._before("made", key)
        if self.refuses:
            raise WrongState("HSM_MECHANISM_MISSING", "It makes no such key.")
        made = super().generate(key, exportable=exportable, fresh=fresh)
        self.fate.place("after a key is made")
        return made

    def seal(self, key: KeyRef) -> None:
        self._before("sealed", key)
        super().seal(key)
        self.fate.place("after a key is sealed")

    def destroy(self, key: KeyRef) -> None:
        self._before("destroyed", key)
        super().destroy(key)
        self.fate.place("after a key is destroyed")

    def objects(self) -> dict[bytes, bool]:
        """The ids of the keys in the token, and whether each may leave it."""
        return {hsm_id: held.extractable for hsm_id, held in self._device.keys.items() if held.label[0] is Purpose.KEY}


class World:
    """A process on a store, an HSM and targets that outlive it."""

    def __init__(self, store: Any = None, hsm: Any = None, clock: Clock | None = None) -> None:
        self.clock = clock or Clock()
        self.store = store if store is not None else MortalStore()
        self.hsm = hsm if hsm is not None else MortalHsm(self.store.entries)
        self.guard = _guard()
        self.operations: Operations = operations(self.store, self.clock)
        self.keys = Keys(self.store, self.hsm, self.guard, self.operations, self.clock)

    def restarted(self) -> World:
        """Another process on the same."""
        self.doomed(Fate())
        return World(self.store, self.hsm, self.clock)

    def doomed(self, fate: Fate) -> Fate:
        """Let this process have that fate."""
        self.store.fate = self.hsm.fate = fate
        return fate

    def call(self, rpc: str, request_id: str = "") -> Call:
        """An administrator's call."""
        return call(rpc, operator("alice", "admins"), self.clock, request_id=request_id, digest=rpc)

    def later(self) -> None:
        """The clock moves on, and the background does what it does."""
        for _ in range(ROUNDS):
            self.clock.time += MUCH_LATER
            for resource, work in self.keys.chores():
                with suppress(BrokerError):  # as the loop does, which logs it and tries again
                    work(self.background(resource))
            for rows in self.operations.due().values():
                for row in rows:
                    self.operations.carry_on(self.background(row.subject), row)

    def background(self, resource: str) -> Call:
        return background_call(resource, 0, self.clock)

    def rows(self, kind: type[Record]) -> list[Any]:
        """All rows of a kind."""
        return self.store.page(kind, limit=1000)

    def check(self) -> None:
        """What is outside is what the rows say, nothing is under way, and the journal has it all."""
        assert [row for row in self.rows(Operation) if not row.state.over] == []
        keys = {key.name: key for key in self.rows(Key)}
        versions = [row for row in self.rows(KeyVersion) if row.state is VersionState.ENABLED]
        assert self.hsm.objects() == {one.hsm_id: keys[one.key].exportable and not one.sealed for one in versions}, (
            "the token holds what the rows say, and what they say of its leaving"
        )
        for version in versions:
            assert self.hsm.public_key(ref(keys[version.key], version)) == version.public_key
        assert not any(row.state is VersionState.PENDING for row in self.rows(KeyVersion))
        self.check_journal()

    def check_journal(self) -> None:
        """Whatever was changed outside was announced before."""
        for name, length in self.hsm.effects:
            announced = {entry.resource for entry in self.store.entries[:length] if entry.phase is Phase.INTENT}
            assert announced & {f"key/{name}", *(f"key/{name}/{what}" for what in ("seal", "destroy"))}


@cache
def _guard() -> Guard:
    """The one of every process: to read a policy takes longer than most scenes."""
    return Guard(document())


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One story of a plan. ``act`` is a call, which may be refused; ``again`` the same request once more."""

    kinds: frozenset[str]  # the plans that it walks
    act: Callable[[World], object]
    prepare: Callable[[World], object] = lambda _: None
    again: Callable[[World], object] | None = None
    check: Callable[[World], None] = lambda _: None

    def acted(self, at: int) -> tuple[World, Fate]:
        """The world after a process that died at this place, if there is one."""
        world = World()
        self.prepare(world)
        fate = world.doomed(Fate(at))
        with suppress(Died, BrokerError):
            self.act(world)
        return world, fate

    def places(self) -> list[str]:
        """Every place of it, in order."""
        world, fate = self.acted(0)
        ran = {row.kind for row in world.rows(Operation)}
        assert self.kinds <= ran, f"the scene does not walk {self.kinds - ran}"
        return list(fate.passed)
