"""Schedules and the inventory by the RPCs of a running broker, and a key that is due on SQLite and SoftHSM."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from broker.core.kinds import KeyType, KeyUsage, OperatorState
from broker.core.model import Operator
from broker.core.schedule import KeySchedule
from broker.core.schedules.lifecycle import Wish
from broker.store.config import StoreConfig
from broker.store.sql import SqlStore
from tests.contracts.store.samples import ROW_KEY
from tests.live.broker.live_story import fresh
from tests.servers.databases import migrate
from tests.servers.live import Client, Live
from tests.servers.patience import PATIENCE
from tests.servers.softhsm import KeysHsm
from tests.worlds.world import World

EC_P256, SIGN, DAY = 4, 1, 86_400
PROVEN = 2


@pytest.fixture
def admin(live: Live) -> Client:
    return live.client()


def listed(admin: Client, **wanted: Any) -> list[str]:
    return [key.name for key in admin.ask("ListKeys", page_size=1000, **wanted).keys]


def test_a_key_is_shown_with_all_that_is_known_of_it(admin: Client) -> None:
    name, team = fresh("inv"), fresh("team")
    admin.ask("CreateKey", name=name, type=EC_P256, usage=SIGN, exportable=True, labels={"team": team})
    admin.ask("ImportKey", name=name, target="bao")
    every = {"seconds": 90 * DAY}
    made = admin.ask(
        "SetKeySchedule",
        name=name,
        every=every,
        jitter={"seconds": 3600},
        blackouts=["Mon-Fri 08:00-18:00 Europe/Berlin"],
    ).key.schedule
    assert (made.set_by, made.grace.seconds, made.warn.seconds) == ("operator/admin", DAY, 9 * DAY)
    key = admin.ask("GetKey", name=name, ask_token=True).key
    assert key.schedule == made
    left = made.next_time.ToDatetime(UTC) - datetime.now(UTC)
    assert timedelta(days=89) < left < timedelta(days=93)
    assert (key.overdue, key.due_soon, key.HasField("primary_create_time")) == (False, False, True)
    assert [(one.target, one.state, one.remote_version) for one in key.copies] == [("bao", PROVEN, "1")]
    assert key.copies[0].kek_thumbprint
    assert key.copies[0].HasField("prove_time")
    assert (key.origin.local, key.origin.always_sensitive, key.origin.extractable) == (True, True, True)
    assert (key.origin.never_extractable, len(key.origin.hsm_id), key.origin.failure) == (False, 32, "")
    assert listed(admin, labels={"team": team}) == [name]
    assert listed(admin, labels={"team": team}, target="bao", owner="operator/admin", state=2) == [name]
    assert listed(admin, labels={"team": team}, overdue=True) == []
    assert not admin.ask("SetKeySchedule", name=name).key.HasField("schedule")
    assert not admin.ask("GetKey", name=name).key.HasField("schedule")


def test_a_page_goes_on_for_its_own_filter_alone(admin: Client) -> None:
    team = fresh("team")
    names = sorted(fresh("page") for _ in range(3))
    for name in names:
        admin.ask("CreateKey", name=name, type=EC_P256, usage=SIGN, labels={"team": team})
    first = admin.ask("ListKeys", labels={"team": team}, page_size=2)
    token = first.next_page_token
    last = admin.ask("ListKeys", labels={"team": team}, page_size=2, page_token=token)
    assert ([key.name for key in first.keys], [key.name for key in last.keys]) == (names[:2], names[2:])
    assert not last.next_page_token
    assert admin.refusal("ListKeys", page_size=2, page_token=token).reason == "PAGE_TOKEN_INVALID"


NO_SCHEDULES: list[tuple[dict[str, Any], str]] = [
    ({"every": {"seconds": 0}}, "PERIOD_OUT_OF_RANGE"),
    ({"every": {"seconds": 1000 * 365 * DAY}}, "PERIOD_OUT_OF_RANGE"),
    ({"every": {"seconds": 10**14}}, "DURATION_INVALID"),
    ({"every": {"seconds": 90 * DAY}, "blackouts": ["00:00-24:00"]}, "BLACKOUT_TOTAL"),
    ({"every": {"seconds": 90 * DAY}, "blackouts": ["tomorrow"]}, "BLACKOUT_INVALID"),
    ({"every": {"seconds": 90 * DAY}, "blackouts": ["08:00-18:00 Mars/Phobos"]}, "ZONE_UNKNOWN"),
    ({"every": {"seconds": 90 * DAY}, "jitter": {"seconds": 90 * DAY}}, "SCHEDULE_INVALID"),
]


def test_what_makes_no_schedule_is_refused_in_a_sentence(admin: Client) -> None:
    name = fresh("bad")
    admin.ask("CreateKey", name=name, type=EC_P256, usage=SIGN)
    for wish, reason in NO_SCHEDULES:
        assert admin.refusal("SetKeySchedule", name=name, **wish).reason == reason, wish
        assert not admin.ask("GetKey", name=name).key.HasField("schedule"), wish


def test_a_key_that_is_due_is_rotated_in_the_token(hsm: KeysHsm, tmp_path: Path) -> None:
    place = StoreConfig(url=f"sqlite:///{tmp_path}/broker.db", journal=tmp_path / "journal", patience_seconds=PATIENCE)
    migrate(place)
    world = World(None, hsm)
    world.restart(store=SqlStore(place, ROW_KEY, world.clock))
    alice = Operator(
        name="alice",
        groups=("admins",),
        state=OperatorState.ENABLED,
        not_before=world.clock(),
        created_at=world.clock(),
    )
    with world.store.write(world.asked("OperatorService/AddOperator").outcome()) as write:
        write.add(alice)
    asked = world.asked("KeyService/CreateKey")
    world.keys.create(asked, "pay", KeyType.EC_P256, KeyUsage.SIGN, exportable=False, labels={}, owner="")
    wish = Wish(every=timedelta(days=90), blackouts=("Mon-Fri 08:00-18:00 Europe/Berlin",))
    world.schedules.set(world.asked("KeyService/SetKeySchedule"), "pay", wish)
    world.clock.forward(days=92)
    world.do_chores(world.schedules)
    entry = world.inventory.get(world.asked("KeyService/GetKey"), "pay")
    told, _ = world.inventory.origin(entry)
    assert (entry.key.primary, told and told.never_extractable) == (2, True)
    assert world.store.get(KeySchedule, "pay").version == 2
    world.clock.forward(days=2)
    world.do_chores()
    signed = world.use.sign(world.asked("KeyService/Sign"), "pay", None, [b"pay 10 to bob"], prehashed=False)
    assert signed.version == 2
    world.store.close()
