"""What a receipt tells of the secret values that came with its request; unknown for receipts from before."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Add the column."""
    op.add_column("receipts", sa.Column("values_mac", sa.LargeBinary(), nullable=True))
