"""Vouches, once, for the rows of a database that was made before rows had MACs; `init` asks for it, nobody else."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import LargeBinary, and_, bindparam, select

from broker.core.errors import WrongState
from broker.core.reasons import Reason
from broker.store.authentic import Rows
from broker.store.database import Database
from broker.store.ledger import BEGIN, MODULUS, SLOTS, SUMMED, Ledger, Sums
from broker.store.marks import Mark
from broker.store.rows import NAMES
from broker.store.tables import KEY_COLUMNS, TABLES

FOUNDER = "adopted"
"""Who the ledger says has brought the rows in."""


def adopt(database: Database, rows: Rows, marks: Sequence[Mark]) -> None:
    """Do nothing if the ledger has begun. WrongState ``STORE_RESTORED`` if it had: the journal speaks of it."""
    with database.migration() as connection:
        if connection.execute(SLOTS).first():
            return
        if marks:
            raise WrongState(
                Reason.STORE_RESTORED,
                "The database has no ledger, and this host's journal speaks of one: it was emptied, or [store] names "
                "another database or journal than before. Correct that, or put the newest database back from a backup.",
            )
        sums: Sums = {}
        for kind in NAMES:
            table = TABLES[kind]
            named = [column == bindparam(f"b_{column.name}") for column in KEY_COLUMNS[kind]]
            vouch = table.update().where(and_(*named)).values(mac=bindparam("b_mac", type_=LargeBinary))
            for row in connection.execute(select(table)).all():
                mac = rows.mac_of(kind, row[:-1])
                keys = {f"b_{column.name}": getattr(row, column.name) for column in KEY_COLUMNS[kind]}
                connection.execute(vouch, {**keys, "b_mac": mac})
                if kind in SUMMED:
                    sums[kind] = (sums.get(kind, 0) + rows.weight(kind, mac)) % MODULUS
        if sums:
            connection.execute(BEGIN, Ledger(FOUNDER, rows).row(0, 1, sums))
        connection.commit()
