"""What says whose the token is, and which operator CA signed each operator's newest certificate."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import TEXT

revision = "0014"
down_revision = "0013"


def text(name: str) -> sa.Column[str]:
    """Compared byte by byte."""
    kind = sa.Text().with_variant(TEXT(collation="C"), "postgresql")
    return sa.Column(name, kind, nullable=False, primary_key=name in {"name", "operator"})


def integer(name: str) -> sa.Column[int]:
    """64 bits."""
    return sa.Column(name, sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False)


def upgrade() -> None:
    """Add the tables; what has no row was never claimed, or signed before this was written down."""
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
    op.create_table(
        "operator_certificates",
        text("operator"),
        text("authority"),
        integer("until"),
        integer("revision"),
        sa.Column("mac", sa.LargeBinary(), nullable=True),
        sqlite_strict=True,
    )
