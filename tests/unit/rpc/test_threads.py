"""The pool whose tasks step aside while they wait: nobody is kept from their turn, and no more run than may (P09)."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from broker.core.errors import Exhausted, Unavailable
from broker.rpc.threads import Pool

SECONDS = 60


@pytest.fixture
def pool() -> Iterator[Pool]:
    made = Pool(2, "test")
    yield made
    made.shutdown()


def threads() -> int:
    return sum(thread.name == "test" for thread in threading.enumerate())


def idle(count: int) -> bool:
    give_up = time.monotonic() + SECONDS
    while threads() != count and time.monotonic() < give_up:
        threading.Event().wait(0.01)
    return threads() == count


def test_P09_tasks_that_are_aside_keep_no_other_from_its_turn(pool: Pool) -> None:
    go, inside = threading.Event(), threading.Semaphore(0)

    def wait() -> str:
        with pool.aside(50):
            inside.release()
            assert go.wait(SECONDS)
        return "back"

    waiting = [pool.submit(wait) for _ in range(50)]
    assert all(inside.acquire(timeout=SECONDS) for _ in waiting)
    assert pool.submit(int, 7).result(SECONDS) == 7
    go.set()
    assert [each.result(SECONDS) for each in waiting] == ["back"] * 50
    assert idle(2)  # the threads that it took are gone again
    assert pool.aside_now == 0
    assert [each.result(SECONDS) for each in [pool.submit(int, number) for number in range(20)]] == list(range(20))


def test_P09_however_many_come_back_at_once_no_more_run_than_may(pool: Pool) -> None:
    go, inside, lock = threading.Event(), threading.Semaphore(0), threading.Lock()
    running, most = [0], [0]

    def wait() -> None:
        with pool.aside(30):
            inside.release()
            assert go.wait(SECONDS)
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        threading.Event().wait(0.005)  # the work
        with lock:
            running[0] -= 1

    waiting = [pool.submit(wait) for _ in range(30)]
    assert all(inside.acquire(timeout=SECONDS) for _ in waiting)
    go.set()
    for each in waiting:
        each.result(SECONDS)
    assert most[0] <= 2


def test_P09_only_so_many_are_aside_and_what_is_raised_there_is_told(pool: Pool) -> None:
    go, inside = threading.Event(), threading.Semaphore(0)

    def wait() -> None:
        with pool.aside(1):
            inside.release()
            assert go.wait(SECONDS)
            raise ZeroDivisionError

    first = pool.submit(wait)
    assert inside.acquire(timeout=SECONDS)
    assert isinstance(pool.submit(wait).exception(SECONDS), Exhausted)
    go.set()
    assert isinstance(first.exception(SECONDS), ZeroDivisionError)
    assert pool.submit(int, 1).result(SECONDS) == 1


def test_P09_a_thread_that_is_not_to_be_had_costs_its_task_and_no_other(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    def wait() -> None:
        with pool.aside(9):
            raise AssertionError("nothing may run here")

    # Patched: a limit of threads would be that of the whole machine's user.
    monkeypatch.setattr(threading.Thread, "start", none_left)
    assert isinstance(pool.submit(wait).exception(SECONDS), Exhausted)
    assert [each.result(SECONDS) for each in [pool.submit(int, number) for number in range(9)]] == list(range(9))
    assert pool.aside_now == 0
    with pytest.raises(Unavailable) as found:
        Pool(3, "test")
    assert found.value.reason == "THREADS_UNAVAILABLE"


def test_a_pool_that_is_shut_down_takes_no_more_and_ends(pool: Pool) -> None:
    go, inside = threading.Event(), threading.Semaphore(0)

    def hold() -> bool:
        inside.release()
        return go.wait(SECONDS)

    held = [pool.submit(hold) for _ in range(2)]
    assert all(inside.acquire(timeout=SECONDS) for _ in held)
    late = pool.submit(int, 1)
    pool.shutdown(wait=False, cancel_futures=True)
    assert late.cancelled()
    with pytest.raises(RuntimeError):
        pool.submit(int, 1)
    go.set()
    assert [each.result(SECONDS) for each in held] == [True, True]
    assert idle(0)


def test_tasks_that_come_back_to_a_long_queue_leave_no_threads_behind(pool: Pool) -> None:
    """Each is aside twice, and one more thread is enough for both."""
    most = 0

    def wait() -> None:
        nonlocal most
        for _ in range(2):
            with pool.aside(4):
                most = max(most, threads())

    ends = [pool.submit(wait) for _ in range(300)]
    assert {type(each.exception(SECONDS)) for each in ends} <= {type(None), Exhausted}
    assert most <= 2 + 4 + 2  # those whose turn it may be, aside, and back and not yet at their end
    assert idle(2)
