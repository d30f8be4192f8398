"""Names are looked up by a deadline, whatever the system's resolver does (AN-17)."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest

from broker.auth.oidc.fetch import Fetcher, NotFetchedError
from broker.auth.oidc.resolve import MAX_HANGING, PATIENCE, Found, Resolver

HERE: Found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 443))]


@dataclass
class Hanging:
    """A resolver that answers nothing until it is let go; ``asked`` is what it was asked for."""

    go: threading.Event = field(default_factory=threading.Event)
    asked: list[str] = field(default_factory=list)

    def __call__(self, host: str, port: int) -> Found:
        self.asked.append(f"{host}:{port}")
        assert self.go.wait(60)
        return HERE


@pytest.fixture
def hanging() -> Iterator[Hanging]:
    made = Hanging()
    yield made
    made.go.set()


def spent(resolver: Resolver, host: str, seconds: float) -> float:
    begun = time.monotonic()
    with pytest.raises(TimeoutError):
        resolver.addresses(host, 443, begun + seconds)
    return time.monotonic() - begun


def test_AN_17_a_look_up_that_hangs_costs_its_caller_the_deadline_and_no_more(hanging: Hanging) -> None:
    resolver = Resolver(hanging)
    assert 0.2 <= spent(resolver, "ci.example", 0.2) < 30
    assert PATIENCE <= 2


def test_AN_17_who_comes_later_does_not_wait_for_a_look_up_that_has_hung(hanging: Hanging) -> None:
    resolver = Resolver(hanging, patience=0.2)
    spent(resolver, "ci.example", 50)
    assert spent(resolver, "ci.example", 50) < 25
    assert hanging.asked == ["ci.example:443"]  # one thread, however many ask
    hanging.go.set()
    assert until(lambda: resolver.addresses("ci.example", 443, time.monotonic() + 60)) == HERE


def until(act: Callable[[], Found]) -> Found:
    """The answer once the look-up that hung has gone."""
    give_up = time.monotonic() + 60
    while True:
        try:
            return act()
        except TimeoutError:
            assert time.monotonic() < give_up


def test_AN_17_so_many_look_ups_hang_and_no_more(hanging: Hanging) -> None:
    resolver = Resolver(hanging)
    with ThreadPoolExecutor(MAX_HANGING) as pool:
        list(pool.map(lambda number: spent(resolver, f"ci{number}.example", 0.3), range(MAX_HANGING)))
    assert spent(resolver, "other.example", 50) < 25
    assert len(hanging.asked) == MAX_HANGING


def test_all_who_ask_at_once_get_the_one_answer(hanging: Hanging) -> None:
    resolver = Resolver(hanging)
    with ThreadPoolExecutor(8) as pool:
        held = [pool.submit(resolver.addresses, "ci.example", 443, time.monotonic() + 60) for _ in range(8)]
        hanging.go.set()
        assert [one.result(200) for one in held] == [HERE] * 8


def test_a_name_that_there_is_not_is_told_at_once_and_asked_for_again() -> None:
    asked: list[str] = []

    def absent(host: str, _port: int) -> Found:
        asked.append(host)
        raise socket.gaierror(socket.EAI_NONAME, "no such name")

    resolver = Resolver(absent)
    for _ in range(2):
        with pytest.raises(socket.gaierror):
            resolver.addresses("ci.example", 443, time.monotonic() + 60)
    assert asked == ["ci.example"] * 2


def test_the_system_finds_this_host() -> None:
    found = Resolver().addresses("127.0.0.1", 443, time.monotonic() + 60)
    assert {address[0] for *_, address in found} == {"127.0.0.1"}


def test_AN_17_a_document_whose_name_hangs_is_not_fetched_and_the_reason_says_so(hanging: Hanging) -> None:
    begun = time.monotonic()
    with pytest.raises(NotFetchedError, match="its name was not resolved in time"):
        Fetcher(frozenset(), hanging).get("https://ci.example/x", "", begun + 0.3)
    assert time.monotonic() - begun < 30
