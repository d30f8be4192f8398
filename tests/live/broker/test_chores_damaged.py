"""Rows that somebody has damaged hold up nothing of the background work but their own key or secret (TL-18)."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from broker.core.errors import Unavailable
from broker.core.keys.making import UNDO_AFTER
from broker.core.kinds import KeyState
from broker.core.model import Key, RootKey, SecretVersion
from broker.core.secrets.root_rows import RETIRE_AFTER
from broker.store.config import StoreConfig
from broker.store.rows import microseconds
from broker.store.sql import SqlStore
from tests.contracts.store.places import new_sqlite
from tests.contracts.store.samples import opened
from tests.fakes.hsm import SoftwareHsm
from tests.fakes.secrets import SecretsHouse
from tests.servers.dba import Dba
from tests.unit.keys.test_keys import Bench


@pytest.fixture
def place(tmp_path: Path) -> StoreConfig:
    return new_sqlite(tmp_path)


@pytest.fixture
def store(place: StoreConfig) -> Iterator[SqlStore]:
    with opened(place) as made:
        yield made


def test_TL_18_a_damaged_key_holds_up_no_other_keys_end(store: SqlStore, place: StoreConfig) -> None:
    bench = Bench(store)
    for name in ("a", "b", "lost-a", "lost-b"):
        if name.startswith("lost"):
            bench.hsm.lost = True
            with pytest.raises(Unavailable):
                bench.create(name)
        else:
            bench.create(name)
            bench.keys.schedule_destruction(bench.call("ScheduleKeyDestruction"), name, None)
    Dba(place).run("UPDATE keys SET labels = '[]' WHERE name = 'a'")
    Dba(place).run("UPDATE key_versions SET created_at = 9000000000000000000 WHERE key = 'lost-a'")
    bench.clock.time += timedelta(days=40) + UNDO_AFTER
    assert bench.chores() == 2
    done = store.get(Key, "b")
    assert done is not None
    assert (done.state, store.get(Key, "lost-b")) == (KeyState.DESTROYED, None)


def test_TL_18_a_damaged_version_holds_up_no_rewrap_and_keeps_its_root_key(store: SqlStore, place: StoreConfig) -> None:
    house = SecretsHouse(store, SoftwareHsm())
    for name in ("team/app/a", "team/app/b", "team/app/c"):
        house.put(name)
    house.secrets.rotate_root(house.call("RotateRootKey"))
    made = microseconds(house.clock())
    Dba(place).run("UPDATE secret_versions SET created_at = 9000000000000000000 WHERE secret = 'team/app/a'")
    for _ in range(2):
        house.clock.forward(seconds=RETIRE_AFTER.total_seconds() + 1)
        for resource, work in house.secrets.chores():
            work(house.own(resource))
    roots = {name: version.root for name in "bc" if (version := store.get(SecretVersion, f"team/app/{name}", 1))}
    assert roots == {"b": 2, "c": 2}
    assert len(store.page(RootKey, limit=9)) == 2
    Dba(place).run(f"UPDATE secret_versions SET created_at = {made} WHERE secret = 'team/app/a'")  # noqa: S608
    for _ in range(2):
        for resource, work in house.secrets.chores():
            work(house.own(resource))
    assert [root.version for root in store.page(RootKey, limit=9)] == [2]
    assert house.read("team/app/a").version == 1
