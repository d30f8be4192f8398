"""The Store port's contract, everywhere: what may be looked for, pages of a part of the key, the last one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.dialects import sqlite

from broker.core.kinds import VersionState
from broker.core.model import AuditHead, Key, KeyVersion, PolicyDocument, UsedToken
from broker.core.ports import Store
from broker.core.records import key_of
from broker.store.asked import asked
from broker.store.tables import last, page
from tests.contracts.store.grounds import ground, store
from tests.contracts.store.places import database, new_sqlite
from tests.contracts.store.samples import T0, entry, key, put, sample, version
from tests.servers.dba import Dba

__all__ = ["database", "ground", "store"]  # fixtures


DOCUMENT = sample(PolicyDocument)

UNDECLARED: list[Callable[[Store], object]] = [
    lambda store: store.page(Key, limit=1, where={"owner": "operator/alice"}),
    lambda store: store.page(KeyVersion, limit=1, under=("a",), where={"key": "a"}),
    lambda store: store.page(KeyVersion, limit=1, under=("a", 1)),
    lambda store: store.page(Key, limit=1, begins="é"),
    lambda store: store.count(KeyVersion, {"sealed": 1}),
    lambda store: store.last(Key, "payments"),
    lambda store: store.due(Key, T0, limit=1),
    lambda store: store.due(UsedToken, T0, limit=1, state="active"),
]


@pytest.mark.parametrize("ask", UNDECLARED)
def test_what_is_not_declared_is_not_asked_for(store: Store, ask: Callable[[Store], object]) -> None:
    with pytest.raises(ValueError, match=r"core\.records|beginning of the primary key"):
        ask(store)


def test_what_is_asked_for_has_the_type_of_its_field(store: Store) -> None:
    asks: list[Callable[[], object]] = [
        lambda: store.page(Key, limit=1, where={"state": 1}),
        lambda: store.page(KeyVersion, limit=1, under=(1,)),
        lambda: store.page(KeyVersion, limit=1, under=("a",), begins="1"),
        lambda: store.last(AuditHead, 1),
    ]
    for ask in asks:
        with pytest.raises(TypeError):
            ask()
    with pytest.raises(ValueError, match=r"core\.records"), store.write(entry()) as write:
        write.page(Key, limit=1, where={"owner": "operator/alice"})


def test_the_last_is_the_highest_of_the_whole_table_or_under_a_part_of_the_key(store: Store) -> None:
    assert store.last(KeyVersion) is None
    put(store, *(version(name, number) for name in ("a", "a-b", "b", "é") for number in (9, 10, 1)))
    put(store, DOCUMENT, replace(DOCUMENT, version=12), replace(DOCUMENT, version=9))
    assert store.last(KeyVersion) == version("é", 10)
    assert store.last(KeyVersion, "a") == version("a", 10)
    assert store.last(KeyVersion, "c") is None
    assert store.last(PolicyDocument) == replace(DOCUMENT, version=12)
    with store.write(entry()) as write:
        write.delete(version("a", 10))
        assert (write.last(KeyVersion, "a"), write.last(KeyVersion, "c", lock=False)) == (version("a", 9), None)
        assert store.last(KeyVersion, "a") == version("a", 10)
    assert store.last(KeyVersion, "a") == version("a", 9)


def test_pages_under_a_part_of_the_key_have_that_part_alone(store: Store) -> None:
    put(store, *(version(name, number) for name in ("a", "ab", "b") for number in (1, 2, 3)))
    put(store, version("a", 4, state=VersionState.PENDING))

    def numbers(*under: str | int, **how: Any) -> list[tuple[Any, ...]]:
        return [key_of(found) for found in store.page(KeyVersion, under=under, limit=how.pop("limit", 9), **how)]

    assert numbers("a") == [("a", 1), ("a", 2), ("a", 3), ("a", 4)]
    assert numbers("a", limit=2) == [("a", 1), ("a", 2)]
    assert numbers("a", after=("a", 2)) == [("a", 3), ("a", 4)]
    assert numbers("ab", after=("a", 2)) == [("ab", 1), ("ab", 2), ("ab", 3)]
    assert numbers("a", after=("b", 1)) == []
    assert numbers("a", where={"state": VersionState.PENDING}) == [("a", 4)]
    assert numbers("c") == []


def test_pages_of_what_begins_so_have_nothing_else(store: Store) -> None:
    names = ["a", "a/", "a/A", "a/\x7f", "a/b", "a/é", "a/\U0001f511", "a0", "A/b", "a-b", "aé", "b", "a/\U0010ffff"]
    put(store, *(key(name) for name in names))
    below = sorted((name for name in names if name.startswith("a/")), key=str.encode)
    for sound_only in (False, True):
        found = store.page(Key, begins="a/", limit=99, sound_only=sound_only)
        assert [each.name for each in found] == below
    assert [each.name for each in store.page(Key, begins="a/", limit=2, after=(below[1],))] == below[2:4]
    assert [each.name for each in store.page(Key, begins="a/", limit=9, after=("A",))] == below
    assert store.page(Key, begins="a/", limit=9, after=("a0",)) == []
    assert [each.name for each in store.page(Key, begins="a/\x7f", limit=9)] == ["a/\x7f"]
    put(store, version("a", 1), version("a/b", 2), version("a/b", 1))
    assert [key_of(each) for each in store.page(KeyVersion, begins="a/", limit=9)] == [("a/b", 1), ("a/b", 2)]


PLANS: list[tuple[Any, str]] = [
    (page(Key, asked(Key, begins="a/"), (), 9), "name>? AND name<?"),
    (page(Key, asked(Key, begins="a/"), ("a/b",), 9), "name>? AND name<?"),
    (page(KeyVersion, asked(KeyVersion, under=("a",)), (), 9), "key=?"),
    (last(KeyVersion, asked(KeyVersion, under=("a",))), "key=?"),
]


@pytest.mark.parametrize(("query", "bounds"), PLANS, ids=["begins", "begins-after", "under", "last"])
def test_no_row_outside_is_looked_at(tmp_path: Path, query: Any, bounds: str) -> None:
    statement, values = query
    sql = str(statement.compile(dialect=sqlite.dialect()))
    explained = Dba(new_sqlite(tmp_path)).run(
        f"EXPLAIN QUERY PLAN {sql}", [next(iter(values.values()))] * sql.count("?")
    )
    [plan] = [row[-1] for row in explained]
    assert plan.startswith("SEARCH")
    assert f"({bounds})" in plan
