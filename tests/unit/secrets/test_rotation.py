"""A rotation of the root key that dies, or is refused, at any of its steps, and under load."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from broker.core.entries import AuditEntry
from broker.core.errors import BrokerError, Unavailable
from broker.core.kinds import Purpose, RootKeyState
from broker.core.model import RootKey
from broker.core.ports import Hsm
from tests.fakes.hsm import SoftwareHsm
from tests.fakes.memory_store import MemoryStore
from tests.fakes.secrets import FIELDS, RotationHouse

REQUEST = "0b7e8f3e-1f5f-4c7e-9d59-0f6a4b3a2c1d"


@pytest.fixture
def house() -> RotationHouse:
    return RotationHouse(MemoryStore(), SoftwareHsm())


class Died(BaseException):
    """The process ends here."""


class Trap:
    """Lets the process die before or after the n-th thing it does outside itself; 0: never."""

    def __init__(self) -> None:
        self.at = self.count = 0

    def step(self) -> None:
        self.count += 1
        if self.count == self.at:
            raise Died

    def around(self, act: Callable[..., Any]) -> Callable[..., Any]:
        def acted(*args: Any, **more: Any) -> Any:
            self.step()
            done = act(*args, **more)
            self.step()
            return done

        return acted


class MortalStore:
    def __init__(self, store: MemoryStore, trap: Trap) -> None:
        self._store, self._trap = store, trap

    def __getattr__(self, name: str) -> Any:
        return self._trap.around(getattr(self._store, name))

    @contextmanager
    def write(self, entry: AuditEntry) -> Iterator[Any]:
        self._trap.step()
        with self._store.write(entry) as write:
            yield write
            self._trap.step()
        self._trap.step()


class MortalHsm:
    def __init__(self, hsm: SoftwareHsm, trap: Trap) -> None:
        self._hsm, self._trap = hsm, trap

    def keyring(self, purpose: Purpose) -> Any:
        return MortalKeyring(self._hsm.keyring(purpose), self._trap)


class MortalKeyring:
    def __init__(self, keyring: Hsm, trap: Trap) -> None:
        self._keyring, self._trap = keyring, trap

    def __getattr__(self, name: str) -> Any:
        return self._trap.around(getattr(self._keyring, name))


def lived_through(at: int) -> bool:
    """A rotation with all that follows, where the process dies at step ``at``; True when it got to the end alive."""
    store, hsm, trap = MemoryStore(), SoftwareHsm(), Trap()
    house = RotationHouse(store, hsm)
    for number in range(3):
        house.put(f"a/n{number}")
    house.restart(store=MortalStore(store, trap), hsm=MortalHsm(hsm, trap))
    trap.count, trap.at = 0, at
    survived = False
    with suppress(Died):
        house.rotate(request_id=REQUEST)
        house.quiet()
        survived = True
    house.restart(store=store, hsm=hsm)
    assert all(house.read(f"a/n{number}").fields == FIELDS for number in range(3))
    house.clock.forward(minutes=6)
    house.quiet()
    if house.versions() == [1]:  # it had not begun: the client, who got no answer, sends it again
        assert house.rotate(request_id=REQUEST) == 2
        house.quiet()
    assert house.rotate(request_id=REQUEST) == 2
    assert house.root() == (2, 0)
    assert house.versions() == [2]
    assert house.in_hsm() == {root.hsm_id for root in store.page(RootKey, limit=9)}
    assert all(root.state is RootKeyState.ENABLED for root in store.page(RootKey, limit=9))
    assert all(house.read(f"a/n{number}").fields == FIELDS for number in range(3))
    return survived


# Every fourth step, beginning at another one each time; the long form takes them all.
EVERY = pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.soak)])


@EVERY
def test_P23_a_process_that_dies_at_any_step_of_a_rotation_rolls_forward(every: int) -> None:
    at = random.randint(1, every)  # noqa: S311 (a step, no secret)
    while not lived_through(at):
        at += every
    assert at > 40


@EVERY
def test_P23_whatever_fails_at_any_step_is_carried_out_in_a_later_round(every: int) -> None:
    """As above, but the process goes on: one call of the store or the HSM is refused as unavailable."""
    at, failed = random.randint(1, every) - every, True  # noqa: S311
    while failed:
        at, failed = at + every, False
        house = RotationHouse(MemoryStore(), SoftwareHsm())
        house.put()
        trap = Trap()
        # Put in its place: the trap is a part of this test.
        trap.step = _refuser(trap, at)  # type: ignore[method-assign]
        trap.count = -1000
        house.restart(store=MortalStore(house.store, trap), hsm=MortalHsm(house.hsm, trap))
        trap.count = 0
        for _ in range(3):
            try:
                house.rotate(request_id=REQUEST)
                house.quiet()
            except Unavailable:
                failed = True
                house.clock.forward(minutes=6)
        trap.count = -1000
        assert house.root() == (2, 0)
        assert house.versions() == [2]
        assert house.read().fields == FIELDS
    assert at > 30


def _refuser(trap: Trap, at: int) -> Callable[[], None]:
    def step() -> None:
        trap.count += 1
        if trap.count == at:
            raise Unavailable("STORE_UNAVAILABLE", "Away for a moment.")

    return step


def test_P23_no_read_fails_while_root_keys_are_rotated(house: RotationHouse) -> None:
    names = [f"a/n{number}" for number in range(20)]
    for name in names:
        house.put(name)
    done, failed, reads = threading.Event(), [], []

    def reading(part: int) -> None:
        count = 0
        while not done.is_set() or count < 500:
            try:
                assert house.read(names[(count + part) % len(names)]).fields == FIELDS
            except (BrokerError, AssertionError) as error:
                failed.append(error)
            count += 1
        reads.append(count)

    readers = [threading.Thread(target=reading, args=(part,)) for part in range(4)]
    for reader in readers:
        reader.start()
    try:
        for _ in range(30):
            house.rotate()
            house.work()
            house.clock.forward(hours=12)
    finally:
        done.set()
        for reader in readers:
            reader.join()
    assert (failed, house.root(), len(house.versions())) == ([], (31, 0), 3)
    assert sum(reads) >= 2000
