"""Where the process runs."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker import processor
from broker.processor import Processor


@pytest.fixture(autouse=True)
def _anywhere() -> Iterator[None]:
    allowed = os.sched_getaffinity(0)
    yield
    for task in os.listdir("/proc/self/task"):  # noqa: PTH208 (names are all that is wanted)
        os.sched_setaffinity(int(task), allowed)


def test_threads_that_are_there_and_those_to_come_keep_to_one_processor() -> None:
    ends, seen = threading.Event(), list[set[int]]()
    early = threading.Thread(target=ends.wait)
    early.start()
    Processor(lambda: 0.0).settle()
    late = threading.Thread(target=lambda: seen.append(os.sched_getaffinity(0)))
    late.start()
    late.join()
    assert early.native_id is not None
    places = [os.sched_getaffinity(0), os.sched_getaffinity(early.native_id), *seen]
    ends.set()
    early.join()
    assert len(places[0]) == 1
    assert places == [places[0]] * 3


@pytest.mark.parametrize(("waited", "moved"), [(4.9, False), (5.1, True)])
def test_a_processor_that_others_take_is_left_for_the_idlest(
    monkeypatch: pytest.MonkeyPatch,
    waited: float,
    moved: bool,  # noqa: FBT001 (a parameter of the test)
) -> None:
    allowed = sorted(os.sched_getaffinity(0))
    clock, waits = iter([0.0, 10.0]), iter([0.0, waited])
    idles = iter([dict.fromkeys(allowed, 0.0), {**dict.fromkeys(allowed, 0.0), allowed[-1]: 9.0}])
    monkeypatch.setattr(processor, "_waited", lambda: next(waits))
    monkeypatch.setattr(processor, "_idle", lambda: next(idles))
    monkeypatch.setattr(processor, "_current", lambda: allowed[0])
    monkeypatch.setattr(processor, "_used", lambda: 0.0)
    next(waits)
    place = Processor(lambda: next(clock), lambda: 0.0)
    place.settle()
    place.reconsider()
    assert os.sched_getaffinity(0) == {allowed[-1] if moved else allowed[0]}


@pytest.mark.parametrize("hidden", ["/proc/stat", "sched_setaffinity"])
def test_a_system_that_does_not_let_it_choose_is_left_to_itself(monkeypatch: pytest.MonkeyPatch, hidden: str) -> None:
    def forbidden(*_: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    allowed = os.sched_getaffinity(0)
    with monkeypatch.context() as patch:
        if hidden == "sched_setaffinity":
            patch.setattr(os, hidden, forbidden)
        else:
            patch.setattr(processor, "STAT", Path("/proc/none"))
        place = Processor(lambda: 0.0)
        place.settle()
        place.reconsider()
    assert os.sched_getaffinity(0) == allowed


class World:
    """Processors, and workers that could each fill one: so all of them always wait, if only for themselves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, processors: int, workers: int) -> None:
        self.now, self.mine = 0, 0
        self.idle = dict.fromkeys(range(processors), 0.0)
        self.place = dict.fromkeys(range(workers), 0)
        self.used = dict.fromkeys(range(workers), 0.0)
        monkeypatch.setattr(processor, "_waited", lambda: 2.0 * self.now)
        monkeypatch.setattr(processor, "_used", lambda: self.used[self.mine])
        monkeypatch.setattr(processor, "_idle", self.idle.copy)
        monkeypatch.setattr(processor, "_current", lambda: self.place[self.mine])
        monkeypatch.setattr(processor, "_tasks", lambda: [self.mine])
        monkeypatch.setattr(os, "sched_setaffinity", lambda task, places: self.place.update({task: min(places)}))
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(self.idle))
        chance = random.Random(1).random  # noqa: S311 (one that can be repeated)
        self.workers = [Processor(lambda: float(self.now), chance) for _ in range(workers)]
        for number, worker in enumerate(self.workers):
            self.mine = number
            worker.settle()

    def run(self, seconds: int) -> None:
        for _ in range(seconds):
            self.now += 1
            for each in set(self.idle) - set(self.place.values()):
                self.idle[each] += 1
            shared = Counter(self.place.values())
            for number, worker in enumerate(self.workers):
                self.mine = number
                self.used[number] += 1 / shared[self.place[number]]
                if self.now % 10 == number % 3:
                    worker.reconsider()


@pytest.mark.parametrize(("processors", "workers"), [(2, 2), (4, 3), (8, 8)])
def test_busy_workers_come_apart_and_stay_apart(monkeypatch: pytest.MonkeyPatch, processors: int, workers: int) -> None:
    world = World(monkeypatch, processors, workers)
    world.run(400)
    places = dict(world.place)
    assert len(set(places.values())) == workers
    world.run(100)
    assert world.place == places


def test_a_processor_that_is_taken_away_is_not_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    world, asked = World(monkeypatch, 2, 2), list[int]()

    def refuse(_task: int, places: set[int]) -> None:
        asked.extend(places)
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "sched_setaffinity", refuse)
    world.run(200)
    assert asked == [1, 1]  # once by each of the two
    assert world.place == {0: 0, 1: 0}


def test_what_the_kernel_says_is_read_as_it_is() -> None:
    code = "from broker import processor as p; print(p._current(), p._waited() >= 0, sorted(p._idle()))"
    command = ["taskset", "-c", str(min(os.sched_getaffinity(0))), sys.executable, "-c", code]
    answer = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True).stdout
    assert answer.startswith(f"{min(os.sched_getaffinity(0))} True [0")
