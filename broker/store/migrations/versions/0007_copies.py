"""Imports are told apart by their remote name too: a target can hold several copies of a version."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import TEXT

revision = "0007"
down_revision = "0006"

KEY = ("key", "version", "target", "remote_name")
REST = ("remote_version", "state", "kek_thumbprint", "blob_sha256", "failure")


def text(name: str, *, nullable: bool = False) -> sa.Column[str]:
    """Compared byte by byte."""
    kind = sa.Text().with_variant(TEXT(collation="C"), "postgresql")
    return sa.Column(name, kind, nullable=nullable, primary_key=name in KEY)


def integer(name: str, *, nullable: bool = False) -> sa.Column[int]:
    """64 bits."""
    kind = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    return sa.Column(name, kind, nullable=nullable, primary_key=name in KEY, autoincrement=False)


def upgrade() -> None:
    """Add the column, and widen the primary key; SQLite can do that to a new table only."""
    if op.get_bind().dialect.name == "postgresql":
        op.add_column("imports", text("sent", nullable=True))
        op.drop_constraint("imports_pkey", "imports", type_="primary")
        op.create_primary_key("imports_pkey", "imports", list(KEY))
        return
    op.rename_table("imports", "imports_before")
    made = op.create_table(
        "imports",
        *(integer(name) if name == "version" else text(name) for name in (*KEY, *REST)),
        integer("started_at"),
        integer("proven_at", nullable=True),
        text("sent", nullable=True),
        integer("revision"),
        sa.Column("mac", sa.LargeBinary(), nullable=True),
        sqlite_strict=True,
    )
    kept = [column.name for column in made.columns if column.name != "sent"]
    before = sa.table("imports_before", *(sa.column(name) for name in kept))
    op.execute(made.insert().from_select(kept, sa.select(*before.columns)))
    op.drop_table("imports_before")
