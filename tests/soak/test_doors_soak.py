"""What callers notice of unauthenticated ones at the doors: the 99th percentile beside the quiet one (NT-05)."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Iterator

import pytest

from tests.live.rpc.test_doors import besieged, edge
from tests.servers.edge import Edge
from tests.servers.live import Client, Live
from tests.servers.siege import addresses, siege

__all__ = ["edge"]  # a fixture

SECONDS = 10.0
FRESH = 10
"""One call of so many is made on a connection of its own."""

TIMES = 3
"""How many times the quiet percentile the other may be."""

SIEGES = [
    ("silent", 1000, addresses(1)),
    ("silent", 1000, addresses(20)),
    ("silent", 5000, addresses(1)),
    ("silent", 5000, addresses(20)),
    ("silent", 5000, addresses(50, sites=True)),
    ("half", 200, addresses(1)),
    ("half", 200, addresses(8)),
    ("drip", 200, addresses(8)),
]


def timed(live: Live, client: Client) -> Iterator[float]:
    """Milliseconds of signing calls, one after the other."""
    until, number = time.monotonic() + SECONDS, 0
    while time.monotonic() < until:
        number += 1
        begun = time.perf_counter()
        if number % FRESH:
            client.ask("Sign", name="doors", input={"message": b"m"})
        else:
            with live.client() as fresh:
                fresh.ask("Sign", name="doors", input={"message": b"m"})
        yield (time.perf_counter() - begun) * 1000


def p99(live: Live, client: Client) -> float:
    """The 99th percentile of kept and fresh connections together."""
    return statistics.quantiles(timed(live, client), n=100)[98]


@pytest.mark.soak
def test_NT_05_others_hardly_notice_unauthenticated_callers_at_the_doors(live_own: Live) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    assert hard > 6000, "a program that holds 5,000 connections needs as many descriptors"
    client = live_own.client()
    client.ask("CreateKey", name="doors", type=4, usage=1)
    figures = []
    for port in (live_own.pipelines, live_own.address):
        for kind, count, sources in SIEGES:
            if kind == "drip" and port == live_own.address:
                continue  # without a certificate nobody gets so far there
            quiet = p99(live_own, client)
            with siege(int(port.rpartition(":")[2]), kind, count, sources):
                besieged = p99(live_own, client)
            figures.append((port, kind, count, len(sources), round(quiet, 1), round(besieged, 1)))
            sys.stdout.write(f"{figures[-1]}\n")
    assert "connections ended" in live_own.said
    assert [each for each in figures if each[5] > TIMES * each[4]] == []


@pytest.mark.soak
@pytest.mark.parametrize("sources", [addresses(1), addresses(20), addresses(50, sites=True)], ids=len)
def test_NT_05_five_thousand_cannot_hold_the_doors_shut(edge: Edge, sources: list[str]) -> None:
    besieged(edge, "silent", 5000, sources)
