"""A broker that was away for a day finds 15,000 leases that are over: it serves at once and ends them beside that."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median

import pytest

from broker.core.model import Lease, Record, Session
from tests.contracts.store.samples import entry, lease, session
from tests.servers.fetch_load import REFERENCES, furnish
from tests.servers.issuer import Issuer, issuing
from tests.servers.live import Live, within
from tests.servers.live_jobs import Job
from tests.servers.patience import busy
from tests.servers.stopped import store_of

LEASES, SESSIONS = 15_000, 1_500
BATCH = 500
COUNT = "SELECT count(*) FROM leases WHERE state = 'active' AND id LIKE 'old-%'"


@pytest.fixture
def ci(tmp_path: Path) -> Iterator[Issuer]:
    with issuing(tmp_path / "issuer") as issuer:
        yield issuer


def leave_behind(live: Live) -> None:
    """Half of the leases of sessions that are over, the other half over before their sessions are."""
    now = datetime.now(UTC)
    start, gone, later = now - timedelta(hours=3), now - timedelta(minutes=10), now + timedelta(hours=1)
    times = [(gone if number % 2 else later) for number in range(SESSIONS)]
    held: list[Record] = [
        session(f"old-{number}", principal="pipeline/old", created_at=start, expires_at=time, last_at=later)
        for number, time in enumerate(times)
    ]
    held += [
        lease(f"old-{n}", session=f"old-{n % SESSIONS}", principal="pipeline/old", created_at=start, expires_at=gone)
        for n in range(LEASES)
    ]
    with store_of(live.folder) as store:
        for kind in (Session, Lease):
            some = [record for record in held if isinstance(record, kind)]
            for first in range(0, len(some), BATCH):
                with store.write(entry()) as write:
                    write.add(*some[first : first + BATCH])


def left(live: Live) -> int:
    database = sqlite3.connect(f"file:{live.folder / 'broker.db'}?mode=ro", uri=True)
    try:
        (count,) = database.execute(COUNT).fetchone()
    finally:
        database.close()
    return int(count)


def slowest(live: Live, issuer: Issuer) -> float:
    """The 99th percentile of fetches, in seconds: the median of five, so that other work here counts little."""
    took: list[float] = []
    job = Job(live)
    for _ in range(12):
        token = job.ask("FetchSecrets", issuer.token(), references=REFERENCES).session_token
        for _ in range(50):
            begun = time.monotonic()
            job.ask("FetchSecrets", token, references=REFERENCES[:1])
            took.append(time.monotonic() - begun)
        job.ask("EndSession", token)
    job.close()
    return median(sorted(took[first : first + 100])[-2] for first in range(100, len(took), 100))


def backlog(live: Live, issuer: Issuer) -> float:
    """Start on a backlog, and serve beside it as fast as ever; when it started, in monotonic seconds."""
    live.start()
    furnish(live, issuer)
    alone = slowest(live, issuer)
    assert live.terminate() == 0
    leave_behind(live)
    ready = live.start()
    assert ready <= busy(5), f"it took {ready:.1f} s to be ready"
    begun = time.monotonic()
    allowed = max(4 * alone, 0.1)
    for _ in range(3):  # the computer is busy with other tests for a moment, the backlog is there all the time
        meanwhile = slowest(live, issuer)
        assert left(live) > 0, "the backlog was over before anything was measured beside it"
        if meanwhile <= allowed:
            return begun
    raise AssertionError(f"{1000 * meanwhile:.0f} ms with a backlog, {1000 * alone:.0f} ms alone")


@pytest.mark.soak
def test_P15_FT_37_fifteen_thousand_expired_leases_at_start_hold_up_nothing(ci: Issuer, tmp_path: Path) -> None:
    live = Live(tmp_path / "broker", "--allow-issuer", ci.host)
    try:
        begun = backlog(live, ci)
        rate = (LEASES - left(live)) / (time.monotonic() - begun)
        assert rate >= 25, f"{rate:.0f} leases a second"
        assert live.terminate() == 0
        live.verify()
    finally:
        live.close()


@pytest.mark.soak
def test_P15_the_whole_backlog_is_ended(ci: Issuer, tmp_path: Path) -> None:
    live = Live(tmp_path / "broker", "--allow-issuer", ci.host)
    try:
        backlog(live, ci)
        within(LEASES / 100, lambda: left(live) == 0)
    finally:
        live.close()
