"""What may be a second old, and what may not."""

from __future__ import annotations

import pytest

from broker.store.recent import KEPT, KEPT_SECONDS, Recent


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_record_is_read_again_after_a_second(clock: Clock) -> None:
    recent = Recent(clock)
    assert recent.get(str, ("a",), lambda: "old") == "old"
    clock.now += KEPT_SECONDS * 0.99
    assert recent.get(str, ("a",), lambda: "new") == "old"
    clock.now += KEPT_SECONDS * 0.02
    assert recent.get(str, ("a",), lambda: "new") == "new"


def test_what_this_process_changed_is_read_again_at_once(clock: Clock) -> None:
    recent = Recent(clock)
    assert [recent.get(str, (name,), lambda: "old") for name in "ab"] == ["old"] * 2
    recent.forget([(str, ("a",))])
    assert recent.get(str, ("a",), lambda: "new") == "new"
    assert recent.get(str, ("b",), lambda: "new") == "old"
    assert recent.get(bytes, ("b",), lambda: b"another kind") == b"another kind"


def test_what_was_read_while_this_process_changed_it_is_not_kept(clock: Clock) -> None:
    recent = Recent(clock)

    def overtaken() -> str:
        recent.forget([(str, ("a",))])
        return "old"

    assert recent.get(str, ("a",), overtaken) == "old"
    assert recent.get(str, ("a",), lambda: "new") == "new"


def test_an_absent_record_is_asked_for_each_time(clock: Clock) -> None:
    recent = Recent(clock)
    assert recent.get(str, ("a",), lambda: None) is None
    assert recent.get(str, ("a",), lambda: "there by now") == "there by now"


def test_no_more_than_so_many_are_kept(clock: Clock) -> None:
    recent = Recent(clock)
    for number in range(KEPT + 1):
        recent.get(int, (number,), lambda: 1)
    assert recent.get(int, (KEPT,), lambda: 2) == 1
    assert recent.get(int, (0,), lambda: 2) == 2
