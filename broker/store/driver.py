"""Statements as the driver takes them: SQLAlchemy compiles each once, and is not asked again.

It takes several times as long over a statement as the database does, and a fetch makes five of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, Dialect, Engine, Executable
from sqlalchemy.exc import DBAPIError

PREPARED = 256
"""Statements that are kept as the driver takes them."""

Values = Mapping[str, Any]
Prepared = tuple[str, Callable[[Values], Any]]
"""Text of the driver's own dialect, and how it wants the values: by name or by place."""


class Driver:
    """Carries statements out on connections of one engine; every error is SQLAlchemy's ``DBAPIError``.

    ``errors``: the driver's own, which ``translated`` turns into that.
    """

    def __init__(self, engine: Engine) -> None:
        self._dialect = engine.dialect
        self.errors: type[Exception] = engine.dialect.loaded_dbapi.Error
        self._prepared = lru_cache(PREPARED)(self._prepare)

    def read(self, connection: Connection, statement: Executable, values: Values | None = None) -> list[Sequence[Any]]:
        """The rows of one statement."""
        sql, arranged = self._prepared(statement)
        driver: Any = connection.connection.driver_connection
        try:
            rows: list[Sequence[Any]] = driver.execute(sql, arranged(values or {})).fetchall()
        except self.errors as error:
            raise self.translated(error, connection) from error
        return rows

    def change(self, connection: Connection, statement: Executable, rows: Sequence[Values]) -> int:
        """Carry the statement out for each set of values; how many rows of the database that changed."""
        sql, arranged = self._prepared(statement)
        driver: Any = connection.connection.driver_connection
        try:
            cursor = driver.cursor()
            if len(rows) == 1:
                cursor.execute(sql, arranged(rows[0]))
            else:
                cursor.executemany(sql, [arranged(row) for row in rows])
            changed: int = cursor.rowcount
        except self.errors as error:
            raise self.translated(error, connection) from error
        return changed

    def run(self, connection: Connection, sql: str) -> None:
        """Carry out a statement without values and rows, which SQLAlchemy is not told of: BEGIN and its like."""
        driver: Any = connection.connection.driver_connection
        try:
            driver.execute(sql).close()
        except self.errors as error:
            raise self.translated(error, connection) from error

    def translated(self, error: Exception, connection: Connection) -> DBAPIError:
        """SQLAlchemy's error for one of the driver's own (``errors``)."""
        driver: Any = connection.connection.driver_connection
        gone = self._dialect.is_disconnect(error, driver, None)  # type: ignore[arg-type]  # the driver's own
        if gone:
            connection.invalidate(error)  # or the pool would try to roll back on it
        found = DBAPIError.instance(
            None, None, error, self.errors, hide_parameters=True, connection_invalidated=gone, dialect=self._dialect
        )
        return found if isinstance(found, DBAPIError) else DBAPIError(None, None, error, hide_parameters=True)

    def text(self, statement: Executable) -> str:
        """A statement without values, for a cursor of the driver's own."""
        return self._prepared(statement)[0]

    def _prepare(self, statement: Executable) -> Prepared:
        dialect = self._dialect
        return _compiled(statement, _Tongue(type(dialect), getattr(dialect, "server_version_info", None), dialect))


@dataclass(frozen=True, slots=True)
class _Tongue:
    """What the text of a statement depends on; ``dialect`` is any engine's that is the same in it."""

    kind: type[Dialect]
    version: tuple[Any, ...] | None
    dialect: Dialect = field(compare=False)


@lru_cache(2 * PREPARED)
def _compiled(statement: Executable, tongue: _Tongue) -> Prepared:
    """For all engines of this process: one that opens a database again does not compile again."""
    compiled: Any = statement.compile(dialect=tongue.dialect)  # type: ignore[attr-defined]
    fixed = {name: value for name, value in compiled.params.items() if value is not None}
    places = compiled.positiontup
    if places is None:
        return compiled.string, lambda values: {**fixed, **values}
    if fixed:
        return compiled.string, lambda values: _in_order({**fixed, **values}, places)
    return compiled.string, lambda values: _in_order(values, places)


def _in_order(values: Values, places: Sequence[str]) -> list[Any]:
    return [values[name] for name in places]
