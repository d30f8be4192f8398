"""Every plan dead at every place by SIGKILL, on SQLite and PostgreSQL and a real token."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from broker.core.errors import BrokerError
from broker.hsm.config import HsmConfig
from broker.store.config import StoreConfig
from broker.store.sql import SqlStore
from tests.contracts.store.samples import config
from tests.crash.harness import World
from tests.crash.process import RealGround
from tests.crash.scenes import SCENES
from tests.fakes.calls import Clock
from tests.servers.postgres import Postgres
from tests.servers.softhsm import alone, make_token

MOST = 64


def acted(title: str, place: int, store: StoreConfig, hsm: HsmConfig) -> subprocess.CompletedProcess[str]:
    """A process of its own acts the scene."""
    parts = [title, str(place), store.model_dump_json(), hsm.model_dump_json(), Clock().time.isoformat()]
    return subprocess.run(
        [sys.executable, "-m", "tests.crash.process", *parts], capture_output=True, text=True, check=False
    )


def gone_on(title: str, store: StoreConfig, hsm: HsmConfig) -> None:
    """Another process on what is left: the same request or nobody, then the background; then all is whole."""
    ground = RealGround(store, hsm, Clock().time)
    try:
        world, scene = World(ground), SCENES[title]
        if scene.again is not None:
            with suppress(BrokerError):
                scene.again(world)
        world.later()
        world.check()
        scene.check(world)
    finally:
        ground.close()


Make = Callable[[Path], StoreConfig]


@pytest.fixture(params=["sqlite", "postgresql"])
def databases(request: pytest.FixtureRequest) -> Make:
    """Makes the database of each death."""
    server: Postgres | None = request.getfixturevalue("postgres") if request.param == "postgresql" else None

    def make(folder: Path) -> StoreConfig:
        url = server.url(server.create_database()) if server else f"sqlite:///{folder}/broker.db"
        found = config(url, folder)
        SqlStore.migrate(found)
        return found

    return make


@pytest.mark.soak
@pytest.mark.parametrize("title", sorted(title for title, scene in SCENES.items() if scene.real))
def test_a_process_that_is_killed_anywhere_leaves_what_the_next_one_ends(
    databases: Make, tmp_path: Path, title: str
) -> None:
    for place in range(1, MOST):
        folder = tmp_path / str(place)
        folder.mkdir(mode=0o700)
        store, hsm = databases(folder), make_token(folder)
        done = acted(title, place, store, hsm)
        if done.returncode == 0:
            assert place > 4, done.stdout
            return
        assert done.returncode == -signal.SIGKILL, done.stderr
        alone(gone_on, title, store, hsm)
    raise AssertionError("the scene has no end")
