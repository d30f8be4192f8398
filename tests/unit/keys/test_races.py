"""Keys that change while a call is at them: nothing is lost, nothing is left over, and what was decided still holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from broker.core.call import Call
from broker.core.errors import NotFound, Unavailable, WrongState
from broker.core.keys.lifecycle import Keys
from broker.core.keys.making import UNDO_AFTER
from broker.core.keys.refs import ref
from broker.core.kinds import KeyState, KeyType, KeyUsage, OperationState, VersionState
from broker.core.model import Key, KeyVersion, Operation
from broker.core.ports import KeyRef
from broker.store.config import StoreConfig
from broker.store.sql import SqlStore
from tests.contracts.store.samples import ROW_KEY
from tests.fakes.background import carry_on
from tests.fakes.hsm import SoftwareHsm
from tests.servers.databases import migrate
from tests.servers.patience import PATIENCE
from tests.worlds.world import World

START = datetime(2030, 1, 1, tzinfo=UTC)
REQUEST = "0b7e8f3e-1f5f-4c7e-9d59-0f6a4b3a2c1d"


class BusyHsm(SoftwareHsm):
    """Lets something else happen, once, right after it has made or before it destroys a key."""

    after_generate: Callable[[], object] | None = None
    before_destroy: Callable[[], object] | None = None

    def generate(self, key: KeyRef, *, exportable: bool, fresh: bool = False) -> bytes | None:
        made = super().generate(key, exportable=exportable, fresh=fresh)
        meanwhile, self.after_generate = self.after_generate, None
        if meanwhile:
            meanwhile()
        return made

    def destroy(self, key: KeyRef) -> None:
        meanwhile, self.before_destroy = self.before_destroy, None
        if meanwhile:
            meanwhile()
        super().destroy(key)

    @property
    def held(self) -> set[bytes]:
        return set(self.keys)


def lost() -> None:
    raise Unavailable("HSM_UNAVAILABLE", "gone")


class Bench(World):
    """A world on a real SQLite store; ``beside`` is another process on the same."""

    def __init__(self, store: SqlStore) -> None:
        super().__init__(store, BusyHsm())
        self.clock.time = START
        self.beside = self.elsewhere().keys

    def call(self, rpc: str, request_id: str = "") -> Call:
        return self.asked(f"KeyService/{rpc}", request_id=request_id, digest=rpc)

    def create(self, request_id: str = "", *, exportable: bool = False, keys: Keys | None = None) -> Key:
        call = self.call("CreateKey", request_id)
        keys = keys or self.keys
        return keys.create(call, "pay", KeyType.EC_P256, KeyUsage.SIGN, exportable=exportable, labels={}, owner="")

    def rotate(self, request_id: str = "", keys: Keys | None = None) -> Key:
        return (keys or self.keys).rotate(self.call("RotateKey", request_id), "pay")

    def sign(self) -> int:
        return self.use.sign(self.call("Sign"), "pay", None, [b"x"], prehashed=False).version

    def chores(self) -> None:
        self.do_chores(self.keys)

    def version(self, number: int) -> KeyVersion:
        found: KeyVersion | None = self.store.get(KeyVersion, "pay", number)
        assert found is not None
        return found

    def key(self) -> Key:
        found: Key | None = self.store.get(Key, "pay")
        assert found is not None
        return found


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    config = StoreConfig(
        url=f"sqlite:///{tmp_path / 'broker.db'}", journal=tmp_path / "journal", patience_seconds=PATIENCE
    )
    migrate(config)
    store = SqlStore(config, ROW_KEY, lambda: START)
    yield Bench(store)
    store.close()


def test_the_same_request_twice_at_once_makes_one_key_that_works(bench: Bench) -> None:
    bench.hsm.after_generate = lambda: bench.create(REQUEST, keys=bench.beside)
    assert bench.create(REQUEST).state is KeyState.ENABLED
    assert bench.hsm.held == {bench.version(1).hsm_id}
    assert bench.sign() == 1


def test_the_same_requests_on_many_threads_make_keys_that_the_hsm_holds(bench: Bench) -> None:
    """A caller that finds the version completed must not take it for another's, and destroy it, before it is stored."""

    def create(number: int) -> None:
        call = bench.call("CreateKey", f"{number:08d}{REQUEST[8:]}")
        with suppress(Unavailable):  # a busy computer: the same request again would complete it
            bench.keys.create(call, f"k{number}", KeyType.EC_P256, KeyUsage.SIGN, exportable=False, labels={}, owner="")

    with ThreadPoolExecutor(8) as pool:
        for each in [pool.submit(create, place // 3) for place in range(180)]:
            each.result()
    made = bench.store.page(KeyVersion, limit=100, where={"state": VersionState.ENABLED.value})
    assert len(made) > 30
    assert {version.hsm_id for version in made} <= bench.hsm.held


def test_the_same_rotation_twice_at_once_makes_one_version_that_works(bench: Bench) -> None:
    bench.create()
    bench.hsm.after_generate = lambda: bench.rotate(REQUEST, keys=bench.beside)
    assert bench.rotate(REQUEST).primary == 2
    assert bench.hsm.held == {bench.version(1).hsm_id, bench.version(2).hsm_id}
    assert bench.sign() == 2


def test_a_late_call_does_not_complete_what_is_being_undone(bench: Bench) -> None:
    bench.create()

    def late() -> None:
        bench.clock.time += UNDO_AFTER + timedelta(seconds=1)
        bench.chores()

    bench.hsm.after_generate = late
    with pytest.raises(WrongState, match="changed meanwhile"):
        bench.rotate()
    assert bench.hsm.held == {bench.version(1).hsm_id}
    assert bench.sign() == 1


def test_an_undoing_that_is_late_touches_no_key_that_has_its_name_by_now(bench: Bench) -> None:
    bench.hsm.after_generate = lost
    with pytest.raises(Unavailable):
        bench.create()
    (begun,) = bench.store.page(Operation, limit=9)
    with bench.store.write(bench.call("CreateKey").outcome()) as write:
        write.replace(begun, replace(begun, memory={**begun.memory, "hsm_id": bytes(16).hex()}))
    bench.clock.time += UNDO_AFTER + timedelta(seconds=1)
    carry_on(bench.operations, bench.clock)
    assert bench.hsm.held == {bench.version(1).hsm_id}
    assert bench.store.page(Operation, limit=9)[0].state is OperationState.UNDONE


def test_a_late_repetition_does_not_complete_what_is_being_undone(bench: Bench) -> None:
    bench.create()
    bench.hsm.after_generate = lost
    with pytest.raises(Unavailable):
        bench.rotate(REQUEST)
    bench.clock.time += UNDO_AFTER + timedelta(seconds=1)

    def repeat() -> None:
        with pytest.raises(WrongState, match="undone"):
            bench.rotate(REQUEST)

    bench.hsm.before_destroy = repeat
    bench.chores()
    assert bench.hsm.held == {bench.version(1).hsm_id}
    assert bench.sign() == 1


def test_a_name_that_became_free_meanwhile_is_not_filled_with_the_old_key(bench: Bench) -> None:
    def undone_and_made_again() -> None:
        bench.clock.time += UNDO_AFTER + timedelta(seconds=1)
        bench.chores()
        bench.create(keys=bench.beside)

    bench.hsm.after_generate = undone_and_made_again
    with pytest.raises(WrongState, match="changed meanwhile"):
        bench.create()
    assert bench.hsm.held == {bench.version(1).hsm_id}
    assert bench.sign() == 1


def test_HS_04_a_rotation_under_way_does_not_outlive_the_seal(bench: Bench) -> None:
    bench.create(exportable=True)
    bench.hsm.after_generate = lambda: bench.keys.seal(bench.call("SealKey"), "pay")
    with pytest.raises(WrongState, match="changed meanwhile"):
        bench.rotate()
    assert bench.hsm.held == {bench.version(1).hsm_id}
    assert (bench.key().exportable, bench.key().primary) == (False, 1)


def test_a_key_that_cannot_be_taken_back_leaves_nothing_in_the_hsm(bench: Bench) -> None:
    bench.create(exportable=True)
    bench.hsm.after_generate = lost
    with pytest.raises(Unavailable):
        bench.rotate(REQUEST)
    bench.keys.seal(bench.call("SealKey"), "pay")
    with pytest.raises(WrongState, match="changed meanwhile"):
        bench.rotate(REQUEST)
    assert bench.hsm.held == {bench.version(1).hsm_id}


def test_a_key_is_not_saved_once_its_destruction_has_begun(bench: Bench) -> None:
    bench.create()
    bench.keys.schedule_destruction(bench.call("ScheduleKeyDestruction"), "pay", timedelta(days=1))

    def passes() -> None:
        bench.clock.time += timedelta(days=1)
        bench.chores()

    bench.clock.time += timedelta(hours=23)
    bench.guard.then = passes
    with pytest.raises(WrongState):
        bench.keys.cancel_destruction(bench.call("CancelKeyDestruction"), "pay")
    assert bench.key().state is KeyState.DESTROYED


def test_a_key_that_was_saved_in_time_is_not_destroyed(bench: Bench) -> None:
    bench.create()
    bench.keys.schedule_destruction(bench.call("ScheduleKeyDestruction"), "pay", timedelta(days=1))
    bench.clock.time += timedelta(days=1)
    [(_, destroy)] = list(bench.keys.chores())
    bench.clock.time -= timedelta(seconds=1)  # another replica, whose clock is behind
    bench.keys.cancel_destruction(bench.call("CancelKeyDestruction"), "pay")
    with pytest.raises(WrongState) as caught:
        destroy(bench.call("Chore"))
    assert caught.value.reason == "CHANGED_MEANWHILE"
    assert bench.hsm.public_key(ref(bench.key(), bench.version(1))) is not None


def test_no_key_is_saved_while_the_hsm_destroys_it(bench: Bench) -> None:
    bench.create()
    bench.keys.schedule_destruction(bench.call("ScheduleKeyDestruction"), "pay", timedelta(days=1))
    bench.clock.time += timedelta(days=1)

    def save() -> None:
        with pytest.raises(WrongState) as caught:
            bench.keys.cancel_destruction(bench.call("CancelKeyDestruction"), "pay")
        assert caught.value.reason == "DESTRUCTION_DUE"

    bench.hsm.before_destroy = save
    bench.chores()
    assert bench.key().state is KeyState.DESTROYED
    with pytest.raises(NotFound):
        bench.hsm.public_key(ref(bench.key(), bench.version(1)))


@pytest.mark.parametrize("rpc", ["EnableKey", "DisableKey", "SealKey", "RotateKey", "ScheduleKeyDestruction"])
def test_AZ_15_a_key_that_changed_after_the_decision_is_left_alone(bench: Bench, rpc: str) -> None:
    bench.create(exportable=True)
    bench.guard.then = lambda: bench.keys.disable(bench.call("DisableKey"), "pay")
    acts: dict[str, Callable[[Call, str], Key]] = {
        "EnableKey": bench.keys.enable,
        "DisableKey": bench.keys.disable,
        "SealKey": bench.keys.seal,
        "RotateKey": bench.keys.rotate,
        "ScheduleKeyDestruction": lambda call, name: bench.keys.schedule_destruction(call, name, None),
    }
    with pytest.raises(WrongState) as caught:
        acts[rpc](bench.call(rpc), "pay")
    assert caught.value.reason == "CHANGED_MEANWHILE"
    assert (bench.key().state, bench.key().exportable, bench.key().latest) == (KeyState.DISABLED, True, 1)


def test_a_repeated_rotation_is_answered_when_the_key_is_disabled_by_now(bench: Bench) -> None:
    bench.create()
    bench.rotate(REQUEST)
    bench.keys.disable(bench.call("DisableKey"), "pay")
    assert bench.rotate(REQUEST).primary == 2
