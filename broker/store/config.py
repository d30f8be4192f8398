"""Where the store is: one database and one journal folder, checked whole before anything is opened."""

from __future__ import annotations

import ipaddress
from functools import cached_property
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from broker.store.waits import LONGEST, SHORTEST, USUAL, Waits

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
    ``&port=`` where it is not 5432). Several servers stand with commas between them, as do their ports in ``&port=``;
    whichever takes writes is used. Unless all are on a socket or loopback address they are reached only over TLS, with
    certificate and name verified against ``tls_root``.

    ``patience_seconds``: within about how long a call is refused when database or journal do not answer; every wait for
    them follows from it (``store.waits``).
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    url: str = Field(max_length=1024)
    journal: AbsolutePath
    replica: str = Field(default="broker", pattern=r"^[a-z](?:-?[a-z0-9]){0,31}$")
    password_file: AbsolutePath | None = None  # one line, the password
    passfile: AbsolutePath | None = None  # or a file as libpq's PGPASSFILE names it, with a line for each server
    tls_root: AbsolutePath | None = None
    journal_file_bytes: int = Field(default=64 * 1024 * 1024, ge=64 * 1024, le=1024 * 1024 * 1024)

    patience_seconds: float = Field(default=USUAL, ge=SHORTEST, le=LONGEST, allow_inf_nan=False)

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
        except (ArgumentError, ValueError):  # the latter for a port that is no number
            raise ValueError("The store's url is not a URL; write sqlite:////path or postgresql://…") from None
        if parsed.drivername not in {SQLITE, POSTGRESQL}:
            raise ValueError("The store's url names another kind of database; use sqlite: or postgresql:.")
        return parsed

    @property
    def waits(self) -> Waits:
        """How long the store waits for what."""
        return Waits(self.patience_seconds)

    @property
    def sqlite(self) -> bool:
        """True when the database is a file, which is for one process only."""
        return self.parsed.drivername == SQLITE

    def of_worker(self, number: int) -> StoreConfig:
        """The store of one worker of several: the same, with an audit chain of its own."""
        return self.model_copy(update={"replica": f"{self.replica}-w{number}"})

    @property
    def local(self) -> bool:
        """True when the bytes to the database never leave this machine, whichever of its servers answers."""
        return self.sqlite or all(map(_local, self.hosts))

    @property
    def hosts(self) -> tuple[str, ...]:
        """The names or addresses of the PostgreSQL servers, or the folders of their sockets, in the order of trial."""
        return _listed(self.parsed.host or self.parsed.query.get("host", ""))

    @property
    def host(self) -> str:
        """The hosts as libpq takes them."""
        return ",".join(self.hosts)

    @property
    def port(self) -> str:
        """The port of all hosts in digits, or that of each, as libpq takes them."""
        return ",".join(_listed(self.parsed.query.get("port", str(self.parsed.port or 5432))))

    def _check_sqlite(self) -> None:
        path = self.parsed.database or ""
        if not path.startswith("/") or self.parsed.query or self.parsed.host or self.parsed.username:
            raise ValueError("The SQLite url holds more or less than an absolute path; write sqlite:////path/of/file.")
        if self.password_file or self.passfile or self.tls_root:
            raise ValueError("SQLite has no password and no TLS; leave password_file, passfile and tls_root out.")

    def _check_postgresql(self) -> None:
        url = self.parsed
        if url.password is not None:
            raise ValueError("The store's url holds a password; put it in a file (0600) and name it in password_file.")
        if self.password_file and self.passfile:
            raise ValueError("password_file and passfile both say where the password is; keep one.")
        if set(url.query) - {"host", "port"}:
            raise ValueError("The store's url has parameters other than host and port; leave them out.")
        ports = self.port.split(",")
        if not url.username or not url.database or not all(self.hosts) or not all(map(str.isdecimal, ports)):
            raise ValueError("The PostgreSQL url lacks a part; write postgresql://user@host:port/database.")
        if url.host and url.query:
            raise ValueError("The PostgreSQL url names its host twice; keep one.")
        if len(ports) not in {1, len(self.hosts)}:
            raise ValueError("The PostgreSQL url has neither one port for all of its hosts nor one for each.")
        if any(":" in host and not _address(host) for host in self.hosts):
            raise ValueError("A host of the PostgreSQL url has a port in it; give the ports with &port=.")
        if not self.local and self.tls_root is None:
            raise ValueError(
                "A PostgreSQL server is on another machine and nothing verifies it; set tls_root to the CA file."
            )


def _listed(value: str | tuple[str, ...]) -> tuple[str, ...]:
    """Several are written with commas between them, or each on its own; libpq takes both apart in this way."""
    return tuple(part for one in ([value] if isinstance(value, str) else value) for part in one.split(","))


def _local(host: str) -> bool:
    address = _address(host)
    return host.startswith("/") or host == "localhost" or (address is not None and address.is_loopback)


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
