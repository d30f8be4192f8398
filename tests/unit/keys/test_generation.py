"""Turns at the HSM: one caller's many do not keep the others from theirs."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Event, Semaphore

import pytest

from broker.core.errors import BrokerError, Exhausted, Unavailable
from broker.core.keys.generation import GenerationTurns
from broker.core.kinds import KeyType, KeyUsage
from broker.core.model import Key
from broker.core.ports import KeyRef
from tests.fakes.calls import operator
from tests.fakes.hsm import SoftwareHsm
from tests.worlds.world import World


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def waiting(turns: GenerationTurns) -> dict[str, int]:
    """How many requests of each caller are in the queue."""
    queues = turns._waiting  # noqa: SLF001 - the order in which they come is to be made, and nobody is told of a queue
    return {who: len(queue) for who, queue in list(queues.items())}


def test_NT_10_callers_are_served_in_rotation_whichever_came_first() -> None:
    turns, served, first = GenerationTurns(each=20), list[str](), Event()

    def one(who: str) -> None:
        with turns.turn(who):
            first.wait(60)
            served.append(who)

    with ThreadPoolExecutor(20) as pool:
        for before, who in enumerate(["flood"] * 10 + ["alice", "bob", "alice"]):
            pool.submit(one, who)
            until(lambda before=before: sum(waiting(turns).values()) == before)  # type: ignore[misc]
        first.set()
    assert served[:6] == ["flood", "flood", "alice", "bob", "flood", "alice"]
    assert sorted(served) == sorted(["flood"] * 10 + ["alice", "bob", "alice"])


def test_NT_10_nobody_has_more_under_way_than_anybody_may_have() -> None:
    turns = GenerationTurns(each=2)
    with turns.enter("flood"), turns.enter("flood"):
        with pytest.raises(Exhausted) as refusal, turns.enter("flood"):
            raise AssertionError("three at a time")
        assert refusal.value.reason == "KEYS_UNDER_WAY"
        with turns.enter("alice"):
            pass
    with turns.enter("flood"), turns.enter("flood"), pytest.raises(Exhausted), turns.enter("flood"):
        raise AssertionError("three at a time")
    assert not turns._under_way  # noqa: SLF001 - that names pile up in memory would not show


def test_who_waits_too_long_is_told_and_leaves_the_queue() -> None:
    turns = GenerationTurns(each=2)
    with turns.turn("alice"), pytest.raises(Unavailable) as refusal, turns.turn("bob", seconds=0.01):
        raise AssertionError("two at a time")
    assert refusal.value.reason == "HSM_BUSY"
    assert waiting(turns) == {}
    with turns.turn("bob", seconds=0.01):
        pass


def busy(turns: GenerationTurns) -> bool:
    with pytest.raises(Unavailable) as refusal, turns.turn("carol", seconds=0.01):
        raise AssertionError("two at a time")
    return refusal.value.reason == "HSM_BUSY"


def test_a_turn_that_ends_in_an_error_is_passed_on() -> None:
    turns = GenerationTurns(each=2)
    with pytest.raises(ZeroDivisionError), turns.enter("alice"), turns.turn("alice"):
        raise ZeroDivisionError
    with turns.enter("alice"), turns.turn("bob", seconds=0.01):
        assert busy(turns)


class SlowHsm(SoftwareHsm):
    """Makes a key only when it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.order: list[str] = []
        self.go = Semaphore(0)

    def generate(self, key: KeyRef, *, exportable: bool, fresh: bool = False) -> bytes | None:
        self.order.append(key.name.partition("-")[0])
        assert self.go.acquire(timeout=200)
        return super().generate(key, exportable=exportable, fresh=fresh)


def test_NT_10_one_principals_flood_of_keys_holds_up_another_for_one_key_only() -> None:
    hsm = SlowHsm()
    world = World(hsm=hsm, slots=8)
    keys, store = world.keys, world.store

    def create(who: str, number: int) -> str:
        asked = world.asked("KeyService/CreateKey", operator(who, "admins"))
        name = f"{who}-{number}"
        try:
            keys.create(asked, name, KeyType.EC_P256, KeyUsage.SIGN, exportable=False, labels={}, owner="")
        except BrokerError as refusal:
            assert store.get(Key, name) is None, "a refusal leaves nothing behind"
            return refusal.reason
        return "ok"

    with ThreadPoolExecutor(40) as pool:
        flood = [pool.submit(create, "flood", number) for number in range(30)]
        until(lambda: sum(one.done() for one in flood) == 22)
        other = pool.submit(create, "alice", 1)
        until(lambda: "operator/alice" in waiting(keys.making._turns))  # noqa: SLF001 - as above
        for _ in range(9):
            hsm.go.release()
        assert other.result(200) == "ok"
    told = [one.result() for one in flood]
    assert told.count("KEYS_UNDER_WAY") == 22
    assert told.count("ok") == 8
    assert hsm.order.index("alice") <= 2
