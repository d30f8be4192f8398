"""How many approvals a schedule was set with."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    """Add the column, which is empty of what was set before: that had none."""
    kind = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
    op.add_column("key_schedules", sa.Column("approvals", kind, nullable=True))
