"""Each row with a MAC, and the ledger that sums them up. ``init`` vouches once for the rows that are there already."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import TEXT

revision = "0004"
down_revision = "0003"

TABLES = (
    "keys", "key_versions", "targets", "imports", "operators", "policy_documents", "receipts", "audit_heads",
    "trust_rules", "secrets", "secret_versions", "secret_reads", "root_keys", "sessions", "leases", "used_tokens",
)  # fmt: skip


def integer(name: str, *, key: bool = False) -> sa.Column[int]:
    """64 bits."""
    kind = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    return sa.Column(name, kind, nullable=False, primary_key=key, autoincrement=False)


def upgrade() -> None:
    """Add the columns, empty, and the ledger's table."""
    for table in TABLES:
        op.add_column(table, sa.Column("mac", sa.LargeBinary(), nullable=True))
    text = sa.Text().with_variant(TEXT(collation="C"), "postgresql")
    op.create_table(
        "ledger",
        sa.Column("owner", text, nullable=False, primary_key=True),
        integer("slot", key=True),
        integer("changes"),
        sa.Column("sums", sa.LargeBinary(), nullable=False),
        sa.Column("mac", sa.LargeBinary(), nullable=False),
        sqlite_strict=True,
    )
