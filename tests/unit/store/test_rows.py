"""Damaged rows: each is refused by name, the rest of the store lives on."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from broker.core.errors import WrongState
from broker.core.model import Key, Record, SecretVersion
from broker.core.records import RECORDS
from broker.store.rows import FIELDS, record_of, row_of
from broker.store.sql import SqlStore
from broker.store.tables import TABLES
from tests.contracts.store.samples import config, entry, key, opened, put, sample, samples, version
from tests.servers.databases import migrate


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqlStore]:
    place = config(f"sqlite:///{tmp_path}/broker.db", tmp_path)
    migrate(place)
    with opened(place) as found:
        put(found, key("bad"), version("bad"), key("good"), version("good"))
        yield found


@pytest.mark.parametrize(
    "text", ["", "plain", 'a "quoted" \\ one', "ümlaut \u2028 \U0001f511", "\x00\x1f\x7f", "\ud800"]
)
def test_lists_and_mappings_are_the_canonical_json_that_rows_in_the_database_have(text: str) -> None:
    """Their MACs are over these very characters."""
    fields, labels = (text, "value", text), {"z": text, f"a{text}": "1", "B": ""}
    sealed = sample(SecretVersion)
    assert row_of(key(labels=labels))["labels"] == json.dumps(labels, sort_keys=True, separators=(",", ":"))
    assert row_of(replace(sealed, fields=fields))["fields"] == json.dumps(fields, separators=(",", ":"))
    assert row_of(key(labels={}))["labels"] == "{}"


def damage(tmp_path: Path, change: str, *values: Any) -> None:
    """Change rows behind the broker's back."""
    with sqlite3.connect(tmp_path / "broker.db") as connection:
        connection.execute("PRAGMA ignore_check_constraints=ON")
        connection.execute(change, values)
    connection.close()


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE keys SET type = 'dsa' WHERE name = 'bad'",
        "UPDATE keys SET state = '' WHERE name = 'bad'",
        "UPDATE keys SET labels = '[]' WHERE name = 'bad'",
        "UPDATE keys SET labels = '{\"a\":1}' WHERE name = 'bad'",
        "UPDATE keys SET labels = '{' WHERE name = 'bad'",
        "UPDATE keys SET labels = replace(hex(zeroblob(50000)), '0', '[') WHERE name = 'bad'",
        "UPDATE keys SET exportable = 2 WHERE name = 'bad'",
        "UPDATE keys SET created_at = 1 << 62 WHERE name = 'bad'",
        "UPDATE keys SET destroy_at = -(1 << 62) WHERE name = 'bad'",
        "UPDATE keys SET owner = CAST(x'ff' AS TEXT) WHERE name = 'bad'",
        "UPDATE keys SET owner = hex(zeroblob(1 << 20)) WHERE name = 'bad'",
    ],
    ids=lambda change: change[12:50],
)
def test_ST_05_a_damaged_row_is_refused_by_name_and_the_others_live(
    store: SqlStore, tmp_path: Path, change: str
) -> None:
    damage(tmp_path, change)
    for attempt in (
        lambda: store.get(Key, "bad"),
        lambda: store.version("bad", 1),
        lambda: store.page(Key, limit=9),
        lambda: put_over(store),
    ):
        with pytest.raises(WrongState) as refused:
            attempt()
        assert refused.value.reason == "ROW_FORGED"
        assert re.search(r"Key 'bad'", refused.value.message)
    assert store.get(Key, "good") == key("good")
    assert store.version("good", 1) == (key("good"), version("good"))
    assert store.page(Key, limit=9, after=("bad",)) == [key("good")]
    put(store, key("new"))


def put_over(store: SqlStore) -> None:
    with store.write(entry()) as write:
        write.get(Key, "bad")


def test_ST_05_a_blob_that_is_too_long_is_refused(store: SqlStore, tmp_path: Path) -> None:
    damage(tmp_path, "UPDATE key_versions SET hsm_id = zeroblob(2000000) WHERE key = 'bad'")
    with pytest.raises(WrongState, match=r"KeyVersion 'bad'/1 "):
        store.version("bad", 1)


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE keys SET owner = NULL WHERE name = 'bad'",
        "UPDATE keys SET latest = 'x' WHERE name = 'bad'",
        "UPDATE key_versions SET hsm_id = 'x' WHERE key = 'bad'",
        "INSERT INTO keys SELECT * FROM keys WHERE name = 'bad'",
    ],
)
def test_ST_05_the_tables_themselves_refuse_nulls_wrong_types_and_duplicates(
    store: SqlStore, tmp_path: Path, change: str
) -> None:
    with pytest.raises(sqlite3.IntegrityError):
        damage(tmp_path, change)
    assert store.get(Key, "bad") == key("bad")


@pytest.mark.parametrize("record", samples(), ids=lambda record: type(record).__name__)
def test_ST_05_no_cell_of_another_type_becomes_a_record(record: Record) -> None:
    row = list(row_of(record).values())
    assert record_of(type(record), row) == record
    cells: list[Any] = [None, "x", 1.5, 3, b"x", True, ()]
    for place, field in enumerate(FIELDS[type(record)]):
        for cell in cells:
            if type(cell) is not field.sql and not (cell is None and field.nullable):
                with pytest.raises(WrongState):
                    record_of(type(record), [*row[:place], cell, *row[place + 1 :]])
    for wrong in (row[:-1], [*row, None]):
        with pytest.raises(WrongState):
            record_of(type(record), wrong)


def test_every_record_has_a_table_whose_columns_are_its_fields() -> None:
    assert set(TABLES) == set(RECORDS) == {type(record) for record in samples()}
    for kind, table in TABLES.items():
        assert [column.name for column in table.columns] == [*(field.name for field in FIELDS[kind]), "mac"]
        assert {column.name for column in table.primary_key} == set(RECORDS[kind].key)


def test_what_callers_share_cannot_be_changed_by_one_of_them(store: SqlStore) -> None:
    put(store, replace(key("labelled"), labels={"team": "red"}))
    seen, again = store.get(Key, "labelled"), store.get(Key, "labelled")
    assert seen is again
    assert seen is not None
    with pytest.raises(TypeError):
        seen.labels["team"] = "blue"  # type: ignore[index]
