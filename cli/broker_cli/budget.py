"""The time that a call has in all: each of its steps is tried again within it, and no longer."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from broker_cli.refusal import Refusal

T = TypeVar("T")

FIRST_PAUSE, LONGEST_PAUSE = 0.25, 4.0
"""Seconds before the second try, doubled for each further one; a little more or less, so that jobs part again."""

LEAST = 3.0
"""Seconds that a try has at least, if there are as many left."""


class Budget:
    """``seconds`` from now on."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds; 0 when there are none."""
        return max(0.0, self._end - time.monotonic())

    def insist(self, once: Callable[[float], T]) -> T:
        """What ``once`` gives, tried again after a failure that may pass. It is told how many seconds a try has.

        Half of what is left, so that one that hangs does not take the time of the next.
        """
        pause = FIRST_PAUSE
        while True:
            try:
                return once(max(0.05, min(self.left, max(LEAST, self.left / 2))))
            except Refusal as refused:
                wait = max(refused.retry_after, pause * random.uniform(0.75, 1.25))  # noqa: S311 (no secret)
                if not refused.passing or wait >= self.left:
                    raise
            time.sleep(wait)
            pause = min(pause * 2, LONGEST_PAUSE)


def bounded(act: Callable[[], T], seconds: float) -> T:
    """What ``act`` gives; TimeoutError after so many seconds, wherever it hangs: in the look-up of a name, say."""
    answer = Future[T]()

    def run() -> None:
        try:
            answer.set_result(act())
        except BaseException as error:  # noqa: BLE001 (the waiting thread is told)
            answer.set_exception(error)

    threading.Thread(target=run, name="bounded", daemon=True).start()
    return answer.result(seconds)
