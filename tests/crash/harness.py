"""Processes that die at every place of every plan, and what is there once another one has gone on.

A *place* is before or after an effect outside the store, or before or after a commit. A scene is acted out again and
again, each time with a process that dies at the next place. Then another process starts on what is left, the clock
moves on, the background does what it does, and what is outside must be what the rows say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import cache
from typing import Any, Self

from broker.core.call import Call
from broker.core.entries import AuditEntry, Phase
from broker.core.errors import BrokerError, Unavailable
from broker.core.holding import Holding
from broker.core.keys.refs import ref
from broker.core.kinds import Purpose, VersionState
from broker.core.model import Key, KeyVersion, Operation, Record, Target, WrappingKey
from broker.core.operations.running import Chore
from broker.core.policy.guard import Guard
from broker.core.ports import KeyRef, Write
from tests.crash.kek_vault import Passing, Vault, WayToVault
from tests.fakes.calls import Clock, document
from tests.fakes.hsm import SoftwareHsm
from tests.fakes.memory_store import MemoryStore
from tests.fakes.shelf import Shelf
from tests.fakes.shelf import kek as shelf_kek
from tests.worlds import world as worlds

MUCH_LATER = timedelta(hours=1)
ROUNDS = 5
"""In how many rounds of the background everything has come to its end."""


class Died(BaseException):
    """The process is no more. No Exception: nothing may go on after it."""


@dataclass(slots=True)
class Fate:
    """Where the process dies: at the place of this number, from 1; 0: nowhere. ``ends``: how it is killed."""

    at: int = 0
    passed: list[str] = field(default_factory=list)
    ends: Callable[[], None] = lambda: None

    def begin(self, at: int) -> None:
        """From here on places are counted."""
        self.at, self.passed = at, []

    def place(self, name: str) -> None:
        """A place is passed, or the process ends here."""
        self.passed.append(name)
        if len(self.passed) == self.at:
            self.ends()
            raise Died(name)


class MortalStore:
    """A store whose process dies before and after each commit."""

    def __init__(self, store: Any, fate: Fate) -> None:
        self._store, self._fate = store, fate

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    @contextmanager
    def write(self, entry: AuditEntry) -> Iterator[Write]:
        with self._store.write(entry) as write:
            yield write
            self._fate.place("before a commit")
        self._fate.place("after a commit")


class MortalHsm:
    """A keyring whose process dies before and after each change of the token.

    ``loses``: it makes the next one, and the answer is lost. ``fresh``: of each that it made, whether the broker said
    that it need not be searched for.
    """

    def __init__(
        self,
        hsm: Any,
        fate: Fate,
        *,
        announced: Passing = lambda _: None,
        roots: Any = None,
        own_announced: Passing = lambda _: None,
    ) -> None:
        self._hsm, self._fate, self._announced, self._roots = hsm, fate, announced, roots
        self._own_announced = own_announced
        self.loses = False
        self.fresh: list[bool] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._hsm, name)

    def keyring(self, purpose: Purpose) -> Any:
        """As the device: the keyring of callers' keys is this."""
        own = {Purpose.KEY: self, Purpose.ROOT: self._roots}
        return own.get(purpose) or MortalHsm(self._hsm.keyring(purpose), self._fate, announced=self._own_announced)

    @contextmanager
    def _change(self, what: str, key: KeyRef) -> Iterator[None]:
        self._fate.place(f"before a key is {what}")
        self._announced(key.name)
        yield
        self._fate.place(f"after a key is {what}")

    def generate(self, key: KeyRef, *, exportable: bool, fresh: bool = False) -> bytes | None:
        with self._change("made", key):
            self.fresh.append(fresh)
            made: bytes | None = self._hsm.generate(key, exportable=exportable, fresh=fresh)
        if self.loses:
            self.loses = False
            raise Unavailable("HSM_UNAVAILABLE", "The answer was lost.")
        return made

    def seal(self, key: KeyRef) -> None:
        with self._change("sealed", key):
            self._hsm.seal(key)

    def destroy(self, key: KeyRef) -> None:
        with self._change("destroyed", key):
            self._hsm.destroy(key)


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """An entry of the audit, as far as scenes ask about it."""

    phase: str
    resource: str
    reason: str
    facts: Mapping[str, Any]


class Ground:
    """What outlives a process: a store, a token, targets, and the time. ``remote``: how a key is called at a target."""

    remote = "pay"
    founding: Any = None  # the keys of the broker's own, once a scene has asked for them

    def __init__(self) -> None:
        self.clock = Clock()
        self.store: Any = MemoryStore()
        self.hsm: Any = SoftwareHsm()
        self.shelf: Any = Shelf()
        self._vault = Vault()

    def entries(self) -> list[Told]:
        """The audit."""
        found = self.store.entries
        return [Told(phase=one.phase, resource=one.resource, reason=one.reason, facts=one.facts) for one in found]

    def announced_before(self) -> list[Told]:
        """What the audit has announced so far."""
        return [one for one in self.entries() if one.phase == Phase.INTENT]

    # ---- the token -----------------------------------------------------------------------------------------------

    def keys_of(self, purpose: Purpose) -> dict[bytes, bool]:
        """The ids of the keys of one purpose in the token, and whether each may leave it."""
        found: dict[bytes, bool] = self.hsm.keys_of(purpose)
        return found

    def make_no_keys(self) -> None:
        """From now on the token makes none, nor does it for the next process, though it says that it can."""
        self.hsm.refuses = True

    # ---- the targets ---------------------------------------------------------------------------------------------

    def makers(self, passing: Passing) -> Any:
        """The way to the target that makes KEKs."""
        return WayToVault(self._vault, passing)

    def new_target(self) -> tuple[str, dict[str, str]]:
        """Kind and settings of that target."""
        return "hsm", {"kek": "fresh"}

    def make_no_keks(self) -> None:
        """From now on it makes none."""
        self._vault.refuses = True

    def keks(self) -> list[WrappingKey]:
        """Those that it has made."""
        return [kek for _, kek in self._vault.keks.values()]

    def takers(self, passing: Passing) -> Any:
        """The way to the target that takes keys."""
        self.shelf.passing = passing
        return self.shelf

    def target(self) -> Target:
        """That target, as it is registered."""
        kek = shelf_kek()
        return Target(
            name="bao", kind="shelf", settings={}, kek_id=kek.id, kek_thumbprint=kek.thumbprint, created_at=self.clock()
        )


class Ways:
    """To the targets of a ground: the one that takes keys is ``bao``."""

    def __init__(self, makers: Any, takers: Any) -> None:
        self._makers, self._takers = makers, takers

    def canonical(self, kind: str, settings: Mapping[str, str]) -> Any:
        return self._makers.canonical(kind, settings)

    def __call__(self, name: str, kind: str, settings: Mapping[str, str]) -> Any:
        return (self._takers if name == "bao" else self._makers)(name, kind, settings)


class World(worlds.World):
    """A process on that ground."""

    def __init__(self, ground: Any = None, guard: Guard | None = None) -> None:
        self.ground = ground or Ground()
        self.fate = fate = Fate()
        self.roots = MortalHsm(self.ground.hsm.keyring(Purpose.ROOT), fate, announced=self._root_announced)
        super().__init__(
            MortalStore(self.ground.store, fate),
            MortalHsm(
                self.ground.hsm,
                fate,
                announced=self._key_announced,
                roots=self.roots,
                own_announced=self._own_announced,
            ),
            self.ground.clock,
            guard=guard or _guard(),
            connect=Ways(self.ground.makers(fate.place), self.ground.takers(self._arriving)),
            keep=timedelta(0),
            look_every=timedelta(days=365),
            **self.more(),
        )

    def more(self) -> dict[str, Any]:
        """Parts besides, of a scene's own world."""
        return {}

    def restarted(self, guard: Guard | None = None) -> Self:
        """Another process on the same."""
        return type(self)(self.ground, guard)

    # ---- whatever is changed outside was announced before --------------------------------------------------------

    def _key_announced(self, name: str) -> None:
        told = {one.resource for one in self.ground.announced_before()}
        key = f"key/{name.partition('/')[0]}"
        assert told & {key, *(f"{key}/{name.partition('/')[2]}", f"{key}/seal", f"{key}/destroy")}

    def _root_announced(self, name: str) -> None:
        """By its version."""
        intents = self.ground.announced_before()
        about = {one.resource for one in intents} | {f"root/{one.facts.get('version')}" for one in intents}
        assert f"root/{name}" in about

    def _own_announced(self, version: str) -> None:
        """Of a key of the broker's own: the intent names the version."""
        about = {
            (one.resource.partition("/")[0], str(one.facts.get("version"))) for one in self.ground.announced_before()
        }
        assert ("broker", version or "1") in about or ("own", version or "1") in about, about

    def _arriving(self, place: str) -> None:
        assert any("bao" in one.resource for one in self.ground.announced_before())
        self.fate.place(place)

    # ---- what is done --------------------------------------------------------------------------------------------

    def call(self, rpc: str, request_id: str = "") -> Call:
        """An administrator's call."""
        return self.asked(rpc, request_id=request_id, digest=rpc)

    def chores(self) -> list[Chore]:
        """What the background does beside the operations."""
        nouns = (self.keys, self.secrets, self.imports, self.schedules, self.authorities)
        return [one for noun in nouns for one in noun.chores()]

    def later(self) -> None:
        """The clock moves on, and the background does what it does."""
        for _ in range(ROUNDS):
            self.clock.time += MUCH_LATER
            for resource, work in self.chores():
                with suppress(BrokerError):  # as the loop does, which logs it and tries again
                    work(self.own(resource))
            for rows in self.operations.due().values():
                for row in rows:
                    self.operations.carry_on(self.own(row.subject), row)

    def restore(self) -> None:
        """What follows when the database was put back to this moment."""
        Holding(self.store, lambda resource: replace(self.own(resource), rpc="-/AcceptRestore")).hold()

    def rows(self, kind: type[Record]) -> list[Any]:
        """All rows of a kind."""
        found: list[Any] = self.store.page(kind, limit=1000)
        return found

    def check(self) -> None:
        """What is outside is what the rows say, and nothing is under way."""
        assert [row for row in self.rows(Operation) if not row.state.over] == []
        assert not any(row.state is VersionState.PENDING for row in self.rows(KeyVersion))
        keys = {key.name: key for key in self.rows(Key)}
        versions = [row for row in self.rows(KeyVersion) if row.state is VersionState.ENABLED]
        held = {row.hsm_id for row in self.rows(KeyVersion) if row.state is VersionState.HELD}
        there = {hsm_id: leaves for hsm_id, leaves in self.ground.keys_of(Purpose.KEY).items() if hsm_id not in held}
        assert there == {one.hsm_id: keys[one.key].exportable and not one.sealed for one in versions}, (
            "the token holds what the rows say, and what they say of its leaving"
        )
        for version in versions:
            assert self.hsm.public_key(ref(keys[version.key], version)) == version.public_key


@cache
def _guard() -> Guard:
    """Shared by all, so load nothing into it: to read a policy takes longer than most scenes."""
    return Guard(document())


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One story of a plan. ``act`` is a call, which may be refused; ``again`` the same request once more."""

    kinds: frozenset[str]  # the plans that it walks
    act: Callable[[Any], object]
    prepare: Callable[[Any], object] = lambda _: None
    again: Callable[[Any], object] | None = None
    check: Callable[[Any], object] = lambda _: None
    world: type[World] = World

    def acted(self, at: int) -> Any:
        """The world after a process that died at this place, if there is one."""
        world = self.world()
        self.prepare(world)
        world.fate.begin(at)
        with suppress(Died, BrokerError):
            self.act(world)
        return world

    def places(self) -> list[str]:
        """Every place of it, in order."""
        world = self.acted(0)
        ran = {row.kind for row in world.rows(Operation)}
        assert self.kinds <= ran, f"the scene does not walk {self.kinds - ran}"
        return list(world.fate.passed)

    def gone_on(self, world: Any) -> None:
        """Another process on what is left: the same request or nobody, then the background; then all is whole."""
        if self.again is not None:
            with suppress(BrokerError):  # something may still be on its way, or it was given up meanwhile
                self.again(world)
        world.later()
        world.check()
        self.check(world)

    def dies_everywhere(self) -> None:
        """One process for each place dies there, and the next one goes on."""
        places = self.places()
        assert len(places) >= 4
        for at, place in enumerate(places, 1):
            died = self.acted(at)
            assert died.fate.passed[-1] == place
            try:
                self.gone_on(died.restarted())
            except AssertionError as error:
                raise AssertionError(f"died {place} (place {at} of {len(places)})") from error
