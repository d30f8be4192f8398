"""Root keys: rotated in steps that a crash may fall between, destroyed only when nothing hangs on them any more."""

from __future__ import annotations

from dataclasses import replace

import pytest

from broker.core.errors import (
    Exhausted,
    NotFound,
    PermissionDenied,
    Unavailable,
    WrongState,
)
from broker.core.kinds import EncryptionAlgorithm, KeyType
from broker.core.model import Operation, Receipt, RootKey, SecretVersion
from broker.core.secrets.root_rows import MOST, ref
from tests.fakes.background import carry_on
from tests.fakes.calls import operator
from tests.fakes.hsm import SoftwareHsm
from tests.fakes.memory_store import MemoryStore
from tests.fakes.secrets import FIELDS, RotationHouse

REQUEST = "0b7e8f3e-1f5f-4c7e-9d59-0f6a4b3a2c1d"


@pytest.fixture
def house() -> RotationHouse:
    return RotationHouse(MemoryStore(), SoftwareHsm())


def test_the_first_root_key_is_made_once(house: RotationHouse) -> None:
    house.secrets.roots.ensure(house.own())
    house.restart()
    house.secrets.roots.ensure(house.own())
    assert (house.versions(), len(house.in_hsm()), house.root()) == ([1], 1, (1, 0))


def test_a_root_key_is_a_256_bit_key_that_never_leaves(house: RotationHouse) -> None:
    [root] = house.store.page(RootKey, limit=9)
    held = house.hsm.keys[root.hsm_id]
    assert (len(root.hsm_id), len(held.private), held.extractable) == (16, 32, False)
    house.rotate()
    assert len({one.hsm_id for one in house.store.page(RootKey, limit=9)}) == 2


def test_after_a_rotation_new_versions_hang_on_the_new_key_and_old_ones_follow(house: RotationHouse) -> None:
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


def test_an_old_root_key_is_destroyed_a_day_after_it_was_followed_and_not_before(house: RotationHouse) -> None:
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


def test_a_root_key_that_something_hangs_on_is_never_destroyed(house: RotationHouse) -> None:
    house.put()
    row = house.store.rows[SecretVersion]["team/app/db", 1]
    house.store.rows[SecretVersion]["team/app/db", 1] = damaged = type(row)(
        **{name: getattr(row, name) for name in row.__dataclass_fields__} | {"data_key": bytes(60)}
    )
    house.rotate()
    house.quiet()
    assert house.versions() == [1, 2]
    assert damaged.root == 1


def test_deleted_versions_follow_and_destroyed_ones_hold_nothing_up(house: RotationHouse) -> None:
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


def test_a_version_that_is_destroyed_while_it_is_being_rewrapped_stays_destroyed(house: RotationHouse) -> None:
    house.put()
    house.rotate()
    rewrap = house.sealing.rewrap

    def meanwhile(name: str, version: int, root: int, data_key: bytes) -> tuple[int, bytes]:
        house.destroy(name, version)
        return rewrap(name, version, root, data_key)

    # Put in its place: the destruction has to come between the look and the write.
    house.sealing.rewrap = meanwhile  # type: ignore[method-assign]
    house.work()
    assert house.store.rows[SecretVersion]["team/app/db", 1].data_key == b""


def test_only_who_may_rotates(house: RotationHouse) -> None:
    for groups in ((), ("auditors",), ("secret-operators",)):
        with pytest.raises(PermissionDenied):
            house.rotate(principal=operator("bob", *groups))
    assert house.versions() == [1]


def test_a_repeated_request_makes_one_root_key(house: RotationHouse) -> None:
    assert [house.rotate(request_id=REQUEST) for _ in range(3)] == [2, 2, 2]
    assert (house.versions(), len(house.in_hsm())) == ([1, 2], 2)


def test_while_one_root_key_is_being_made_no_other_is(house: RotationHouse) -> None:
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


def test_what_nobody_came_back_for_is_finished_by_the_background_loop(house: RotationHouse) -> None:
    house.hsm.away = True
    with pytest.raises(Unavailable):
        house.rotate()
    house.hsm.away = False
    assert house.work() == 0  # the call may still be under way
    house.clock.forward(minutes=6)
    house.work()
    assert house.root() == (2, 0)


def test_a_root_key_that_took_long_to_be_ready_does_not_shorten_the_life_of_the_one_before(
    house: RotationHouse,
) -> None:
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


def test_a_root_key_that_the_hsm_will_not_make_is_taken_back(house: RotationHouse) -> None:
    house.hsm.makes = ()
    with pytest.raises(WrongState):
        house.rotate(request_id=REQUEST)
    assert house.versions() == [1]
    assert not house.store.rows[Receipt]
    house.hsm.makes = tuple(KeyType)
    assert house.rotate(request_id=REQUEST) == 2


def test_there_is_a_bound_to_root_keys(house: RotationHouse) -> None:
    [root] = house.store.page(RootKey, limit=9)
    with house.store.write(house.own().outcome()) as write:
        for number in range(2, MOST + 1):
            write.add(replace(root, version=number, hsm_id=number.to_bytes(16, "big")))
    with pytest.raises(Exhausted):
        house.rotate()


def test_without_any_root_key_the_cure_is_named() -> None:
    house = RotationHouse(MemoryStore(), SoftwareHsm())
    house.store.rows[RootKey].clear()
    with pytest.raises(NotFound, match="broker init"):
        house.root()


def test_another_replica_learns_of_a_new_root_key_when_it_meets_it(house: RotationHouse) -> None:
    other = RotationHouse(house.store, house.hsm, clock=house.clock)
    house.rotate()
    house.put()
    assert other.read().fields == FIELDS
    other.clock.forward(seconds=31)
    other.put("team/app/late")
    assert house.store.rows[SecretVersion]["team/app/late", 1].root == 2


def test_what_was_wrapped_too_long_ago_is_not_written(house: RotationHouse) -> None:
    """Between sealing and writing the process stood still: by now the root key may be about to be destroyed."""
    seal = house.sealing.seal

    def suspended(name: str, version: int, fields: dict[str, bytes]) -> tuple[int, bytes, bytes]:
        sealed = seal(name, version, fields)
        house.clock.forward(minutes=11)
        return sealed

    # Put in its place: the time has to pass between the sealing and the write.
    house.sealing.seal = suspended  # type: ignore[method-assign,assignment]
    with pytest.raises(Unavailable) as refused:
        house.put()
    assert refused.value.reason == "TOO_SLOW"
    assert not house.store.rows[SecretVersion]


def test_a_root_key_is_not_addressable_by_what_callers_name(house: RotationHouse) -> None:
    [root] = house.store.page(RootKey, limit=9)
    for callers in (ref(root), replace(ref(root), name="pay/1")):
        with pytest.raises(WrongState) as refusal:
            house.hsm.decrypt(callers, EncryptionAlgorithm.AES_GCM, bytes(28), b"")
        assert refusal.value.reason == "KEY_NOT_THIS"
    assert root.hsm_id.hex() not in repr(house.store.entries)


# ---- operations ------------------------------------------------------------------------------------------------------


def left_by_an_older_release(house: RotationHouse) -> None:
    """The second root key was begun, with a receipt, and no operation stands for it."""
    house.hsm.away = True
    with pytest.raises(Unavailable):
        house.rotate(request_id=REQUEST)
    house.hsm.away = False
    house.store.rows[Operation].clear()
    (key,) = house.store.rows[Receipt]
    house.store.rows[Receipt][key] = replace(house.store.rows[Receipt][key], operation=None)


def test_a_root_key_that_an_older_release_has_begun_is_finished_by_the_background(house: RotationHouse) -> None:
    left_by_an_older_release(house)
    assert house.work() == 0  # that release's call may still be under way
    house.clock.forward(minutes=6)
    house.work()
    assert (house.root(), len(house.in_hsm())) == ((2, 0), 2)


def test_a_root_key_that_an_older_release_has_begun_is_finished_by_its_repetition(house: RotationHouse) -> None:
    left_by_an_older_release(house)
    assert [house.rotate(request_id=REQUEST) for _ in range(2)] == [2, 2]
    assert (house.root(), len(house.in_hsm())) == ((2, 0), 2)


def retiring(house: RotationHouse) -> None:
    """The first root key is to be destroyed, and the HSM is away."""
    house.rotate()
    house.clock.forward(hours=25)
    ((resource, work),) = house.secrets.chores()
    house.hsm.away = True
    with pytest.raises(Unavailable):
        work(house.own(resource))


def test_a_root_key_that_is_being_destroyed_is_begun_once_and_kept_by_nobody(house: RotationHouse) -> None:
    retiring(house)
    assert list(house.secrets.chores()) == []
    with pytest.raises(Unavailable) as refused:
        house.secrets.roots.settle(house.call("SettleRootKey"), 1, keep=True)
    assert refused.value.reason == "OPERATION_RUNNING"
    house.hsm.away = False
    house.clock.forward(minutes=2)
    assert house.work() == 1
    assert (house.versions(), len(house.in_hsm())) == ([2], 1)


def test_a_root_key_that_something_hangs_on_again_is_not_destroyed(house: RotationHouse) -> None:
    """It cannot come to that, as nobody wraps under it any more; and if it did, nothing is lost."""
    house.put()
    row = house.store.rows[SecretVersion].pop(("team/app/db", 1))
    retiring(house)
    house.hsm.away = False
    house.store.rows[SecretVersion]["team/app/db", 1] = row
    house.clock.forward(minutes=2)
    assert carry_on(house.operations, house.clock) == 0
    assert (house.versions(), len(house.in_hsm())) == ([1, 2], 2)
