"""Changes that share one commit on SQLite: each alone in what it does, all together in what becomes of it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import Connection
from sqlalchemy.exc import OperationalError

from broker.core.errors import AlreadyExists, BrokerError, Unavailable
from broker.core.kinds import LeaseState, SessionState
from broker.core.model import Key, Lease, Session
from broker.store.dialects import open_database
from broker.store.driver import Driver
from broker.store.group import MOST, Group
from broker.store.sql import SqlStore
from tests.contracts.store.samples import config, entry, key, opened
from tests.servers.databases import migrate
from tests.servers.patience import HASTY
from tests.unit.sessions.bench import Bench
from tests.unit.store.test_sqlite import writing_connection


class WatchedTurn:
    """The lock of the turn, which tells when somebody begins to wait for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asked = threading.Semaphore(0)

    def acquire(self, *, blocking: bool = True, timeout: float = -1) -> bool:
        if timeout >= 0:
            self._asked.release()
        return self._lock.acquire(blocking, timeout)

    def release(self) -> None:
        self._lock.release()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def await_one_more(self) -> None:
        assert self._asked.acquire(timeout=200)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqlStore]:
    place = config(f"sqlite:///{tmp_path}/store/broker.db", tmp_path)
    migrate(place)
    with opened(place) as found:
        yield found


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(MOST + 4) as found:
        yield found


def group_of(store: SqlStore) -> Group:
    """The tests' database is SQLite."""
    group: Group = store._database._group  # type: ignore[attr-defined]  # noqa: SLF001 - whose turn it is, is to be seen
    return group


def begun(store: SqlStore, pool: ThreadPoolExecutor, *acts: Callable[[], object]) -> list[Future[None]]:
    """Begin the acts, one after the other, while a first change is made, whose end comes first."""
    turn = WatchedTurn()
    group_of(store).turn = turn  # type: ignore[assignment]

    def first() -> None:
        with store.write(entry("first")) as write:
            write.add(key("first"))
            started.release()
            assert go.acquire(timeout=200)

    started, go = threading.Semaphore(0), threading.Semaphore(0)
    ends: list[Future[None]] = [pool.submit(first)]
    turn.await_one_more()
    assert started.acquire(timeout=200)
    for act in acts:
        ends.append(pool.submit(act))  # type: ignore[arg-type]
        turn.await_one_more()
    go.release()
    return ends


def together(store: SqlStore, pool: ThreadPoolExecutor, *acts: Callable[[], object]) -> list[BaseException | None]:
    """How each of them ended."""
    return [each.exception(60) for each in begun(store, pool, *acts)]


def added(store: SqlStore, name: str) -> Callable[[], None]:
    def act() -> None:
        with store.write(entry(name)) as write:
            write.add(key(name))

    return act


def names(store: SqlStore) -> set[str]:
    return {found.name for found in store.page(Key, limit=1000)}


def lines(tmp_path: Path) -> str:
    return "".join(file.read_text() for file in tmp_path.rglob("*.jsonl"))


def test_a_change_that_waits_joins_and_all_wait_for_the_disk_once(
    store: SqlStore, pool: ThreadPoolExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    syncs, real = list[int](), os.fdatasync

    def sync(file: int) -> None:
        syncs.append(file)
        real(file)

    # Patched to count: how often a disk was waited for shows nowhere.
    monkeypatch.setattr(os, "fdatasync", sync)
    assert together(store, pool, *(added(store, f"k{number}") for number in range(5))) == [None] * 6
    assert names(store) == {"first", *(f"k{number}" for number in range(5))}
    assert lines(tmp_path).count('"call":"k') == 5
    assert len(syncs) == 1


def test_a_change_that_fails_is_taken_back_alone(store: SqlStore, pool: ThreadPoolExecutor, tmp_path: Path) -> None:
    def fails() -> None:
        with store.write(entry("fails")) as write:
            write.add(key("fails"))
            raise ValueError

    ends = together(store, pool, added(store, "before"), fails, added(store, "after"), fails)
    assert [type(end) for end in ends] == [type(None), type(None), ValueError, type(None), ValueError]
    assert names(store) == {"first", "before", "after"}
    assert '"call":"fails"' not in lines(tmp_path)


def test_a_change_sees_what_those_before_it_in_the_group_did(store: SqlStore, pool: ThreadPoolExecutor) -> None:
    ends = together(store, pool, added(store, "same"), added(store, "same"))
    assert sum(isinstance(end, AlreadyExists) for end in ends) == 1
    assert names(store) == {"first", "same"}


def take_away_journal(tmp_path: Path) -> None:
    """What is to be recorded next cannot be, for once."""
    for file in tmp_path.rglob("*.jsonl"):
        file.rename(file.with_suffix(".away"))


def test_without_its_records_nothing_of_a_group_is_there(
    store: SqlStore, pool: ThreadPoolExecutor, tmp_path: Path
) -> None:
    take_away_journal(tmp_path)
    ends = together(store, pool, added(store, "one"), added(store, "two"))
    assert [getattr(end, "reason", None) for end in ends] == ["AUDIT_UNAVAILABLE"] * 3
    assert names(store) == set()
    added(store, "later")()
    assert names(store) == {"later"}


def test_every_member_learns_that_the_commit_failed(
    store: SqlStore, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(driver: Driver, connection: Connection, sql: str) -> None:
        if sql == "COMMIT":
            raise OperationalError("COMMIT", {}, Exception("disk I/O error"))
        carried_out(driver, connection, sql)

    carried_out = Driver.run
    with monkeypatch.context() as patch:
        # Patched: SQLite does not fail at the statement that a test chooses.
        patch.setattr(Driver, "run", run)
        ends = together(store, pool, added(store, "one"))
    assert ["may or may not" in str(end) for end in ends] == [True] * 2
    assert names(store) == set()


def test_a_rollback_by_sqlite_itself_ends_the_whole_group(store: SqlStore, pool: ThreadPoolExecutor) -> None:
    """As a full disk does: then a change that was made already must not be told that it is there."""

    writer = writing_connection(store)

    def loses_all() -> None:
        with store.write(entry("loses")) as write:
            write.add(key("loses"))
            writer.execute("ROLLBACK")
            raise ValueError

    ends = together(store, pool, loses_all)
    assert [getattr(end, "reason", type(end)) for end in ends] == ["STORE_UNAVAILABLE", ValueError]
    assert names(store) == set()


def test_a_transaction_by_itself_lets_the_group_before_it_finish(store: SqlStore, pool: ThreadPoolExecutor) -> None:
    group, seen = group_of(store), list[set[str]]()

    def alone() -> None:
        with group.alone():
            seen.append(names(store))

    assert together(store, pool, added(store, "one"), alone) == [None] * 3
    assert seen in ([{"first"}], [{"first", "one"}])
    assert names(store) == {"first", "one"}


def test_a_change_that_fails_for_what_is_not_committed_yet_goes_on_when_it_is(
    store: SqlStore, pool: ThreadPoolExecutor
) -> None:
    """As two calls that complete the same key: the later one looks whose it is, and destroys it if nobody's."""
    over, seen = threading.Event(), list[set[str]]()

    def taken() -> None:
        try:
            added(store, "first")()
        except AlreadyExists:
            seen.append(names(store))
            over.set()

    def keeps_the_group_open() -> None:
        with store.write(entry("last")) as write:
            write.add(key("last"))
            over.wait(0.2)

    assert together(store, pool, taken, keeps_the_group_open) == [None] * 3
    assert [found >= {"first"} for found in seen] == [True]


def test_a_change_that_fails_for_what_never_came_to_be_is_told_why(
    store: SqlStore, pool: ThreadPoolExecutor, tmp_path: Path
) -> None:
    take_away_journal(tmp_path)
    ends = together(store, pool, added(store, "first"), added(store, "other"))
    assert [getattr(end, "reason", None) for end in ends] == ["AUDIT_UNAVAILABLE"] * 3


def test_changes_that_fail_hold_up_a_group_no_longer_than_others(store: SqlStore, pool: ThreadPoolExecutor) -> None:
    turn = WatchedTurn()
    group_of(store).turn = turn  # type: ignore[assignment]
    ends: list[Future[None]] = []

    def begin(act: Callable[[], None]) -> None:
        ends.append(pool.submit(act))
        turn.await_one_more()

    def fails() -> None:
        with store.write(entry("fails")):
            begin(fails if len(ends) < MOST else last)  # so there is always exactly one that waits
            raise ValueError

    def last() -> None:
        with store.write(entry("last")):
            assert isinstance(ends[0].exception(60), ValueError)

    begin(fails)
    assert [type(each.exception(60)) for each in ends] == [ValueError] * MOST + [type(None)]


def test_nobody_waits_for_a_change_that_does_not_end(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    place = config(f"sqlite:///{tmp_path}/store/broker.db", tmp_path, patience_seconds=HASTY)
    migrate(place)
    with opened(place) as store:
        change_that_does_not_end(store, pool)


def change_that_does_not_end(store: SqlStore, pool: ThreadPoolExecutor) -> None:
    go = threading.Event()

    def hangs() -> None:
        with store.write(entry("hangs")):
            assert go.wait(60)

    first, other = begun(store, pool, hangs)
    assert "may or may not" in str(first.exception(60))
    go.set()
    assert other.exception(60) is None
    assert names(store) == {"first"}


def test_no_transaction_begins_once_the_database_is_closed(tmp_path: Path) -> None:
    """The lock that keeps other processes away is gone by then."""
    place = config(f"sqlite:///{tmp_path}/store/broker.db", tmp_path)
    migrate(place)
    with closing(open_database(place)) as database:
        pass
    with pytest.raises(Unavailable, match="stopped"), database.transaction():
        pass


def test_many_threads_that_fail_now_and_then_lose_nothing(store: SqlStore, pool: ThreadPoolExecutor) -> None:
    def several(place: int) -> set[str]:
        good = set()
        for number in range(12):
            name = f"t{place}-{number}"
            try:
                with store.write(entry(name)) as write:
                    write.add(key(name))
                    if (place + number) % 3 == 0:
                        raise ValueError  # noqa: TRY301 (the body's own fault)
            except ValueError:
                continue
            good.add(name)
        return good

    found = set().union(*pool.map(several, range(8)))
    assert names(store) == found
    assert len(found) == 64


def test_TL_03_no_lease_outlives_a_session_that_ends_in_the_same_commit(
    store: SqlStore, pool: ThreadPoolExecutor
) -> None:
    bench = Bench(store)
    bench.add_rule()
    for name in ("app/a", "app/b"):
        bench.put(name)
    for _ in range(10):
        opening = bench.login()
        principal = bench.sessions.authenticate(opening.token)
        acts = (
            lambda p=principal: bench.fetch(p, "app/a"),
            lambda p=principal: bench.fetch(p, "app/b"),
            lambda t=opening.token: bench.end(t),
        )
        for done in [pool.submit(act) for act in acts]:
            assert isinstance(done.exception(60), BrokerError | None)
        ended = store.get(Session, opening.session.id)
        assert ended is not None
        assert ended.state is SessionState.ENDED
        held = store.page(Lease, limit=9, where={"session": opening.session.id})
        assert all(lease.state is LeaseState.REVOKED for lease in held)


def test_a_failed_rollback_leaves_no_transaction_that_nothing_can_begin_after(
    store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(driver: Driver, connection: Connection, sql: str) -> None:
        if sql == "ROLLBACK":
            raise fault
        carried_out(driver, connection, sql)

    def fails() -> None:
        with store.write(entry("fails")) as write:
            write.add(key("fails"))
            raise ValueError

    carried_out = Driver.run
    for fault in (MemoryError(), OperationalError("ROLLBACK", {}, Exception("disk I/O error"))):
        with monkeypatch.context() as patch:
            # Patched: SQLite does not fail at the statement that a test chooses.
            patch.setattr(Driver, "run", run)
            with pytest.raises((MemoryError, ValueError)):
                fails()
        added(store, f"after-{type(fault).__name__.lower()}")()
    assert names(store) == {"after-memoryerror", "after-operationalerror"}
