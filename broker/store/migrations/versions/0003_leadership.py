"""The number of the newest leader among the processes on this database: one row, which only ever counts up."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def integer(name: str, *, key: bool = False) -> sa.Column[int]:
    """64 bits."""
    kind = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    return sa.Column(name, kind, nullable=False, primary_key=key, autoincrement=False)


def upgrade() -> None:
    """Create the table and its row."""
    table = op.create_table("leadership", integer("place", key=True), integer("fence"), sqlite_strict=True)
    op.bulk_insert(table, [{"place": 1, "fence": 0}])
