"""Every error of the libraries below becomes one of the broker's, and says nothing of theirs."""

from __future__ import annotations

import inspect
import sqlite3
from typing import TypeVar

import psycopg.errors
import sqlalchemy.exc
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from broker.core.errors import Unavailable, WrongState
from broker.store.refusals import CONFLICTS, refusal

E = TypeVar("E", bound=BaseException)

CANARY = "canary-7f3a"


def classes(module: object, base: type[E], at_least: int) -> list[type[E]]:
    found = {member for _, member in inspect.getmembers(module, inspect.isclass) if issubclass(member, base)}
    assert len(found) >= at_least
    return sorted(found, key=lambda member: member.__name__)


def wrapped(error: BaseException) -> DBAPIError:
    """As SQLAlchemy hands on a driver's error."""
    return DBAPIError.instance(  # type: ignore[return-value]
        f"SELECT {CANARY}", {"name": CANARY}, error, (sqlite3.Error, psycopg.Error)[isinstance(error, psycopg.Error)]
    )


def test_CL_11_every_error_of_psycopg_has_a_refusal() -> None:
    for kind in classes(psycopg.errors, psycopg.Error, 200):
        error = refusal(wrapped(kind(CANARY)))
        conflict = (getattr(kind, "sqlstate", None) or "") in CONFLICTS
        assert type(error) is (WrongState if conflict else Unavailable)
        assert error.reason == ("CHANGED_MEANWHILE" if conflict else "STORE_UNAVAILABLE")
        assert CANARY not in str(error)
        assert "SELECT" not in str(error)


def test_CL_11_every_error_of_sqlite_has_a_refusal() -> None:
    for kind in classes(sqlite3, sqlite3.Error, 9):
        error = refusal(wrapped(kind(CANARY)))
        assert type(error) is Unavailable
        assert error.reason == "STORE_UNAVAILABLE"
        assert CANARY not in str(error)


def test_CL_11_every_error_of_sqlalchemy_has_a_refusal() -> None:
    for kind in classes(sqlalchemy.exc, SQLAlchemyError, 30):
        error = refusal(kind.__new__(kind))
        assert error.reason == "STORE_UNAVAILABLE"
