"""The store on a real PostgreSQL that is restarted, frozen, locked and impersonated."""

from __future__ import annotations

import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from itertools import count
from pathlib import Path
from typing import Self

import pytest
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import Conninfo
from sqlalchemy import text

from broker.core.errors import BrokerError, Unavailable, WrongState
from broker.core.model import Key
from broker.core.ports import Write
from broker.store.config import StoreConfig
from broker.store.dialects import open_database
from broker.store.postgresql import conninfo
from broker.store.sql import SqlStore
from broker.store.waits import USUAL
from tests.contracts.store.samples import ROW_KEY, calls, config, entry, key, now, opened, put
from tests.fakes.refusals import refused
from tests.servers.databases import migrate
from tests.servers.patience import HASTY, busy
from tests.servers.postgres import PASSWORD, Postgres


@pytest.fixture(scope="module")
def database(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    name = postgres.create_database()
    migrate(config(postgres.url(name), tmp_path_factory.mktemp("database")))
    yield name
    postgres.drop_database(name)


@pytest.fixture
def place(postgres: Postgres, database: str, tmp_path: Path) -> StoreConfig:
    postgres.empty(database, ["keys", "ledger"])
    return config(postgres.url(database), tmp_path)


@pytest.fixture
def store(place: StoreConfig) -> Iterator[SqlStore]:
    with opened(place) as found:
        yield found


@pytest.fixture
def hasty(place: StoreConfig) -> Iterator[SqlStore]:
    """Another process's store, which waits for little."""
    with opened(place.model_copy(update={"replica": "hasty", "patience_seconds": HASTY})) as found:
        yield found


def refused_in_time(attempt: Callable[[], object]) -> str:
    """The sentence of a refusal that came in time."""
    began = time.monotonic()
    error = refused(attempt, Unavailable, "STORE_UNAVAILABLE")
    assert time.monotonic() - began < busy(HASTY)
    return error.message


class Load:
    """Four threads that write and read until they are stopped, and remember what was acknowledged."""

    def __init__(self, store: SqlStore) -> None:
        self._store = store
        self._numbers = count()
        self._stop = threading.Event()
        self.acknowledged: list[str] = []
        self.reasons: set[str] = set()
        self._unrefused: set[int] = set()
        self.moved = threading.Condition()

    def __enter__(self) -> Self:
        self._pool = ThreadPoolExecutor(4)
        self._threads = [self._pool.submit(self._run, thread) for thread in range(4)]
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.result()
        self._pool.shutdown()

    def wait_for(self, more: int, seconds: float) -> None:
        """Return when that many more writes were acknowledged."""
        with self.moved:
            goal = len(self.acknowledged) + more
            assert self.moved.wait_for(lambda: len(self.acknowledged) >= goal, seconds), self.reasons

    def wait_for_refusal(self, seconds: float) -> None:
        """Return when every thread has been refused since now."""
        with self.moved:
            self._unrefused = set(range(4))
            assert self.moved.wait_for(lambda: not self._unrefused, seconds)

    def _run(self, thread: int) -> None:
        while not self._stop.is_set():
            name = f"n{next(self._numbers)}"
            try:
                with self._store.write(entry(name)) as write:
                    write.add(key(name))
                assert self._store.get(Key, name) == key(name)
            except BrokerError as refused:
                with self.moved:
                    self.reasons.add(refused.reason)
                    self._unrefused.discard(thread)
                    self.moved.notify_all()
                self._stop.wait(0.02)
            else:
                with self.moved:
                    self.acknowledged.append(name)
                    self.moved.notify_all()


def check_everything_kept(load: Load, store: SqlStore, place: StoreConfig) -> None:
    """I1 and I3: no acknowledged write is lost, and each row there is has its entry in a journal that verifies."""
    stored = {found.name for found in store.page(Key, limit=1_000_000)}
    assert set(load.acknowledged) <= stored
    assert stored <= set(calls(place.journal))
    assert load.reasons <= {"STORE_UNAVAILABLE"}


@pytest.mark.sampled(1)
@pytest.mark.parametrize("how", ["fast", "immediate", "killed"])
def test_FT_04_a_restarted_server_is_used_again_without_a_restart_of_the_broker(
    postgres: Postgres, place: StoreConfig, store: SqlStore, how: str
) -> None:
    with Load(store) as load:
        load.wait_for(50, 10)
        (postgres.kill if how == "killed" else partial(postgres.stop, how))()
        try:
            load.wait_for_refusal(10)
            refused_in_time(lambda: store.get(Key, "x"))
            refused_in_time(lambda: put(store, key("y")))
            refused_in_time(store.check)
        finally:
            postgres.start()
        load.wait_for(20, 10)
    check_everything_kept(load, store, place)
    assert load.reasons == {"STORE_UNAVAILABLE"}
    store.check()


def test_FT_04_a_restart_between_two_calls_is_not_noticed(postgres: Postgres, store: SqlStore) -> None:
    put(store, key())
    with ThreadPoolExecutor(4) as pool:  # several idle connections to lose
        assert list(pool.map(lambda _: store.get(Key, "payments"), range(20))) == [key()] * 20
    postgres.stop()
    postgres.start()
    assert store.get(Key, "payments") == key()
    put(store, key("second"))


def test_FT_07_connections_cut_in_mid_transaction_lose_nothing_acknowledged(
    postgres: Postgres, database: str, place: StoreConfig, store: SqlStore
) -> None:
    with Load(store) as load, postgres.connect() as admin:
        for _ in range(10):
            load.wait_for(5, 10)
            admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [database])
    check_everything_kept(load, store, place)


def test_FT_06_a_server_that_takes_calls_but_never_answers_is_given_up(
    postgres: Postgres, database: str, store: SqlStore, hasty: SqlStore
) -> None:
    hasty.check()
    put(hasty, key())
    with postgres.connect() as admin:
        found = admin.execute("SELECT pid FROM pg_stat_activity WHERE datname = %s", [database]).fetchall()
    stopped = [postgres.pid, *(int(str(row[0])) for row in found)]  # the postmaster too: no new connections
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        refused_in_time(lambda: hasty.get(Key, "payments"))
        refused_in_time(lambda: put(hasty, key("lost")))
        refused_in_time(hasty.check)
    finally:
        for pid in reversed(stopped):
            os.kill(pid, signal.SIGCONT)
    assert store.get(Key, "payments") == key()
    put(store, key("second"))
    assert store.get(Key, "lost") is None


def test_FT_08_a_locked_row_and_a_locked_table_are_a_refusal_in_time(
    postgres: Postgres, database: str, store: SqlStore, hasty: SqlStore
) -> None:
    put(store, key())
    for lock in (b"SELECT * FROM keys FOR UPDATE", b"LOCK TABLE keys"):
        with postgres.connect(database) as other, other.transaction():
            other.execute(lock)
            assert "Another change" in refused_in_time(lambda: replace_it(hasty))
    replace_it(store)


def test_a_lock_that_is_let_go_within_the_patience_refuses_nobody(
    postgres: Postgres, database: str, store: SqlStore
) -> None:
    put(store, key())
    with postgres.connect(database) as other, ThreadPoolExecutor(1) as pool:
        with other.transaction():
            other.execute(b"SELECT * FROM keys FOR UPDATE")
            waiting = pool.submit(replace_it, store)
            with pytest.raises(TimeoutError):
                waiting.result(1.5 * USUAL)  # where it waits by default, it would have been refused
        waiting.result(200)


def replace_it(store: SqlStore) -> None:
    with store.write(entry()) as write:
        found = write.get(Key, "payments")
        assert found is not None
        write.replace(found, found)


def test_FT_08_a_write_that_goes_on_after_a_failed_statement_is_not_committed(
    postgres: Postgres, database: str, place: StoreConfig, store: SqlStore, hasty: SqlStore
) -> None:
    put(store, key())
    with postgres.connect(database) as other, other.transaction():
        other.execute(b"SELECT * FROM keys FOR UPDATE")
        with pytest.raises(Unavailable), hasty.write(entry("bad")) as write:
            go_on_regardless(write)
    assert [found.name for found in store.page(Key, limit=9)] == ["payments"]
    assert "bad" not in calls(place.journal)


def go_on_regardless(write: Write) -> None:
    write.add(key("first"))
    with pytest.raises(Unavailable):
        write.get(Key, "payments")
    with pytest.raises(Unavailable):
        write.add(key("second"))


def test_FT_08_crossing_locks_end_with_one_winner_at_least(store: SqlStore) -> None:
    put(store, key("a"), key("b"))
    start = threading.Barrier(2)

    def cross(names: list[str]) -> str:
        try:
            with store.write(entry()) as write:
                write.get(Key, names[0])
                start.wait(60)
                write.get(Key, names[1])
        except BrokerError as refused:
            return refused.reason
        return ""

    with ThreadPoolExecutor(2) as pool:
        reasons = set(pool.map(cross, [["a", "b"], ["b", "a"]]))
    assert reasons <= {"", "STORE_UNAVAILABLE", "CHANGED_MEANWHILE"}
    assert reasons != {""}
    store.check()


def test_FT_08_no_connection_left_is_a_refusal(postgres: Postgres, database: str, tmp_path: Path) -> None:
    with postgres.connect() as admin:
        admin.execute(b"CREATE ROLE limited LOGIN CONNECTION LIMIT 0")
    limited = postgres.url(database).replace("broker@", "limited@")
    assert "cannot be reached" in refused_in_time(lambda: opened_once(config(limited, tmp_path)))
    with postgres.connect() as admin:
        admin.execute(b"DROP ROLE limited")


def opened_once(place: StoreConfig) -> None:
    with opened(place):
        pass


# -- who is at the other end ---------------------------------------------------------------------------------------


@pytest.fixture
def password(tmp_path: Path) -> Path:
    file = tmp_path / "password"
    file.write_text(PASSWORD + "\n")
    file.chmod(0o600)
    return file


def test_ST_10_over_tcp_the_server_is_verified(
    postgres: Postgres, database: str, tmp_path: Path, password: Path
) -> None:
    url = postgres.tcp_url(database)
    with closing(open_database(config(url, tmp_path, password_file=password, tls_root=postgres.ca))) as found:
        rows = found.read(text("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"))
        assert rows[0][0] is True
    other_ca = tmp_path / "other.pem"
    other_ca.write_bytes((postgres.data / "server.crt").read_bytes())
    refused_in_time(lambda: opened_once(config(url, tmp_path, password_file=password, tls_root=other_ca)))
    wrong_name = config(url.replace("localhost", "127.0.0.1"), tmp_path, password_file=password, tls_root=postgres.ca)
    refused_in_time(lambda: opened_once(wrong_name))


def test_ST_01_the_password_is_nowhere_but_in_its_file(
    postgres: Postgres, database: str, tmp_path: Path, password: Path
) -> None:
    place = config(postgres.tcp_url(database), tmp_path, password_file=password)
    with opened(place) as store:
        put(store, key("st-01"))
        said = [
            repr(place),
            repr(store.__dict__),
            *(repr(vars(part)) for part in vars(store).values() if hasattr(part, "__dict__")),
        ]
    password.write_text("wrong-canary")
    with pytest.raises(Unavailable) as refused:
        SqlStore(place, ROW_KEY, now)
    said += traceback.format_exception(refused.value)
    assert not any(PASSWORD in text or "wrong-canary" in text for text in said)
    assert not any(PASSWORD.encode() in path.read_bytes() for path in place.journal.iterdir())


def test_SC_08_the_environment_does_not_choose_the_server(
    postgres: Postgres, place: StoreConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    names = [option.envvar.decode() for option in Conninfo.get_defaults() if option.envvar]
    assert len(names) > 20
    for name in names:
        if name != "PGSERVICE":
            monkeypatch.setenv(name, "hostile")
    monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "services"))
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".pgpass").write_text("*:*:*:*:stolen")
    assert "hostile" not in conninfo(place)
    given = conninfo_to_dict(conninfo(place))
    assert (given["host"], given["user"], given["sslmode"]) == (str(postgres.sockets), "broker", "disable")
    with opened(place) as store:
        store.check()


@pytest.mark.parametrize("name", ["PGSERVICE", "PGTZ", "PGDATESTYLE", "PGGEQO"])
def test_SC_08_a_variable_that_cannot_be_overruled_is_refused(
    place: StoreConfig, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "hostile")
    with pytest.raises(WrongState, match=name) as found:
        SqlStore(place, ROW_KEY, now)
    assert found.value.reason == "ENVIRONMENT_REFUSED"
    assert "hostile" not in found.value.message


def test_a_role_cannot_switch_durability_off(postgres: Postgres, database: str, place: StoreConfig) -> None:
    with postgres.connect() as admin:
        admin.execute(f"ALTER DATABASE {database} SET synchronous_commit = off".encode())
        admin.execute(f"ALTER DATABASE {database} SET default_transaction_read_only = on".encode())
    with closing(open_database(place)) as found:
        assert found.read(text("SHOW synchronous_commit"))[0][0] == "on"
        assert found.read(text("SHOW transaction_isolation"))[0][0] == "read committed"
    with opened(place) as store:
        put(store, key("durable"))
    with postgres.connect() as admin:
        admin.execute(f"ALTER DATABASE {database} RESET ALL".encode())
