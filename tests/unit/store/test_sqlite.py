"""The embedded database: one process, private files, one connection that writes."""

from __future__ import annotations

import errno
import os
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import text

from broker.core.errors import Unavailable, WrongState
from broker.core.model import Key
from broker.core.ports import Write
from broker.store.config import StoreConfig
from broker.store.private import password
from broker.store.sql import SqlStore
from broker.store.sqlite import Sqlite
from broker.store.waits import Waits
from tests.contracts.store.samples import ROW_KEY, calls, config, entry, key, now, opened, put
from tests.servers.databases import migrate
from tests.servers.patience import HASTY, busy


@pytest.fixture
def place(tmp_path: Path) -> StoreConfig:
    found = config(f"sqlite:///{tmp_path}/store/broker.db", tmp_path)
    migrate(found)
    return found


def test_ST_08_an_sqlite_without_strict_tables_is_refused(place: StoreConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    # Patched: Python brings one SQLite, and it is new enough.
    monkeypatch.setattr("sqlite3.sqlite_version_info", (3, 36, 0))
    with pytest.raises(WrongState) as refused:
        SqlStore(place, ROW_KEY, now)
    assert refused.value.reason == "SQLITE_TOO_OLD"


def test_ST_08_only_the_writer_can_checkpoint(place: StoreConfig) -> None:
    database = Sqlite(place)
    assert database.read(text("PRAGMA wal_autocheckpoint"))[0][0] == 0
    assert database.read(text("PRAGMA query_only"))[0][0] == 1
    with pytest.raises(Unavailable):
        database.read(text("DELETE FROM keys RETURNING 1"))
    with database.transaction() as connection:
        assert connection.execute(text("PRAGMA journal_mode")).scalar() == "wal"
        assert connection.execute(text("PRAGMA synchronous")).scalar() == 2
    database.close()


@pytest.mark.parametrize("umask", [0, 0o777])
def test_ST_07_all_files_are_private_under_any_umask(tmp_path: Path, umask: int) -> None:
    place = config(f"sqlite:///{tmp_path}/store/broker.db", tmp_path)
    before = os.umask(umask)
    try:
        SqlStore.migrate(place)
        with opened(place) as store:
            put(store, key())
            modes = {path.name: path.stat().st_mode & 0o7777 for path in (tmp_path / "store").iterdir()}
    finally:
        os.umask(before)
    assert set(modes) == {"broker.db", "broker.db-wal", "broker.db-shm", "broker.db.lock"}
    assert set(modes.values()) == {0o600}
    assert (tmp_path / "store").stat().st_mode & 0o7777 == 0o700


@pytest.mark.parametrize("name", ["broker.db", "broker.db.lock", ""])
@pytest.mark.parametrize("mode", [0o040, 0o004, 0o022])
def test_ST_07_what_is_open_to_others_is_refused(place: StoreConfig, tmp_path: Path, name: str, mode: int) -> None:
    (tmp_path / "store/broker.db.lock").touch(0o600)
    (tmp_path / "store/broker.db.lock").touch(0o600)
    path = tmp_path / "store" / name
    path.chmod(path.stat().st_mode | mode)
    with pytest.raises(WrongState) as refused:
        SqlStore(place, ROW_KEY, now)
    assert refused.value.reason == "FILE_NOT_PRIVATE"
    path.chmod(path.stat().st_mode & ~mode)
    with opened(place) as store:
        store.check()


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_ST_07_a_link_in_place_of_the_database_is_refused(place: StoreConfig, tmp_path: Path, link: object) -> None:
    path = tmp_path / "store" / "broker.db"
    path.rename(tmp_path / "elsewhere.db")
    assert callable(link)
    link(tmp_path / "elsewhere.db", path)
    with pytest.raises(WrongState) as refused:
        SqlStore(place, ROW_KEY, now)
    assert refused.value.reason == "FILE_NOT_PRIVATE"


def test_ST_07_a_password_file_is_private_and_one_line(tmp_path: Path) -> None:
    file = tmp_path / "password"
    with pytest.raises(Unavailable, match="No such file"):
        password(file)
    file.write_text("hunter2\n")
    file.chmod(0o644)
    with pytest.raises(WrongState, match="chmod 600"):
        password(file)
    file.chmod(0o600)
    assert password(file) == "hunter2"
    for wrong in ("", "\n", "a\nb\n", "a\0b", "x" * 1025):
        file.write_text(wrong)
        with pytest.raises(WrongState, match="one line"):
            password(file)
    file.unlink()
    os.mkfifo(file, 0o600)
    with pytest.raises(WrongState, match="regular file"):
        password(file)


def test_a_change_waits_for_another_one_no_longer_than_its_patience(place: StoreConfig) -> None:
    hasty = place.model_copy(update={"patience_seconds": HASTY})
    with opened(hasty) as store, store.write(entry()) as write, ThreadPoolExecutor(1) as pool:
        write.add(key())
        began = time.monotonic()
        with pytest.raises(Unavailable) as refused:
            pool.submit(put, store, key("second")).result()
        assert Waits(HASTY).turn <= time.monotonic() - began < busy(HASTY)
        assert refused.value.reason == "STORE_UNAVAILABLE"
        assert pool.submit(store.get, Key, "second").result() is None


def test_P1_nothing_is_committed_before_its_entry_is_durable(
    place: StoreConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(place) as store:
        seen: list[object] = []
        sync = os.fdatasync

        def watch(file: int) -> None:
            sync(file)
            seen.append(store.get(Key, "payments"))

        # Patched to look in at the moment between the entry and the commit.
        monkeypatch.setattr("broker.store.chain.os.fdatasync", watch)
        put(store, key())
        assert seen == [None]
        assert store.get(Key, "payments") == key()


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_P1_a_change_whose_entry_cannot_be_written_is_not_made(
    place: StoreConfig, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    with opened(place) as store:

        def fail(_: int) -> None:
            raise OSError(error, "injected")

        with monkeypatch.context() as broken:
            # Patched: no file system here fails with the error that a test chooses.
            broken.setattr("broker.store.chain.os.fdatasync", fail)
            with pytest.raises(Unavailable) as refused:
                put(store, key())
            with pytest.raises(Unavailable):
                store.record(entry())
        assert refused.value.reason == "AUDIT_UNAVAILABLE"
        assert store.get(Key, "payments") is None
        put(store, key("after"))
        assert [found.name for found in store.page(Key, limit=9)] == ["after"]


def test_a_commit_that_fails_leaves_an_entry_and_says_so(place: StoreConfig) -> None:
    with opened(place) as store:
        writer = writing_connection(store)
        with pytest.raises(Unavailable) as refused, store.write(entry("intended")) as write:
            add_and_refuse_to_commit(write, writer)
        writer.set_authorizer(None)
        assert refused.value.reason == "STORE_UNAVAILABLE"
        assert "may or may not" in refused.value.message
        assert calls(place.journal) == ["intended"]
        assert store.get(Key, "payments") is None


def writing_connection(store: SqlStore) -> sqlite3.Connection:
    with store._database.transaction() as connection:  # noqa: SLF001 - only on its own connection SQLite fails to order
        found = connection.connection.driver_connection
        assert isinstance(found, sqlite3.Connection)
        return found


def add_and_refuse_to_commit(write: Write, writer: sqlite3.Connection) -> None:
    write.add(key())
    writer.set_authorizer(refuse_commit)


def refuse_commit(action: int, *names: str | None) -> int:
    return sqlite3.SQLITE_DENY if action == sqlite3.SQLITE_TRANSACTION and names[0] == "COMMIT" else sqlite3.SQLITE_OK


def test_a_file_that_is_no_database_is_refused(place: StoreConfig, tmp_path: Path) -> None:
    (tmp_path / "store" / "broker.db").write_bytes(b"not a database at all " * 1000)
    for suffix in ("-wal", "-shm"):
        (tmp_path / "store" / f"broker.db{suffix}").unlink(missing_ok=True)
    with pytest.raises(Unavailable) as refused:
        SqlStore(place, ROW_KEY, now)
    assert refused.value.reason == "STORE_UNAVAILABLE"


def open_in(folder: Path) -> list[Path]:
    """The files there that this process holds open; other tests' servers open and close theirs meanwhile."""
    held = [os.path.realpath(each) for each in Path("/proc/self/fd").iterdir()]
    return [Path(each) for each in held if Path(each).is_relative_to(folder.resolve())]


def test_the_descriptors_are_back_after_a_close(place: StoreConfig) -> None:
    with opened(place) as store:  # what is made once a process is made here
        put(store, key())
    folder = Path(place.url.removeprefix("sqlite:///")).parent
    with opened(place) as store, ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda _: store.get(Key, "payments"), range(50))) == [key()] * 50
        assert open_in(folder)
    assert not open_in(folder)
