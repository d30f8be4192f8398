"""What reaches outside the store, step by step; and which receipt began it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import TEXT

revision = "0008"
down_revision = "0007"

KEY = ("subject", "number")


def text(name: str) -> sa.Column[str]:
    """Compared byte by byte."""
    kind = sa.Text().with_variant(TEXT(collation="C"), "postgresql")
    return sa.Column(name, kind, nullable=False, primary_key=name in KEY)


def integer(name: str) -> sa.Column[int]:
    """64 bits."""
    kind = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    return sa.Column(name, kind, nullable=False, primary_key=name in KEY, autoincrement=False)


def upgrade() -> None:
    """Add the table, and the column that names a row of it."""
    op.create_table(
        "operations",
        text("subject"),
        integer("number"),
        text("kind"),
        text("state"),
        integer("step"),
        text("memory"),
        text("principal"),
        text("failure"),
        integer("attempts"),
        integer("created_at"),
        integer("due_at"),
        integer("revision"),
        sa.Column("mac", sa.LargeBinary(), nullable=True),
        sqlite_strict=True,
    )
    op.create_index("ix_operations_due", "operations", ["state", "due_at"])
    kind = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.add_column("receipts", sa.Column("operation", kind, nullable=True))
