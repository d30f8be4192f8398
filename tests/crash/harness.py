"""Processes that die at every place of every plan, and what is there once another one has gone on.

A *place* is before or after an effect outside the store, or before or after a commit. A scene is acted out again and
again, each time with a process that dies at the next place. Then another process starts on what is left, the clock
moves on, the background does what it does, and what is outside must be what the rows say.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import cache
from typing import Any

from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from broker.core.call import Call
from broker.core.entries import AuditEntry, Phase
from broker.core.errors import BrokerError, Unavailable, WrongState
from broker.core.holding import Holding
from broker.core.keys.refs import ref
from broker.core.kinds import Purpose, VersionState
from broker.core.model import Key, KeyVersion, Operation, Record, WrappingKey
from broker.core.policy.guard import Guard
from broker.core.ports import KeyRef, Write
from tests.fakes.calls import Clock, document
from tests.fakes.hsm import SoftwareHsm
from tests.fakes.memory_store import MemoryStore
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

    ``refuses``: it makes no key. ``loses``: it makes the next one, and the answer is lost.
    """

    def __init__(
        self, hsm: Any, fate: Fate, *, announced: Callable[[str], None] = lambda _: None, roots: Any = None
    ) -> None:
        self._hsm, self._fate, self._announced, self._roots = hsm, fate, announced, roots
        self.refuses = self.loses = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._hsm, name)

    def keyring(self, purpose: Purpose) -> Any:
        """As the device: the keyring of callers' keys is this."""
        own = {Purpose.KEY: self, Purpose.ROOT: self._roots}
        return own.get(purpose) or self._hsm.keyring(purpose)

    @contextmanager
    def _change(self, what: str, key: KeyRef) -> Iterator[None]:
        self._fate.place(f"before a key is {what}")
        self._announced(key.name)
        yield
        self._fate.place(f"after a key is {what}")

    def generate(self, key: KeyRef, *, exportable: bool, fresh: bool = False) -> bytes | None:
        with self._change("made", key):
            if self.refuses:
                raise WrongState("HSM_MECHANISM_MISSING", "It makes no such key.")
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


class Vault:
    """A target that makes KEKs. ``keks``: by name, with the mark of each. ``refuses``: it makes none."""

    def __init__(self) -> None:
        self.keks: dict[str, tuple[str, WrappingKey]] = {}
        self.refuses = False


class MortalConnect:
    """The way to that target, for a process that dies before and after a KEK is made."""

    def __init__(self, vault: Vault, fate: Fate) -> None:
        self._vault, self._fate = vault, fate

    def canonical(self, _kind: str, settings: Mapping[str, str]) -> dict[str, str]:
        return dict(settings)

    def __call__(self, _name: str, _kind: str, settings: Mapping[str, str]) -> Any:
        return _MakesKeks(self._vault, self._fate, settings["kek"])


class _MakesKeks:
    def __init__(self, vault: Vault, fate: Fate, kek: str) -> None:
        self._vault, self._fate, self._kek = vault, fate, kek
        self.keks = self

    def made_wrapping_key(self, mark: str) -> WrappingKey | None:
        if self._kek not in self._vault.keks:
            return None
        marked, kek = self._vault.keks[self._kek]
        if marked != mark:
            raise WrongState("TARGET_KEK_EXISTS", "There is such a key; choose another name.")
        return kek

    def create_wrapping_key(self, mark: str) -> WrappingKey:
        if found := self.made_wrapping_key(mark):
            return found
        self._fate.place("before a KEK is made")
        if self._vault.refuses:
            raise WrongState("TARGET_DENIED", "It may not.")
        public = _rsa()
        made = WrappingKey(id=f"{self._kek}/1", public_key=public, thumbprint=hashlib.sha256(public).hexdigest())
        self._vault.keks[self._kek] = mark, made
        self._fate.place("after a KEK is made")
        return made


@cache
def _rsa() -> bytes:
    key = rsa.generate_private_key(65537, 2048).public_key()
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


class Ground:
    """What outlives a process: a store, a token, a target, and the time."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.store: Any = MemoryStore()
        self.hsm: Any = SoftwareHsm()
        self.vault = Vault()

    def leaving(self) -> dict[bytes, bool]:
        """The ids of the callers' keys in the token, and whether each may leave it."""
        found: dict[bytes, bool] = self.hsm.keys_of(Purpose.KEY)
        return found

    def announced(self, name: str) -> None:
        """Whatever is changed outside was announced before."""
        told = {entry.resource for entry in self.store.entries if entry.phase is Phase.INTENT}
        key = f"key/{name.partition('/')[0]}"
        assert told & {key, *(f"{key}/{name.partition('/')[2]}", f"{key}/seal", f"{key}/destroy")}

    def root_announced(self, name: str) -> None:
        """So is what is done to a root key, by its version."""
        intents = [entry for entry in self.store.entries if entry.phase is Phase.INTENT]
        about = {entry.resource for entry in intents} | {f"root/{entry.facts.get('version')}" for entry in intents}
        assert f"root/{name}" in about


class World(worlds.World):
    """A process on that ground."""

    def __init__(self, ground: Any = None, guard: Guard | None = None, connect: Any = None) -> None:
        self.ground = ground or Ground()
        self.fate = fate = Fate()
        roots = self.ground.hsm.keyring(Purpose.ROOT)
        self.roots = MortalHsm(roots, fate, announced=self.ground.root_announced)
        super().__init__(
            MortalStore(self.ground.store, fate),
            MortalHsm(self.ground.hsm, fate, announced=self.ground.announced, roots=self.roots),
            self.ground.clock,
            guard=guard or _guard(),
            connect=connect or MortalConnect(self.ground.vault, fate),
            keep=timedelta(0),
        )

    def restarted(self) -> World:
        """Another process on the same."""
        return World(self.ground)

    def call(self, rpc: str, request_id: str = "") -> Call:
        """An administrator's call."""
        return self.asked(rpc, request_id=request_id, digest=rpc)

    def later(self) -> None:
        """The clock moves on, and the background does what it does."""
        for _ in range(ROUNDS):
            self.clock.time += MUCH_LATER
            for resource, work in (*self.keys.chores(), *self.secrets.chores()):
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
        there = {hsm_id: leaves for hsm_id, leaves in self.ground.leaving().items() if hsm_id not in held}
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
    act: Callable[[World], object]
    prepare: Callable[[World], object] = lambda _: None
    again: Callable[[World], object] | None = None
    check: Callable[[World], None] = lambda _: None
    real: bool = True  # whether real parts act it too

    def acted(self, at: int) -> World:
        """The world after a process that died at this place, if there is one."""
        world = World()
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
