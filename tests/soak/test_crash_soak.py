"""Every plan dead at every place by SIGKILL, on SQLite and PostgreSQL, a real token and a vault over the wire."""

from __future__ import annotations

import json
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from broker.hsm.config import HsmConfig
from broker.store.config import StoreConfig
from tests.contracts.store.samples import config
from tests.crash.process import Order
from tests.crash.scenes import SCENES
from tests.crash.vault_process import VaultAddress, vault_process
from tests.servers import databases
from tests.servers.postgres import Postgres
from tests.servers.shim import make_shim_token

MOST = 64


class Processes:
    """Runs orders, each in a process of its own, one after the other."""

    def __init__(self) -> None:
        self._started = subprocess.Popen(
            [sys.executable, "-m", "tests.crash.process"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, order: Order) -> int:
        """How it ended: 0, or the signal, negative; an AssertionError with what it said if it failed by itself."""
        assert self._started.stdin is not None
        assert self._started.stdout is not None
        self._started.stdin.write(f"{order.model_dump_json()}\n")
        self._started.stdin.flush()
        ended = int(self._started.stdout.readline())
        if ended not in {0, -signal.SIGKILL}:
            left = order.folder / "left"
            died = json.loads(left.read_text())["passed"] if left.exists() else "before it acted"
            raise AssertionError(f"{ended}, died {died}\n{(order.folder / 'said').read_text()}")
        return ended

    def close(self) -> None:
        self._started.communicate()


@pytest.fixture(scope="module")
def processes() -> Iterator[Processes]:
    started = Processes()
    yield started
    started.close()


@pytest.fixture(scope="module")
def vault() -> Iterator[VaultAddress]:
    with vault_process() as running:
        yield running


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> HsmConfig:
    """A fresh one, to be copied."""
    return make_shim_token(tmp_path_factory.mktemp("token"))


def copied(token: HsmConfig, folder: Path) -> HsmConfig:
    """The same token in a folder of its own."""
    there = token.pin_file.parent
    shutil.copytree(there, folder)
    conf = folder / "softhsm2.conf"
    conf.write_text(conf.read_text().replace(str(there), str(folder)))
    environment = {name: value.replace(str(there), str(folder)) for name, value in token.environment.items()}
    return token.model_copy(update={"pin_file": folder / "pin", "environment": environment})


Make = Callable[[Path], StoreConfig]


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest) -> Iterator[Make]:
    """Makes the database of each death; they are gone after the test."""
    server: Postgres | None = request.getfixturevalue("postgres") if request.param == "postgresql" else None
    made: list[str] = []

    def make(folder: Path) -> StoreConfig:
        if server is None:
            place = config(f"sqlite:///{folder}/broker.db", folder)
            databases.migrate(place)
            return place
        made.append(databases.create_database(server))
        return config(server.url(made[-1]), folder)

    yield make
    for name in made:
        assert server is not None
        server.drop_database(name)


def begun(places: list[str]) -> list[str]:
    """Every effect and every commit that was begun: in memory the scene goes the same way."""
    return [place for place in places if place.startswith("before")]


@pytest.mark.soak
@pytest.mark.parametrize("title", sorted(SCENES))
def test_K_18_I_18_a_process_that_is_killed_anywhere_leaves_what_the_next_one_ends(
    processes: Processes,
    vault: VaultAddress,
    token: HsmConfig,
    database: Make,
    tmp_path: Path,
    title: str,
) -> None:
    for at in range(1, MOST):
        folder = tmp_path / str(at)
        hsm, store = copied(token, folder), database(folder)
        name = f"pay-{secrets.token_hex(6)}"
        order = Order(title=title, at=at, store=store, hsm=hsm, vault=vault, folder=folder, remote=name)
        if processes.run(order) == 0:
            assert begun(json.loads((folder / "left").read_text())["passed"]) == begun(SCENES[title].places())
            sys.stdout.write(f"killed at {at - 1} places\n")
            return
        assert processes.run(order.model_copy(update={"at": None})) == 0
    raise AssertionError("the scene has no end")
