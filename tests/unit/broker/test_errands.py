"""What waits for somebody else's server is done beside the loop, and holds up neither it nor other servers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from broker.config import CALLS_END
from broker.core.call import Call
from broker.core.errors import Unavailable
from broker.errands import Errands
from broker.loop import ERRANDS_SECONDS, Loop
from broker.store.config import StoreConfig
from broker.store.waits import LONGEST, SHORTEST, Waits
from broker.supervisor import drain
from tests.unit.broker.test_loop import parts

PATIENCE = 60.0


def test_one_errand_a_name_and_so_many_at_once() -> None:
    errands, go, done = Errands(most=2), threading.Event(), []

    def work(name: str) -> None:
        assert go.wait(PATIENCE)
        done.append(name)

    assert errands.start("a", lambda: work("a"))
    assert not errands.start("a", lambda: work("again"))
    assert errands.start("b", lambda: work("b"))
    assert not errands.start("c", lambda: work("c"))
    go.set()
    assert errands.stop(PATIENCE)
    assert sorted(done) == ["a", "b"]
    assert not errands.start("d", lambda: work("d"))


def test_an_end_does_not_wait_for_ever() -> None:
    errands, go = Errands(), threading.Event()
    errands.start("a", lambda: assert_set(go))
    assert not errands.stop(0.05)
    go.set()
    assert errands.stop(PATIENCE)


@pytest.mark.parametrize("patience", [SHORTEST, 1.0, LONGEST])
def test_a_worker_has_ended_before_its_supervisor_kills_it(patience: float) -> None:
    """One second is the inspector's."""
    file = Path("/srv/broker/x")
    store = StoreConfig(url="sqlite:////srv/broker.db", journal=file, patience_seconds=patience)
    config: Any = SimpleNamespace(store=store)
    assert CALLS_END + 1.0 + ERRANDS_SECONDS + Waits(patience).journal < drain(config)


def assert_set(event: threading.Event) -> None:
    assert event.wait(PATIENCE)


class Waiting:
    """Operations at two targets, of which one hangs and another is well."""

    def __init__(self) -> None:
        self.hangs, self.done = threading.Event(), threading.Event()

    def chores(self) -> Iterator[tuple[str, Callable[[Call], None]]]:
        return iter(())

    def alarm(self, row: SimpleNamespace) -> str:
        return f"{row.subject} waits"

    def due(self) -> dict[str, list[object]]:
        return {name: [SimpleNamespace(kind="import-key", subject=name)] for name in ("hanging", "well")}

    def carry_on(self, call: Call, row: SimpleNamespace) -> Unavailable | None:
        assert call.fence == 1
        if row.subject == "well":
            self.done.set()
            return None
        assert_set(self.hangs)
        return Unavailable("TARGET_UNREACHABLE", "Away.")


def test_BY_05_a_target_that_hangs_holds_up_neither_heads_nor_another_target() -> None:
    asked: list[str] = []
    waiting = Waiting()

    def heads() -> list[object]:
        asked.append("heads")
        return []

    loop = Loop(parts(heads=heads, operations=waiting))
    for _ in range(3):
        loop.round()
    assert waiting.done.wait(PATIENCE)
    assert asked == ["heads"] * 3
    waiting.hangs.set()
    loop.stop()


def test_P10_who_does_not_lead_carries_nothing_on() -> None:
    looked: list[str] = []

    def due() -> dict[str, list[object]]:
        looked.append("looked")
        return {}

    Loop(parts(lead=lambda: None, operations=SimpleNamespace(due=due, chores=lambda: iter(())))).round()
    assert looked == []


def test_what_was_given_no_thread_can_be_started_later(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    errands, done = Errands(most=1), threading.Event()
    with monkeypatch.context() as patch:
        # Patched: a limit of threads would be that of the whole machine's user.
        patch.setattr(threading.Thread, "start", none_left)
        with pytest.raises(RuntimeError):
            errands.start("one", done.set)
    assert errands.start("one", done.set)
    assert done.wait(60)
