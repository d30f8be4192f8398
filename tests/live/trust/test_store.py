"""Trust rules on real stores: the limits among them hold when several are saved at once, and sessions end with them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from broker.core.errors import BrokerError
from broker.core.kinds import LeaseState, Preset, SessionState
from broker.core.model import Lease, TrustRule
from broker.core.quota import LeaseQuota
from broker.store.sql import SqlStore
from tests.contracts.store.samples import ROW_KEY, config
from tests.fakes.calls import Clock
from tests.servers.databases import create_database, migrate
from tests.servers.postgres import Postgres
from tests.servers.rules import rule
from tests.unit.sessions.bench import Bench, pipeline


@pytest.fixture(params=["sqlite", "postgresql"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    url = f"sqlite:///{tmp_path}/broker.db"
    if request.param == "postgresql":
        server: Postgres = request.getfixturevalue("postgres")
        name = create_database(server)
        url = server.url(name)
    place = config(url, tmp_path)
    migrate(place)
    store = SqlStore(place, ROW_KEY, Clock())
    yield Bench(store, LeaseQuota(per_principal=1000))
    store.close()
    if request.param == "postgresql":
        server.drop_database(name)


def test_AZ_15_of_overlapping_rules_that_are_saved_at_once_one_is(bench: Bench) -> None:
    rules, count = bench.rules, 6
    start = threading.Barrier(count)

    def save(number: int) -> str:
        start.wait()
        asked = rule(f"r{number}", pipeline=f"p{number}")
        try:
            rules.create(bench.call("TrustService/CreateTrustRule"), asked)
        except BrokerError as refused:
            return refused.reason
        return ""

    with ThreadPoolExecutor(count) as pool:
        told = sorted(pool.map(save, range(count)))
    assert told == ["", *["TRUST_RULES_OVERLAP"] * (count - 1)]
    assert bench.store.count(TrustRule, {}) == 1


@pytest.mark.parametrize("change", ["delete", "update"])
def test_AZ_24_sessions_and_leases_end_with_their_rule(bench: Bench, change: str) -> None:
    bench.add_rule()
    bench.put("app/db")
    opened = [bench.fetch(pipeline(), "app/db")[1] for _ in range(30)]
    bench.add_rule("other")
    bench.put("other/x")
    _, theirs = bench.fetch(pipeline("other"), "other/x")
    rules, kept = bench.rules, bench.store.get(TrustRule, "deploy")
    assert kept is not None
    if change == "delete":
        rules.delete(bench.call("TrustService/DeleteTrustRule"), "deploy")
    else:
        changed = replace(kept, preset=Preset.GENERIC, max_session_seconds=600)
        rules.update(bench.call("TrustService/UpdateTrustRule"), changed)
    assert {bench.session(one.session.id).state for one in opened if one} == {SessionState.ENDED}
    assert theirs is not None
    assert bench.session(theirs.session.id).state is SessionState.ACTIVE
    (living,) = bench.store.page(Lease, limit=1000, where={"state": "active"})
    assert living.session == theirs.session.id
    assert bench.store.count(Lease, {"state": LeaseState.REVOKED.value}) == 30
