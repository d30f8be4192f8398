"""The store's configuration: what is refused before anything is opened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from broker.store.config import StoreConfig

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
        ("sqlite:////a.db", {"replica": "Two_words"}, "pattern"),
        ("sqlite:////a.db", {"journal": Path("journal")}, "not absolute"),
        ("sqlite:////a.db", {"colour": "red"}, "Extra inputs"),
    ],
)
def test_bad_ones_are_refused_without_quoting_them(url: str, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said) as refused:
        config(url, **changes)
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("host", ["db.example", "10.0.0.1", "localhost.example", "127.0.0.1.example", "[2001:db8::1]"])
def test_ST_10_a_server_elsewhere_needs_verified_tls(host: str) -> None:
    with pytest.raises(ValidationError, match="nothing verifies it"):
        config(f"postgresql://broker@{host}/broker")
    assert not config(f"postgresql://broker@{host}/broker", tls_root=CA).local
