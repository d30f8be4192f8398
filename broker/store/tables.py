"""The tables, one for each kind of record, and the statements that are always the same.

Text is compared byte by byte on both databases (SQLite's BINARY, PostgreSQL's "C"), so that what is equal, and what
comes first, does not depend on a locale. SQLite's tables are STRICT: a cell has the type of its column.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

from sqlalchemy import (
    BigInteger,
    BindParameter,
    Column,
    ColumnElement,
    Index,
    Insert,
    Integer,
    LargeBinary,
    MetaData,
    Select,
    Table,
    Text,
    Update,
    and_,
    bindparam,
    case,
    cast,
    func,
    join,
    literal_column,
    select,
    tuple_,
    union_all,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.dialects.postgresql import TEXT
from sqlalchemy.types import TypeEngine

from broker.core.model import AuditHead, Key, KeyVersion, Lease, Secret, SecretVersion
from broker.core.records import RECORDS, due_of
from broker.store.asked import Asked
from broker.store.rows import FIELDS, microseconds, storable

REVISION = "0015"
"""The newest migration; revisions are numbers of four digits, so that newer and older can be told apart."""

Query = tuple[Select[Any], Mapping[str, str | int]]
"""A statement and its parameters."""

METADATA = MetaData()


def _type(sql: type) -> TypeEngine[Any]:
    if sql is str:
        return Text().with_variant(TEXT(collation="C"), "postgresql")
    return BigInteger().with_variant(Integer(), "sqlite") if sql is int else LargeBinary()


def _table(kind: type[Any]) -> Table:
    declared = RECORDS[kind]
    columns = [
        Column(
            field.name,
            _type(field.sql),
            primary_key=field.name in declared.key,
            nullable=field.nullable,
            autoincrement=False,
        )
        for field in FIELDS[kind]
    ]
    columns.append(Column("mac", LargeBinary(), nullable=True))  # NULL: nobody has vouched for the row yet
    name = declared.table
    indexes = [Index(f"ix_{name}_{title}", *found) for title, found in declared.indexes.items()]
    return Table(name, METADATA, *columns, *indexes, sqlite_strict=True)


TABLES: dict[type[Any], Table] = {kind: _table(kind) for kind in RECORDS}

LEADERSHIP = Table(
    "leadership",
    METADATA,
    Column("place", _type(int), primary_key=True, autoincrement=False),
    Column("fence", _type(int), nullable=False),
    sqlite_strict=True,
)
"""One row: the number of the newest leader."""

LEDGER = Table(
    "ledger",
    METADATA,
    Column("owner", _type(str), primary_key=True),
    Column("slot", _type(int), primary_key=True, autoincrement=False),
    Column("changes", _type(int), nullable=False),
    Column("sums", LargeBinary(), nullable=False),
    Column("mac", LargeBinary(), nullable=False),
    sqlite_strict=True,
)
"""What each process has added to the sums of the tables (``store.ledger``)."""

NEXT_FENCE = "UPDATE leadership SET fence = fence + 1 RETURNING fence"


KEY_COLUMNS: dict[type[Any], list[Column[Any]]] = {
    kind: [table.c[name] for name in RECORDS[kind].key] for kind, table in TABLES.items()
}
"""The primary key's columns in the order of the port, which is not always that of the table."""


_KEY_TYPES = {
    kind: [str if isinstance(column.type, Text) else int for column in columns] for kind, columns in KEY_COLUMNS.items()
}


def cells(kind: type[Any], key: tuple[str | int, ...]) -> tuple[str | int, ...]:
    """A whole primary key, checked to be one: of the right length and types."""
    if [*map(type, key)] == _KEY_TYPES[kind]:
        return tuple([storable(value) for value in key])
    return tuple(_cell(column, value) for column, value in zip(KEY_COLUMNS[kind], key, strict=True))


def by_key(kind: type[Any]) -> Select[Any]:
    """The row with the primary key in the parameters ``k0``, ``k1`` and so on."""
    conditions = [column == bindparam(f"k{place}", type_=column.type) for place, column in enumerate(KEY_COLUMNS[kind])]
    return select(TABLES[kind]).where(*conditions)


BY_KEY: dict[type[Any], Select[Any]] = {kind: by_key(kind) for kind in RECORDS}
LOCKED_BY_KEY = {kind: query.with_for_update() for kind, query in BY_KEY.items()}


def key_cells(kind: type[Any], key: tuple[str | int, ...]) -> dict[str, str | int]:
    """The parameters of a statement that names one row by its primary key."""
    return _numbered(cells(kind, key))


NEW_CELLS = {kind: tuple(f"n_{column.name}" for column in table.columns) for kind, table in TABLES.items()}
"""The parameters of ``UPDATE`` for the cells of the new row, in their order; the last one is its MAC."""


def _as_read(kind: type[Any]) -> list[ColumnElement[bool]]:
    """The row with the primary key ``k0``, ``k1``, …, if it is still the one with the MAC ``read``."""
    keys = [column == bindparam(f"k{place}", type_=column.type) for place, column in enumerate(KEY_COLUMNS[kind])]
    return [*keys, TABLES[kind].c.mac == bindparam("read", type_=LargeBinary)]


def _update(kind: type[Any]) -> Update:
    columns = zip(TABLES[kind].columns, NEW_CELLS[kind], strict=True)
    written = {column.name: bindparam(name, type_=column.type) for column, name in columns}
    return TABLES[kind].update().where(*_as_read(kind)).values(written)


INSERT: dict[str, dict[type[Any], Insert]] = {
    "sqlite": {kind: sqlite.insert(table).on_conflict_do_nothing() for kind, table in TABLES.items()},
    "postgresql": {kind: postgresql.insert(table).on_conflict_do_nothing() for kind, table in TABLES.items()},
}
"""By dialect and kind. Nothing is added when the primary key is in use: an error would end a PostgreSQL transaction."""


@lru_cache(maxsize=256)
def insert_of(dialect: str, kind: type[Any], count: int) -> Insert:
    """``INSERT`` of so many rows in one statement; the cells of the second row are under their names and ``_1``."""
    if count == 1:
        return INSERT[dialect][kind]
    columns = TABLES[kind].columns
    rows = [{each.name: bindparam(f"{each.name}_{row}", type_=each.type) for each in columns} for row in range(count)]
    return INSERT[dialect][kind].values(rows)


def inserted(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The parameters of ``insert_of`` so many rows."""
    if len(rows) == 1:
        return dict(rows[0])
    return {f"{name}_{place}": cell for place, row in enumerate(rows) for name, cell in row.items()}


UPDATE = {kind: _update(kind) for kind in TABLES}
"""Every cell under ``n_`` and its name; the row under ``k0``, … and ``read``, as for ``DELETE``."""

END_LEASE = (
    TABLES[Lease]
    .update()
    .where(*_as_read(Lease))
    .values(
        {
            name: bindparam(f"n_{name}", type_=TABLES[Lease].c[name].type)
            for name in ("state", "expires_at", "revision", "mac")
        }
    )
)
"""As ``UPDATE``, of the cells that the end of a lease changes."""

DELETE = {kind: table.delete().where(*_as_read(kind)) for kind, table in TABLES.items()}


def page(
    kind: type[Any], asked: Asked, after: tuple[str | int, ...], limit: int
) -> tuple[Select[Any], dict[str, str | int]]:
    """The port's ``page`` as a statement and its parameters: every value is one."""
    if limit < 1:
        raise ValueError("a page holds at least one record")
    statement = _page(kind, tuple(asked.cells), asked.field, bool(after))  # type: ignore[arg-type]  # a class is hashable
    return statement, _wanted(kind, asked) | _numbered(cells(kind, after) if after else ()) | {"most": limit}


@lru_cache(maxsize=1024)
def _page(kind: type[Any], names: tuple[str, ...], begun: str, after: bool) -> Select[Any]:  # noqa: FBT001 (a part of the key)
    keys = KEY_COLUMNS[kind]
    query = select(TABLES[kind]).where(*_equal(kind, names)).order_by(*keys)
    if begun:
        column = TABLES[kind].c[begun]
        query = query.where(column >= bindparam("from", type_=Text), column < bindparam("before", type_=Text))
    if after:
        bounds = [bindparam(f"k{place}", type_=column.type) for place, column in enumerate(keys)]
        query = query.where(tuple_(*keys) > tuple_(*bounds))
    return query.limit(bindparam("most", type_=BigInteger))


def last(kind: type[Any], asked: Asked) -> tuple[Select[Any], dict[str, str | int]]:
    """The port's ``last`` as a statement and its parameters."""
    return _last(kind, tuple(asked.cells)), _wanted(kind, asked)  # type: ignore[arg-type]  # as above


@lru_cache(maxsize=64)
def _last(kind: type[Any], names: tuple[str, ...]) -> Select[Any]:
    newest = [column.desc() for column in KEY_COLUMNS[kind]]
    return select(TABLES[kind]).where(*_equal(kind, names)).order_by(*newest).limit(1)


def due(kind: type[Any], before: datetime, limit: int, state: str) -> tuple[Select[Any], dict[str, str | int]]:
    """The port's ``due`` as a statement and its parameters."""
    time, wanted = due_of(kind, state)
    values: dict[str, str | int] = {"before": microseconds(before), "most": limit}
    return _due(kind, time, bool(wanted)), values | ({"state": storable(wanted)} if wanted else {})  # type: ignore[arg-type]  # as above


@lru_cache(maxsize=16)
def _due(kind: type[Any], title: str, in_state: bool) -> Select[Any]:  # noqa: FBT001 (a part of the key)
    table = TABLES[kind]
    time = table.c[title]
    query = select(table).where(time <= bindparam("before", type_=BigInteger)).order_by(time, *KEY_COLUMNS[kind])
    if in_state:
        query = query.where(table.c.state == bindparam("state", type_=Text))
    return query.limit(bindparam("most", type_=BigInteger))


def count(kind: type[Any], asked: Asked) -> tuple[Select[Any], dict[str, str | int]]:
    """The port's ``count`` as a statement and its parameters."""
    return _count(kind, tuple(asked.cells)), _wanted(kind, asked)  # type: ignore[arg-type]  # as above


@lru_cache(maxsize=1024)
def _count(kind: type[Any], names: tuple[str, ...]) -> Select[Any]:
    return select(func.count()).select_from(TABLES[kind]).where(*_equal(kind, names))


def _equal(kind: type[Any], names: tuple[str, ...]) -> list[ColumnElement[bool]]:
    columns = [TABLES[kind].c[name] for name in names]
    return [column == bindparam(f"w_{column.name}", type_=column.type) for column in columns]


def _wanted(kind: type[Any], asked: Asked) -> dict[str, str | int]:
    columns = TABLES[kind].c
    values = {f"w_{name}": _cell(columns[name], value) for name, value in asked.cells.items()}
    if not asked.field:
        return values
    return values | {"from": _cell(columns[asked.field], asked.begins), "before": storable(asked.behind)}


def _numbered(found: tuple[str | int, ...]) -> dict[str, str | int]:
    return {f"k{place}": value for place, value in enumerate(found)}


def _version() -> Select[Any]:
    keys, versions = TABLES[Key].c, TABLES[KeyVersion]
    number: BindParameter[int] = bindparam("number", type_=BigInteger)
    wanted = case((number == 0, keys.primary), else_=number)
    return (
        select(TABLES[Key], versions)
        .join(versions, and_(versions.c.key == keys.name, versions.c.number == wanted))
        .where(keys.name == bindparam("name", type_=keys.name.type))
    )


VERSION = _version()
"""A key and one of its versions: ``name``, and ``number``, of which 0 is the primary one."""


def _heads_of() -> Select[Any]:
    heads = TABLES[AuditHead]
    named = heads.c.chain.like(bindparam("pattern", type_=Text))
    newest = (heads.c.chain.desc(), heads.c.sequence.desc())
    return select(heads).where(named).order_by(*newest).limit(bindparam("most", type_=BigInteger))


HEADS_OF = _heads_of()
"""At most ``most`` heads of the chains whose name is like ``pattern``, the newest first."""


def secrets_of(wanted: Sequence[tuple[str, int]]) -> tuple[Select[Any], dict[str, str | int]]:
    """The port's ``secrets`` as a statement, whose rows begin with their place among ``wanted``."""
    names = {f"s{place}": storable(name) for place, (name, _) in enumerate(wanted)}
    numbers = {f"v{place}": storable(number) for place, (_, number) in enumerate(wanted)}
    return _secrets_of(len(wanted)), names | numbers


@lru_cache(maxsize=128)
def _secrets_of(count: int) -> Select[Any]:
    asked = union_all(*map(_asked, range(count))).subquery()
    secrets, versions = TABLES[Secret], TABLES[SecretVersion]
    number = case((asked.c.number == 0, secrets.c.latest), else_=asked.c.number)
    same = and_(versions.c.secret == secrets.c.name, versions.c.number == number)
    rows = join(asked, secrets, secrets.c.name == asked.c.name).outerjoin(versions, same)
    columns: list[ColumnElement[Any]] = [asked.c.place, *secrets.c, *versions.c]
    return select(*columns).select_from(rows)


def _asked(place: int) -> Select[Any]:
    name: BindParameter[str] = bindparam(f"s{place}", type_=Text)
    number: BindParameter[int] = bindparam(f"v{place}", type_=BigInteger)
    columns: list[ColumnElement[Any]] = [
        literal_column(str(place)).label("place"),
        cast(name, Text).label("name"),
        cast(number, BigInteger).label("number"),
    ]
    return select(*columns)


def _cell(column: Column[Any], value: str | int) -> str | int:
    if isinstance(value, str) is not isinstance(column.type, Text):
        raise TypeError(f"{column.name} is compared with a value of another type")
    return storable(value)
