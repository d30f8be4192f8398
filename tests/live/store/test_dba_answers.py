"""What the database answers to a question: another row than the one asked for, an older one, or none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from broker.core.errors import WrongState
from broker.core.kinds import KeyState
from broker.core.model import Key, Operator, PolicyDocument
from broker.setup import policy_in_force
from broker.store.asked import asked
from broker.store.config import StoreConfig
from broker.store.sql import SqlStore
from broker.store.tables import page
from tests.contracts.store.places import database, place
from tests.contracts.store.samples import T0, config, entry, key, opened, put, sample, version
from tests.fakes.refusals import refused
from tests.servers.databases import create_database, migrate
from tests.servers.dba import Dba
from tests.servers.postgres import Postgres

__all__ = ["database", "place"]


LIES = """
CREATE SCHEMA lies;
CREATE FUNCTION lies.same(text, text) RETURNS boolean LANGUAGE sql IMMUTABLE AS $$
    SELECT $1 OPERATOR(pg_catalog.=) pg_catalog.replace($2, 'bob', 'alice') $$;
CREATE OPERATOR lies.= (LEFTARG = text, RIGHTARG = text, FUNCTION = lies.same);
"""


def test_S_01_another_genuine_row_than_the_one_asked_for_is_refused(postgres: Postgres, tmp_path: Path) -> None:
    """An owner of the database can give "=" another meaning, so that the look-up of bob finds alice."""
    name = create_database(postgres)
    found = config(postgres.url(name), tmp_path)
    migrate(found)
    dba = Dba(found)
    alice = replace(sample(Operator, full=True), name="alice")
    with opened(found) as store:
        put(store, alice, replace(alice, name="bob", groups=()), key("alice"), version("alice"))
    dba.run(LIES)
    dba.run(f'ALTER DATABASE "{name}" SET search_path = lies, pg_catalog, public')
    with opened(found) as store:
        refused(lambda: store.get(Operator, "bob"), WrongState, "ROW_FORGED")
        for sound_only in (False, True):
            assert store.page(Operator, limit=9, where={"name": "bob"}, sound_only=sound_only) == []
        refused(lambda: store.version("bob", 0), WrongState, "ROW_FORGED")
        with pytest.raises(WrongState), store.write(entry()) as write:
            write.get(Operator, "bob")
    postgres.drop_database(name)


def test_S_01_no_older_policy_is_in_force_for_the_newest_was_removed(place: StoreConfig) -> None:
    dba = Dba(place)
    with opened(place) as store:
        put(store, *[PolicyDocument(version=number, text="", author="a", created_at=T0) for number in (1, 2)])
        assert policy_in_force(store).version == 2
    dba.run("DELETE FROM policy_documents WHERE version = 2")
    with opened(place) as store:
        refused(lambda: policy_in_force(store), WrongState, "ROW_FORGED")


class Late:
    """A database of which one page of rows is handed on only when something else has happened."""

    def __init__(self, store: SqlStore) -> None:
        self._real = store._database  # noqa: SLF001 - a change has to come between a page's read and what is made of it
        self.rows: list[Sequence[Any]] | None = None
        store._database = self  # noqa: SLF001 - as above

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def read(self, statement: Any, parameters: Any = None) -> list[Sequence[Any]]:
        rows, self.rows = self.rows, None
        return self._real.read(statement, parameters) if rows is None else rows


def test_a_row_of_a_long_page_that_is_changed_while_it_is_read_is_no_forgery(tmp_path: Path) -> None:
    found = config(f"sqlite:///{tmp_path}/broker.db", tmp_path)
    migrate(found)
    with opened(found) as store:
        keys = [key(name) for name in ("a", "b", "c")]
        put(store, *keys)
        database, where = Late(store), {"state": keys[0].state.value}
        rows = database.read(*page(Key, asked(Key, where), (), 9))
        with store.write(entry()) as write:
            changed = write.replace(keys[0], keys[0])
        with store.write(entry()) as write:
            write.replace(keys[1], replace(keys[1], state=KeyState.DISABLED))
            write.delete(keys[2])
        for sound_only in (False, True):  # no session that is renewed just now outlives a revocation
            database.rows = rows
            assert store.page(Key, where=where, limit=9, sound_only=sound_only) == [changed]
        database.rows = [(*rows[0][:-1], b"another MAC")]
        refused(lambda: store.page(Key, where=where, limit=9), WrongState, "ROW_FORGED")
