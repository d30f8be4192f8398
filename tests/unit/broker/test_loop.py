"""The background loop: no kind of work can keep the others from being done."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

from broker import app
from broker.core.call import Call, background_call
from broker.core.clock import Clock
from broker.core.drift.lifecycle import Shown
from broker.core.errors import Unavailable, WrongState
from broker.core.findings import Finding
from broker.core.kinds import Drift, SessionState
from broker.core.schedules.lifecycle import Late
from broker.core.schedules.standing import Standing
from broker.loop import DRIFT_EVERY, Loop
from tests.fakes.memory_store import MemoryStore
from tests.unit.sessions.bench import Bench

PATIENCE = 60.0


def parts(**other: Any) -> Any:
    """What the loop sees of a broker, with nothing to do; it leads."""
    idle = SimpleNamespace(
        chores=lambda: iter(()), refresh=lambda: None, flush_reads=lambda _: None, late=lambda: iter(())
    )
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
            "imports": idle,
            "approvals": idle,
            "schedules": SimpleNamespace(chores=lambda: iter(()), late=lambda: iter(()), stepped=lambda: iter(())),
            "use": SimpleNamespace(flush_uses=lambda _: None),
            "drifts": SimpleNamespace(chores=lambda: iter(()), news=list),
            "authorities": idle,
            "own": idle,
            "claim": SimpleNamespace(look=lambda _call: None),
            "operations": SimpleNamespace(due=dict, chores=lambda: iter(())),
            "renew_certificate": lambda: None,
            **other,
        }
    )


def round_of(loop: Loop) -> None:
    """A round of the heartbeat, with what it sets going beside it."""
    loop.round()
    assert loop.idle(PATIENCE)


def test_AU_03_chores_that_take_long_keep_neither_heads_nor_others_from_being_done() -> None:
    """A noun whose chores hang costs neither the heads, nor the leadership, nor another noun's chores."""
    beats: list[str] = []
    go, other = threading.Event(), threading.Event()

    def heads() -> list[object]:
        beats.append("heads")
        return []

    def lead() -> int:
        beats.append("lead")
        return 1

    def hanging(_call: Call) -> None:
        assert go.wait(PATIENCE)

    loop = Loop(
        parts(
            keys=SimpleNamespace(chores=lambda: iter([("key/a", hanging)])),
            sessions=SimpleNamespace(chores=lambda: iter([("session/a", lambda _call: other.set())])),
            heads=heads,
            lead=lead,
        )
    )
    for _ in range(3):
        loop.round()
    assert other.wait(PATIENCE)
    assert beats == ["lead", "heads"] * 3
    go.set()
    loop.stop()


def test_P10_who_does_not_lead_looks_for_no_shared_work() -> None:
    looked: list[str] = []

    def chores() -> Iterator[tuple[str, Callable[[Call], None]]]:
        looked.append("looked")
        yield "key/a", lambda _call: None

    nouns = {name: SimpleNamespace(chores=chores, refresh=lambda: None) for name in ("keys", "sessions")}
    round_of(Loop(parts(lead=lambda: None, **nouns)))
    assert looked == []
    round_of(Loop(parts(**nouns)))
    assert looked == ["looked", "looked"]


def test_P10_the_number_of_the_newest_leadership_goes_with_each_piece() -> None:
    fences = iter([7, 9, None])
    done: list[tuple[str, object]] = []

    def piece(call: Call) -> None:
        done.append((call.resource, call.outcome().fence))
        loop.round()  # the heartbeat goes on meanwhile

    sessions = SimpleNamespace(chores=lambda: iter([(f"session/{name}", piece) for name in "abc"]))
    loop = Loop(parts(lead=lambda: next(fences), sessions=sessions))
    round_of(loop)
    assert done == [("session/a", 7), ("session/b", 9)]


def test_P10_a_database_that_does_not_say_who_leads_ends_the_shared_work() -> None:
    def lead() -> int:
        raise Unavailable("STORE_UNAVAILABLE", "Away.")

    done: list[str] = []
    chores = SimpleNamespace(chores=lambda: iter([("session/a", lambda _call: done.append("a"))]))
    round_of(Loop(parts(lead=lead, sessions=chores)))
    assert done == []


@pytest.mark.parametrize("noun", ["keys", "secrets"])
def test_ST_04_nothing_is_destroyed_on_a_database_that_went_back_since_the_last_look(noun: str) -> None:
    """The thread ends with the refusal, and with it the process; the health check alone would come too late."""
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
    lost: list[str] = []
    with pytest.MonkeyPatch.context() as patch:  # what ends the process (``__main__``)
        # Patched: it is the process's one hook, and pytest's takes this for a failure.
        patch.setattr(threading, "excepthook", lambda args: lost.append(args.exc_value.reason))
        round_of(Loop(broker))
    assert (lost, done) == (["STORE_RESTORED"], [])


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


def test_AU_03_a_chain_that_was_begun_anew_is_signed_in_the_next_round() -> None:
    time = timedelta()
    moved: list[Any] = []
    signed: list[str] = []

    def sign_due() -> list[Any]:
        signed.extend(head.chain for head in moved)
        return list(moved)

    broker = parts(heads=lambda: list(moved))
    broker.heads = SimpleNamespace(sign_due=sign_due)
    loop = Loop(broker, lambda: time)
    moved[:] = [SimpleNamespace(chain="first", sequence=1)]
    loop.round()
    moved[:] = [SimpleNamespace(chain="first", sequence=9)]
    loop.round()
    assert signed == ["first"]  # it has one, and its next is not due
    moved[:] = [SimpleNamespace(chain="second", sequence=1)]
    loop.round()
    assert signed == ["first", "second"]


def test_operations_of_which_there_are_many_are_looked_through_less_often() -> None:
    time = timedelta()
    looked: list[timedelta] = []

    def due() -> dict[str, list[Any]]:
        nonlocal time
        looked.append(time)
        time += timedelta(seconds=0.2)
        return {}

    loop = Loop(parts(operations=SimpleNamespace(due=due, chores=lambda: iter(()))), lambda: time)
    while time < timedelta(seconds=10):
        loop.round()
        time += timedelta(seconds=0.1)
    gaps = [later - former for former, later in pairwise(looked)]
    assert all(timedelta(seconds=4.2) <= gap < timedelta(seconds=4.4) for gap in gaps), gaps
    assert gaps


def test_FT_24_whose_time_is_in_doubt_does_not_ask_to_lead() -> None:
    asked: list[str] = []

    def lead() -> int:
        asked.append("asked")
        return 7

    broker = parts(lead=lead)
    broker.store.clock = lambda: app.now() + timedelta(hours=1)
    serving: list[bool] = []
    broker.server = SimpleNamespace(set_serving=serving.append)
    round_of(Loop(broker))
    assert (asked, serving) == ([], [False])


def test_what_is_overdue_is_said_in_one_line_each_hour_by_the_leader_alone() -> None:
    time = timedelta()
    over, soon = Standing(overdue=True), Standing(soon=True)
    keys = [
        Late(key=f"k{number}", standing=over, failure="POLICY_DENIED" if not number else "") for number in range(12)
    ]
    keys.append(Late(key="next", standing=soon, failure=""))
    stepped: list[str] = []

    def astray() -> Iterator[tuple[str, Callable[[Call], None]]]:
        yield "key/astray", lambda _call: stepped.append("astray")

    idle = SimpleNamespace(chores=lambda: iter(()), refresh=lambda: None, flush_reads=lambda _: None)
    broker = parts(
        schedules=SimpleNamespace(chores=lambda: iter(()), late=lambda: iter(keys), stepped=astray),
        secrets=SimpleNamespace(**vars(idle), late=lambda: iter([("app/db", over)])),
    )
    loop = Loop(broker, lambda: time)
    with capture_logs() as said:
        round_of(loop)
        time += timedelta(minutes=59)
        round_of(loop)
    told = [(one["event"], one["what"], one["count"], one["names"]) for one in said if "what" in one]
    assert [one[:3] for one in told] == [
        ("something is overdue", "keys", 12),
        ("something is due soon", "keys", 1),
        ("something is overdue", "secrets", 1),
    ]
    assert told[0][3].startswith("k0 (POLICY_DENIED), k1, ")
    assert "k10" not in told[0][3]
    assert stepped == ["astray"]
    time += timedelta(hours=2)
    broker.store.lead = lambda: None
    with capture_logs() as said:
        round_of(loop)
    assert not [one for one in said if "what" in one]


def test_what_a_look_has_found_is_told_in_the_log_with_its_repair_but_not_right_after_a_start() -> None:
    time = timedelta()
    found = Finding(
        key="pay", version=1, remote_name="pay", remote_version="1", drift=Drift.DISABLED, detail="", found_at=app.now()
    )
    looks: list[str] = []
    drifts = SimpleNamespace(
        chores=lambda: iter([("target/prod/drift", lambda call: looks.append(call.resource))]),
        news=lambda: [("prod", Shown(finding=found, repair="enable it"))],
    )
    with structlog.testing.capture_logs() as told:
        loop = Loop(parts(drifts=drifts), lambda: time)
        round_of(loop)
        assert looks == []
        time += DRIFT_EVERY
        round_of(loop)
    assert looks == ["target/prod/drift"]
    (line,) = [one for one in told if one["event"] == "a place is not as the record says"]
    assert (line["log_level"], line["place"], line["drift"], line["key"], line["repair"]) == (
        "error", "prod", "disabled", "pay", "enable it",
    )  # fmt: skip
