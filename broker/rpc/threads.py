"""Pools whose threads are all there from the start.

grpc hands every call to a pool from its one serving thread. Were a thread to be started there and not to be had (a
limit of memory or of tasks), the error would end the serving thread, and the broker would live on and answer nobody.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from broker.core.errors import Unavailable

START_SECONDS = 10.0


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
        raise Unavailable(
            "THREADS_UNAVAILABLE",
            f"The system does not give the broker its {count} {name} threads; allow it more tasks or memory, or "
            "configure fewer threads.",
        ) from error
    return made
