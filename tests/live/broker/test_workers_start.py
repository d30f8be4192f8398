"""How workers come up, are refused and go down, as whole processes."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from broker.core.model import Secret
from tests.servers.hosts import Host, set_up
from tests.servers.live import Client, within
from tests.servers.patience import busy
from tests.servers.postgres import Postgres
from tests.servers.refusals import Refused
from tests.servers.stopped import store_of


@pytest.fixture(scope="module")
def host(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """Set up, not running: each test leaves it as it found it."""
    database = postgres.create_database()
    made = set_up(tmp_path_factory.mktemp("workers"), postgres.url(database))
    yield made
    made.close()
    postgres.drop_database(database)


def test_what_cannot_be_served_is_said_in_one_sentence_and_nothing_runs(host: Host) -> None:
    good = host.config.read_text()
    host.config.write_text(re.sub(r'url = "[^"]*"', f'url = "sqlite:///{host.folder}/broker.db"', good))
    assert not_started(host).endswith("SQLite is for one process; use PostgreSQL, or one. (WORKERS_NEED_POSTGRESQL)")
    host.config.write_text(good)
    key = host.folder / "certificates" / "page.key"
    aside = key.rename(key.with_suffix(".aside"))
    try:
        assert not_started(host).endswith("(NOT_INITIALISED)")
    finally:
        aside.rename(key)


def not_started(host: Host) -> str:
    refused = host.command("serve", "--config", str(host.config))
    assert (refused.returncode, refused.stdout) == (1, "")
    (said,) = [line for line in refused.stderr.splitlines() if line.startswith("broker: ")]
    return said


def test_all_drain_together_under_load_and_the_ports_are_free_again(host: Host) -> None:
    host.start()
    second = host.command("serve", "--config", str(host.config))
    assert (second.returncode, "ADDRESS_IN_USE" in second.stderr) == (1, True)
    clients = [host.client() for _ in range(6)]
    with ThreadPoolExecutor(6) as pool:
        calls = [pool.submit(put_until_refused, client, f"drain/s{one}") for one, client in enumerate(clients)]
        within(
            10,
            lambda: (
                len([record for record in host.records() if record.get("resource", "").startswith("secret/drain")]) > 20
            ),
        )
        begun = time.monotonic()
        assert host.terminate() == 0
        assert time.monotonic() - begun <= busy(10)
        acknowledged = dict([call.result(200) for call in calls])
    host.verify(*host.torn())  # another test may have killed it before
    with store_of(host.folder) as store:
        for name, version in acknowledged.items():
            kept = store.get(Secret, name)
            assert kept is not None
            assert kept.latest >= version > 0


def put_until_refused(client: Client, name: str) -> tuple[str, int]:
    version = 0
    with suppress(Refused):
        while True:
            version = client.ask("PutSecret", name=name, fields={"a": b"x"}).secret.latest_version
    return name, version


def test_workers_do_not_outlive_their_supervisor(host: Host) -> None:
    host.start()
    workers = host.workers()
    assert set(workers) == {1, 2}
    host.end(signal.SIGKILL)
    within(15, lambda: not any(Path(f"/proc/{process}").exists() for process in workers.values()))
