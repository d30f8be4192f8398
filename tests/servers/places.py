"""Where the tests' servers live: a folder in memory, and loopback ports that nobody else is given."""

from __future__ import annotations

import itertools
import os
import random
import socket
from pathlib import Path

MEMORY = Path("/dev/shm")  # noqa: S108 (what is made in it is private)
ROOM = 2 << 30
PORTS = range(12_000, 32_000)
"""Below what Linux hands out by itself: no connection takes the port of a server that is stopped for a while."""


def in_memory() -> bool:
    """Whether there is room in memory: a process that is killed loses nothing that it wrote to either."""
    try:
        found = os.statvfs(MEMORY)
    except OSError:
        return False
    usable = os.access(MEMORY, os.W_OK) and not found.f_flag & (os.ST_RDONLY | os.ST_NOEXEC)
    return usable and found.f_bavail * found.f_frsize >= ROOM


def _mine() -> range:
    """The ports of this process, when the tests are spread over several."""
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    share = len(PORTS) // 10
    return PORTS[share * (number % 10) : share * (number % 10 + 1)]


_ports = itertools.cycle(random.SystemRandom().sample(_mine(), len(_mine())))


def free_port() -> int:
    """A loopback port that nobody listens on; it is not given again before all others were."""
    for port in itertools.islice(_ports, len(_mine())):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no loopback port is free")
