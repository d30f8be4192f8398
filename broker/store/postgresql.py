"""PostgreSQL through psycopg 3: nothing from the environment, TLS off this machine, and no wait without an end."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime
from typing import Any, TypeVar

import psycopg
import structlog
from psycopg import waiting
from psycopg.abc import PQGen
from psycopg.conninfo import make_conninfo
from psycopg.errors import OperationalError
from psycopg.pq import Conninfo
from sqlalchemy import Connection, Engine, Executable, create_engine, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool, QueuePool

from broker.core.errors import WrongState
from broker.core.reasons import Reason
from broker.store.config import StoreConfig
from broker.store.database import Change, MakeDurable, Readers, Stream, transaction
from broker.store.driver import Driver
from broker.store.election import Election
from broker.store.private import password, strictly_private
from broker.store.refusals import unconfirmed
from broker.store.rows import instant
from broker.store.waits import Waits

T = TypeVar("T")

log = structlog.get_logger(__name__)

TELL_EVERY = 60.0
"""Seconds until the same words of the driver are logged again."""

MIGRATION_PATIENCE = 120.0
MIGRATION_LOCK = 0x62726F6B65720001
"""The advisory lock that a migrating process holds; the same in every release."""

_SESSION = {
    "default_transaction_isolation": "read\\ committed",
    "default_transaction_read_only": "off",
    "plan_cache_mode": "force_generic_plan",  # every read is by primary key: planning costs more than it gains
    "synchronous_commit": "on",  # a role's setting could turn it off, and a confirmed change be lost
}

_UNSWERVING = ("PGSERVICE", "PGTZ", "PGDATESTYLE", "PGGEQO")
"""The variables that libpq reads whatever it is told."""

_NOT_EMPTY = {b"min_protocol_version": b"3.0", b"max_protocol_version": b"3.0"}

CLOCK = text("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint")

_time_is_up = threading.local()


class BoundedConnection(psycopg.Connection[Any]):
    """Gives the server up when the time of the thread's call is over, and closes the line to it."""

    def wait(self, gen: PQGen[T], interval: float = 0.1, timeout: float | None = None) -> T:
        """As psycopg's, with an end."""
        try:
            return super().wait(gen, interval=interval, timeout=_left() if timeout is None else timeout)
        except psycopg.errors._WaitTimeout as late:  # noqa: SLF001 - psycopg has no public name for it
            self.pgconn.finish()  # what the server still sends belongs to nobody
            raise OperationalError("the server did not answer in time") from late

    def __del__(self, *_: object) -> None:
        """Close the line: SQLAlchemy lets go of a connection whose first questions fail, and does not close it."""
        if hasattr(self, "pgconn"):
            self.pgconn.finish()


class Postgresql:
    """A PostgreSQL database; see ``Database`` for the methods."""

    name = "postgresql"

    def __init__(self, config: StoreConfig) -> None:
        refuse_environment()
        self._config, self._waits = config, config.waits
        self._told, self._told_at = "", 0.0
        self.bound()
        # SQLAlchemy keeps the connections of changes, and asks each before its use whether the server is still there
        self._writers = self._engine(
            poolclass=QueuePool, pool_size=8, max_overflow=8, pool_timeout=self._waits.turn, pool_pre_ping=True
        )
        self.driver = Driver(self._writers)
        self._readers = Readers(self._engine(poolclass=NullPool, isolation_level="AUTOCOMMIT"))
        self._election = Election(self._connect_as_candidate)

    def read(self, statement: Executable, parameters: Mapping[str, Any] | None = None) -> list[Sequence[Any]]:
        """See ``Database``."""
        self.bound()
        return self._readers.read(statement, parameters)

    def snapshot(self) -> AbstractContextManager[Stream]:
        """See ``Database``."""
        self.bound()
        return self._readers.snapshot("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY", {"name": "rows"}, self.bound)

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """See ``Database``."""
        self.bound()
        with transaction(self._begun) as connection:
            try:
                yield connection
            finally:
                self.bound()  # for the rollback, however long the body took

    @contextmanager
    def change(self, make_durable: MakeDurable) -> Iterator[Change]:
        """See ``Database``: here each has a transaction of its own, and the server shares the waits for its disk."""
        asked = time.monotonic()
        with self.transaction() as connection:
            waited = time.monotonic() - asked
            change = Change(connection)
            yield change
            with make_durable([change.made], waited):
                self.bound()
                try:
                    connection.commit()
                except SQLAlchemyError as error:
                    raise unconfirmed() from error

    @contextmanager
    def migration(self) -> Iterator[Connection]:
        """See ``Database``."""
        _time_is_up.at = time.monotonic() + MIGRATION_PATIENCE
        with transaction(self._writers.connect) as connection:
            connection.execute(text("SET LOCAL statement_timeout = '100s'"))
            connection.execute(text("SET LOCAL lock_timeout = '100s'"))
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": MIGRATION_LOCK})
            yield connection

    def lead(self) -> int | None:
        """See ``Database``."""
        self.bound()
        return self._election.lead()

    def clock(self) -> datetime:
        """See ``Database``."""
        return instant(self.read(CLOCK)[0][0])

    def bound(self) -> None:
        """See ``Database``."""
        _time_is_up.at = time.monotonic() + self._waits.server

    def close(self) -> None:
        """See ``Database``."""
        self.bound()
        self._election.close()
        self._readers.close()
        self._writers.dispose()

    def _engine(self, **how: Any) -> Engine:
        return create_engine(
            "postgresql+psycopg://",
            creator=self._connect,
            hide_parameters=True,
            use_native_hstore=False,
            **how,
        )

    def _begun(self) -> Connection:
        connection = self._writers.connect()
        connection.begin()  # the driver begins by itself; this is what makes the commit one
        return connection

    def _connect_as_candidate(self) -> BoundedConnection:
        return self._connect(idle_session_timeout=_milliseconds(self._waits.silence))

    def _connect(self, **settings: str) -> BoundedConnection:
        # psycopg's own connect() waits two seconds at least, so its last step is made here
        generator = BoundedConnection._connect_gen(conninfo(self._config, **settings))  # noqa: SLF001
        try:
            return waiting.wait_conn(generator, interval=0.1, timeout=_left())
        except psycopg.errors._WaitTimeout as late:  # noqa: SLF001
            self._tell("the server did not answer in time")
            raise OperationalError("the server did not answer in time") from late
        except psycopg.Error as error:
            self._tell(str(error))
            raise

    def _tell(self, said: str) -> None:
        """Log the driver's own words, the same ones once a minute; they name no password, and are looked at for it."""
        if self._config.password_file:
            said = said.replace(password(self._config.password_file), "…")
        if said != self._told or time.monotonic() > self._told_at + TELL_EVERY:
            self._told, self._told_at = said, time.monotonic()
            log.warning("the database was not reached", said=said)


def conninfo(config: StoreConfig, **settings: str) -> str:
    """The whole connection string: every option that libpq would take from the environment is given a value.

    ``settings`` are the server's, for this connection, besides those that all have.
    """
    parsed = config.parsed
    if config.passfile:
        strictly_private(config.passfile)
    chosen = {
        "host": config.host,
        "port": config.port,
        "user": parsed.username,
        "dbname": parsed.database,
        "password": password(config.password_file) if config.password_file else "",
        "passfile": str(config.passfile or "/dev/null/none"),  # an empty one would mean ~/.pgpass
        "sslmode": "verify-full" if config.tls_root else "disable",
        "sslrootcert": str(config.tls_root or ""),
        "sslcertmode": "disable",  # an empty sslcert would mean ~/.postgresql
        "gssencmode": "disable",
        "require_auth": "!password,!md5",  # the server that answers learns nothing of the password
        "application_name": config.replica,  # so that pg_stat_activity says whose it is
        "client_encoding": "UTF8",
        "target_session_attrs": "read-write",
        "tcp_user_timeout": _milliseconds(config.waits.silence),
        "options": " ".join(f"-c {name}={value}" for name, value in {**_session(config.waits), **settings}.items()),
    }
    return make_conninfo("", **{**_compiled(), **chosen})


def _session(waits: Waits) -> dict[str, str]:
    """The server's settings for every connection; milliseconds are what it takes a number without a unit for."""
    return {
        **_SESSION,
        "statement_timeout": _milliseconds(waits.statement),
        "lock_timeout": _milliseconds(waits.lock),
        "idle_in_transaction_session_timeout": _milliseconds(waits.silence),
    }


def _milliseconds(seconds: float) -> str:
    return str(round(seconds * 1000))


def _compiled() -> dict[str, str]:
    """Each option that has a variable, at the value it would have without; some may not be empty."""
    return {
        option.keyword.decode(): (option.compiled or _NOT_EMPTY.get(option.keyword, b"")).decode()
        for option in Conninfo.get_defaults()
        if option.envvar and option.keyword != b"service"
    }


def refuse_environment() -> None:
    """WrongState ``ENVIRONMENT_REFUSED`` if a variable is set that libpq obeys over its arguments."""
    found = [name for name in _UNSWERVING if name in os.environ]
    if found:
        raise WrongState(
            Reason.ENVIRONMENT_REFUSED,
            f"The environment variable {found[0]} would change how PostgreSQL is used; unset it and start again.",
        )


def _left() -> float:
    return max(0.001, float(_time_is_up.at) - time.monotonic())
