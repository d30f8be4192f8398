"""Turns: callers of one name one after another, callers of others at once, and nothing left behind."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from broker.core.imports.turns import Turns


def remembered(turns: Turns) -> dict[tuple[str, ...], object]:
    return dict(turns._wanted)  # noqa: SLF001 - that names pile up in memory would not show


def test_one_name_is_held_by_one_caller_at_a_time() -> None:
    turns, inside, most = Turns(), 0, 0

    def work(_: int) -> bool:
        nonlocal inside, most
        with turns.take("a", "b", seconds=10) as held:
            inside += 1
            most = max(most, inside)
            threading.Event().wait(0.001)
            inside -= 1
        return held

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(40)))
    assert most == 1
    assert remembered(turns) == {}


def test_other_names_do_not_wait_and_patience_ends() -> None:
    turns = Turns()
    with (
        turns.take("a", seconds=1) as first,
        turns.take("b", seconds=0) as other,
        turns.take("a", seconds=0.01) as late,
    ):
        assert (first, other, late) == (True, True, False)
    with turns.take("a", seconds=0) as again:
        assert again
    assert remembered(turns) == {}


def test_a_turn_ends_with_an_exception_too() -> None:
    turns = Turns()
    with pytest.raises(ZeroDivisionError), turns.take("a", seconds=1):
        raise ZeroDivisionError
    with turns.take("a", seconds=0) as held:
        assert held
