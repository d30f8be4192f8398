"""The same history on SQLite, on PostgreSQL, in the store in memory and on a dict gives the same answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from broker.core.errors import BrokerError
from broker.core.model import KeyVersion
from broker.core.ports import Store, Write
from tests.contracts.store.samples import T0, config, entry, opened, version
from tests.fakes.memory_store import MemoryStore
from tests.servers.databases import create_database, migrate
from tests.servers.postgres import Postgres

NAMES = ["a", "A", "a-b", "ab", "é", "\U0001f511"]


def _bytes(key: tuple[Any, ...]) -> tuple[bytes, int]:
    return key[0].encode(), key[1]


def _order(row: KeyVersion) -> tuple[bytes, int]:
    return _bytes((row.key, row.number))


@dataclass
class Model:
    """The port's contract for one kind of record, in a dict."""

    rows: dict[tuple[str, int], KeyVersion] = field(default_factory=dict)

    def page(self, after: tuple[Any, ...], limit: int, where: dict[str, Any]) -> list[KeyVersion]:
        found = [self.rows[key] for key in sorted(self.rows, key=_bytes) if not after or _bytes(key) > _bytes(after)]
        return [row for row in found if all(getattr(row, name) == value for name, value in where.items())][:limit]

    def last(self, *under: str) -> KeyVersion | None:
        return max(self.page((), 100, dict(zip(["key"], under, strict=False))), key=_order, default=None)


BEGUN = count(1)
ADD, REPLACE, STALE, DELETE, FAIL = "add", "replace", "stale", "delete", "fail"
step = st.tuples(st.sampled_from([ADD, REPLACE, STALE, DELETE, FAIL]), st.sampled_from(NAMES), st.integers(0, 3))
history = st.lists(st.lists(step, max_size=3), max_size=6)
question = st.tuples(
    st.one_of(st.just(()), st.tuples(st.sampled_from(NAMES), st.integers(0, 3))),
    st.integers(1, 5),
    st.one_of(
        st.just({}), st.fixed_dictionaries({"key": st.sampled_from(NAMES)}), st.just({"number": 1, "state": "enabled"})
    ),
)


@pytest.fixture(scope="module")
def stores(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Store]]:
    name = create_database(postgres)
    folder: Callable[[str], Path] = tmp_path_factory.mktemp
    first, second = folder("sqlite"), folder("postgresql")
    places = [config(f"sqlite:///{first}/broker.db", first), config(postgres.url(name), second)]
    for place in places:
        migrate(place)
    with opened(places[0]) as sqlite, opened(places[1]) as postgresql:
        yield [sqlite, postgresql, MemoryStore()]
    postgres.drop_database(name)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(history=history, questions=st.lists(question, min_size=1, max_size=4))
def test_each_store_answers_as_the_model(
    stores: list[Store], history: list[list[tuple[str, str, int]]], questions: list[Any]
) -> None:
    for store in stores:
        with store.write(entry()) as write:
            for row in write.page(KeyVersion, limit=100):
                write.delete(row)
    model = Model()
    for transaction in history:
        begun = next(BEGUN)
        expected = play_model(model, transaction, begun)
        for store in stores:
            assert play(store, transaction, begun) == expected
    for after, limit, where in questions:
        for store in stores:
            assert store.page(KeyVersion, after=after, limit=limit, where=where) == model.page(after, limit, where)
            assert store.count(KeyVersion, where) == len(model.page((), 100, where))
            name = after[0] if after else "a"
            assert store.page(KeyVersion, under=(name,), limit=9) == model.page((), 9, {"key": name})
            starting = [row for row in model.page(after, 100, where) if row.key.startswith("a")]
            assert store.page(KeyVersion, begins="a", after=after, limit=100, where=where) == starting
            assert (store.last(KeyVersion, name), store.last(KeyVersion)) == (model.last(name), model.last())
    for store in stores:
        assert {(row.key, row.number): row for row in store.page(KeyVersion, limit=100)} == model.rows


def play(store: Store, transaction: list[tuple[str, str, int]], begun: int) -> str:
    """Empty, or the reason for which the whole transaction was refused."""
    try:
        with store.write(entry()) as write:
            for place, (verb, name, number) in enumerate(transaction):
                if verb == ADD:
                    write.add(version(name, number, created_at=created(begun, place)))
                else:
                    VERBS[verb](write, name, number)
    except BrokerError as refused:
        return refused.reason
    return ""


def created(begun: int, place: int) -> datetime:
    """No two rows are created at one moment."""
    return T0 + timedelta(milliseconds=begun, microseconds=place)


def fail(_: Write, __: str, ___: int) -> None:
    raise BrokerError("FAIL", "On purpose.")


def change(write: Write, name: str, number: int) -> None:
    if (found := write.get(KeyVersion, name, number)) is not None:
        write.replace(found, replace(found, sealed=not found.sealed))


def change_outdated(write: Write, name: str, number: int) -> None:
    if (found := write.get(KeyVersion, name, number)) is not None:
        write.replace(replace(found, revision=found.revision + 1), found)


def delete(write: Write, name: str, number: int) -> None:
    if (found := write.get(KeyVersion, name, number)) is not None:
        write.delete(found)


VERBS: dict[str, Callable[[Write, str, int], None]] = {
    REPLACE: change,
    STALE: change_outdated,
    DELETE: delete,
    FAIL: fail,
}


def play_model(model: Model, transaction: list[tuple[str, str, int]], begun: int) -> str:
    rows = dict(model.rows)
    for place, (verb, name, number) in enumerate(transaction):
        key = (name, number)
        if verb == FAIL:
            return "FAIL"
        if verb == ADD and key in rows:
            return "NAME_TAKEN"
        if verb == ADD:
            rows[key] = version(name, number, created_at=created(begun, place))
        elif key in rows and verb == STALE:
            return "CHANGED_MEANWHILE"
        elif key in rows and verb == REPLACE:
            rows[key] = replace(rows[key], sealed=not rows[key].sealed, revision=rows[key].revision + 1)
        elif verb == DELETE:
            rows.pop(key, None)
    model.rows = rows
    return ""
