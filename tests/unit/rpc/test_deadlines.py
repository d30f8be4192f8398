"""Slow writers, one or many together, do not hold all the threads that wait for messages (NT-05)."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from broker.core.errors import Late
from broker.rpc.deadlines import Deadlines


class Slow:
    """A call, and its requests, of which none comes before the call is ended."""

    def __init__(self) -> None:
        self.waiting, self.ended = threading.Event(), threading.Event()

    def __iter__(self) -> Slow:
        return self

    def __next__(self) -> bytes:
        self.waiting.set()
        assert self.ended.wait(60)
        raise StopIteration

    def cancel(self) -> None:
        self.ended.set()

    def add_callback(self, _told: object) -> bool:
        return False


def begun(threads: ThreadPoolExecutor, deadlines: Deadlines, caller: str) -> tuple[Slow, Any]:
    slow: Any = Slow()
    future = threads.submit(deadlines.message, slow, slow, caller)
    assert slow.waiting.wait(60)
    return slow, future


@pytest.mark.parametrize(
    ("callers", "next_caller", "ended"),
    [
        (["a", "a"], "a", 0),  # as many as one caller may have: its own oldest
        (["a", "b", "c"], "d", 0),  # as many as all may have, and each has one: the oldest
        (["b", "a", "a"], "d", 1),  # the oldest of the one who has most
        (["b", "a", "a"], "b", 1),
    ],
)
def test_NT_05_many_slow_writers_leave_room_for_a_prompt_one(callers: list[str], next_caller: str, ended: int) -> None:
    deadlines = Deadlines(30, 30, time.monotonic, at_once=2, in_all=3)
    with ThreadPoolExecutor(4) as threads:
        slow = [begun(threads, deadlines, caller) for caller in callers]
        prompt: Any = iter([b"message"])
        assert deadlines.message(prompt, Slow(), next_caller) == b"message"  # type: ignore[arg-type]
        assert [each.ended.is_set() for each, _ in slow] == [at == ended for at in range(len(slow))]
        for each, _ in slow:
            each.cancel()
        assert isinstance(slow[ended][1].exception(60), Late)
        again = [begun(threads, deadlines, caller)[0] for caller in ("a", "a", "b")]
        assert not any(each.ended.is_set() for each in again), "nobody's place is taken any more"
        for each in again:
            each.cancel()


def test_NT_05_with_room_nobody_is_ended() -> None:
    deadlines = Deadlines(30, 30, time.monotonic, at_once=2, in_all=3)
    with ThreadPoolExecutor(4) as threads:
        slow = [begun(threads, deadlines, caller) for caller in ("a", "b")]
        assert deadlines.message(iter([b"message"]), Slow(), "a") == b"message"  # type: ignore[arg-type]
        assert not any(each.ended.is_set() for each, _ in slow)
        for each, _ in slow:
            each.cancel()
