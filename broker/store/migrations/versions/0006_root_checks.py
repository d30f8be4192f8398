"""What tells a root key in the HSM from another one that took its place; none for those that were made before."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Add the column."""
    op.add_column("root_keys", sa.Column("check_value", sa.LargeBinary(), nullable=True))
