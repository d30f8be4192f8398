"""Root keys: rotated in steps that a crash may fall between, destroyed only when nothing hangs on them any more."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from broker.core import roots
from broker.core.audit import AuditEntry
from broker.core.errors import (
    BrokerError,
    Exhausted,
    InvalidRequest,
    NotFound,
    PermissionDenied,
    Unavailable,
    WrongState,
)
from broker.core.model import Receipt, RootKey, SecretVersion, VersionState
from broker.core.ports import KeyRef
from tests.fakes.calls import operator
from tests.fakes.hsm import SoftwareHsm
from tests.fakes.memory_store import MemoryStore
from tests.fakes.secrets import FIELDS, SecretsHouse

REQUEST = "0b7e8f3e-1f5f-4c7e-9d59-0f6a4b3a2c1d"


class House(SecretsHouse):
    store: MemoryStore
    hsm: SoftwareHsm

    def rotate(self, **more: Any) -> int:
        return self.secrets.rotate_root(self.call("RotateRootKey", **more))

    def root(self) -> tuple[int, int]:
        newest, waiting = self.secrets.root(self.call("GetRootKey"))
        return newest.version, waiting

    def versions(self) -> list[int]:
        return [root.version for root in self.store.page(RootKey, limit=1000)]

    def in_hsm(self) -> set[bytes]:
        return set(self.hsm._keys)

    def quiet(self) -> None:
        """The background loop, until there is nothing left to do, however long it takes."""
        for hours in (0, 0, 25, 0):
            self.clock.forward(hours=hours)
            self.work()


@pytest.fixture
def house() -> House:
    return House(MemoryStore(), SoftwareHsm())


def test_the_first_root_key_is_made_once(house: House) -> None:
    house.secrets.ensure_root(house.own())
    house.restart()
    house.secrets.ensure_root(house.own())
    assert (house.versions(), len(house.in_hsm()), house.root()) == ([1], 1, (1, 0))


def test_a_root_key_is_a_256_bit_key_that_never_leaves(house: House) -> None:
    [root] = house.store.page(RootKey, limit=9)
    held = house.hsm._keys[root.hsm_id]
    assert (len(root.hsm_id), len(held.private), held.extractable) == (16, 32, False)
    house.rotate()
    assert len({one.hsm_id for one in house.store.page(RootKey, limit=9)}) == 2


def test_after_a_rotation_new_versions_hang_on_the_new_key_and_old_ones_follow(house: House) -> None:
    for number in range(120):
        house.put(f"a/n{number}")
    before = {row.secret: row.sealed for row in house.store.page(SecretVersion, limit=999)}
    assert house.rotate() == 2
    house.put("a/new")
    assert house.root() == (2, 120)
    assert house.read("a/n7").fields == FIELDS
    assert house.work() == 3  # steps of 50
    assert house.root() == (2, 0)
    after = {row.secret: row.sealed for row in house.store.page(SecretVersion, limit=999)}
    assert before.items() < after.items()  # what is sealed stays as it is
    assert all(house.read(f"a/n{number}").fields == FIELDS for number in range(120))
    counts = [
        entry.facts["count"] for entry in house.store.entries if entry.rpc == "-/Chore" and "count" in entry.facts
    ]
    assert counts == [50, 50, 20]
    assert house.work() == 0


def test_an_old_root_key_is_destroyed_a_day_after_it_was_followed_and_not_before(house: House) -> None:
    house.put()
    house.rotate()
    house.work()
    house.clock.forward(hours=23, minutes=59)
    house.work()
    assert (house.versions(), len(house.in_hsm())) == ([1, 2], 2)
    house.clock.forward(minutes=1)
    house.work()
    assert (house.versions(), len(house.in_hsm())) == ([2], 1)
    assert house.read().fields == FIELDS


def test_a_root_key_that_something_hangs_on_is_never_destroyed(house: House) -> None:
    house.put()
    row = house.store.rows[SecretVersion]["team/app/db", 1]
    house.store.rows[SecretVersion]["team/app/db", 1] = damaged = type(row)(
        **{name: getattr(row, name) for name in row.__dataclass_fields__} | {"data_key": bytes(60)}
    )
    house.rotate()
    house.quiet()
    assert house.versions() == [1, 2]
    assert damaged.root == 1


def test_deleted_versions_follow_and_destroyed_ones_hold_nothing_up(house: House) -> None:
    house.put("a/deleted")
    house.put("a/destroyed")
    house.secrets.delete(house.call("DeleteSecretVersions"), "a/deleted", [1])
    house.destroy("a/destroyed", 1)
    house.rotate()
    assert house.root() == (2, 1)
    house.quiet()
    assert house.versions() == [2]
    house.secrets.undelete(house.call("UndeleteSecretVersions"), "a/deleted", [1])
    assert house.read("a/deleted").fields == FIELDS


def test_a_version_that_is_destroyed_while_it_is_being_rewrapped_stays_destroyed(house: House) -> None:
    house.put()
    house.rotate()
    rewrap = house.sealing.rewrap

    def meanwhile(name: str, version: int, root: int, data_key: bytes) -> tuple[int, bytes]:
        house.destroy(name, version)
        return rewrap(name, version, root, data_key)

    house.sealing.rewrap = meanwhile  # type: ignore[method-assign]
    house.work()
    assert house.store.rows[SecretVersion]["team/app/db", 1].data_key == b""


def test_only_who_may_rotates(house: House) -> None:
    for groups in ((), ("auditors",), ("secret-operators",)):
        with pytest.raises(PermissionDenied):
            house.rotate(principal=operator("bob", *groups))
    assert house.versions() == [1]


def test_a_repeated_request_makes_one_root_key(house: House) -> None:
    assert [house.rotate(request_id=REQUEST) for _ in range(3)] == [2, 2, 2]
    assert (house.versions(), len(house.in_hsm())) == ([1, 2], 2)


def test_while_one_root_key_is_being_made_no_other_is(house: House) -> None:
    house.hsm.away = True
    with pytest.raises(Unavailable):
        house.rotate(request_id=REQUEST)
    house.hsm.away = False
    with pytest.raises(WrongState) as refused:
        house.rotate()
    assert refused.value.reason == "ROTATION_RUNNING"
    house.put()
    assert house.root() == (1, 0)  # one that is not made yet wraps nothing
    assert house.rotate(request_id=REQUEST) == 2  # the same request completes it
    assert house.root() == (2, 1)


def test_what_nobody_came_back_for_is_finished_by_the_background_loop(house: House) -> None:
    house.hsm.away = True
    with pytest.raises(Unavailable):
        house.rotate()
    house.hsm.away = False
    assert house.work() == 0  # the call may still be under way
    house.clock.forward(minutes=6)
    house.work()
    assert house.root() == (2, 0)


def test_a_root_key_that_took_long_to_be_ready_does_not_shorten_the_life_of_the_one_before(house: House) -> None:
    house.put()
    house.hsm.away = True
    with pytest.raises(Unavailable):
        house.rotate()
    house.clock.forward(hours=48)
    house.hsm.away = False
    house.work()
    house.work()
    assert house.root() == (2, 0)
    assert house.versions() == [1, 2]


def test_a_root_key_that_the_hsm_will_not_make_is_taken_back(house: House) -> None:
    generate = house.hsm.generate

    def refuse(*_: object, **__: object) -> None:
        raise InvalidRequest("HSM_MECHANISM_MISSING", "This token makes no AES keys.")

    house.hsm.generate = refuse  # type: ignore[method-assign,assignment]
    with pytest.raises(InvalidRequest):
        house.rotate(request_id=REQUEST)
    assert house.versions() == [1]
    assert not house.store.rows[Receipt]
    house.hsm.generate = generate  # type: ignore[method-assign]
    assert house.rotate(request_id=REQUEST) == 2


def test_there_is_a_bound_to_root_keys(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roots, "MOST", 3)
    house.rotate()
    house.rotate()
    with pytest.raises(Exhausted):
        house.rotate()


def test_without_any_root_key_the_cure_is_named() -> None:
    house = House(MemoryStore(), SoftwareHsm())
    house.store.rows[RootKey].clear()
    with pytest.raises(NotFound, match="broker init"):
        house.root()


def test_another_replica_learns_of_a_new_root_key_when_it_meets_it(house: House) -> None:
    other = House(house.store, house.hsm, clock=house.clock)
    house.rotate()
    house.put()
    assert other.read().fields == FIELDS
    other.clock.forward(seconds=31)
    other.put("team/app/late")
    assert house.store.rows[SecretVersion]["team/app/late", 1].root == 2


def test_what_was_wrapped_too_long_ago_is_not_written(house: House) -> None:
    """Between sealing and writing the process stood still: by now the root key may be about to be destroyed."""
    seal = house.sealing.seal

    def suspended(name: str, version: int, fields: dict[str, bytes]) -> tuple[int, bytes, bytes]:
        sealed = seal(name, version, fields)
        house.clock.forward(minutes=11)
        return sealed

    house.sealing.seal = suspended  # type: ignore[method-assign,assignment]
    with pytest.raises(Unavailable) as refused:
        house.put()
    assert refused.value.reason == "TOO_SLOW"
    assert not house.store.rows[SecretVersion]


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

    def __getattr__(self, name: str) -> Any:
        return self._trap.around(getattr(self._hsm, name))


def lived_through(at: int) -> bool:
    """A rotation with all that follows, where the process dies at step ``at``; True when it got to the end alive."""
    store, hsm, trap = MemoryStore(), SoftwareHsm(), Trap()
    house = House(store, hsm)
    for number in range(3):
        house.put(f"a/n{number}")
    house.store, house.hsm = MortalStore(store, trap), MortalHsm(hsm, trap)  # type: ignore[assignment]
    house.restart()
    trap.count, trap.at = 0, at
    survived = False
    with suppress(Died):
        house.rotate(request_id=REQUEST)
        house.quiet()
        survived = True
    house.store, house.hsm = store, hsm
    house.restart()
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
    assert all(root.state is VersionState.ENABLED for root in store.page(RootKey, limit=9))
    assert all(house.read(f"a/n{number}").fields == FIELDS for number in range(3))
    return survived


def test_P23_a_process_that_dies_at_any_step_of_a_rotation_rolls_forward() -> None:
    at = 1
    while not lived_through(at):
        at += 1
    assert at > 40


def test_P23_whatever_fails_at_any_step_is_carried_out_in_a_later_round() -> None:
    """As above, but the process goes on: one call of the store or the HSM is refused as unavailable."""
    at, failed = 0, True
    while failed:
        at, failed = at + 1, False
        house = House(MemoryStore(), SoftwareHsm())
        house.put()
        trap = Trap()
        trap.step = _refuser(trap, at)  # type: ignore[method-assign]
        trap.count = -1000
        house.store, house.hsm = MortalStore(house.store, trap), MortalHsm(house.hsm, trap)  # type: ignore[assignment]
        house.restart()
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


def test_P23_no_read_fails_while_root_keys_are_rotated(house: House) -> None:
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


def test_a_root_key_is_not_addressable_by_what_callers_name(house: House) -> None:
    [root] = house.store.page(RootKey, limit=9)
    assert KeyRef(hsm_id=root.hsm_id, type=roots.ref(root).type, usage=roots.ref(root).usage, public_key=None)
    assert root.hsm_id.hex() not in repr(house.store.entries)
