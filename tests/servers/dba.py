"""A person who can write the database, and nothing else: rows as they are, changed behind the broker's back."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

import psycopg
from psycopg.conninfo import make_conninfo

from broker.core.records import RECORDS
from broker.store.config import StoreConfig
from broker.store.rows import FIELDS, NAMES

Row = dict[str, Any]


class Dba:
    """One connection a statement, as a person would; on SQLite beside the broker, which does not notice."""

    def __init__(self, place: StoreConfig) -> None:
        self._place = place

    def run(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """``?`` stands for a value, on both databases."""
        with self._connected() as connection:
            cursor = connection.execute(sql if self._place.sqlite else sql.replace("?", "%s"), tuple(values))
            rows: list[tuple[Any, ...]] = cursor.fetchall() if cursor.description else []
            return rows

    def rows(self, table: str) -> list[Row]:
        names = self._columns(table)
        order = ", ".join(f'"{name}"' for name in names[:2])
        return [
            dict(zip(names, row, strict=True))
            for row in self.run(f'SELECT {_list(names)} FROM "{table}" ORDER BY {order}')  # noqa: S608 (the tests' own)
        ]

    def delete(self, table: str, row: Row) -> None:
        keys = _keys(table)
        self.run(f'DELETE FROM "{table}" WHERE {_where(keys)}', [row[name] for name in keys])  # noqa: S608 (the tests' own)

    def insert(self, table: str, row: Row) -> None:
        marks = ", ".join("?" * len(row))
        self.run(f'INSERT INTO "{table}" ({_list(row)}) VALUES ({marks})', list(row.values()))  # noqa: S608 (as above)

    def put(self, table: str, row: Row) -> None:
        """Whatever is under that primary key becomes this row."""
        self.delete(table, row)
        self.insert(table, row)

    def _columns(self, table: str) -> list[str]:
        if table == "ledger":
            return ["owner", "slot", "changes", "sums", "mac"]
        (kind,) = [kind for kind, name in NAMES.items() if name == table]
        return [*(field.name for field in FIELDS[kind]), "mac"]

    @contextmanager
    def _connected(self) -> Iterator[Any]:
        url = self._place.parsed
        if self._place.sqlite:
            with closing(sqlite3.connect(url.database or "", timeout=200, isolation_level=None)) as connection:
                yield connection
            return
        conninfo = make_conninfo(
            "", host=self._place.host, port=self._place.port, user=url.username, dbname=url.database, sslmode="disable"
        )
        with psycopg.connect(conninfo, autocommit=True) as connection:
            yield connection


def _keys(table: str) -> tuple[str, ...]:
    if table == "ledger":
        return ("owner", "slot")
    (kind,) = [kind for kind, name in NAMES.items() if name == table]
    return RECORDS[kind].key


def _list(names: Any) -> str:
    return ", ".join(f'"{name}"' for name in names)


def _where(names: Sequence[str]) -> str:
    return " AND ".join(f'"{name}" = ?' for name in names)
