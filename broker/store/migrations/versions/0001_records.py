"""The tables of the first release. Migrations never change once released; there is no way back but a backup."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import TEXT

revision = "0001"
down_revision = None


def text(name: str, *, key: bool = False) -> sa.Column[Any]:
    """Text that is compared byte by byte on both databases."""
    return sa.Column(name, sa.Text().with_variant(TEXT(collation="C"), "postgresql"), nullable=False, primary_key=key)


def integer(name: str, *, key: bool = False, nullable: bool = False) -> sa.Column[Any]:
    """64 bits: numbers, truth values (0, 1) and times in microseconds since 1970."""
    kind = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    return sa.Column(name, kind, nullable=nullable, primary_key=key, autoincrement=False)


def blob(name: str, *, nullable: bool = False) -> sa.Column[Any]:
    """Bytes."""
    return sa.Column(name, sa.LargeBinary(), nullable=nullable)


TABLES: dict[str, list[sa.Column[Any]]] = {
    "keys": [
        text("name", key=True),
        text("type"),
        text("usage"),
        integer("exportable"),
        text("labels"),
        text("owner"),
        text("state"),
        integer("primary"),
        integer("latest"),
        integer("created_at"),
        integer("destroy_at", nullable=True),
        integer("revision"),
    ],
    "key_versions": [
        text("key", key=True),
        integer("number", key=True),
        text("state"),
        blob("hsm_id"),
        blob("public_key", nullable=True),
        integer("sealed"),
        integer("created_at"),
        integer("revision"),
    ],
    "targets": [
        text("name", key=True),
        text("kind"),
        text("settings"),
        text("kek_id"),
        text("kek_thumbprint"),
        integer("created_at"),
        integer("revision"),
    ],
    "imports": [
        text("key", key=True),
        integer("version", key=True),
        text("target", key=True),
        text("remote_name"),
        text("remote_version"),
        text("state"),
        text("kek_thumbprint"),
        text("blob_sha256"),
        text("failure"),
        integer("started_at"),
        integer("proven_at", nullable=True),
        integer("revision"),
    ],
    "operators": [
        text("name", key=True),
        text("groups"),
        text("state"),
        integer("not_before"),
        integer("created_at"),
        integer("revision"),
    ],
    "policy_documents": [
        integer("version", key=True),
        text("text"),
        text("author"),
        integer("created_at"),
        integer("revision"),
    ],
    "receipts": [
        text("principal", key=True),
        text("request_id", key=True),
        text("rpc"),
        text("digest"),
        text("resource"),
        integer("version"),
        integer("created_at"),
        integer("revision"),
    ],
    "audit_heads": [
        text("chain", key=True),
        integer("sequence", key=True),
        text("hash"),
        integer("signed_at"),
        blob("signature"),
        integer("revision"),
    ],
}


def upgrade() -> None:
    """Create them."""
    for name, columns in TABLES.items():
        op.create_table(name, *columns, sqlite_strict=True)
