"""One processor for each process of the broker.

Python runs one thread at a time. On several processors its threads still wake each other across them for every step of
a call, which costs more than the second processor gives: kept to one, a process answers about twice as many calls.
A broker of one process keeps to the processor that the system had put it on; workers take one each, by their number.
What else runs on it the system moves away, as far as it is free to move.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import structlog

TASKS = Path("/proc/self/task")

log = structlog.get_logger("broker")


def keep_to_one(worker: int = 0) -> None:
    """Keep all threads, and those that are started from now on, to one processor. ``worker``: its number, if it is one.

    A hardened unit or container may forbid that, or hide what it takes; then everything is left to the system.
    """
    try:
        processor = _of_worker(worker) if worker else _current()
        for task in TASKS.iterdir():
            with suppress(ProcessLookupError):  # it has ended meanwhile
                os.sched_setaffinity(int(task.name), {processor})
    except OSError as error:
        log.warning("the broker cannot keep to one processor", reason=error.strerror)


def _of_worker(number: int) -> int:
    """Workers in a row have processors in a row, so that two share one only if there are more of them."""
    allowed = sorted(os.sched_getaffinity(0))
    return allowed[number % len(allowed)]


def _current() -> int:
    """The processor that this thread runs on: field 39 of its line (proc_pid_stat(5))."""
    return int(Path("/proc/thread-self/stat").read_text("ascii", "replace").rpartition(")")[2].split()[36])
