"""Requests that wait for other people's word."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import TEXT

revision = "0010"
down_revision = "0009"


def text(name: str) -> sa.Column[str]:
    """Compared byte by byte."""
    kind = sa.Text().with_variant(TEXT(collation="C"), "postgresql")
    return sa.Column(name, kind, nullable=False, primary_key=name == "id")


def integer(name: str) -> sa.Column[int]:
    """64 bits."""
    return sa.Column(name, sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False)


def upgrade() -> None:
    """Add the table, empty."""
    op.create_table(
        "approvals",
        *map(text, ("id", "digest", "rpc", "resource", "requester", "details")),
        sa.Column("values_mac", sa.LargeBinary(), nullable=True),
        integer("needed"),
        *map(text, ("grants", "state", "call", "ended_by", "why")),
        *map(integer, ("created_at", "expires_at", "due_at", "revision")),
        sa.Column("mac", sa.LargeBinary(), nullable=True),
        sqlite_strict=True,
    )
    op.create_index("ix_approvals_due", "approvals", ["state", "due_at"])
    op.create_index("ix_approvals_digest", "approvals", ["digest"])
