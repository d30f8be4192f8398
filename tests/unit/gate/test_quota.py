"""How many leases there may be, and versions of a secret, also when several calls take the last places at once."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import pytest

from broker.core import quota
from broker.core.errors import Exhausted
from broker.core.model import Lease
from broker.core.quota import LeaseQuota, Tally
from tests.contracts.store.samples import config, opened
from tests.fakes.calls import Clock
from tests.fakes.hsm import SoftwareHsm
from tests.fakes.memory_store import MemoryStore
from tests.fakes.secrets import TamperedHouse
from tests.servers.databases import migrate
from tests.unit.sessions.bench import Bench, pipeline

DEPLOY = "pipeline/deploy"


def tally(limits: LeaseQuota) -> Tally:
    return Tally(MemoryStore(), Clock(), limits)


def full(tally: Tally, principal: str, more: int) -> str:
    """Why there is no room, or ""."""
    try:
        with tally.room(principal, more):
            return ""
    except Exhausted as error:
        return error.reason


def test_TL_11_what_another_call_is_about_to_add_takes_room() -> None:
    leases = tally(LeaseQuota(per_principal=3))
    with leases.room(DEPLOY, 2):
        assert full(leases, DEPLOY, 2) == "LEASE_QUOTA"
        assert full(leases, DEPLOY, 1) == ""
        assert full(leases, "pipeline/other", 3) == ""
    assert full(leases, DEPLOY, 3) == ""


def test_TL_11_room_is_given_back_by_a_call_that_failed() -> None:
    leases = tally(LeaseQuota(per_principal=3))
    with pytest.raises(RuntimeError), leases.room(DEPLOY, 3):
        raise RuntimeError
    assert full(leases, DEPLOY, 4) == "LEASE_QUOTA"
    assert full(leases, DEPLOY, 3) == ""


def test_TL_11_a_recount_in_all_does_not_miss_what_is_being_added() -> None:
    clock = Clock()
    leases = Tally(MemoryStore(), clock, LeaseQuota(in_all=5))
    with leases.room(DEPLOY, 3):
        clock.forward(seconds=2)
        assert full(leases, "pipeline/other", 3) == "LEASE_CAP"
        assert full(leases, "pipeline/other", 2) == ""


def test_TL_11_twelve_fetches_at_one_moment_stay_within_the_limit(tmp_path: Path) -> None:
    place = config(f"sqlite:///{tmp_path}/broker.db", tmp_path)
    migrate(place)
    with opened(place) as store:
        bench = Bench(store, LeaseQuota(per_principal=7))
        bench.add_rule()
        bench.put("app/a")
        bench.put("app/b")
        gate = threading.Barrier(12)

        def fetch(_: int) -> str:
            gate.wait(60)
            try:
                bench.fetch(pipeline(), "app/a", "app/b")
            except Exhausted as error:
                return error.reason
            return ""

        with ThreadPoolExecutor(12) as pool:
            reasons = list(pool.map(fetch, range(12)))
        given = store.count(Lease, {"principal": DEPLOY, "state": "active"})
    assert given == 2 * reasons.count("")
    assert 0 < given <= 7
    assert set(reasons) == {"", "LEASE_QUOTA"}


def test_a_secret_keeps_so_many_versions_until_old_ones_are_destroyed(monkeypatch: pytest.MonkeyPatch) -> None:
    # Patched: the bound is 10,000 versions, which nobody configures.
    monkeypatch.setattr(quota, "MAX_KEPT", 3)
    house = TamperedHouse(MemoryStore(), SoftwareHsm())
    for _ in range(2):
        house.put()
    request = str(uuid4())
    house.put(request_id=request)
    house.secrets.delete(house.call("DeleteSecretVersions"), "team/app/db", [1])
    for dry in (False, True):
        with pytest.raises(Exhausted) as found:
            house.put(validate_only=dry)
        assert found.value.reason == "VERSION_QUOTA"
    assert house.put(request_id=request).latest == 3  # the answer that was given before
    house.secrets.destroy(house.call("DestroySecretVersions"), "team/app/db", [1])
    assert house.put().latest == 4
    assert house.put("team/app/other").latest == 1
