"""What a database is before anything is done to it: empty, a broker's, another program's; and whose broker's."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import text

from broker.core.errors import WrongState
from broker.core.reasons import Reason
from broker.store.authentic import Rows
from broker.store.causes import SCHEMA
from broker.store.config import StoreConfig
from broker.store.database import CATALOGUE, REVISIONS, Database, refuse_newer
from broker.store.dialects import open_database
from broker.store.ledger import SLOTS, genuine
from broker.store.private import check_folder
from broker.store.tables import REVISION

OLDEST_POSTGRESQL = 140000

_TABLES = {
    "sqlite": text("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"),
    "postgresql": text("SELECT tablename FROM pg_tables WHERE schemaname = current_schema()"),
}
_OWN = {"keys", "key_versions", "operators", "policy_documents"}
_RIGHTS = text(
    "SELECT current_setting('server_version_num')::int, "
    "coalesce(has_schema_privilege(current_schema(), 'CREATE'), false)"
)


@dataclass(frozen=True, slots=True)
class Condition:
    """``revision``: of the broker's tables there, "" when there are none.

    ``filled``: whether they have rows, and ``vouched``: whether those have MACs.
    """

    revision: str = ""
    filled: bool = False
    vouched: bool = False

    @property
    def older(self) -> bool:
        """Whether a migration would change what is there."""
        return self.revision not in {"", REVISION}


def condition(config: StoreConfig) -> Condition:
    """Look, and change nothing; refused if a broker could not be made or run there.

    WrongState ``DATABASE_FOREIGN`` for another program's, ``STORE_TOO_NEW``, ``DATABASE_RIGHTS``, ``DATABASE_TOO_OLD``;
    Unavailable with the driver's cause when it is not reached.
    """
    check_folder(config.journal)
    if config.sqlite and not (file := Path(config.parsed.database or "")).exists():
        check_folder(file.parent)
        return Condition()
    with closing(open_database(config)) as database:
        tables = {str(row[0]) for row in database.read(_TABLES[database.name])}
        found = database.read(REVISIONS) if database.read(CATALOGUE[database.name]) else []
        if tables and not (found and tables & _OWN):
            raise WrongState(
                Reason.DATABASE_FOREIGN,
                "The database holds another program's tables; leave them, and name an empty database for the broker.",
            )
        refuse_newer(found)
        revision = str(found[0][0]) if found else ""
        if not config.sqlite and revision != REVISION:
            _refuse_unfit(database.read(_RIGHTS)[0])
        filled = any(database.read(text(f"SELECT 1 FROM {name} LIMIT 1")) for name in sorted(tables & _OWN))  # noqa: S608
        return Condition(revision, filled, revision >= "0004" and bool(database.read(SLOTS)))


def refuse_anothers(database: Database, rows: Rows) -> None:
    """WrongState ``DATABASE_NOT_OURS`` when the key vouches for nothing in the ledger of a database that has one."""
    slots = database.read(SLOTS)
    if slots and not any(genuine(rows, slot) for slot in slots):
        raise WrongState(
            Reason.DATABASE_NOT_OURS,
            "Not one row of the database's ledger is vouched for by this broker's rows.key: the database is another "
            "broker's, or the folder of certificates is. Correct [store] url, or put the right folder back.",
        )


def _refuse_unfit(found: Sequence[Any]) -> None:
    version, may_create = found
    if version < OLDEST_POSTGRESQL:
        raise WrongState(
            Reason.DATABASE_TOO_OLD, f"This PostgreSQL ({version // 10000}) is older than 14; use a newer one."
        )
    if not may_create:
        raise WrongState(Reason.DATABASE_RIGHTS, f"{SCHEMA}.")
