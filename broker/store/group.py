"""Several changes, one commit: on SQLite, a change that waits for the writing connection joins the transaction on it.

A change holds the turn while it makes its statements. If another one waits for the turn by then, it is handed on with
the transaction still open, and the one that finds nobody waiting makes all of it durable: one row of the ledger,
the audit entries of all, then the commit. So the two waits for the disk are shared, and still no change is in the
database without its entries.
They all share the fate of that commit; a change that fails before is taken back alone. It may have failed for what
those before it did, and what its caller reads next does not show that yet: so it waits for the end like the others.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

from broker.store.database import Change, MakeDurable, transaction
from broker.store.driver import Driver
from broker.store.refusals import refusal, unavailable, unconfirmed
from broker.store.waits import Waits

BEGIN = "BEGIN IMMEDIATE"

MOST = 16
"""Changes in one commit, those that failed counted: the first of them waits for the last."""


@dataclass(slots=True, eq=False)
class _Member:
    """A change that is over but for the commit; ``done`` is locked until it is known what became of that."""

    made: Any  # None of one that failed and was taken back
    waited: float
    done: threading.Lock = field(default_factory=threading.Lock)
    fault: Exception | None = None

    def wait(self, seconds: float) -> None:
        """Return when all of the group is committed; raise why it is not."""
        if not self.done.acquire(timeout=seconds):
            raise unconfirmed()
        if self.fault is not None:
            raise self.fault


class Group:
    """The turns on the one connection of ``writer``.

    ``check`` is asked before each transaction; ``waits`` for a turn, and for the group. Changes have transactions of
    the driver's own: SQLAlchemy takes five times as long over one as SQLite does.
    """

    def __init__(self, writer: Engine, driver: Driver, check: Callable[[], None], waits: Waits) -> None:
        self.turn = threading.Lock()
        self._writer = writer
        self._driver = driver
        self._check = check
        self._waits = waits
        self._kept: Connection | None = None
        self._count = threading.Lock()
        self._waiting = 0
        self._closed = False
        # Of the change that has the turn:
        self._connection: Connection | None = None
        self._members: list[_Member] = []
        self._make_durable: MakeDurable | None = None

    @contextmanager
    def alone(self) -> Iterator[Connection]:
        """A transaction by itself, whose commit is the caller's; what is not committed is taken back."""
        self._take()
        try:
            self._finish()
            with transaction(self._begun) as connection:
                yield connection
        finally:
            self.turn.release()

    @contextmanager
    def change(self, make_durable: MakeDurable) -> Iterator[Change]:
        """See ``Database.change``."""
        asked = time.monotonic()
        self._take()
        member = _Member(None, time.monotonic() - asked)
        self._make_durable = make_durable
        try:
            with self._statements() as change:
                yield change
            member.made = change.made
            self._join(member)
        except BaseException:
            if self._members:
                self._join(member)
            raise
        finally:
            self._leave()
            member.wait(self._waits.together)

    def close(self) -> None:
        """Finish the group; no transaction begins any more."""
        with self.turn:
            self._finish()
            self._closed = True

    def _join(self, member: _Member) -> None:
        member.done.acquire()
        self._members.append(member)

    def _take(self) -> None:
        with self._count:
            self._waiting += 1
        got = self.turn.acquire(timeout=self._waits.turn)
        with self._count:
            self._waiting -= 1
            # The change that had the turn last may have counted on this one to finish the group.
            got = got or self.turn.acquire(blocking=False)
        if not got:
            raise unavailable("Other changes are being made and do not end")

    @contextmanager
    def _statements(self) -> Iterator[Change]:
        """One change's share of the transaction, taken back when it fails."""
        joined = bool(self._members)
        try:
            connection = self._opened()
            if joined:
                self._driver.run(connection, "SAVEPOINT one")
            yield Change(connection)
            if joined:
                self._driver.run(connection, "RELEASE one")
        except BaseException as error:
            self._take_back(joined=joined)
            if isinstance(error, SQLAlchemyError):
                raise refusal(error) from error
            raise

    def _take_back(self, *, joined: bool) -> None:
        if not joined or self._connection is None:
            self._close()
            return
        try:
            self._driver.run(self._connection, "ROLLBACK TO one")
            self._driver.run(self._connection, "RELEASE one")
        except SQLAlchemyError as error:  # a full disk, for one, ends the whole transaction
            self._settle(refusal(error))
        except BaseException:  # half of the failed change may still be in it
            self._settle(unconfirmed())
            raise

    def _leave(self) -> None:
        """Hand the turn on with the transaction open, or finish the group."""
        with self._count:
            if self._waiting and len(self._members) < MOST:
                self.turn.release()
                return
        try:
            self._finish()
        finally:
            self.turn.release()

    def _finish(self) -> None:
        if not self._members:
            return
        fault: Exception | None = None
        try:
            self._commit()
        except Exception as error:  # noqa: BLE001 (whatever it is, all of the group are told)
            fault = error
        except BaseException:
            fault = unconfirmed()
            raise
        finally:
            self._settle(fault)

    def _commit(self) -> None:
        assert self._make_durable is not None  # noqa: S101  with each member
        assert self._connection is not None  # noqa: S101  as long as there are members
        made = [member.made for member in self._members if member.made is not None]
        with self._make_durable(made, max(member.waited for member in self._members)):
            try:
                self._driver.run(self._connection, "COMMIT")
            except SQLAlchemyError as error:
                raise unconfirmed() from error

    def _settle(self, fault: Exception | None) -> None:
        members, self._members = self._members, []
        try:
            self._close()
        finally:
            for member in members:
                member.fault = fault
                member.done.release()

    def _check_open(self) -> None:
        if self._closed:
            raise unavailable("The broker is being stopped")
        self._check()

    def _begun(self) -> Connection:
        self._check_open()
        connection = self._writer.connect()
        connection.begin()
        return connection

    def _opened(self) -> Connection:
        if self._connection is None:
            self._check_open()
            self._kept = self._kept or self._writer.connect()
            self._driver.run(self._kept, BEGIN)
            self._connection = self._kept
        return self._connection

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        driver: Any = connection and connection.connection.driver_connection
        if connection is not None and driver.in_transaction:
            try:
                self._driver.run(connection, "ROLLBACK")
            except BaseException as error:
                self._kept = None
                connection.invalidate()  # whatever is not committed goes with it, and nothing begins within it
                if not isinstance(error, SQLAlchemyError):
                    raise
