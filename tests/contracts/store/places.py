"""The places that the Store's contract is held at: an empty database of either kind, as fixtures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.store.config import StoreConfig
from broker.store.rows import NAMES
from broker.store.sql import SqlStore
from tests.contracts.store.samples import config, opened
from tests.servers.databases import migrate
from tests.servers.postgres import Postgres


@pytest.fixture(scope="module")
def database(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A migrated database on the server; one for all tests, because making one takes a second."""
    name = postgres.create_database()
    migrate(config(postgres.url(name), tmp_path_factory.mktemp("database")))
    yield name
    postgres.drop_database(name)


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> StoreConfig:
    """A migrated, empty database of either kind."""
    return new_sqlite(tmp_path) if request.param == "sqlite" else emptied(request, tmp_path)


def new_sqlite(folder: Path) -> StoreConfig:
    found = config(f"sqlite:///{folder}/broker.db", folder)
    migrate(found)
    return found


def emptied(request: pytest.FixtureRequest, folder: Path) -> StoreConfig:
    """The one database on the server, emptied."""
    server: Postgres = request.getfixturevalue("postgres")
    name: str = request.getfixturevalue("database")
    server.empty(name, [*NAMES.values(), "ledger"])
    return config(server.url(name), folder)


@pytest.fixture
def store(place: StoreConfig) -> Iterator[SqlStore]:
    with opened(place) as found:
        yield found
