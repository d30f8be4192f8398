"""PostgreSQL as Debian sets it up: what is documented works, and what does not says why, without the password."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from broker.core.errors import BrokerError
from broker.store.config import StoreConfig
from broker.store.sql import SqlStore
from tests.fakes.refusals import refused
from tests.servers.places import MEMORY, free_port, in_memory
from tests.servers.postgres import PASSWORD, Postgres, running

DEBIAN = """\
local   all             postgres                                peer
local   all             all                                     peer
host    all             all             127.0.0.1/32            scram-sha-256
host    all             all             ::1/128                 scram-sha-256
"""
"""Debian's own pg_hba.conf; the first line lets the tests in, on a socket that only they can reach."""


@pytest.fixture(scope="module")
def debian() -> Iterator[Postgres]:
    """A server with Debian's rules, in it the role and the database of docs/operations.md."""
    with running(MEMORY if in_memory() else Path("/tmp")) as server:  # noqa: S108
        with server.connect() as admin:
            admin.execute(f"CREATE ROLE app LOGIN PASSWORD '{PASSWORD}'".encode())
            admin.execute(b"CREATE DATABASE app OWNER app")
            admin.execute(b"CREATE DATABASE another")
            admin.execute(b"CREATE ROLE locked NOLOGIN")
            admin.execute(f"SET password_encryption = 'md5'; CREATE ROLE old LOGIN PASSWORD '{PASSWORD}'".encode())
        (server.data / "pg_hba.conf").write_text("local all broker trust\n" + DEBIAN)
        with server.connect() as admin:
            admin.execute(b"SELECT pg_reload_conf()")
        yield server


def secret(folder: Path, text: str = PASSWORD) -> Path:
    file = folder / "password"
    file.touch(mode=0o600)
    file.write_text(text)
    return file


def config(folder: Path, url: str, **more: object) -> StoreConfig:
    return StoreConfig.model_validate({"url": url, "journal": folder / "journal", **more})


def at(server: Postgres, database: str = "app", role: str = "app", host: str = "127.0.0.1") -> str:
    return f"postgresql://{role}@{host}:{server.port}/{database}"


def cause(place: StoreConfig) -> tuple[str, str]:
    """The sentence of the refusal, and what the log has of it."""
    with capture_logs() as logged:
        error = refused(lambda: SqlStore.migrate(place))
    assert PASSWORD not in error.message
    assert "wrong-canary" not in str(logged)
    return error.message, " ".join(str(one.get("said", "")) for one in logged)


def test_K01_debians_defaults_work_as_documented(debian: Postgres, tmp_path: Path) -> None:
    place = config(tmp_path, at(debian), password_file=secret(tmp_path))
    SqlStore.migrate(place)
    assert not SqlStore.condition(place).vouched
    localhost = at(debian, host="localhost")
    over_tls = config(tmp_path, localhost, password_file=secret(tmp_path), tls_root=debian.ca)
    assert not SqlStore.condition(over_tls).vouched


def test_K01_a_passfile_of_libpq_serves_several_hosts_and_must_be_private(debian: Postgres, tmp_path: Path) -> None:
    closed = free_port()
    lines = secret(tmp_path, f"127.0.0.1:{closed}:*:app:wrong-canary\n127.0.0.1:{debian.port}:app:app:{PASSWORD}\n")
    url = f"postgresql://app@/app?host=127.0.0.1,127.0.0.1&port={closed},{debian.port}"
    place = config(tmp_path, url, passfile=lines)
    SqlStore.migrate(place)
    lines.chmod(0o644)
    assert "open to other users" in cause(place)[0]


def test_K01_the_socket_takes_the_system_user_of_the_roles_name(debian: Postgres, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("the role is named after root")
    with debian.connect() as admin:
        admin.execute(b"CREATE ROLE root LOGIN")
        admin.execute(b"CREATE DATABASE of_root OWNER root")
    socket_url = f"postgresql://{{}}@/{{}}?host={debian.sockets}&port={debian.port}"
    SqlStore.migrate(config(tmp_path, socket_url.format("root", "of_root")))
    sentence, logged = cause(config(tmp_path, socket_url.format("app", "app")))
    assert "bears the role's name (peer)" in sentence
    assert 'Peer authentication failed for user "app"' in logged


FAULTS: dict[str, tuple[dict[str, Any], str, str]] = {
    "wrong password": ({"word": "wrong-canary"}, "refused the role's password", "password authentication failed"),
    "no password": ({"word": None}, "name its file (password_file)", "no password supplied"),
    "no database": ({"database": "absent"}, "does not exist: create it with the role as its owner", '"absent"'),
    "no role": ({"role": "nobody"}, "refused the role's password", "password authentication failed"),
    "md5": ({"role": "old"}, "refused the role's password", "password authentication failed"),
    "not the owner": ({"database": "another"}, "ALTER DATABASE … OWNER TO", ""),
    "name unknown": ({"host": "no-such-host.invalid", "tls": True}, "does not know the name", "no-such-host"),
    "other name": ({"host": "127.0.0.1", "tls": True}, "for other names than the host", "does not match host name"),
}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("fault", FAULTS)
def test_K01_what_the_driver_says_is_told(debian: Postgres, tmp_path: Path, fault: str) -> None:
    how, sentence, logged = FAULTS[fault]
    more: dict[str, object] = {}
    if how.get("word", PASSWORD):
        more["password_file"] = secret(tmp_path, str(how.get("word", PASSWORD)))
    if how.get("tls"):
        more["tls_root"] = debian.ca
    place = {name: str(how[name]) for name in ("database", "role", "host") if name in how}
    said, log = cause(config(tmp_path, at(debian, **place), **more))
    assert sentence in said
    assert logged in log


def test_K01_no_line_of_pg_hba_is_told(debian: Postgres, tmp_path: Path) -> None:
    hba = debian.data / "pg_hba.conf"
    before = hba.read_text()
    hba.write_text(before.replace("127.0.0.1/32", "10.0.0.0/8"))
    with debian.connect() as admin:
        admin.execute(b"SELECT pg_reload_conf()")
    try:
        said, log = cause(config(tmp_path, at(debian), password_file=secret(tmp_path)))
    finally:
        hba.write_text(before)
        with debian.connect() as admin:
            admin.execute(b"SELECT pg_reload_conf()")
    assert "No line of the database's pg_hba.conf" in said
    assert "no pg_hba.conf entry" in log


def test_K01_a_certificate_of_another_ca_and_a_server_without_tls_are_told(
    debian: Postgres, postgres: Postgres, tmp_path: Path
) -> None:
    other = config(tmp_path, at(debian, host="localhost"), password_file=secret(tmp_path), tls_root=postgres.ca)
    assert "not from the CA in tls_root" in cause(other)[0]
    with debian.connect() as admin:
        admin.execute(b"ALTER SYSTEM SET ssl = off")
        admin.execute(b"SELECT pg_reload_conf()")
    try:
        bare = other.model_copy(update={"tls_root": debian.ca})
        assert "speaks no TLS" in cause(bare)[0]
    finally:
        with debian.connect() as admin:
            admin.execute(b"ALTER SYSTEM RESET ssl")
            admin.execute(b"SELECT pg_reload_conf()")


def test_K01_a_port_on_which_nothing_listens_and_one_that_never_answers_are_told(
    debian: Postgres, tmp_path: Path
) -> None:
    closed = replace(debian, port=free_port())
    assert "Nothing listens" in cause(config(tmp_path, at(closed)))[0]
    no_socket = f"postgresql://app@/app?host={tmp_path}"
    assert "no socket of PostgreSQL in the folder" in cause(config(tmp_path, no_socket))[0]
    with socket.create_server(("127.0.0.1", 0)) as mute:
        silent = config(tmp_path, f"postgresql://app@127.0.0.1:{mute.getsockname()[1]}/app")
        with pytest.raises(BrokerError, match="did not answer in time"):
            SqlStore.condition(silent)
