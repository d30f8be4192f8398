"""Many jobs while the issuer's keys are cold, it fails, is slow, or rotates its keys (P09, P10), by way of the wire."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest

from tests.live.trust.test_oidc_wire import House, bearer, house
from tests.servers.issuer import DISCOVERY, KEYS, Issuer, Signer
from tests.servers.live import within
from tests.servers.patience import busy
from tests.servers.storm import storm

__all__ = ["house"]  # a fixture; its broker has four threads


def slow(
    issuer: Issuer, path: str, let_go: threading.Event, failing: int = 0, seconds: float = 60
) -> Callable[[BaseHTTPRequestHandler], None]:
    """An answer that takes so long unless it is let go; the first ``failing`` are 503."""
    left = [failing]

    def answer(handler: BaseHTTPRequestHandler) -> None:
        let_go.wait(seconds)
        status, body = (503, None) if left[0] > 0 else (200, issuer.body(path))
        left[0] -= 1
        respond(handler, status, body)

    return answer


def respond(handler: BaseHTTPRequestHandler, status: int, body: Any) -> None:

    raw = json.dumps(body).encode()
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(raw)))
    handler.end_headers()
    handler.wfile.write(raw)


@pytest.mark.parametrize("failing", [DISCOVERY, pytest.param(KEYS, marks=pytest.mark.soak)])
def test_P09_two_hundred_jobs_are_in_with_three_fetches_though_one_fails(house: House, failing: str) -> None:
    issuer = house.issuer
    assert house.save() == 0
    for path in (DISCOVERY, KEYS):
        issuer.answers[path] = slow(issuer, path, threading.Event(), int(path == failing), seconds=1)
    begun = time.monotonic()
    ended = storm(house.server.pipelines_port, house.ca, [issuer.token() for _ in range(200)])
    assert {name: ended.count(name) for name in ended} == {"OK": 200}
    assert len(issuer.asked) == 3
    assert time.monotonic() - begun < busy(20)


def test_P09_thirty_jobs_wait_for_one_slow_fetch_and_keep_no_other_caller_waiting(house: House) -> None:
    issuer, let_go = house.issuer, threading.Event()
    assert house.save() == 0
    issuer.answers[DISCOVERY] = slow(issuer, DISCOVERY, let_go)
    ended: list[str] = []
    tokens = [issuer.token() for _ in range(30)]
    jobs = threading.Thread(target=lambda: ended.extend(storm(house.server.pipelines_port, house.ca, tokens)))
    jobs.start()
    within(10, lambda: bool(issuer.asked))
    assert house.cli("trust", "list") == 0  # with four threads, all of which would be taken
    assert not ended
    let_go.set()
    jobs.join(60)
    assert ended == ["OK"] * 30
    assert issuer.asked == [DISCOVERY, KEYS]


@pytest.mark.soak
def test_P10_jobs_of_a_rotated_issuer_are_in_within_seconds(house: House) -> None:
    issuer = house.issuer
    assert house.save() == 0
    house.login(bearer(issuer.token()))
    issuer.signers = [Signer("two"), *issuer.signers]  # right after the fetch
    begun = time.monotonic()
    assert storm(house.server.pipelines_port, house.ca, [issuer.token() for _ in range(30)]) == ["OK"] * 30
    assert time.monotonic() - begun < busy(12)
    assert issuer.fetches == 2
