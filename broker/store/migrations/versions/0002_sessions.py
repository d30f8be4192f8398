"""Secrets, trust rules, sessions and leases, and the indexes that their times and owners are found by."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import TEXT

revision = "0002"
down_revision = "0001"


def text(name: str, *, key: bool = False) -> sa.Column[Any]:
    """Text that is compared byte by byte on both databases."""
    return sa.Column(name, sa.Text().with_variant(TEXT(collation="C"), "postgresql"), nullable=False, primary_key=key)


def integer(name: str, *, key: bool = False, nullable: bool = False) -> sa.Column[Any]:
    """64 bits: numbers, truth values (0, 1) and times in microseconds since 1970."""
    kind = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    return sa.Column(name, kind, nullable=nullable, primary_key=key, autoincrement=False)


def blob(name: str) -> sa.Column[Any]:
    """Bytes."""
    return sa.Column(name, sa.LargeBinary(), nullable=False)


TABLES: dict[str, list[sa.Column[Any]]] = {
    "trust_rules": [
        text("name", key=True),
        text("preset"),
        text("issuer"),
        text("audience"),
        text("matchers"),
        text("pipeline"),
        integer("max_session_seconds"),
        integer("single_use"),
        text("ca_pem"),
        text("grade"),
        text("findings"),
        integer("created_at"),
        integer("revision"),
    ],
    "secrets": [
        text("name", key=True),
        text("labels"),
        integer("latest"),
        integer("created_at"),
        integer("updated_at"),
        integer("expires_at", nullable=True),
        integer("revision"),
    ],
    "secret_versions": [
        text("secret", key=True),
        integer("number", key=True),
        text("state"),
        text("fields"),
        integer("root"),
        blob("data_key"),
        blob("sealed"),
        text("author"),
        integer("created_at"),
        integer("revision"),
    ],
    "secret_reads": [
        text("secret", key=True),
        text("principal"),
        integer("read_at"),
        integer("revision"),
    ],
    "root_keys": [
        integer("version", key=True),
        blob("hsm_id"),
        integer("created_at"),
        text("state"),
        integer("revision"),
    ],
    "sessions": [
        text("id", key=True),
        blob("token_hash"),
        text("principal"),
        text("rule"),
        integer("rule_revision"),
        text("issuer"),
        text("subject"),
        text("claims"),
        text("state"),
        integer("created_at"),
        integer("expires_at"),
        integer("last_at"),
        integer("revision"),
    ],
    "leases": [
        text("id", key=True),
        text("session"),
        text("principal"),
        text("resource"),
        integer("version"),
        text("state"),
        integer("created_at"),
        integer("expires_at"),
        integer("revision"),
    ],
    "used_tokens": [
        text("issuer", key=True),
        text("jti", key=True),
        integer("until"),
        integer("revision"),
    ],
}

INDEXES: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("trust_rules", "issuer", ("issuer",)),
    ("secret_versions", "root", ("root",)),
    ("sessions", "due", ("state", "expires_at")),
    ("sessions", "principal", ("principal", "state")),
    ("sessions", "issuer", ("issuer", "state")),
    ("leases", "due", ("state", "expires_at")),
    ("leases", "principal", ("principal", "state")),
    ("leases", "session", ("session", "state")),
    ("used_tokens", "due", ("until",)),
    ("receipts", "due", ("created_at",)),
)


def upgrade() -> None:
    """Create them."""
    for name, columns in TABLES.items():
        op.create_table(name, *columns, sqlite_strict=True)
    for table, title, found in INDEXES:
        op.create_index(f"ix_{table}_{title}", table, found)
