"""File descriptors: connections, which anybody can open, must not take those that the token and the store need."""

from __future__ import annotations

import resource

import structlog

RESERVE = 256
"""Descriptors that are never a peer's: the store's, the journal's, the token's, connections to targets."""

FEWEST = 16

_log = structlog.get_logger(__name__)


def connections(wanted: int, listeners: int) -> int:
    """How many connections each of the listeners may take: ``wanted``, or what the process's hard limit leaves.

    The soft limit is raised as far as that needs.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    need = listeners * wanted + RESERVE
    most = need if hard == resource.RLIM_INFINITY else min(need, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    allowed = min(wanted, max(FEWEST, (most - RESERVE) // listeners))
    if allowed < wanted:
        _log.warning("few file descriptors: fewer connections are taken", configured=wanted, taken=allowed)
    return allowed
