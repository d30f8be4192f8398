"""The inventory: what stands beside each key, and that a page is cut only from what is wanted and may be seen."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from broker.core.errors import InvalidRequest, NotFound
from broker.core.inventory.lifecycle import Entry, Filter
from broker.core.kinds import ImportState, KeyState, KeyType, KeyUsage
from broker.core.model import Import, Key, KeyUsed, KeyVersion
from broker.core.policy.cedar import FIRST_POLICY
from broker.core.policy.guard import Guard
from broker.core.schedule import KeySchedule
from broker.core.schedules.lifecycle import Wish
from tests.contracts.store.samples import T0, key, version
from tests.fakes.calls import document, operator
from tests.fakes.memory_store import MemoryStore
from tests.fakes.refusals import refused
from tests.worlds.world import World

MANY = 603
SEES_EVEN = """
@id("even") permit (principal == Operator::"eve", action == Action::"GetKey", resource)
when { resource.hasTag("even") };
@id("list") permit (principal == Operator::"eve", action == Action::"ListKeys", resource);
"""


class CountingStore(MemoryStore):
    """Counts what is read of it."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: Counter[str] = Counter()

    def get(self, kind: Any, *name: Any) -> Any:
        self.reads["get"] += 1
        return super().get(kind, *name)

    def page(self, kind: Any, **how: Any) -> Any:
        self.reads["page"] += 1
        return super().page(kind, **how)


class House(World):
    """Many keys, put there as rows."""

    def __init__(self) -> None:
        self.counting = CountingStore()
        super().__init__(self.counting, guard=Guard(document(FIRST_POLICY + SEES_EVEN)))
        names = [f"k{number:04}" for number in range(MANY)]
        keys = [
            key(
                name, labels={"even": "yes"} if place % 2 == 0 else {}, primary=place % 3 + 1, latest=3,
                state=KeyState.DISABLED if place % 100 == 7 else KeyState.ENABLED,
                owner="operator/bob" if place % 10 == 3 else "operator/alice",
            )
            for place, name in enumerate(names)
        ]  # fmt: skip
        versions = [version(name, number) for name in names for number in (1, 2, 3)]
        copies = [
            Import(
                key=name, version=number, target="bao", remote_name=name, remote_version=str(number), blob_sha256="",
                state=ImportState.PROVEN, kek_thumbprint="00", failure="", started_at=T0, proven_at=T0,
            )
            for name in names[::400] for number in (1, 2)
        ]  # fmt: skip
        with self.store.write(self.asked("-/Test").outcome()) as write:
            write.add(*keys)
            write.add(*versions)
            write.add(*copies)
            write.add(*(KeyUsed(key=name, principal="pipeline/deploy", used_at=T0) for name in names[::5]))

    def all(self, wanted: Filter = Filter(), limit: int = 100, who: Any = None) -> list[list[Entry]]:  # noqa: B008 (frozen)
        """The pages, to the last one."""
        pages: list[list[Entry]] = []
        after: tuple[str | int, ...] = ()
        while True:
            call = self.asked("KeyService/ListKeys", who) if who else self.asked("KeyService/ListKeys")
            page = self.inventory.page(call, wanted, after, limit)
            pages.append(page.items)
            if not page.next:
                return pages
            after = page.next


@pytest.fixture(scope="module")
def house() -> House:
    return House()


def names(pages: list[list[Entry]]) -> list[str]:
    return [entry.key.name for page in pages for entry in page]


def test_each_key_has_what_stands_beside_it(house: House) -> None:
    entries = [entry for page in house.all() for entry in page]
    assert [entry.key.name for entry in entries] == [f"k{number:04}" for number in range(MANY)]
    for place, entry in enumerate(entries):
        assert entry.primary == house.store.get(KeyVersion, entry.key.name, place % 3 + 1)
        assert (entry.used is not None) == (place % 5 == 0)
        assert [one.version for one in entry.copies] == ([1, 2] if place % 400 == 0 else [])


@pytest.mark.parametrize(
    ("wanted", "count"),
    [
        (Filter(labels={"even": "yes"}), 302),
        (Filter(labels={"even": "no"}), 0),
        (Filter(state=KeyState.DISABLED), 6),
        (Filter(owner="operator/bob"), 60),
        (Filter(target="bao"), 2),
        (Filter(target="elsewhere"), 0),
        (Filter(overdue=True), 0),
        (Filter(labels={"even": "yes"}, target="bao", state=KeyState.ENABLED), 2),
    ],
)
def test_a_page_is_full_of_what_is_wanted(house: House, wanted: Filter, count: int) -> None:
    pages = house.all(wanted, limit=125)
    assert len(names(pages)) == len(set(names(pages))) == count
    assert [len(page) for page in pages[:-1]] == [125] * (len(pages) - 1), "each is full but the last one"
    assert sorted(names(pages)) == names(pages)


def test_a_page_is_full_of_what_the_caller_may_see(house: House) -> None:
    eve = operator("eve")
    pages = house.all(Filter(state=KeyState.ENABLED), limit=125, who=eve)
    assert {len(page) for page in pages[:-1]} == {125}
    assert all(int(name[1:]) % 2 == 0 for name in names(pages))
    assert len(names(pages)) == 302


def test_a_page_takes_a_few_reads_however_many_keys_are_on_it(house: House) -> None:
    house.counting.reads.clear()
    house.inventory.page(house.asked("KeyService/ListKeys"), Filter(), (), 1000)
    assert sum(house.counting.reads.values()) <= 15
    house.counting.reads.clear()
    house.inventory.page(house.asked("KeyService/ListKeys"), Filter(target="bao"), (), 1000)
    assert sum(house.counting.reads.values()) <= 50


@pytest.mark.parametrize("limit", [1, 2, 1000])
def test_the_last_page_is_the_last_one(house: House, limit: int) -> None:
    wanted = Filter(labels={"even": "yes"})
    page = house.inventory.page(house.asked("KeyService/ListKeys"), wanted, ("k0600",), limit)
    assert [entry.key.name for entry in page.items] == ["k0602"]
    assert page.next == ()


@pytest.mark.parametrize("wanted", [Filter(labels={"Even": "yes"}), Filter(owner="bob"), Filter(target="../x")])
def test_what_no_key_can_have_is_refused(house: House, wanted: Filter) -> None:
    refused(lambda: house.all(wanted), InvalidRequest)


class Small(World):
    def make(self, name: str, **how: Any) -> Key:
        plain: dict[str, Any] = {"exportable": False, "labels": {}, "owner": ""}
        asked = self.asked("KeyService/CreateKey")
        return self.keys.create(asked, name, KeyType.EC_P256, KeyUsage.SIGN, **plain | how)

    def show(self, name: str) -> Entry:
        return self.inventory.get(self.asked("KeyService/GetKey"), name)


def test_the_schedule_and_overdue_stand_there() -> None:
    world = Small()
    for name in ("late", "soon", "fresh", "none"):
        world.make(name)
    for name, days in (("late", 90), ("soon", 100), ("fresh", 200)):
        world.schedules.set(world.asked("KeyService/SetKeySchedule"), name, Wish(every=timedelta(days=days)))
    world.clock.forward(days=91)
    asked = world.asked("KeyService/ListKeys")
    found = {one.key.name: one for one in world.inventory.page(asked, Filter(), (), 10).items}
    told = {name: (one.standing.overdue, one.standing.soon, one.schedule is not None) for name, one in found.items()}
    assert told == {
        "late": (True, False, True),
        "soon": (False, True, True),
        "fresh": (False, False, True),
        "none": (False, False, False),
    }
    late = world.inventory.page(asked, Filter(overdue=True), (), 10)
    assert [one.key.name for one in late.items] == ["late"]


def test_a_key_that_was_rotated_is_not_overdue_though_the_background_has_not_looked_yet() -> None:
    world = Small()
    world.make("pay")
    world.schedules.set(world.asked("KeyService/SetKeySchedule"), "pay", Wish(every=timedelta(days=90)))
    world.clock.forward(days=100)
    assert world.show("pay").standing.overdue
    world.keys.rotate(world.asked("KeyService/RotateKey"), "pay")
    entry = world.show("pay")
    assert not entry.standing.overdue
    assert entry.standing.next_at == world.clock() + timedelta(days=90)
    assert world.store.get(KeySchedule, "pay").version == 1


def test_who_used_a_key_last_is_written_down_in_the_background() -> None:
    world = Small()
    world.make("pay")
    first = world.clock()
    for who in ("bob", "alice"):
        asked = world.asked("KeyService/Sign", operator(who, "admins"))
        world.use.sign(asked, "pay", None, [b"pay 10 to bob"], prehashed=False)
        world.clock.forward(seconds=1)
    assert world.show("pay").used is None
    world.use.flush_uses(world.own)
    used = world.show("pay").used
    assert used is not None
    assert (used.principal, used.used_at) == ("operator/alice", first + timedelta(seconds=1))
    before = len(world.store.entries)
    world.use.flush_uses(world.own)
    assert len(world.store.entries) == before, "nothing is written where nothing was used"


def test_a_use_that_is_refused_is_none() -> None:
    world = Small()
    world.make("pay")
    world.keys.disable(world.asked("KeyService/DisableKey"), "pay")
    asked = world.asked("KeyService/Sign")
    refused(lambda: world.use.sign(asked, "pay", None, [b"x"], prehashed=False))
    world.use.flush_uses(world.own)
    assert world.show("pay").used is None


def test_the_token_is_asked_for_what_it_knows_and_its_silence_refuses_nothing() -> None:
    world = Small()
    world.make("pay", exportable=True)
    world.make("mine")
    told, why = world.inventory.origin(world.show("pay"))
    assert told is not None
    assert (told.local, told.extractable, told.never_extractable, why) == (True, True, False, "")
    told, _ = world.inventory.origin(world.show("mine"))
    assert told is not None
    assert (told.extractable, told.never_extractable) == (False, True)
    world.hsm.away = True
    assert world.inventory.origin(world.show("pay")) == (None, "HSM_UNAVAILABLE")


def test_keys_whose_version_in_force_is_compromised_are_found_until_another_one_is() -> None:
    world = Small()
    for name in ("pay", "sound", "off"):
        world.make(name)
        if name != "sound":
            world.rotations.compromise(world.asked("KeyService/CompromiseKeyVersion"), name, 0, "leaked")
    world.keys.disable(world.asked("KeyService/DisableKey"), "off")

    def found() -> list[str]:
        page = world.inventory.page(world.asked("KeyService/ListKeys"), Filter(compromised=True), (), 100)
        return [entry.key.name for entry in page.items]

    assert found() == ["pay"]
    assert [world.show(name).phase for name in ("pay", "sound", "off")] == ["compromised", "active", "compromised"]
    world.rotations.rotate(world.asked("KeyService/RotateKey"), "pay", None)
    assert (found(), world.show("pay").phase) == ([], "active")


def test_a_key_that_is_not_there_is_not_found() -> None:
    refused(lambda: Small().show("none"), NotFound, "KEY_NOT_FOUND")


def test_a_key_without_any_version_is_shown_as_it_is() -> None:
    world = Small()
    pending = replace(key("half", state=KeyState.PENDING), primary=0, latest=1)
    with world.store.write(world.asked("-/Test").outcome()) as write:
        write.add(pending)
    entry = world.show("half")
    assert (entry.primary, world.inventory.origin(entry)) == (None, (None, ""))
