"""The store's configuration: what is refused before anything is opened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from psycopg.conninfo import conninfo_to_dict
from pydantic import ValidationError

from broker.store.config import StoreConfig
from broker.store.postgresql import conninfo

JOURNAL = Path("/var/lib/broker/journal")
CA = Path("/etc/ssl/ca.pem")


def config(url: str, **changes: Any) -> StoreConfig:
    return StoreConfig(**{"url": url, "journal": JOURNAL, **changes})


@pytest.mark.parametrize(
    ("url", "changes"),
    [
        ("sqlite:////var/lib/broker/broker.db", {}),
        ("postgresql://broker@localhost/broker", {}),
        ("postgresql://broker@127.0.0.1:5433/broker", {"password_file": Path("/etc/broker/password")}),
        ("postgresql://broker@[::1]/broker", {}),
        ("postgresql://broker@/broker?host=/run/postgresql", {}),
        ("postgresql://broker@/broker?host=/run/postgresql&port=5433", {}),
        ("postgresql://broker@db.example/broker", {"tls_root": CA}),
        ("postgresql://broker@/broker?host=/run/postgresql,localhost,::1", {}),
        ("postgresql://broker@/broker?host=/run/postgresql&host=127.0.0.1&port=5432,5433", {}),
        ("postgresql://broker@one.example,two.example/broker", {"tls_root": CA}),
        ("postgresql://broker@/broker?host=one.example,two.example&port=5433", {"tls_root": CA}),
    ],
)
def test_good_ones_are_taken(url: str, changes: dict[str, Any]) -> None:
    assert config(url, **changes).url == url


@pytest.mark.parametrize(
    ("url", "changes", "said"),
    [
        ("", {}, "not a URL"),
        ("sqlite://", {}, "absolute path"),
        ("sqlite:///relative.db", {}, "absolute path"),
        ("sqlite:///:memory:", {}, "absolute path"),
        ("sqlite:////a.db?mode=ro", {}, "absolute path"),
        ("sqlite+pysqlite:////a.db", {}, "another kind"),
        ("mysql://u@h/d", {}, "another kind"),
        ("postgresql+psycopg2://u@h/d", {}, "another kind"),
        ("sqlite:////a.db", {"tls_root": CA}, "no TLS"),
        ("postgresql://broker:hunter2@localhost/broker", {}, "holds a password"),
        ("postgresql://broker@localhost/broker?sslmode=disable", {}, "other than host and port"),
        ("postgresql://broker@localhost/broker?host=/run", {}, "twice"),
        ("postgresql://localhost/broker", {}, "lacks a part"),
        ("postgresql://broker@localhost", {}, "lacks a part"),
        ("postgresql://broker@/broker", {}, "lacks a part"),
        ("postgresql://broker@/broker?host=/run&port=x", {}, "lacks a part"),
        ("postgresql://broker@localhost,/broker", {}, "lacks a part"),
        ("postgresql://broker@/broker?host=/run,,localhost", {}, "lacks a part"),
        ("postgresql://broker@/broker?host=/run,/tmp&port=1,2,3", {}, "neither one port"),
        ("postgresql://broker@/broker?host=localhost:5432,localhost:5433", {}, "port in it"),
        ("postgresql://broker@localhost:5432,db.example:5433/broker", {}, "not a URL"),
        ("sqlite:////a.db", {"replica": "Two_words"}, "pattern"),
        ("sqlite:////a.db", {"journal": Path("journal")}, "not absolute"),
        *[
            ("sqlite:////a.db", {"patience_seconds": patience}, "than or equal to|valid number|finite number")
            for patience in (0, 0.1, 30.5, float("nan"), float("inf"), "long")
        ],
        ("sqlite:////a.db", {"colour": "red"}, "Extra inputs"),
    ],
)
def test_bad_ones_are_refused_without_quoting_them(url: str, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said) as refused:
        config(url, **changes)
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize(
    "places",
    [
        "@/broker?host=/run/postgresql,db.example",
        "@/broker?host=/run/postgresql&host=db.example",
        "@/broker?host=db.example,/run/postgresql",
        "@/broker?host=127.0.0.1,10.0.0.1&port=5432,5433",
        "@localhost,db.example/broker",
        "@127.0.0.1,localhost,10.0.0.1/broker",
        "@/broker?host=@abstract,/run",
        "@/broker?host=%2Frun%2Cdb.example",
    ],
)
def test_ST_10_several_servers_need_verified_tls_unless_all_of_them_are_here(places: str) -> None:
    with pytest.raises(ValidationError, match="nothing verifies it"):
        config(f"postgresql://broker{places}")
    assert not config(f"postgresql://broker{places}", tls_root=CA).local


@pytest.mark.parametrize(
    ("places", "given"),
    [
        ("@localhost/broker", {"host": "localhost", "port": "5432"}),
        ("@/broker?host=/run,127.0.0.1", {"host": "/run,127.0.0.1", "port": "5432"}),
        ("@/broker?host=/run&host=::1&port=1&port=2", {"host": "/run,::1", "port": "1,2"}),
    ],
)
def test_what_was_checked_is_what_libpq_is_given(places: str, given: dict[str, str]) -> None:
    told = conninfo_to_dict(conninfo(config(f"postgresql://broker{places}")))
    assert {name: told[name] for name in ("host", "port")} == given
    assert told["sslmode"] == "disable"
    one_is_away = config("postgresql://broker@/broker?host=/run,db.example", tls_root=CA)
    assert conninfo_to_dict(conninfo(one_is_away))["sslmode"] == "verify-full"


@pytest.mark.parametrize("host", ["db.example", "10.0.0.1", "localhost.example", "127.0.0.1.example", "[2001:db8::1]"])
def test_ST_10_a_server_elsewhere_needs_verified_tls(host: str) -> None:
    with pytest.raises(ValidationError, match="nothing verifies it"):
        config(f"postgresql://broker@{host}/broker")
    assert not config(f"postgresql://broker@{host}/broker", tls_root=CA).local
