"""The addresses of a name, by a deadline: the system's own look-up knows none, and may hang for as long as it likes.

Each name is looked up by a thread of its own, one at a time, however many ask. Who asks waits for a moment, and not at
all when the look-up of that name has hung already.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

PATIENCE = 2.0
"""Seconds from its beginning for which anybody waits for one look-up."""

MAX_HANGING = 32
"""Look-ups of one resolver at a time: each is a thread that cannot be ended."""

Found = list[tuple[Any, ...]]
Ask = Callable[[str, int], Found]


def system(host: str, port: int) -> Found:
    """The system's answer (getaddrinfo(3)), whenever it comes."""
    return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)


class Resolver:
    """Looks names up by ``ask``. Deadlines are monotonic seconds."""

    def __init__(self, ask: Ask = system, patience: float = PATIENCE) -> None:
        self._ask = ask
        self._patience = patience
        self._lock = threading.Lock()
        self._asked: dict[tuple[str, int], tuple[float, Future[Found]]] = {}

    def addresses(self, host: str, port: int, deadline: float) -> Found:
        """As ``getaddrinfo`` has them; OSError when there are none, TimeoutError when there is no answer in time."""
        begun, answer = self._under_way(host, port)
        return answer.result(max(0.0, min(deadline, begun + self._patience) - time.monotonic()))

    def _under_way(self, host: str, port: int) -> tuple[float, Future[Found]]:
        with self._lock:
            asked = self._asked.get((host, port))
            if asked is None:
                if len(self._asked) >= MAX_HANGING:
                    raise TimeoutError
                asked = time.monotonic(), Future()
                args = (host, port, asked[1])
                threading.Thread(target=self._look_up, args=args, name="resolver", daemon=True).start()
                self._asked[host, port] = asked  # the thread looks for it under the lock that is held here
            return asked

    def _look_up(self, host: str, port: int, answer: Future[Found]) -> None:
        try:
            found, fault = self._ask(host, port), None
        except BaseException as error:  # noqa: BLE001 (the call that waits is told, whatever it is)
            found, fault = [], error
        with self._lock:
            del self._asked[host, port]
        if fault is None:
            answer.set_result(found)
        else:
            answer.set_exception(fault)
