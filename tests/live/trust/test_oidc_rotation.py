"""An issuer that rotates its keys in every way there is, or cannot be used (P09, P10, P29); the clock runs fast."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from broker.auth.oidc.issuer import GRACE, VAIN_PAUSES
from broker.core.errors import Unauthenticated, Unavailable
from tests.fakes.calls import Clock, call, operator
from tests.live.sessions.test_login_storm import respond
from tests.servers.issuer import DISCOVERY, KEYS, Issuer, Signer, issuing
from tests.servers.jobs import Jobs, patient

SPEED = 20
"""Seconds of the cache's clock in one of ours."""


@pytest.fixture
def issuer(tmp_path: Path) -> Iterator[Issuer]:
    with issuing(tmp_path / "issuer") as made:
        yield made


def hurried(issuer: Issuer, **changes: Any) -> Jobs:
    """Jobs that have logged in once, so that the keys were fetched just now."""
    jobs = Jobs(issuer, **changes)
    jobs.ticks.speed = SPEED
    return jobs


def test_P10_another_key_under_the_same_name_is_found_with_its_first_token(issuer: Issuer) -> None:
    jobs = hurried(issuer)
    jobs.login()
    old, issuer.signers = issuer.token(), [Signer("one")]
    jobs.login(patience=patient())
    assert issuer.fetches == 2
    assert jobs.why_not(old, patient()) == "TOKEN_SIGNATURE"


def test_P10_a_key_that_was_taken_back_serves_seconds_after_that_was_seen(issuer: Issuer) -> None:
    jobs = hurried(issuer)
    old = issuer.token()
    jobs.login(old)
    issuer.signers = [Signer("two")]
    jobs.login(patience=patient())
    seen = time.monotonic()
    while time.monotonic() < seen + (GRACE + 1) / SPEED:
        jobs.login()
    assert jobs.why_not(old, patient()) == "TOKEN_KEY_UNKNOWN"


def test_P10_a_key_set_that_moved_is_found(issuer: Issuer) -> None:
    jobs = hurried(issuer)
    jobs.login()
    issuer.signers = [Signer("two")]
    issuer.answers[KEYS] = (404, {}, b"")
    issuer.answers[DISCOVERY] = (200, {}, {"issuer": issuer.url, "jwks_uri": f"{issuer.url}/moved"})
    issuer.answers["/moved"] = (200, {}, issuer.body(KEYS))
    jobs.login(patience=patient())


def test_P10_a_cache_that_gives_out_old_and_new_by_turns_keeps_nobody_out(issuer: Issuer) -> None:
    jobs = hurried(issuer)
    old, new = issuer.signers[0], Signer("two")
    given: list[str] = []

    def by_turns(handler: BaseHTTPRequestHandler) -> None:
        one = new if len(given) % 2 else old
        given.append(one.kid)
        respond(handler, 200, {"keys": [one.jwk()]})

    issuer.answers[KEYS] = by_turns
    for signer in (old, new, old, new, new):
        jobs.login(signer.token(issuer.claims()), patient())
    assert len(given) <= 5


def test_P10_made_up_names_bring_few_fetches_and_keep_no_rotation_from_being_seen(issuer: Issuer) -> None:
    jobs, stop, made_up = hurried(issuer), threading.Event(), [0]
    jobs.login()

    def attack(number: int) -> None:
        while not stop.wait(0.05):  # eight callers at once, a hundred names a second
            made_up[0] += 1
            kid = f"{number}-{made_up[0]}"
            jobs.why_not(issuer.signers[0].token({"iss": issuer.url}, kid=kid), patient(0.3))

    with ThreadPoolExecutor(8) as pool:
        attacks = [pool.submit(attack, number) for number in range(8)]
        began = time.monotonic()
        while issuer.fetches < 4:
            assert time.monotonic() < began + 120
            jobs.login()
        issuer.signers = [Signer("two"), *issuer.signers]
        jobs.login(patience=patient())
        took = time.monotonic() - began
        stop.set()
        for each in attacks:
            each.result(200)
    assert made_up[0] > 20
    assert issuer.fetches <= 4 + took * SPEED / VAIN_PAUSES[0]


def test_P09_an_issuer_that_fails_is_asked_again_at_once_and_then_ever_more_slowly(issuer: Issuer) -> None:
    jobs = Jobs(issuer)
    times: list[float] = []

    def failing(handler: BaseHTTPRequestHandler) -> None:
        times.append(time.monotonic())
        respond(handler, 503, None)

    issuer.answers[DISCOVERY] = failing
    jobs.ticks.speed = 1
    assert jobs.why_not(patience=patient(5)) == "ISSUER_UNAVAILABLE"
    pauses = [later - earlier for earlier, later in pairwise(times)]
    assert 0.5 <= pauses[0] < pauses[1]
    assert len(times) <= 4


def test_P09_who_waits_for_one_issuer_leaves_places_for_the_calls_of_others(issuer: Issuer) -> None:
    jobs = hurried(issuer)
    issuer.answers[DISCOVERY] = lambda _: issuer.release.wait(60)
    ended: list[str] = []

    def login() -> None:
        try:
            ended.append(str(jobs.login(patience=patient(room=40))))
        except Unavailable as error:
            ended.append(str(error.facts["claim_found"]))

    threads = [threading.Thread(target=login) for _ in range(60)]
    for each in threads:
        each.start()
    give_up = time.monotonic() + 60
    while len(ended) < 22 and time.monotonic() < give_up:
        issuer.release.wait(0.01)
    assert set(ended) == {"so many calls wait for them already"}
    assert len(ended) == 22  # 38 of 40 places are its own, and two are left
    issuer.answers.clear()
    issuer.release.set()
    for each in threads:
        each.join(60)
    assert ended.count("pipeline/deploy") == 38


LASTING: dict[str, tuple[Callable[[Issuer], Any], str, str]] = {
    "discovery 403": (lambda _: (DISCOVERY, (403, {}, b"")), "ISSUER_KEYS_REFUSED", "status 403"),
    "discovery 401": (lambda _: (DISCOVERY, (401, {}, b"")), "ISSUER_KEYS_REFUSED", "status 401"),
    "discovery 404": (lambda _: (DISCOVERY, (404, {}, b"")), "ISSUER_MISCONFIGURED", "status 404"),
    "discovery 301": (lambda _: (DISCOVERY, (301, {"Location": "/x"}, b"")), "ISSUER_MISCONFIGURED", "status 301"),
    "keys 403": (lambda _: (KEYS, (403, {}, b"")), "ISSUER_KEYS_REFUSED", "status 403"),
    "keys elsewhere": (
        lambda issuer: (DISCOVERY, (200, {}, {"issuer": issuer.url, "jwks_uri": "https://keys.example/k"})),
        "ISSUER_MISCONFIGURED", "another host, and [oidc] allowed_hosts does not name it: keys.example:443",
    ),
    "another issuer": (
        lambda issuer: (DISCOVERY, (200, {}, {"issuer": f"{issuer.url}/", "jwks_uri": issuer.url})),
        "ISSUER_MISCONFIGURED", "names another issuer",
    ),
    "503": (lambda _: (DISCOVERY, (503, {}, b"")), "ISSUER_UNAVAILABLE", "status 503"),
    "429": (lambda _: (KEYS, (429, {}, b"")), "ISSUER_UNAVAILABLE", "status 429"),
    "no JSON": (lambda _: (KEYS, (200, {}, b"<html>")), "ISSUER_UNAVAILABLE", "cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("case", LASTING.values(), ids=LASTING.keys())
def test_P29_the_job_is_told_whether_to_come_back_and_an_operator_why(issuer: Issuer, case: Any) -> None:
    answer, reason, why = case
    path, answered = answer(issuer)
    issuer.answers[path] = answered
    jobs = hurried(issuer)
    passing = reason == "ISSUER_UNAVAILABLE"  # waited for until the end
    assert jobs.why_not(patience=patient(1.5 if passing else 30)) == reason
    with pytest.raises((Unauthenticated, Unavailable)) as refused:  # as `broker trust test` asks
        jobs.oidc.inspect(jobs.rule, issuer.token())
    assert why in str(refused.value.facts["claim_found"])
    assert why not in str(refused.value)
    assert ("operator" in str(refused.value), "trust test" in str(refused.value)) == (True, True)
    issuer.answers.clear()
    give_up = time.monotonic() + 60
    while not logged_in(jobs):  # soon after it is mended
        assert time.monotonic() < give_up


def logged_in(jobs: Jobs) -> bool:
    try:
        jobs.login(patience=patient())
    except (Unauthenticated, Unavailable):
        return False
    return True


def test_P29_a_certificate_that_is_not_trusted_is_told_as_such(issuer: Issuer, tmp_path: Path) -> None:
    with issuing(tmp_path / "other") as other:
        jobs = hurried(issuer, ca_pem=other.ca_pem)
        assert jobs.why_not(patience=patient(30)) == "ISSUER_MISCONFIGURED"


def test_P29_a_fault_that_shows_once_refuses_nobody(issuer: Issuer) -> None:
    asked: list[int] = []

    def once(handler: BaseHTTPRequestHandler) -> None:
        asked.append(1)
        respond(handler, 404 if len(asked) == 1 else 200, issuer.body(DISCOVERY))

    issuer.answers[DISCOVERY] = once
    hurried(issuer).login(patience=patient())


def test_P10_a_rule_whose_keys_are_away_delays_no_job_of_another(issuer: Issuer, tmp_path: Path) -> None:
    with issuing(tmp_path / "other") as other:
        jobs = hurried(issuer)
        wrong = replace(jobs.rule, name="wrong", ca_pem=other.ca_pem)
        with jobs.store.write(call("-", operator(), Clock()).outcome()) as write:
            write.add(wrong)
        begun = time.monotonic()
        for _ in range(5):
            jobs.login(patience=patient())
        assert time.monotonic() - begun < 15
