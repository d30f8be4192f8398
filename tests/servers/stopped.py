"""The database of a broker that does not run, opened as the broker would: with the key of its rows from its HSM.

Its audit goes to a journal of its own: there is nobody here to sign one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from broker.app import now
from broker.config import load
from broker.hsm.pkcs11 import Pkcs11Hsm
from broker.row_key import row_key
from broker.store.sql import SqlStore
from tests.servers.softhsm import alone


def _key(folder: Path) -> bytes:
    """In a process of its own: a module is initialised once a process."""
    config = load(folder / "broker.toml")
    with closing(Pkcs11Hsm(config.hsm)) as hsm:
        return row_key(config, hsm)


@contextmanager
def store_of(folder: Path) -> Iterator[SqlStore]:
    config = load(folder / "broker.toml")
    place = config.store.model_copy(update={"journal": folder.parent / f"{folder.name}-test-journal"})
    with closing(SqlStore(place, alone(_key, folder), now, role="test", passing=True)) as store:
        yield store
