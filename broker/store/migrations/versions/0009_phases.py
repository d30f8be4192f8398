"""Where each key version is in its life, and how it came there."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import TEXT

revision = "0009"
down_revision = "0008"

KEY = ("key", "version", "number")


def text(name: str, *, nullable: bool = False) -> sa.Column[str]:
    """Compared byte by byte."""
    kind = sa.Text().with_variant(TEXT(collation="C"), "postgresql")
    return sa.Column(name, kind, nullable=nullable, primary_key=name in KEY)


def integer(name: str) -> sa.Column[int]:
    """64 bits."""
    kind = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    return sa.Column(name, kind, nullable=False, primary_key=name in KEY, autoincrement=False)


def upgrade() -> None:
    """Add the column, which is empty where a version is active, and the table of the moves."""
    op.add_column("key_versions", text("phase", nullable=True))
    op.create_table(
        "key_moves",
        text("key"),
        integer("version"),
        integer("number"),
        text("phase"),
        integer("at"),
        text("actor"),
        text("reason"),
        integer("revision"),
        sa.Column("mac", sa.LargeBinary(), nullable=True),
        sqlite_strict=True,
    )
