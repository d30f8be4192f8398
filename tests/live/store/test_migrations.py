"""Migrations: whole or not at all, one at a time, and the same schema as the program's on both databases."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, event, text

from broker.core.errors import WrongState
from broker.core.model import Import, Key
from broker.core.targets.copies import place_of
from broker.store.config import StoreConfig
from broker.store.dialects import open_database
from broker.store.migrate import alembic_config
from broker.store.sql import SqlStore
from broker.store.tables import METADATA, REVISION
from tests.contracts.store.samples import ROW_KEY, config, key, now, opened, put, sample
from tests.fakes.refusals import refused
from tests.servers.postgres import Postgres
from tests.servers.softhsm import FRESH


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StoreConfig]:
    """An empty database, not migrated."""
    if request.param == "sqlite":
        yield config(f"sqlite:///{tmp_path}/50%/broker.db", tmp_path)
        return
    server: Postgres = request.getfixturevalue("postgres")
    name = server.create_database()
    yield config(server.url(name), tmp_path)
    server.drop_database(name)


@pytest.fixture(autouse=True)
def _parent(tmp_path: Path) -> None:
    (tmp_path / "50%").mkdir(mode=0o700)


@contextmanager
def watched(at: int | None = None) -> Iterator[list[str]]:
    """The statements to any database; an error in place of the one with number ``at``."""
    seen: list[str] = []

    def watch(_: Any, __: Any, statement: str, *___: Any) -> None:
        seen.append(statement)
        if len(seen) == at:
            raise InterruptedError

    event.listen(Engine, "before_cursor_execute", watch)
    try:
        yield seen
    finally:
        event.remove(Engine, "before_cursor_execute", watch)


def tables(place: StoreConfig) -> int:
    """How many tables there are."""
    database = open_database(place)
    catalogue = {
        "sqlite": "SELECT name FROM sqlite_master WHERE type = 'table'",
        "postgresql": "SELECT tablename FROM pg_tables WHERE schemaname = 'public'",
    }
    try:
        return len(database.read(text(catalogue[database.name])))
    finally:
        database.close()


def statement(place: StoreConfig, sql: str) -> None:
    database = open_database(place)
    with database.transaction() as connection:
        connection.execute(text(sql))
        connection.commit()
    database.close()


def test_migrations_and_tables_agree(place: StoreConfig) -> None:
    SqlStore.migrate(place)
    database = open_database(place)
    with database.transaction() as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []
    database.close()
    assert tables(place) == len(METADATA.tables) + 1


def test_the_newest_migration_is_the_programs() -> None:
    script = ScriptDirectory.from_config(alembic_config())
    assert script.get_heads() == [REVISION]
    for found in script.walk_revisions():
        assert found.revision.isdecimal()
        assert len(found.revision) == 4


def test_a_second_migration_changes_nothing(place: StoreConfig) -> None:
    SqlStore.migrate(place)
    with opened(place) as store:
        put(store, key())
    SqlStore.migrate(place)
    with opened(place) as store:
        assert store.get(Key, "payments") == key()


def test_an_unmigrated_database_is_refused(place: StoreConfig) -> None:
    if place.sqlite:
        refused(lambda: SqlStore(place, ROW_KEY, now), WrongState, "STORE_MISSING")
        Path(place.parsed.database or "").touch(mode=0o600)
    refused(lambda: SqlStore(place, ROW_KEY, now), WrongState, "STORE_NOT_MIGRATED")


@pytest.mark.parametrize("newer", [f"{int(REVISION) + 1:04}", "9999", "abcd"])
def test_P26_a_database_of_a_newer_program_is_refused(place: StoreConfig, newer: str) -> None:
    SqlStore.migrate(place)
    statement(place, f"UPDATE alembic_version SET version_num = '{newer}'")  # noqa: S608 - the tests' own text
    refused(lambda: SqlStore(place, ROW_KEY, now), WrongState, "STORE_TOO_NEW")
    with pytest.raises(WrongState, match="newer release"):
        SqlStore.migrate(place)


def leaves_nothing(place: StoreConfig, every: int) -> None:
    """Fail at every so many-th statement, from one of the first on, and in the end at none."""
    at = random.randint(1, every)  # noqa: S311 (no secret)
    while _fails(place, at):
        at += every
    assert at > len(METADATA.tables)
    with opened(place) as store:
        store.check()


def _fails(place: StoreConfig, at: int) -> bool:
    with watched(at) as seen:
        try:
            SqlStore.migrate(place)
        except InterruptedError:
            assert tables(place) == 0, seen
            return True
    return False


def test_FT_36_a_migration_that_fails_at_any_statement_leaves_nothing(place: StoreConfig) -> None:
    """At every eleventh, others in each run; at every one in ``make soak``."""
    leaves_nothing(place, 11)


@pytest.mark.soak
def test_FT_36_a_migration_that_fails_at_whichever_statement_leaves_nothing(place: StoreConfig) -> None:
    leaves_nothing(place, 1)


CELLS = "key, version, target, remote_name, remote_version, state, kek_thumbprint, blob_sha256, failure, started_at"
SQLITE = """
CREATE TABLE imports (key TEXT NOT NULL, version INTEGER NOT NULL, target TEXT NOT NULL, remote_name TEXT NOT NULL,
remote_version TEXT NOT NULL, state TEXT NOT NULL, kek_thumbprint TEXT NOT NULL, blob_sha256 TEXT NOT NULL,
failure TEXT NOT NULL, started_at INTEGER NOT NULL, proven_at INTEGER, revision INTEGER NOT NULL, mac BLOB,
PRIMARY KEY (key, version, target)) STRICT
"""
BEFORE_OPERATIONS = (
    "ALTER TABLE key_schedules DROP COLUMN approvals",
    "DROP TABLE operator_certificates",
    "DROP TABLE token_claims",
    "DROP TABLE own_keys",
    "DROP TABLE drift_reports",
    "ALTER TABLE keys DROP COLUMN destroyed_at_targets",
    "ALTER TABLE keys DROP COLUMN sealed_once_at",
    "DROP TABLE key_schedules",
    "DROP TABLE key_uses",
    "ALTER TABLE secrets DROP COLUMN max_age",
    "ALTER TABLE secrets DROP COLUMN renew_at",
    "DROP TABLE approvals",
    "DROP TABLE key_moves",
    "ALTER TABLE key_versions DROP COLUMN phase",
    "DROP TABLE operations",
    "ALTER TABLE receipts DROP COLUMN operation",
)
FORMER = {
    "sqlite": (
        "ALTER TABLE imports RENAME TO newer",
        SQLITE,
        f"INSERT INTO imports SELECT {CELLS}, proven_at, revision, mac FROM newer",  # noqa: S608 - the tests' own text
        "DROP TABLE newer",
        *BEFORE_OPERATIONS,
    ),
    "postgresql": (
        "ALTER TABLE imports DROP COLUMN sent, DROP COLUMN terms, DROP CONSTRAINT imports_pkey",
        "ALTER TABLE imports ADD CONSTRAINT imports_pkey PRIMARY KEY (key, version, target)",
        *BEFORE_OPERATIONS,
    ),
}
"""Back to what the imports were before they were told apart by their remote name."""


def test_K06_imports_of_before_are_kept_as_they_were(place: StoreConfig) -> None:
    SqlStore.migrate(place)
    rows = [replace(sample(Import), target=target, proven_at=at) for target, at in (("t", None), ("u", now()))]
    with opened(place) as store:
        put(store, *rows)
    database = open_database(place)
    name = database.name
    database.close()
    for sql in (*FORMER[name], "UPDATE alembic_version SET version_num = '0006'"):
        statement(place, sql)
    refused(lambda: SqlStore(place, ROW_KEY, now), WrongState, "STORE_NOT_MIGRATED")
    SqlStore.migrate(place)
    with opened(place) as store:
        assert store.inspect() == []
        assert [store.get(Import, *place_of(row)) for row in rows] == rows
        assert all(row.sent is None and row.may_be_there for row in rows)
        other = replace(rows[0], remote_name="another")
        put(store, other)
        assert store.get(Import, *place_of(other)) == other
        assert store.get(Import, *place_of(rows[0])) == rows[0]
    # Of a row that somebody alters, that one alone is found, though the journal knows them all by their former names.
    statement(place, "UPDATE imports SET state = 'failed' WHERE remote_name = 'another'")
    with opened(place) as store:
        assert [(one.table, one.name, one.how) for one in store.inspect()] == [
            ("imports", "/".join(map(str, place_of(other))), "altered")
        ]


def migrate_until(place: StoreConfig, left: int) -> None:
    """Migrate, and be killed at that statement or commit."""

    def watch(*_: Any) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    event.listen(Engine, "before_cursor_execute", watch)
    event.listen(Engine, "commit", watch)
    SqlStore.migrate(place)


def killed(place: StoreConfig, at: int) -> bool:
    process = FRESH.Process(target=migrate_until, args=(place, at))
    process.start()
    process.join(200)
    return process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize("at", [6, 13])
def test_FT_36_the_next_start_goes_on_after_a_kill(place: StoreConfig, at: int) -> None:
    assert killed(place, at)
    refused(lambda: SqlStore(place, ROW_KEY, now), WrongState, "STORE_NOT_MIGRATED")
    SqlStore.migrate(place)
    with opened(place) as store:
        put(store, key())


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_FT_36_killed_at_every_statement(place: StoreConfig) -> None:
    at = 1
    while killed(place, at):
        assert tables(place) == 0
        at += 1
    assert at > len(METADATA.tables)
    with opened(place) as store:
        put(store, key())


def test_FT_36_two_that_migrate_at_once(postgres: Postgres, tmp_path: Path) -> None:
    name = postgres.create_database()
    place = config(postgres.url(name), tmp_path)
    with watched() as seen, ThreadPoolExecutor(4) as pool:
        for one in [pool.submit(SqlStore.migrate, place) for _ in range(4)]:
            one.result()
    assert sum("CREATE TABLE keys" in found for found in seen) == 1
    with opened(place) as store:
        put(store, key())
    postgres.drop_database(name)
