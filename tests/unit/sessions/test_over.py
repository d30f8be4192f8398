"""Sessions that are over, or may do nothing any more: what their holders still get, and how long they are kept."""

from __future__ import annotations

import pytest

from broker.core.errors import InvalidRequest, Unauthenticated
from broker.core.kinds import LeaseState
from broker.core.model import Session
from tests.fakes.memory_store import MemoryStore
from tests.unit.sessions.bench import Bench, pipeline


@pytest.fixture
def bench() -> Bench:
    made = Bench(MemoryStore())
    made.add_rule()
    made.put("app/db")
    made.put("app/api")
    return made


@pytest.mark.parametrize("act", ["change_rule", "delete_rule"])
def test_a_session_fetches_nothing_once_its_trust_rule_is_changed_or_gone(bench: Bench, act: str) -> None:
    token = bench.login(seconds=3600).token
    bench.fetch(token, "app/db")
    getattr(bench, act)()
    with pytest.raises(Unauthenticated) as found:
        bench.fetch(token, "app/db")
    assert found.value.reason == "TRUST_RULE_CHANGED"
    assert isinstance(bench.store, MemoryStore)
    assert bench.store.entries[-1].outcome == "ABORTED"
    bench.end(token)


def test_what_has_ended_is_forgotten_an_hour_later_however_long_it_could_have_lived(bench: Bench) -> None:
    bench.change_rule(max_session_seconds=24 * 3600)
    opening = bench.login(pipeline(revision=2), seconds=24 * 3600)
    bench.fetch(opening.token, "app/db", "app/api")
    bench.end(opening.token)
    bench.clock.forward(minutes=59)
    bench.chores()
    assert bench.states(opening.session.id) == [LeaseState.REVOKED] * 2
    bench.clock.forward(minutes=1)
    bench.chores()
    assert bench.states(opening.session.id) == []
    assert bench.store.get(Session, opening.session.id) is None


def test_an_answer_that_no_client_takes_is_refused_whole(bench: Bench) -> None:
    names = [f"app/big{number}" for number in range(49)]
    for name in names:
        bench.put(name, value=bytes(64 * 1024))
    with pytest.raises(InvalidRequest) as found:
        bench.fetch(pipeline(), *names)
    assert found.value.reason == "ANSWER_TOO_LARGE"
    assert bench.store.page(Session, limit=9) == []
    assert len(bench.fetch(pipeline(), *names[:48])[0]) == 48
