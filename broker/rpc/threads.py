"""Pools whose threads are all there from the start.

grpc hands every call to a pool from its one serving thread. Were a thread to be started there and not to be had (a
limit of memory or of tasks), the error would end the serving thread, and the broker would live on and answer nobody.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from typing import Any, ParamSpec, TypeVar

from broker.core.errors import Exhausted, Unavailable
from broker.core.reasons import Reason

START_SECONDS = 10.0

T = TypeVar("T")
P = ParamSpec("P")


def pool(count: int, name: str) -> ThreadPoolExecutor:
    """A pool with ``count`` running threads, which starts no other; Unavailable ``THREADS_UNAVAILABLE``."""
    made = ThreadPoolExecutor(count, thread_name_prefix=name)
    together = threading.Barrier(count + 1)  # nobody is idle until all are there, so each task takes a new thread
    try:
        for _ in range(count):
            made.submit(together.wait)
        together.wait(START_SECONDS)
    except RuntimeError as error:
        together.abort()
        made.shutdown(wait=False, cancel_futures=True)
        raise _lacking(count, name) from error
    return made


class Pool(ThreadPoolExecutor):
    """``count`` threads as those of ``pool``, of which tasks can step aside while they wait for something outside.

    At most ``count`` tasks run at a time, however many are aside, and as many threads take further tasks: who waits
    keeps nobody from their turn. A task that steps aside starts one thread more; its own ends with the task.
    """

    def __init__(self, count: int, name: str) -> None:
        super().__init__(count, thread_name_prefix=name)  # for grpc, which knows this class; it starts no thread here
        self._name = name
        self._tasks = SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None]()
        self._turns = threading.Semaphore(count)
        self._guarding = threading.Lock()
        self._own = threading.local()  # ``replaced``: of a thread for which another one has been started
        self._closed = False
        self._there = 0  # threads, those of tasks that are aside as well
        self.aside_now = 0
        try:
            for _ in range(count):
                self._start()
        except RuntimeError as error:
            self.shutdown(wait=False)
            raise _lacking(count, name) from error

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """As the class above; no thread is started by it."""
        if self._closed:
            raise RuntimeError("the pool is shut down")
        future = Future[T]()
        self._tasks.put((future, lambda: fn(*args, **kwargs)))
        return future

    @contextmanager
    def aside(self, most: int) -> Iterator[None]:
        """Let another task run meanwhile; Exhausted ``WAITING_FULL`` when ``most`` are aside, or no thread is had."""
        with self._guarding:
            if self.aside_now >= most:
                raise _full()
            self.aside_now += 1
        try:
            self._replace()
            self._turns.release()
            try:
                yield
            finally:
                self._turns.acquire()
        finally:
            with self._guarding:
                self.aside_now -= 1

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002 (as the class above has it)
        """Take no more; what runs ends by itself, and is not waited for."""
        del wait
        self._closed = True
        while cancel_futures and (task := self._waiting()):
            task[0].cancel()
        with self._guarding:
            there = self._there
        for _ in range(there):
            self._tasks.put(None)

    def _waiting(self) -> tuple[Future[Any], Callable[[], Any]] | None:
        try:
            return self._tasks.get_nowait()
        except Empty:
            return None

    def _replace(self) -> None:
        if getattr(self._own, "replaced", False):  # the task was aside before
            return
        try:
            self._start()
        except RuntimeError as error:
            raise _full() from error
        self._own.replaced = True

    def _start(self) -> None:
        threading.Thread(target=self._work, name=self._name, daemon=True).start()
        with self._guarding:
            self._there += 1

    def _work(self) -> None:
        self._own.replaced = False
        while not self._own.replaced and (task := self._tasks.get()) is not None:
            future, run = task
            with self._turns:
                if future.set_running_or_notify_cancel():
                    _carry_out(future, run)
            del task, future, run  # what a call held is not kept until the next one comes
        with self._guarding:
            self._there -= 1


def _carry_out(future: Future[Any], run: Callable[[], Any]) -> None:
    try:
        result = run()
    except BaseException as error:  # noqa: BLE001 (the holder of the future is told, whatever it is)
        future.set_exception(error)
    else:
        future.set_result(result)


def _lacking(count: int, name: str) -> Unavailable:
    return Unavailable(
        Reason.THREADS_UNAVAILABLE,
        f"The system does not give the broker its {count} {name} threads; allow it more tasks or memory, or "
        "configure fewer threads.",
    )


def _full() -> Exhausted:
    return Exhausted(Reason.WAITING_FULL, "As many calls wait for something outside as may; try again in a second.")
