"""What copies were held to; keys that end, or are sealed, wherever they are; and what a look at a place has found."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import TEXT

revision = "0012"
down_revision = "0011"


def text(name: str, *, nullable: bool = False) -> sa.Column[str]:
    """Compared byte by byte."""
    kind = sa.Text().with_variant(TEXT(collation="C"), "postgresql")
    return sa.Column(name, kind, nullable=nullable, primary_key=name == "place")


def integer(name: str, *, nullable: bool = False) -> sa.Column[int]:
    """64 bits."""
    kind = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    return sa.Column(name, kind, nullable=nullable)


def upgrade() -> None:
    """Add the columns, which are empty where nothing of the kind was asked for, and the table."""
    op.add_column("imports", text("terms", nullable=True))
    op.add_column("keys", integer("destroyed_at_targets", nullable=True))
    op.add_column("keys", text("sealed_once_at", nullable=True))
    op.create_table(
        "drift_reports",
        text("place"),
        integer("checked_at"),
        text("findings"),
        integer("revision"),
        sa.Column("mac", sa.LargeBinary(), nullable=True),
        sqlite_strict=True,
    )
