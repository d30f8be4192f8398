"""One processor for each process of the broker.

Python runs one thread at a time. On several processors its threads still wake each other across them for every step of
a call, which costs more than the second processor gives: kept to one, a process answers about twice as many calls.
The processor is the one that the system had put the process on, and another one when that turns out to be taken and
another has room. Workers that share a processor all see the same room elsewhere, so chance decides which of them goes:
else they would go together, again and again, and where no processor has room each stays where it is.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import structlog

TAKEN = 0.5
"""Part of the time that the broker's threads may wait for their processor before another one is chosen."""

ENOUGH = 0.8
"""Part of its processor that this process may get and yet wait: then its threads only wait for each other."""

WORTH = 0.1
"""Part of its time that another processor must have been idle, beyond what this one was, to be worth the move."""

TASKS = Path("/proc/self/task")
STAT = Path("/proc/stat")

log = structlog.get_logger("broker")


class Processor:
    """Where this process runs. ``clock``: seconds that only go forward; ``chance``: from 0 to 1."""

    def __init__(self, clock: Callable[[], float], chance: Callable[[], float] = random.random) -> None:
        self._clock = clock
        self._chance = chance
        self._allowed = os.sched_getaffinity(0)
        self._since, self._waited, self._used, self._idle = clock(), 0.0, 0.0, dict[int, float]()
        self._settled = False

    def settle(self) -> None:
        """Keep to the processor that the system has chosen; threads that are started from now on do so as well.

        A hardened unit or container may forbid that, or hide what it takes; then everything is left to the system.
        """
        try:
            self._idle = _idle()
            _keep_to(_current())
        except OSError as error:
            log.warning("the broker cannot keep to one processor", reason=error.strerror)
        else:
            self._settled = True

    def reconsider(self) -> None:
        """Move to a processor with room, if there was too much waiting for this one since the last time."""
        if not self._settled:
            return
        now, waited, used, idle = self._clock(), _waited(), _used(), _idle()
        span = max(now - self._since, 0.001)
        if (waited - self._waited) / span > TAKEN and (used - self._used) / span < ENOUGH:
            self._leave({each: (idle.get(each, 0.0) - self._idle.get(each, 0.0)) / span for each in self._allowed})
        self._since, self._waited, self._used, self._idle = now, waited, used, idle

    def _leave(self, room: Mapping[int, float]) -> None:
        """``room``: the part of its time that each processor was idle."""
        most, worth = max(room.values(), default=0.0), room.get(_current(), 0.0) + WORTH
        roomy = [each for each, part in room.items() if part >= max(worth, most / 2)]
        if roomy and self._chance() < 0.5:
            self._move(roomy[int(self._chance() * len(roomy))])

    def _move(self, processor: int) -> None:
        try:
            _keep_to(processor)
        except OSError:  # the system has taken it from this process's set (cpuset(7))
            self._allowed.discard(processor)


def _keep_to(processor: int) -> None:
    for task in _tasks():
        with suppress(ProcessLookupError):  # it has ended meanwhile
            os.sched_setaffinity(task, {processor})


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


def _used() -> float:
    """Seconds that all threads of this process have run so far."""
    return time.process_time()


def _idle() -> dict[int, float]:
    """For how many seconds each processor has had nothing to do so far (proc_stat(5))."""
    tick = os.sysconf("SC_CLK_TCK")
    rows = (line.split() for line in STAT.read_text("ascii").splitlines())
    return {int(row[0][3:]): float(row[4]) / tick for row in rows if row[0].startswith("cpu") and row[0] != "cpu"}
