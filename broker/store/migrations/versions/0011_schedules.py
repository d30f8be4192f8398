"""When keys are rotated by themselves, who used them last, and how old a secret may become."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import TEXT

revision = "0011"
down_revision = "0010"


def text(name: str) -> sa.Column[str]:
    """Compared byte by byte."""
    kind = sa.Text().with_variant(TEXT(collation="C"), "postgresql")
    return sa.Column(name, kind, nullable=False, primary_key=name == "key")


def integer(name: str, *, nullable: bool = False) -> sa.Column[int]:
    """64 bits."""
    return sa.Column(name, sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=nullable)


def upgrade() -> None:
    """Add the two tables, and the columns, which are empty where a secret may become as old as it likes."""
    op.create_table(
        "key_schedules",
        text("key"),
        text("state"),
        integer("every"),
        integer("jitter"),
        text("blackouts"),
        integer("warn"),
        integer("grace"),
        text("set_by"),
        integer("version"),
        integer("next_at"),
        integer("look_at"),
        text("failure"),
        integer("created_at"),
        integer("revision"),
        sa.Column("mac", sa.LargeBinary(), nullable=True),
        sqlite_strict=True,
    )
    op.create_index("ix_key_schedules_due", "key_schedules", ["state", "look_at"])
    op.create_table(
        "key_uses",
        text("key"),
        text("principal"),
        integer("used_at"),
        integer("revision"),
        sa.Column("mac", sa.LargeBinary(), nullable=True),
        sqlite_strict=True,
    )
    op.add_column("secrets", integer("max_age", nullable=True))
    op.add_column("secrets", integer("renew_at", nullable=True))
