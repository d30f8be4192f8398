"""Where the store is: one database and one journal folder, checked whole before anything is opened."""

from __future__ import annotations

import ipaddress
from functools import cached_property
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

SQLITE, POSTGRESQL = "sqlite", "postgresql"


def _absolute(path: Path) -> Path:
    if not path.is_absolute():
        raise ValueError("The path is not absolute; write it from the root, so that it means the same everywhere.")
    return path


AbsolutePath = Annotated[Path, AfterValidator(_absolute)]


class StoreConfig(BaseModel):
    """The ``[store]`` table of the configuration.

    ``url``: ``sqlite:////var/lib/broker/broker.db`` or ``postgresql://user@host:port/database``, never with a
    password. A PostgreSQL server on a Unix socket is ``postgresql://user@/database?host=/run/postgresql`` (with
    ``&port=`` where it is not 5432). Any server that is not on a socket or loopback address is reached only over TLS
    with its certificate and name verified against ``tls_root``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    url: str = Field(max_length=1024)
    journal: AbsolutePath
    replica: str = Field(default="broker", pattern=r"^[a-z](?:-?[a-z0-9]){0,31}$")
    password_file: AbsolutePath | None = None
    tls_root: AbsolutePath | None = None
    journal_file_bytes: int = Field(default=64 * 1024 * 1024, ge=64 * 1024, le=1024 * 1024 * 1024)

    @model_validator(mode="after")
    def _check(self) -> StoreConfig:
        if self.parsed.get_backend_name() == SQLITE:
            self._check_sqlite()
        else:
            self._check_postgresql()
        return self

    @cached_property
    def parsed(self) -> URL:
        """The URL in its parts."""
        try:
            parsed = make_url(self.url)
        except ArgumentError:
            raise ValueError("The store's url is not a URL; write sqlite:////path or postgresql://…") from None
        if parsed.drivername not in {SQLITE, POSTGRESQL}:
            raise ValueError("The store's url names another kind of database; use sqlite: or postgresql:.")
        return parsed

    @property
    def sqlite(self) -> bool:
        """True when the database is a file, which is for one process only."""
        return self.parsed.drivername == SQLITE

    def of_worker(self, number: int) -> StoreConfig:
        """The store of one worker of several: the same, with an audit chain of its own."""
        return self.model_copy(update={"replica": f"{self.replica}-w{number}"})

    @property
    def local(self) -> bool:
        """True when the bytes to the database never leave this machine."""
        host = self.host
        return self.sqlite or host.startswith("/") or host == "localhost" or _loopback(host)

    @property
    def host(self) -> str:
        """The PostgreSQL server's name or address, or the folder of its socket."""
        return self.parsed.host or str(self.parsed.query.get("host", ""))

    @property
    def port(self) -> str:
        """The PostgreSQL server's port, in digits."""
        return str(self.parsed.port or self.parsed.query.get("port", "5432"))

    def _check_sqlite(self) -> None:
        path = self.parsed.database or ""
        if not path.startswith("/") or self.parsed.query or self.parsed.host or self.parsed.username:
            raise ValueError("The SQLite url holds more or less than an absolute path; write sqlite:////path/of/file.")
        if self.password_file or self.tls_root:
            raise ValueError("SQLite has no password and no TLS; leave password_file and tls_root out.")

    def _check_postgresql(self) -> None:
        url = self.parsed
        if url.password is not None:
            raise ValueError("The store's url holds a password; put it in a file (0600) and name it in password_file.")
        if set(url.query) - {"host", "port"}:
            raise ValueError("The store's url has parameters other than host and port; leave them out.")
        if not url.username or not url.database or not self.host or not self.port.isdecimal():
            raise ValueError("The PostgreSQL url lacks a part; write postgresql://user@host:port/database.")
        if url.host and url.query:
            raise ValueError("The PostgreSQL url names its host twice; keep one.")
        if not self.local and self.tls_root is None:
            raise ValueError(
                "The PostgreSQL server is on another machine and nothing verifies it; set tls_root to the CA file."
            )


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
