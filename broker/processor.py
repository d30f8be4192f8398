"""One processor for each process of the broker.

Python runs one thread at a time. On several processors its threads still wake each other across them for every step of
a call, which costs more than the second processor gives: kept to one, a process answers about twice as many calls.
The processor is the one that the system had put the process on, and another one when that turns out to be taken.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import structlog

TAKEN = 0.5
"""Part of the time that the broker's threads may wait for their processor before another one is chosen."""

TASKS = Path("/proc/self/task")
STAT = Path("/proc/stat")

log = structlog.get_logger("broker")


class Processor:
    """Where this process runs. ``clock``: seconds that only go forward."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._allowed = os.sched_getaffinity(0)
        self._since, self._waited, self._idle = clock(), 0.0, dict[int, float]()
        self._settled = False

    def settle(self) -> None:
        """Keep to the processor that the system has chosen; threads that are started from now on do so as well.

        A hardened unit or container may forbid that, or hide what it takes; then everything is left to the system.
        """
        try:
            self._idle = _idle()
            self._move({_current()})
        except OSError as error:
            log.warning("the broker cannot keep to one processor", reason=error.strerror)
        else:
            self._settled = True

    def reconsider(self) -> None:
        """Move to the processor that was idle most, if there was too much waiting for this one since the last time."""
        if not self._settled:
            return
        now, waited, idle = self._clock(), _waited(), _idle()
        part = (waited - self._waited) / max(now - self._since, 0.001)
        if part > TAKEN:
            self._move({max(self._allowed, key=lambda each: idle.get(each, 0.0) - self._idle.get(each, 0.0))})
        self._since, self._waited, self._idle = now, waited, idle

    def _move(self, processors: set[int]) -> None:
        for task in _tasks():
            with suppress(ProcessLookupError):  # it has ended meanwhile
                os.sched_setaffinity(task, processors)


def _tasks() -> list[int]:
    return [int(task.name) for task in TASKS.iterdir()]


def _current() -> int:
    """The processor that this thread runs on: field 39 of its line (proc_pid_stat(5))."""
    return int(Path("/proc/thread-self/stat").read_text("ascii", "replace").rpartition(")")[2].split()[36])


def _waited() -> float:
    """Seconds that all threads of this process have waited for a processor so far (the kernel's sched-stats, 2)."""
    total = 0
    for task in _tasks():
        with suppress(OSError, IndexError):  # it has ended meanwhile
            total += int((TASKS / str(task) / "schedstat").read_text("ascii").split()[1])
    return total / 1e9


def _idle() -> dict[int, float]:
    """How long each processor has had nothing to do so far, in the kernel's ticks (proc_stat(5))."""
    rows = (line.split() for line in STAT.read_text("ascii").splitlines())
    return {int(row[0][3:]): float(row[4]) for row in rows if row[0].startswith("cpu") and row[0] != "cpu"}
