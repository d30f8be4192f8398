"""The ground moves: files taken from under the running broker, the clock set back, the HSM busy with making keys."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from broker.core.clock import Clock
from broker.core.errors import Unavailable
from broker.core.kinds import KeyType, SignatureAlgorithm
from broker.core.model import Key
from broker.loop import Loop
from broker.store.config import StoreConfig
from broker.store.journal import Journal
from tests.contracts.hsm.keys import fresh, unmade
from tests.contracts.store.samples import config, entry, key, now, opened, put
from tests.fakes.refusals import ending
from tests.servers.databases import migrate
from tests.servers.live import within
from tests.servers.patience import PATIENCE
from tests.servers.softhsm import KeysHsm, alone, make_token


@pytest.fixture
def place(tmp_path: Path) -> StoreConfig:
    found = config(f"sqlite:///{tmp_path}/store/broker.db", tmp_path)
    migrate(found)
    return found


@pytest.mark.parametrize("name", ["broker.db", "broker.db-wal"])
def test_ST_no_change_is_acknowledged_into_a_file_that_was_taken_away(
    place: StoreConfig, tmp_path: Path, name: str
) -> None:
    file = tmp_path / "store" / name
    with opened(place) as store:
        put(store, key("before"))
        file.rename(tmp_path / "away")
        acts: list[Callable[[], Any]] = [
            lambda: put(store, key("lost")), lambda: store.get(Key, "before"), store.check,
        ]  # fmt: skip
        assert [ending(act) for act in acts] == ["STORE_UNAVAILABLE"] * 3
        shutil.copy(tmp_path / "away", file)  # not the same file, whatever is in it
        assert [ending(act) for act in acts] == ["STORE_UNAVAILABLE"] * 3
        (tmp_path / "away").rename(file)
        store.check()
        put(store, key("after"))
    with opened(place) as store:
        assert [store.get(Key, each) is not None for each in ("before", "lost", "after")] == [True, False, True]


@pytest.mark.parametrize("replaced", [False, True])
def test_AU_records_do_not_follow_a_journal_that_was_moved_away(tmp_path: Path, replaced: bool) -> None:  # noqa: FBT001
    folder = tmp_path / "journal"
    journal = Journal(folder, "broker", now, 1 << 20, patience=PATIENCE)
    journal.append(entry())
    folder.rename(tmp_path / "old")
    if replaced:
        folder.mkdir(mode=0o700)
    [old] = (tmp_path / "old").iterdir()
    before = old.read_bytes()
    with pytest.raises(Unavailable):
        journal.append(entry())
    journal.append(entry())  # in a chain of its own, where the journal belongs
    journal.check()
    journal.close()
    assert old.read_bytes() == before
    assert [len(file.read_bytes().splitlines()) for file in folder.iterdir()] == [2]


def test_a_clock_that_is_set_back_stops_neither_health_nor_heads() -> None:
    clock, running = datetime(2030, 1, 1, tzinfo=UTC), timedelta()
    done: list[str] = []
    nothing: Any = SimpleNamespace(check=lambda: done.append("check"))
    head = SimpleNamespace(chain="c", sequence=1)
    idle = SimpleNamespace(chores=lambda: iter(()), refresh=lambda: None, flush_reads=lambda _: None)

    def sign() -> list[Any]:
        done.append("sign")
        return [head]

    broker: Any = SimpleNamespace(
        hsm=nothing,
        store=SimpleNamespace(check=lambda: None, clock=lambda: None, heads=lambda: [head], lead=lambda: 1),
        clock=Clock(lambda: clock, lambda: running),
        heads=SimpleNamespace(sign_due=sign),
        server=SimpleNamespace(set_serving=lambda _serving: None),
        policies=SimpleNamespace(refresh=lambda: done.append("policy")),
        keys=idle,
        secrets=idle,
        sessions=idle,
        own=idle,
        renew_certificate=lambda: None,
    )
    loop = Loop(broker, lambda: running)
    loop.round()
    done.clear()
    clock, running = clock - timedelta(hours=2), running + timedelta(minutes=1)
    loop.round()
    assert done == ["check", "policy", "sign"]


def _signing_while_keys_are_made(folder: Path) -> int:
    hsm = KeysHsm(make_token(folder, sessions=2).model_copy(update={"session_wait": 3.0}))
    ref = fresh(hsm, KeyType.EC_P256)
    hsm.sign(ref, SignatureAlgorithm.ES256, [b"its handle is known from here on"])

    def generated() -> bytes | None:
        return hsm.generate(unmade(KeyType.EC_P256), exportable=False)

    with ThreadPoolExecutor(4) as pool:
        with hsm.sessions.objects:  # as if a long RSA key were being made
            waiting = [pool.submit(generated) for _ in range(4)]
            within(10, lambda: hsm.idle() < 2)
            signed = sum(len(hsm.sign(ref, SignatureAlgorithm.ES256, [b"meanwhile"])) for _ in range(50))
        assert all(each.result(200) for each in waiting)
    hsm.close()
    return signed


def test_keys_that_wait_to_be_made_hold_no_session(tmp_path: Path) -> None:
    assert alone(_signing_while_keys_are_made, tmp_path / "token") == 50
