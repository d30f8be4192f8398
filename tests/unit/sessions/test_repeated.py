"""The repetition of a login is the same login (P08), for its caller alone and for a moment."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest

from broker.core.errors import AlreadyExists, BrokerError, Exhausted, Unauthenticated
from broker.core.model import Lease, Principal, Session, UsedToken
from broker.core.quota import LeaseQuota
from broker.core.sessions.lifecycle import Fetched, Opening
from broker.core.sessions.login import REPEATABLE
from tests.fakes.memory_store import MemoryStore
from tests.fakes.refusals import refused
from tests.unit.sessions.bench import Bench, pipeline


def made(limits: LeaseQuota | None = None, *, single_use: bool = True) -> Bench:
    bench = Bench(MemoryStore(), limits)
    bench.add_rule(single_use=single_use)
    for name in ("app/db", "app/api"):
        bench.put(name)
    return bench


@pytest.fixture
def bench() -> Bench:
    return made()


def login(bench: Bench, job: Principal, request_id: str, **how: Any) -> Opening:
    call = bench.call("SessionService/Login", job, request_id=request_id, **how)
    return bench.sessions.login(call, timedelta(seconds=60))


def fetch(bench: Bench, job: Principal, request_id: str, *wanted: str, **how: Any) -> tuple[list[Fetched], Opening]:
    call = bench.call("SessionService/FetchSecrets", job, request_id=request_id, **how)
    found, opening = bench.sessions.fetch(call, list(wanted), partial=False, ttl=timedelta(seconds=60))
    assert opening is not None
    return found, opening


@pytest.mark.parametrize("single_use", [True, False])
def test_P08_the_repetition_of_a_login_gets_the_same_session(single_use: bool) -> None:  # noqa: FBT001 (of pytest)
    bench = made(single_use=single_use)
    job, request_id = pipeline(jti="once"), str(uuid4())
    first = login(bench, job, request_id)
    second = login(bench, job, request_id)
    assert second.session.id == first.session.id
    assert bench.store.count(Session, {}) == 1
    assert bench.store.count(UsedToken, {}) == single_use
    # The first answer's token counts no more: two who have the session cannot both go unnoticed.
    assert second.token != first.token
    assert bench.sessions.authenticate(second.token).credential == first.session.id
    refused(lambda: bench.sessions.authenticate(first.token), Unauthenticated, "SESSION_INVALID")


def test_P08_the_repetition_of_a_fetch_gets_the_same_values_leases_and_session(bench: Bench) -> None:
    job, request_id = pipeline(jti="once"), str(uuid4())
    first, opening = fetch(bench, job, request_id, "app/db", "app/api")
    second, again = fetch(bench, job, request_id, "app/db", "app/api")
    assert [(one.secret, one.lease) for one in second] == [(one.secret, one.lease) for one in first]
    assert again.session.id == opening.session.id
    assert bench.store.count(Lease, {}) == 2
    assert [one.secret for one in bench.fetch(again.token, "app/db")[0]] == [second[0].secret]


def test_P08_a_replay_is_refused_as_ever(bench: Bench) -> None:
    job, request_id = pipeline(jti="once"), str(uuid4())
    login(bench, job, request_id)
    refused(lambda: login(bench, job, str(uuid4())), Unauthenticated, "TOKEN_REPLAYED")
    refused(lambda: login(bench, job, ""), Unauthenticated, "TOKEN_REPLAYED")
    refused(lambda: login(bench, job, request_id, digest="1" * 64), Unauthenticated, "TOKEN_REPLAYED")
    refused(lambda: fetch(bench, job, str(uuid4()), "app/db"), Unauthenticated, "TOKEN_REPLAYED")
    login(bench, pipeline(jti="another"), request_id)  # the id of another's request is nothing by itself
    assert bench.store.count(Session, {}) == 2


def test_P08_a_login_without_an_id_cannot_be_repeated(bench: Bench) -> None:
    job = pipeline(jti="once")
    login(bench, job, "")
    refused(lambda: login(bench, job, ""), Unauthenticated, "TOKEN_REPLAYED")


def _renewed(bench: Bench, first: Opening) -> None:
    bench.clock.forward(seconds=1)
    bench.renew(first.token, 60)


def _ended(bench: Bench, first: Opening) -> None:
    bench.end(first.token)


def _lapsed(bench: Bench, _first: Opening) -> None:
    bench.clock.forward(seconds=60)


def _revoked(bench: Bench, first: Opening) -> None:
    bench.revoke(session=first.session.id)


@pytest.mark.parametrize("meanwhile", [_renewed, _ended, _lapsed, _revoked])
@pytest.mark.parametrize("single_use", [True, False])
def test_P08_once_the_answer_has_come_or_the_session_is_over_there_is_no_repetition(
    meanwhile: Callable[[Bench, Opening], None],
    single_use: bool,  # noqa: FBT001 (of pytest)
) -> None:
    bench = made(single_use=single_use)
    job, request_id = pipeline(jti="once"), str(uuid4())
    meanwhile(bench, login(bench, job, request_id))
    kind, reason = (Unauthenticated, "TOKEN_REPLAYED") if single_use else (AlreadyExists, "REQUEST_ID_REUSED")
    refused(lambda: login(bench, job, request_id), kind, reason)
    assert bench.store.count(Session, {}) == 1


def test_P08_a_login_is_repeated_for_a_moment_only(bench: Bench) -> None:
    job, request_id = pipeline(jti="once"), str(uuid4())
    call = bench.call("SessionService/Login", job, request_id=request_id)
    bench.sessions.login(call, timedelta(seconds=600))
    bench.clock.forward(seconds=REPEATABLE.total_seconds() + 1)
    call = bench.call("SessionService/Login", job, request_id=request_id)
    refused(lambda: bench.sessions.login(call, timedelta(seconds=600)), Unauthenticated, "TOKEN_REPLAYED")


def test_P08_a_policy_that_changed_meanwhile_counts(bench: Bench) -> None:
    job, request_id = pipeline(jti="once"), str(uuid4())
    fetch(bench, job, request_id, "app/db")
    bench.set_policy(bench.text.replace('resource in Folder::"app"', 'resource in Folder::"none"'))
    with pytest.raises(BrokerError) as found:
        fetch(bench, job, request_id, "app/db")
    assert found.value.reason == "POLICY_DENIED"


def test_P08_the_last_that_a_pipeline_may_have_is_repeated_too() -> None:
    bench = made(LeaseQuota(per_principal=1))
    job, request_id = pipeline(jti="once"), str(uuid4())
    first, _ = fetch(bench, job, request_id, "app/db")
    second, _ = fetch(bench, job, request_id, "app/db")
    assert second[0].lease == first[0].lease
    refused(lambda: login(bench, pipeline(jti="two"), str(uuid4())), Exhausted, "SESSION_QUOTA")


def test_P08_leases_need_no_second_room() -> None:
    bench = made(LeaseQuota(per_principal=2))
    job, request_id = pipeline(jti="once"), str(uuid4())
    fetch(bench, job, request_id, "app/db", "app/api")
    assert len(fetch(bench, job, request_id, "app/db", "app/api")[0]) == 2


def test_P08_the_id_of_a_login_is_its_callers_alone(bench: Bench) -> None:
    job, request_id = pipeline(jti="once"), str(uuid4())
    for _ in range(2):
        fetch(bench, job, request_id, "app/db")
    assert isinstance(bench.store, MemoryStore)
    told = [one for one in bench.store.entries if one.rpc in {"SessionService/Login", "SessionService/FetchSecrets"}]
    assert [one.facts.get("replayed") for one in told] == [None, None, 1, None]
    assert all(request_id not in repr(one) for one in told)
