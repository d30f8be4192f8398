"""The background loop: no kind of work can keep the others from being done."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from broker import app
from broker import loop as background
from broker.core.call import Call, background_call
from broker.core.clock import Clock
from broker.core.errors import Unavailable, WrongState
from broker.core.kinds import SessionState
from broker.loop import Loop
from tests.fakes.memory_store import MemoryStore
from tests.unit.session_bench import Bench


def parts(**other: Any) -> Any:
    """What the loop sees of a broker, with nothing to do; it leads."""
    idle = SimpleNamespace(chores=lambda: iter(()), refresh=lambda: None, flush_reads=lambda _: None)
    store = SimpleNamespace(
        clock=lambda: None,
        check=lambda: None,
        heads=other.pop("heads", list),
        lead=other.pop("lead", lambda: 1),
        record=lambda _: None,
    )
    return SimpleNamespace(
        **{
            "hsm": SimpleNamespace(check=lambda: None),
            "store": store,
            "clock": Clock(app.now, app.counted),
            "server": SimpleNamespace(set_serving=lambda _serving: None),
            "policies": idle,
            "keys": idle,
            "secrets": idle,
            "sessions": idle,
            "withdrawals": SimpleNamespace(due=dict),
            "renew_certificate": lambda: None,
            **other,
        }
    )


def test_AU_03_many_chores_do_not_keep_heads_from_being_signed(monkeypatch: pytest.MonkeyPatch) -> None:
    time = timedelta()
    done: list[str] = []
    left = [f"key/{number}" for number in range(12)]

    def work(resource: str, _call: Call) -> None:
        nonlocal time
        time += timedelta(seconds=1)
        left.remove(resource)
        done.append("chore")

    def chores() -> Iterator[tuple[str, Callable[[Call], None]]]:
        for resource in list(left):
            yield resource, lambda call, resource=resource: work(resource, call)  # type: ignore[misc]

    def heads() -> list[object]:
        done.append("heads")
        return []

    broker = parts(keys=SimpleNamespace(chores=chores), heads=heads)
    monkeypatch.setattr(background, "ticks", lambda: time)
    monkeypatch.setattr(background, "BREATHER", 0.0)
    loop = Loop(broker)
    for _ in range(3):
        loop._round()
    assert "".join(each[0] for each in done) == "h" + "c" * 5 + "h" + "c" * 5 + "h" + "c" * 2


def test_P10_who_does_not_lead_looks_for_no_shared_work() -> None:
    looked: list[str] = []

    def chores() -> Iterator[tuple[str, Callable[[Call], None]]]:
        looked.append("looked")
        yield "key/a", lambda _call: None

    nouns = {name: SimpleNamespace(chores=chores, refresh=lambda: None) for name in ("keys", "sessions")}
    Loop(parts(lead=lambda: None, **nouns))._round()
    assert looked == []
    Loop(parts(**nouns))._round()
    assert looked == ["looked", "looked"]


def test_P10_the_leadership_is_asked_for_before_each_piece_and_its_number_goes_with_it() -> None:
    answers = iter([7, 7, 7, 9, None, None, None])
    done: list[tuple[str, object]] = []

    def chores() -> Iterator[tuple[str, Callable[[Call], None]]]:
        for resource in ("session/a", "session/b", "session/c"):
            yield resource, lambda call: done.append((call.resource, call.outcome().fence))

    Loop(parts(lead=lambda: next(answers), sessions=SimpleNamespace(chores=chores)))._round()
    assert done == [("session/a", 7), ("session/b", 9)]


def test_P10_a_database_that_does_not_say_who_leads_ends_the_shared_work() -> None:
    def lead() -> int:
        raise Unavailable("STORE_UNAVAILABLE", "Away.")

    done: list[str] = []
    chores = SimpleNamespace(chores=lambda: iter([("session/a", lambda _call: done.append("a"))]))
    Loop(parts(lead=lead, sessions=chores))._round()
    assert done == []


@pytest.mark.parametrize("noun", ["keys", "secrets"])
def test_ST_04_nothing_is_destroyed_on_a_database_that_went_back_since_the_last_look(noun: str) -> None:
    """The loop ends with the refusal, and with it the process; the health check alone would come too late."""
    back = False
    done: list[str] = []

    def check() -> None:
        if back:
            raise WrongState("STORE_RESTORED", "It is older than the journal.")

    def chores() -> Iterator[tuple[str, Callable[[Call], None]]]:
        nonlocal back
        back = True  # after everything else has looked, and while this was read
        yield "key/a", lambda _call: done.append("a")

    idle = SimpleNamespace(chores=lambda: iter(()), refresh=lambda: None, flush_reads=lambda _: None)
    broker = parts(**{noun: SimpleNamespace(**{**vars(idle), "chores": chores})})
    broker.store.check = check
    with pytest.raises(WrongState):
        Loop(broker)._round()
    assert done == []


def test_P10_no_shared_work_of_a_former_leader_changes_anything() -> None:
    bench = Bench(MemoryStore())
    bench.add_rule()
    opened = bench.login(seconds=10)
    bench.put("app/db", value=b"x")
    bench.fetch(opened.token, "app/db")
    bench.clock.forward(hours=1)
    store: Any = bench.store
    store.fence = 2
    before = store.rows
    pieces = list(bench.sessions.chores())
    assert pieces
    for resource, work in pieces:
        with pytest.raises(WrongState) as found:
            work(background_call(resource, 1, app.now))
        assert found.value.reason == "LEADERSHIP_LOST"
    assert store.rows == before
    for resource, work in bench.sessions.chores():
        work(background_call(resource, 2, app.now))
    assert bench.session(opened.session.id).state is SessionState.ENDED


def test_AU_03_a_chain_that_was_begun_anew_is_signed_in_the_next_round(monkeypatch: pytest.MonkeyPatch) -> None:
    time = timedelta()
    moved: list[Any] = []
    signed: list[str] = []

    def sign_due() -> list[Any]:
        signed.extend(head.chain for head in moved)
        return list(moved)

    monkeypatch.setattr(background, "ticks", lambda: time)
    broker = parts(heads=lambda: list(moved))
    broker.heads = SimpleNamespace(sign_due=sign_due)
    loop = Loop(broker)
    moved[:] = [SimpleNamespace(chain="first", sequence=1)]
    loop._sign()
    moved[:] = [SimpleNamespace(chain="first", sequence=9)]
    loop._sign()
    assert signed == ["first"]  # it has one, and its next is not due
    moved[:] = [SimpleNamespace(chain="second", sequence=1)]
    loop._sign()
    assert signed == ["first", "second"]


def test_FT_24_whose_time_is_in_doubt_does_not_ask_to_lead() -> None:
    asked: list[str] = []

    def lead() -> int:
        asked.append("asked")
        return 7

    broker = parts(lead=lead)
    broker.store.clock = lambda: app.now() + timedelta(hours=1)
    serving: list[bool] = []
    broker.server = SimpleNamespace(set_serving=serving.append)
    Loop(broker)._round()
    assert (asked, serving) == ([], [False])
