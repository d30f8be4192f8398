"""Clocks that differ, on a real PostgreSQL: who leads, who judges, and what the operator is told (FT-23, FT-24)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from broker import app, checkup
from broker.core.clock import Clock
from broker.core.model import Session
from broker.loop import Loop
from broker.store.config import StoreConfig
from broker.store.sql import SqlStore
from tests.contracts.store.samples import ROW_KEY, config, put, session
from tests.servers.databases import create_database, migrate
from tests.servers.fetch_load import REFERENCES, furnish
from tests.servers.issuer import Issuer, issuing
from tests.servers.live import Live, environment, free_address, within
from tests.servers.live_jobs import Job
from tests.servers.patience import HASTY
from tests.servers.postgres import Postgres
from tests.servers.softhsm import alone
from tests.unit.broker.test_loop import parts

HOUR = timedelta(hours=1)


@pytest.fixture
def place(postgres: Postgres, tmp_path: Path) -> Iterator[StoreConfig]:
    name = create_database(postgres)
    found = config(postgres.url(name), tmp_path)
    migrate(found)
    yield found
    postgres.drop_database(name)


class Asked(SqlStore):
    """Keeps what it was told of the leadership when it was asked last."""

    fence: int | None = None

    def lead(self) -> int | None:
        self.fence = super().lead()
        return self.fence


class Host:
    """One of several on a database: a host whose clock is off, the broker's clock on it, and its background loop."""

    def __init__(self, place: StoreConfig, name: str, off: timedelta = timedelta()) -> None:
        self.off, self.stood_still, self.running = off, timedelta(), timedelta()
        self.store = Asked(place.model_copy(update={"replica": name}), ROW_KEY, app.now)
        self.clock = Clock(lambda: app.now() + self.off, lambda: app.counted() - self.stood_still)
        self.ended: list[str] = []
        broker = parts(store=self.store, clock=self.clock, sessions=SimpleNamespace(chores=self._chores))
        broker.heads = SimpleNamespace(sign_due=list)
        self.loop = Loop(broker, lambda: self.running)

    def round(self) -> int | None:
        """A round of the background loop in which everything is due; the number under which it leads from then on."""
        self.running += timedelta(days=1)
        self.store.fence = None
        self.loop.round()
        assert self.loop.idle(20)
        return self.store.fence

    def _chores(self) -> Iterator[Any]:
        for due in self.store.due(Session, self.clock.now(), limit=10):
            yield f"session/{due.id}", lambda _call, name=due.id: self.ended.append(name)


@contextmanager
def hosts(place: StoreConfig, **offs: timedelta) -> Iterator[list[Host]]:
    made = [Host(place, name, off) for name, off in offs.items()]
    try:
        yield made
    finally:
        for host in made:
            host.store.close()


def test_the_database_tells_the_time(place: StoreConfig, tmp_path: Path) -> None:
    with hosts(place, one=timedelta()) as (one,):
        told = one.store.clock()
        assert told is not None
        assert abs(told - datetime.now(UTC)) < timedelta(seconds=20)
    alone = config(f"sqlite:///{tmp_path}/broker.db", tmp_path)
    migrate(alone)
    store = SqlStore(alone, ROW_KEY, app.now)
    assert store.clock() is None
    store.close()


@pytest.mark.parametrize("off", [HOUR, -HOUR, timedelta(seconds=15)])
def test_FT_24_a_host_whose_clock_is_off_ends_nobodys_session(place: StoreConfig, off: timedelta) -> None:
    with hosts(place, wrong=off, right=timedelta()) as (wrong, right):
        now = app.now()
        put(right.store, session(id="over", expires_at=now), session(id="alive", expires_at=now + HOUR / 2))
        fences = [host.round() for host in (wrong, right)]
        assert wrong.clock.in_doubt
        assert (wrong.ended, right.ended) == ([], ["over"])
        assert [fence is None for fence in fences] == [True, False]


def test_FT_24_hosts_that_differ_within_the_allowance_agree_on_every_end(place: StoreConfig) -> None:
    with hosts(place, slow=timedelta(seconds=-4), fast=timedelta(seconds=4)) as (slow, fast):
        assert fast.clock.now() - slow.clock.now() > timedelta(seconds=7)
        for host in (slow, fast):
            host.round()
        assert abs(fast.clock.now() - slow.clock.now()) < timedelta(seconds=3)
        assert (slow.clock.trouble, fast.clock.trouble) == ("", "")


def test_FT_24_a_leader_that_stood_still_leads_no_more_until_its_clock_is_right(place: StoreConfig) -> None:
    hasty = place.model_copy(update={"patience_seconds": HASTY})
    with hosts(hasty, first=timedelta(), second=timedelta()) as (first, second):
        assert first.round() is not None
        assert second.round() is None
        first.stood_still, first.off = HOUR, -HOUR  # a virtual machine that its host had put aside
        within(15, lambda: first.round() is None and second.round() is not None)
        first.off = timedelta()
        first.round()
        assert not first.clock.in_doubt
        assert abs(first.clock.now() - app.now()) < timedelta(seconds=5)


HOST_CLOCK = """
import os
from datetime import timedelta
from pathlib import Path

from broker import app

true = app.now
app.now = lambda: true() + timedelta(seconds=float(Path(os.environ["HOST_CLOCK"]).read_text()))
"""
"""Read by Python before the program: the host's clock, as far off as a file says."""


class Shifted:
    """A broker on PostgreSQL on a host whose clock the test sets."""

    def __init__(self, folder: Path, url: str, ci: Issuer) -> None:
        self.live = Live(folder / "broker", warm=False)
        places = ("--operators-address", free_address(), "--pipelines-address", free_address())
        made = self.live.command("init", str(self.live.folder), *places, "--database", url, "--allow-issuer", ci.host)
        assert made.returncode == 0, made.stderr
        (folder / "clock").mkdir()
        (folder / "clock" / "sitecustomize.py").write_text(HOST_CLOCK)
        self._file = folder / "clock" / "off"
        path = os.pathsep.join((str(folder / "clock"), environment()["PYTHONPATH"]))
        self.extra = {"PYTHONPATH": path, "HOST_CLOCK": str(self._file)}
        self.set(timedelta())

    def set(self, off: timedelta) -> None:
        draft = self._file.with_suffix(".new")
        draft.write_text(str(off.total_seconds()))
        draft.replace(self._file)

    def start(self) -> None:
        self.live.start(extra=self.extra)

    def clocks_agree(self) -> bool:
        """What `check` finds on that host."""
        return alone(_clocks_agree, self.live.config, float(self._file.read_text()))


def _clocks_agree(config: Path, off: float) -> bool:
    vars(checkup)["now"] = lambda: app.now() + timedelta(seconds=off)  # in this process, which does nothing else
    [found] = [one for one in checkup.findings_for(config) if one.name == "clocks"]
    return found.passed


def test_FT_24_the_whole_broker_on_a_host_whose_clock_is_set(tmp_path: Path, postgres: Postgres) -> None:
    name = postgres.create_database()
    with issuing(tmp_path / "issuer") as ci:
        shifted = Shifted(tmp_path, postgres.url(name), ci)
        live = shifted.live
        try:
            shifted.start()
            furnish(live, ci)
            job, admin = Job(live), live.client()
            token = job.ask("FetchSecrets", ci.token(), references=REFERENCES).session_token
            shifted.set(HOUR)  # while it runs: its own time goes on
            within(10, lambda: "3600 s ahead" in admin.ask("WhoAmI").clock_trouble)
            assert admin.serving()
            assert job.ask("FetchSecrets", token, references=REFERENCES).secrets
            job.ask("FetchSecrets", ci.token(), references=REFERENCES)
            job.close()
            assert live.terminate() == 0
            assert not shifted.clocks_agree()
            shifted.start()  # and now it begins with it
            job, admin = Job(live), live.client()
            assert not admin.serving()
            assert "lets no pipeline in" in admin.ask("WhoAmI").clock_trouble
            assert [job.why_not("FetchSecrets", each, references=REFERENCES) for each in (token, ci.token())] == [
                "CLOCK_OFF"
            ] * 2
            shifted.set(timedelta())
            within(10, admin.serving)
            assert admin.ask("WhoAmI").clock_trouble == ""
            assert job.ask("FetchSecrets", token, references=REFERENCES).secrets
            job.close()
            assert live.terminate() == 0
            assert shifted.clocks_agree()
            assert "the clocks differ" in live.said
            assert live.verify()
        finally:
            live.close()
            postgres.drop_database(name)
