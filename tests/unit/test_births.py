"""Turns at the HSM: one caller's many do not keep the others from theirs."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest

from broker.core.births import Births
from broker.core.errors import Exhausted, Unavailable


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_NT_10_callers_are_served_in_rotation_whoever_came_first() -> None:
    births, served, first = Births(each=20), list[str](), Event()

    def one(who: str) -> None:
        with births.turn(who):
            first.wait(10)
            served.append(who)

    with ThreadPoolExecutor(20) as pool:
        for before, who in enumerate(["flood"] * 10 + ["alice", "bob", "alice"]):
            pool.submit(one, who)
            until(lambda before=before: sum(map(len, births._waiting.values())) == before)  # type: ignore[misc]
        first.set()
    assert served[:6] == ["flood", "flood", "alice", "bob", "flood", "alice"]
    assert sorted(served) == sorted(["flood"] * 10 + ["alice", "bob", "alice"])


def test_NT_10_nobody_has_more_under_way_than_anybody_may_have() -> None:
    births = Births(each=2)
    with births.enter("flood"), births.enter("flood"):
        with pytest.raises(Exhausted) as refusal, births.enter("flood"):
            raise AssertionError("three at a time")
        assert refusal.value.reason == "KEYS_UNDER_WAY"
        with births.enter("alice"):
            assert births._under_way == {"flood": 2, "alice": 1}
    with births.enter("flood"):
        assert births._under_way == {"flood": 1}
    assert not births._under_way


def test_who_waits_too_long_is_told_and_leaves_the_queue() -> None:
    births = Births(each=2)
    with births.turn("alice"), pytest.raises(Unavailable) as refusal, births.turn("bob", seconds=0.01):
        raise AssertionError("two at a time")
    assert refusal.value.reason == "HSM_BUSY"
    assert not births._waiting
    with births.turn("bob", seconds=0.01):
        pass


def test_a_turn_that_ends_in_an_error_is_passed_on() -> None:
    births = Births(each=2)
    with pytest.raises(ZeroDivisionError), births.enter("alice"), births.turn("alice"):
        raise ZeroDivisionError
    with births.enter("alice"), births.turn("bob", seconds=0.01):
        assert births._taken
