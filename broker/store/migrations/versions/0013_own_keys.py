"""The versions of the broker's own keys."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import TEXT

revision = "0013"
down_revision = "0012"

KEY = ("name", "version")


def text(name: str) -> sa.Column[str]:
    """Compared byte by byte."""
    kind = sa.Text().with_variant(TEXT(collation="C"), "postgresql")
    return sa.Column(name, kind, nullable=False, primary_key=name in KEY)


def integer(name: str, *, nullable: bool = False) -> sa.Column[int]:
    """64 bits."""
    kind = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    return sa.Column(name, kind, nullable=nullable, primary_key=name in KEY, autoincrement=False)


def blob(name: str, *, nullable: bool = False) -> sa.Column[bytes]:
    """Bytes."""
    return sa.Column(name, sa.LargeBinary(), nullable=nullable)


def upgrade() -> None:
    """Add the table; without a row of a key its first version is in force."""
    op.create_table(
        "own_keys",
        text("name"),
        integer("version"),
        text("state"),
        blob("hsm_id"),
        blob("public_key", nullable=True),
        text("certificate"),
        text("link"),
        text("handover"),
        blob("sealed", nullable=True),
        integer("created_at"),
        integer("since", nullable=True),
        integer("until", nullable=True),
        integer("revision"),
        blob("mac", nullable=True),
        sqlite_strict=True,
    )
