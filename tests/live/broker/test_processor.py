"""Where the process runs."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from broker.processor import keep_to_one

HERE = sorted(os.sched_getaffinity(0))


@pytest.fixture(autouse=True)
def _anywhere() -> Iterator[None]:
    yield
    for task in os.listdir("/proc/self/task"):  # noqa: PTH208 (names are all that is wanted)
        with suppress(ProcessLookupError):  # a thread that ends just now
            os.sched_setaffinity(int(task), HERE)


def test_threads_that_are_there_and_those_to_come_keep_to_one_processor() -> None:
    ends, seen = threading.Event(), list[set[int]]()
    early = threading.Thread(target=ends.wait)
    early.start()
    keep_to_one()
    late = threading.Thread(target=lambda: seen.append(os.sched_getaffinity(0)))
    late.start()
    late.join()
    assert early.native_id is not None
    places = [os.sched_getaffinity(0), os.sched_getaffinity(early.native_id), *seen]
    ends.set()
    early.join()
    assert len(places[0]) == 1
    assert places == [places[0]] * 3


def test_a_broker_of_one_process_stays_where_the_system_had_put_it() -> None:
    for processor in HERE:
        code = "import os; from broker.processor import keep_to_one as k; k(); print(os.sched_getaffinity(0))"
        command = ["taskset", "-c", str(processor), sys.executable, "-c", code]
        place = Path(__file__).parents[3]
        answer = subprocess.run(command, cwd=place, capture_output=True, text=True, check=True).stdout
        assert answer == f"{{{processor}}}\n"


def test_workers_are_spread_over_the_processors_that_they_may_use() -> None:
    taken: list[int] = []
    for worker in range(1, 2 * len(HERE) + 1):
        os.sched_setaffinity(0, HERE)
        keep_to_one(worker)
        taken += os.sched_getaffinity(0)
    assert sorted(taken) == sorted(HERE * 2)
    assert set(taken[: len(HERE)]) == set(HERE)


def test_a_system_that_does_not_let_it_choose_is_left_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    # Patched, because a filter of system calls, which is what forbids it, could not be taken off this process again.
    def forbidden(*_: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    with monkeypatch.context() as patch:
        # See above.
        patch.setattr(os, "sched_setaffinity", forbidden)
        keep_to_one()
    assert sorted(os.sched_getaffinity(0)) == HERE
