"""The running broker is killed, and loses its database, under jobs that fetch; it keeps what it promised."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers.fetch_load import away_and_back, crash_rounds, furnish
from tests.servers.issuer import Issuer, issuing
from tests.servers.live import Live
from tests.servers.postgres import Postgres


@pytest.fixture(scope="module")
def ci(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Issuer]:
    with issuing(tmp_path_factory.mktemp("issuer")) as issuer:
        yield issuer


def test_FT_01_killed_at_random_under_fetches_it_keeps_every_promise(ci: Issuer, tmp_path: Path) -> None:
    broker = Live(tmp_path / "broker", "--allow-issuer", ci.host)
    try:
        broker.start()
        crash_rounds(broker, ci, 3)
    finally:
        broker.close()


@pytest.fixture(scope="module")
def on_postgresql(ci: Issuer, postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    broker = Live(tmp_path_factory.mktemp("live") / "broker")
    database = postgres.create_database()
    addresses = ["--operators-address", "127.0.0.1:0", "--pipelines-address", "127.0.0.1:0"]
    options = ["--database", postgres.url(database), "--allow-issuer", ci.host, *addresses]
    try:
        made = broker.command("init", str(broker.folder), *options)
        assert made.returncode == 0, made.stderr
        # While the database comes and goes, jobs lose sessions without number; the limit has tests of its own.
        broker.config.write_text(broker.config.read_text() + "\n[sessions]\nleases_per_pipeline = 100000\n")
        broker.start()
        furnish(broker, ci)
        yield broker
        assert broker.terminate() == 0
        broker.verify()
        assert "Traceback" not in broker.said
    finally:
        broker.close()
        postgres.drop_database(database)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("how", ["fast", "immediate", "killed"])
def test_FT_04_postgresql_is_restarted_under_fetches(
    on_postgresql: Live, ci: Issuer, postgres: Postgres, how: str
) -> None:
    away_and_back(on_postgresql, ci, postgres.kill if how == "killed" else lambda: postgres.stop(how), postgres.start)
