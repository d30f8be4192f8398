"""What brokers on the database have put into the token to say that it is theirs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import TEXT

revision = "0014"
down_revision = "0013"


def text(name: str) -> sa.Column[str]:
    """Compared byte by byte."""
    kind = sa.Text().with_variant(TEXT(collation="C"), "postgresql")
    return sa.Column(name, kind, nullable=False, primary_key=name == "name")


def integer(name: str) -> sa.Column[int]:
    """64 bits."""
    return sa.Column(name, sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False)


def upgrade() -> None:
    """Add the table; without its row the token was never claimed."""
    op.create_table(
        "token_claims",
        text("name"),
        text("numbers"),
        integer("quiet_until"),
        integer("unkept"),
        integer("revision"),
        sa.Column("mac", sa.LargeBinary(), nullable=True),
        sqlite_strict=True,
    )
