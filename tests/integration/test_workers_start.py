"""How workers come up, are refused and go down, as whole processes."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from tests.servers.hosts import Host, set_up
from tests.servers.live import Client, Refused, within
from tests.servers.postgres import Postgres


@pytest.fixture
def host(postgres: Postgres, tmp_path: Path) -> Iterator[Host]:
    """Set up, not started."""
    database = postgres.create_database()
    made = set_up(tmp_path, postgres.url(database))
    yield made
    made.close()
    postgres.drop_database(database)


def test_workers_on_sqlite_are_refused_with_one_sentence(tmp_path: Path) -> None:
    host = Host(tmp_path / "a", "a")
    assert host.command("init", str(host.folder)).returncode == 0
    host.config.write_text(host.config.read_text().replace("[server]\n", "[server]\nworkers = 2\n"))
    refused = host.command("serve", "--config", str(host.config))
    assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (1, "", 1)
    assert refused.stderr.endswith("SQLite is for one process; use PostgreSQL, or one. (WORKERS_NEED_POSTGRESQL)\n")


def test_what_a_worker_refuses_is_said_once_and_ends_all(host: Host) -> None:
    (host.folder / "certificates" / "page.key").unlink()
    refused = host.command("serve", "--config", str(host.config))
    assert refused.returncode == 1
    assert "broker: ready" not in refused.stdout
    said = [line for line in refused.stderr.splitlines() if line.startswith("broker: ")]
    assert len(said) == 1
    assert said[0].endswith("(NOT_INITIALISED)")


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
        assert time.monotonic() - begun <= 10
        acknowledged = dict([call.result(20) for call in calls])
    host.verify()
    host.start()
    with host.client() as admin:
        for name, version in acknowledged.items():
            assert admin.ask("GetSecret", name=name).secret.latest_version >= version > 0


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
    host.start()
    assert host.terminate() == 0
