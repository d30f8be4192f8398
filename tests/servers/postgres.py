"""Fixtures for a real PostgreSQL: Debian's binaries, a cluster in a temporary folder, stopped at the end."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest

from tests.servers.places import MEMORY, free_port, in_memory

PASSWORD = "not-a-secret"
LIMITS = "-c shared_buffers=16MB -c max_connections=250 -c max_wal_size=128MB -c fsync=on -c autovacuum=off"


@dataclass(frozen=True, slots=True, kw_only=True)
class Postgres:
    """One server: trust on its Unix socket (which only its owner and root can reach), SCRAM on its loopback port."""

    binaries: Path
    folder: Path
    port: int
    account: str | None  # whom to become, None for the user that runs the tests

    @property
    def sockets(self) -> Path:
        return self.folder / "sockets"

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def ca(self) -> Path:
        """The CA that the server's certificate for ``localhost`` is from."""
        return self.folder / "ca.pem"

    def url(self, database: str) -> str:
        """For a StoreConfig, over the socket."""
        return f"postgresql://broker@/{database}?host={self.sockets}&port={self.port}"

    def tcp_url(self, database: str) -> str:
        """For a StoreConfig, over TCP; the password is ``PASSWORD``."""
        return f"postgresql://broker@localhost:{self.port}/{database}"

    def connect(self, database: str = "postgres") -> psycopg.Connection[tuple[object, ...]]:
        return psycopg.connect(
            host=str(self.sockets), port=self.port, user="broker", dbname=database, sslmode="disable", autocommit=True
        )

    def create_database(self, template: str = "template1") -> str:
        name = f"t{uuid4().hex}"
        with self.connect() as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}".encode())
        return name

    def drop_database(self, name: str) -> None:
        with self.connect() as connection:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())

    def empty(self, name: str, tables: Iterable[str]) -> None:
        """Delete all rows."""
        with self.connect(name) as connection:
            for table in tables:
                connection.execute(f"DELETE FROM {table}".encode())  # noqa: S608 - the tests' own names

    def start(self) -> None:
        """Start and wait until it answers; after a kill, until the old processes have let go of their memory."""
        options = f"{LIMITS} -k {self.sockets} -c listen_addresses=127.0.0.1 -p {self.port}"
        last_try = time.monotonic() + 60
        while self._run("pg_ctl", "start", "-w", "-D", str(self.data), "-l", str(self.folder / "log"), "-o", options):
            if time.monotonic() > last_try:
                raise RuntimeError((self.folder / "log").read_text()[-2000:])

    def stop(self, mode: str = "fast") -> None:
        """``fast`` or ``immediate`` (as after a crash)."""
        self._run("pg_ctl", "stop", "-w", "-D", str(self.data), "-m", mode)

    def kill(self) -> None:
        """SIGKILL the postmaster; its children notice by themselves."""
        os.kill(self.pid, signal.SIGKILL)

    @property
    def pid(self) -> int:
        return int((self.data / "postmaster.pid").read_text().split()[0])

    def make(self) -> None:
        """Create the cluster."""
        password = self.folder / "password"
        password.write_text(PASSWORD)
        self.sockets.mkdir(mode=0o700)
        for place in (self.folder, password, self.sockets):
            self._give(place)
        fault = self._run(
            "initdb", "-D", str(self.data), "-U", "broker", "-E", "UTF8", "--locale=C.UTF-8", "-N",
            "--auth-local=trust", "--auth-host=scram-sha-256", f"--pwfile={password}",
        )  # fmt: skip
        if fault:
            raise RuntimeError(fault)
        self._certify()

    def _certify(self) -> None:
        """A CA and a certificate for ``localhost``, by the openssl command."""
        folder, key, request = self.folder, self.data / "server.key", self.folder / "request.pem"
        new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        _openssl("req", "-x509", "-subj", "/CN=test CA", *new_key, "-keyout", f"{folder}/ca.key", "-out", str(self.ca))
        _openssl("req", "-subj", "/CN=localhost", *new_key, "-keyout", str(key), "-out", str(request))
        (folder / "names").write_text("subjectAltName=DNS:localhost")
        _openssl(
            "x509", "-req", "-in", str(request), "-CA", str(self.ca), "-CAkey", f"{folder}/ca.key", "-CAcreateserial",
            "-extfile", f"{folder}/names", "-out", f"{self.data}/server.crt",
        )  # fmt: skip
        key.chmod(0o600)
        for place in (key, self.data / "server.crt"):
            self._give(place)
        with (self.data / "postgresql.conf").open("a") as file:
            file.write("ssl = on\n")

    def _give(self, place: Path) -> None:
        if self.account:
            shutil.chown(place, self.account, self.account)

    def _run(self, program: str, *arguments: str) -> str:
        """Run one of PostgreSQL's programs as the account; "" or what it said when it failed."""
        with tempfile.TemporaryFile("w+") as said:  # not a pipe: the server inherits it
            done = subprocess.run(
                [self.binaries / program, *arguments],
                stdout=said, stderr=said, stdin=subprocess.DEVNULL, cwd="/", check=False, timeout=200,
                user=self.account, group=self.account, extra_groups=[] if self.account else None,
                env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"},
            )  # fmt: skip
            said.seek(0)
            return (said.read() or "failed") if done.returncode else ""


def _openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True, timeout=200)


def _binaries() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    if not found:
        pytest.fail("PostgreSQL is not installed: apt-get install postgresql")
    return found[-1].parent


def _account() -> str | None:
    """PostgreSQL refuses to run as root."""
    return pwd.getpwnam("postgres").pw_name if os.geteuid() == 0 else None


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A running server with TLS on its port, shared by the session; a test that stops it starts it again."""
    place = MEMORY if in_memory() else "/tmp"  # noqa: S108 - its account must get there
    with running(Path(place)) as server:
        yield server


@contextmanager
def running(place: Path) -> Iterator[Postgres]:
    """A server whose files are in a folder of their own in ``place``."""
    with tempfile.TemporaryDirectory(prefix="pg-", dir=place) as folder:
        server = Postgres(binaries=_binaries(), folder=Path(folder), port=free_port(), account=_account())
        server.make()
        server.start()
        try:
            yield server
        finally:
            server.stop("immediate")
