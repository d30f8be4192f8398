"""One writer of the shared work, fenced: processes that lose the leadership in every way, on a real PostgreSQL."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from broker.core.entries import AuditEntry
from broker.core.errors import BrokerError, Unavailable, WrongState
from broker.core.model import Key
from broker.store.rows import NAMES
from broker.store.sql import SqlStore
from broker.store.waits import Waits
from tests.contracts.store.samples import config, entry, key, opened, put
from tests.servers.databases import migrate
from tests.servers.hosts import depose, leader
from tests.servers.live import within
from tests.servers.patience import HASTY, PATIENCE, busy
from tests.servers.postgres import Postgres


@pytest.fixture(scope="module")
def database(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    name = postgres.create_database()
    migrate(config(postgres.url(name), tmp_path_factory.mktemp("database")))
    yield name
    postgres.drop_database(name)


@pytest.fixture
def stores(postgres: Postgres, database: str, tmp_path: Path) -> Iterator[Callable[..., SqlStore]]:
    """Opens the store as a process of that name, patient unless told otherwise."""
    postgres.empty(database, [*NAMES.values(), "ledger"])
    with ExitStack() as open_ones:

        def open_one(name: str, patience: float = PATIENCE) -> SqlStore:
            (tmp_path / name).mkdir()
            place = config(postgres.url(database), tmp_path / name, replica=name, patience_seconds=patience)
            return open_ones.enter_context(opened(place))

        yield open_one


def led(fence: int) -> AuditEntry:
    return replace(entry(), facts={"fence": fence})


def test_P10_one_leads_and_the_next_one_when_it_is_closed(stores: Callable[..., SqlStore]) -> None:
    first, second = stores("one"), stores("two")
    fence = first.lead()
    assert fence is not None
    assert (second.lead(), first.lead()) == (None, fence)
    first.close()
    within(5, lambda: (second.lead() or 0) > fence)


def test_P10_a_silent_leader_is_replaced_and_its_late_write_refused(stores: Callable[..., SqlStore]) -> None:
    silent, other = stores("silent", HASTY), stores("other")
    put(silent, key())
    former = silent.lead()
    assert former is not None
    took = within(10, lambda: other.lead() is not None)
    assert Waits(HASTY).silence - 2 <= took  # and not at once
    with pytest.raises(WrongState) as found, silent.write(led(former)) as write:
        write.replace(key(), replace(key(), latest=9))
    assert found.value.reason == "LEADERSHIP_LOST"
    with pytest.raises(Unavailable):
        silent.lead()  # the server had ended the connection
    assert silent.lead() is None
    assert other.get(Key, key().name) == key()


def test_P10_nobody_is_the_next_leader_while_the_former_ones_write_is_open(
    stores: Callable[..., SqlStore], postgres: Postgres, database: str
) -> None:
    first, second = stores("one"), stores("two", HASTY)
    fence = first.lead()
    assert fence is not None
    with first.write(led(fence)) as write:
        write.add(key())
        depose(postgres, database)
        with pytest.raises(Unavailable):
            second.lead()  # the number cannot be counted up yet
    assert second.get(Key, key().name) == key()
    assert (second.lead() or 0) > fence


def test_P10_a_leader_stopped_in_its_write_holds_the_next_one_up_for_seconds_only(
    stores: Callable[..., SqlStore],
) -> None:
    first, second = stores("one", HASTY), stores("two", HASTY)
    fence = first.lead()
    assert fence is not None

    def leads() -> bool:
        with suppress(Unavailable):
            return second.lead() is not None
        return False

    with pytest.raises(BrokerError), first.write(led(fence)) as write:  # noqa: PT012 - it fails at its end
        write.add(key())
        within(10, leads)
    assert second.get(Key, key().name) is None


def lose(postgres: Postgres, database: str, stores: Callable[..., SqlStore], losses: int) -> list[int]:
    """Four processes that write as fast as they lead, while the leadership is taken away again and again.

    The fences in the order of the writes.
    """
    candidates = [stores(f"p{number}") for number in range(4)]
    put(candidates[0], replace(key(), latest=0))
    stop, order, refused = threading.Event(), list[int](), list[str]()

    def work(store: SqlStore) -> None:
        fence = None
        while not stop.is_set():
            try:
                fence = store.lead() if fence is None else fence  # and then on, until it is refused
                if fence is None:
                    stop.wait(0.01)
                    continue
                with store.write(led(fence)) as write:
                    row = write.get(Key, key().name)
                    assert row is not None
                    write.replace(row, replace(row, labels={"fences": f"{fence}"}))
                    order.append(fence)  # under the row's lock; one whose commit fails is in it as well
            except BrokerError as error:
                refused.append(error.reason)
                fence = None

    threads = [threading.Thread(target=work, args=(store,)) for store in candidates]
    for thread in threads:
        thread.start()
    try:
        for number in range(1, losses + 1):
            within(10, lambda: leader(postgres, database) != "")
            depose(postgres, database)
            within(10, lambda number=number: len(set(order)) > number)  # type: ignore[misc]
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert "LEADERSHIP_LOST" in refused
    return order


def test_P10_twenty_forced_losses_and_no_stale_write(
    stores: Callable[..., SqlStore], postgres: Postgres, database: str
) -> None:
    begun = time.monotonic()
    order = lose(postgres, database, stores, 20)
    assert order == sorted(order)
    assert len(set(order)) > 20
    assert time.monotonic() - begun < busy(60)


@pytest.mark.soak
def test_P10_a_thousand_forced_losses_and_no_stale_write(
    stores: Callable[..., SqlStore], postgres: Postgres, database: str
) -> None:
    order = lose(postgres, database, stores, 1000)
    assert order == sorted(order)
