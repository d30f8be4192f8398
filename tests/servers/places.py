"""Where the tests' servers live: a folder in memory, and loopback ports that nobody else is given."""

from __future__ import annotations

import itertools
import os
import random
import socket
from collections.abc import Iterator
from functools import cache
from pathlib import Path

MEMORY = Path("/dev/shm")  # noqa: S108 (what is made in it is private)
ROOM = 2 << 30
PORTS = range(12_000, 32_000)
"""Below what Linux hands out by itself: no connection takes the port of a server that is stopped for a while."""

SHARES = 40
"""Test runs that can be under way at once on one computer."""


def in_memory() -> bool:
    """Whether there is room in memory: a process that is killed loses nothing that it wrote to either."""
    try:
        found = os.statvfs(MEMORY)
    except OSError:
        return False
    usable = os.access(MEMORY, os.W_OK) and not found.f_flag & (os.ST_RDONLY | os.ST_NOEXEC)
    return usable and found.f_bavail * found.f_frsize >= ROOM


def _claimed() -> range:
    """A share of the ports for this process alone, among all test runs of this computer, until it ends.

    A name in the abstract namespace of Unix sockets is bound by one process, and free again however that one ends.
    """
    size = len(PORTS) // SHARES
    for number in range(SHARES):
        claim = socket.socket(socket.AF_UNIX)
        try:
            claim.bind(f"\0broker-tests-ports-{number}")
        except OSError:
            claim.close()
            continue
        _claims.append(claim)
        return PORTS[size * number : size * (number + 1)]
    raise AssertionError("every share of the loopback ports is in use by another test run")


_claims: list[socket.socket] = []


@cache
def _ports() -> tuple[int, Iterator[int]]:
    mine = _claimed()
    return len(mine), itertools.cycle(random.SystemRandom().sample(mine, len(mine)))


def free_port() -> int:
    """A loopback port that nobody listens on; it is not given again before all others were."""
    count, ports = _ports()
    for port in itertools.islice(ports, count):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no loopback port is free")
