"""Which of all processes on one PostgreSQL database leads: an advisory lock for who may, a number for who may still.

The lock is held by a connection that does nothing else, and the server ends that connection when it hears nothing for
``Waits.silence``: so a leader that was stopped, or whose host is gone, is replaced although its line still stands. Such
a leader may wake up and not know it yet; therefore every leader takes a new number, and whatever it writes is refused
once there is a higher one (``SqlWrite.check_leader``).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from threading import Lock
from typing import Any

import psycopg

from broker.store.refusals import unavailable
from broker.store.tables import NEXT_FENCE

LEADER_LOCK = 0x62726F6B65720002
"""The advisory lock that the leader holds; the same in every release."""


class Election:
    """One process's part in it. Thread-safe.

    ``connect`` makes the connection, which is kept; it has the server wait so long for the next word and no longer
    (idle_session_timeout, PostgreSQL 14).
    """

    def __init__(self, connect: Callable[[], psycopg.Connection[Any]]) -> None:
        self._connect = connect
        self._connection: psycopg.Connection[Any] | None = None
        self._fence: int | None = None
        self._turn = Lock()

    def lead(self) -> int | None:
        """See ``Store.lead``; a process that cannot ask does not lead."""
        with self._turn:
            try:
                return self._ask()
            except psycopg.Error as error:
                self._leave()
                raise unavailable("The database does not say who leads") from error

    def close(self) -> None:
        """Let another lead at once."""
        with self._turn:
            self._leave()

    def _ask(self) -> int | None:
        if self._connection is None:
            self._connection = self._connect()
            self._connection.autocommit = True
        if self._fence is not None:
            self._answer(self._connection, "SELECT 1")  # still connected, so still holding the lock
        elif self._answer(self._connection, f"SELECT pg_try_advisory_lock({LEADER_LOCK})"):
            self._fence = int(self._answer(self._connection, NEXT_FENCE))
        return self._fence

    def _leave(self) -> None:
        connection, self._connection, self._fence = self._connection, None, None
        if connection is not None:
            with suppress(psycopg.Error):
                connection.close()

    @staticmethod
    def _answer(connection: psycopg.Connection[Any], statement: str) -> Any:
        row = connection.execute(statement.encode()).fetchone()
        if row is None:
            raise psycopg.DataError("the row of the leadership is missing")
        return row[0]
