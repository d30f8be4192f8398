"""An issuer over TLS, as it should be and as it should not: AN-07, AN-17, AN-18, AN-19, AN-21, NT-17, P18."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from broker.auth.oidc import fetch as fetching
from broker.auth.oidc.fetch import Fetcher, NotFetchedError
from broker.auth.oidc.issuer import FAILED_PAUSES, OVER, STALE, VAIN_PAUSES
from tests.servers.issuer import DISCOVERY, KEYS, Issuer, Signer, issuing
from tests.servers.jobs import Jobs


@pytest.fixture
def issuer(tmp_path: Path) -> Iterator[Issuer]:
    with issuing(tmp_path / "issuer") as made:
        yield made


@pytest.mark.parametrize("algorithm", ["RS256", "PS256", "ES256", "ES384", "EdDSA"])
def test_a_job_logs_in_and_the_keys_are_fetched_once(issuer: Issuer, algorithm: str) -> None:
    issuer.signers = [Signer("one", algorithm)]
    jobs = Jobs(issuer)
    for _ in range(3):
        assert str(jobs.login()) == "pipeline/deploy"
    assert issuer.asked == [DISCOVERY, KEYS]


@pytest.mark.parametrize("path", ["/org/7", "/a/b/c"])
def test_an_issuer_may_have_a_path(issuer: Issuer, path: str) -> None:
    issuer.path = path
    assert str(Jobs(issuer).login()) == "pipeline/deploy"
    assert issuer.asked == [f"{path}{DISCOVERY}", f"{path}{KEYS}"]


def test_AN_17_a_thousand_unknown_keys_are_one_fetch(issuer: Issuer) -> None:
    unknown_keys(issuer, 1000)


def unknown_keys(issuer: Issuer, count: int) -> None:
    jobs = Jobs(issuer)
    jobs.login()
    good = issuer.token()
    # An attacker needs no key for this: one signature does for all, as the key is looked for first.
    for number in range(count):
        assert jobs.why_not(issuer.signers[0].token({"iss": issuer.url}, kid=f"k{number}")) == "ISSUER_UNAVAILABLE"
        if number % 100 == 0:
            jobs.login(good)
    assert issuer.fetches == 1
    fetched = 1
    for pause in (*VAIN_PAUSES, VAIN_PAUSES[-1], VAIN_PAUSES[-1]):  # made-up names make the pauses longer
        for moment in (pause - 0.5, 1):
            jobs.ticks.now += moment
            for number in range(count // 100):
                jobs.why_not(issuer.signers[0].token({"iss": issuer.url}, kid=f"{pause}{number}"))
                jobs.login(good)
            fetched += moment == 1
            assert issuer.fetches == fetched


def test_a_new_key_is_found_with_its_first_token(issuer: Issuer) -> None:
    jobs = Jobs(issuer)
    jobs.login()
    issuer.signers.insert(0, Signer("two"))
    assert jobs.why_not() == "ISSUER_UNAVAILABLE"  # nobody can tell yet, and it is not said to be unknown
    jobs.ticks.now += VAIN_PAUSES[0]
    jobs.login()
    assert issuer.fetches == 2


def test_a_key_that_was_taken_back_serves_ten_minutes_at_most(issuer: Issuer) -> None:
    jobs = Jobs(issuer)
    old = issuer.token()
    jobs.login(old)
    issuer.signers = [Signer("two")]
    jobs.ticks.now += STALE + 1
    jobs.login(old)  # served from what is known, while the new set is fetched
    jobs.settle()
    assert jobs.why_not(old) == "ISSUER_UNAVAILABLE"
    jobs.ticks.now += VAIN_PAUSES[0]
    assert jobs.why_not(old) == "TOKEN_KEY_UNKNOWN"


BROKEN: dict[str, Any] = {
    "status 500": (500, {}, b"no"),
    "status 404": (404, {}, b""),
    "no JSON": (200, {}, b"<html>"),
    "a list": (200, {}, b"[]"),
    "twice": (200, {}, b'{"issuer":"a","issuer":"b"}'),
    "cut short": (200, {"Content-Length": "5000"}, b"{"),
}


@pytest.mark.parametrize("path", [DISCOVERY, KEYS])
@pytest.mark.parametrize("answer", BROKEN.values(), ids=BROKEN.keys())
def test_P18_known_keys_serve_while_the_issuer_is_broken_and_not_for_ever(
    issuer: Issuer, answer: Any, path: str
) -> None:
    jobs = Jobs(issuer)
    jobs.login()
    issuer.answers[path] = answer
    for _ in range(2):
        jobs.ticks.now += OVER / 2 - 1
        jobs.login()
        jobs.settle()
    assert issuer.fetches == (2 if path == DISCOVERY else len(issuer.asked) // 2)
    jobs.ticks.now += 3
    told = {"status 404": "ISSUER_MISCONFIGURED"}.get(answer_name(answer), "ISSUER_UNAVAILABLE")
    assert jobs.why_not() == told
    jobs.settle()
    issuer.answers.clear()
    assert jobs.why_not() == told  # asked a moment ago
    jobs.ticks.now += FAILED_PAUSES[2]
    jobs.login()


def answer_name(answer: Any) -> str:
    return next(name for name, one in BROKEN.items() if one == answer)


def test_AN_17_a_hanging_issuer_costs_those_with_known_keys_nothing(issuer: Issuer) -> None:
    jobs = Jobs(issuer)
    good = issuer.token()
    jobs.login(good)
    issuer.answers[DISCOVERY] = lambda _: issuer.release.wait(20)
    jobs.ticks.now += STALE + 1
    begun = time.monotonic()
    for _ in range(100):
        jobs.login(good)
    assert time.monotonic() - begun < 8  # one answer of that issuer is waited for longer
    issuer.release.set()
    jobs.settle()


stop = threading.Event()


def _drip(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "100000")
    handler.end_headers()
    for _ in range(1000):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        if stop.wait(0.05):
            return


@pytest.mark.parametrize("answer", [lambda _: stop.wait(60), _drip], ids=["silent", "dripping"])
def test_AN_18_an_answer_has_its_time(issuer: Issuer, answer: Callable[[Any], Any]) -> None:
    issuer.answers["/x"] = answer
    stop.clear()
    begun = time.monotonic()
    with pytest.raises(NotFetchedError, match="in time"):
        Fetcher(frozenset({issuer.host})).get(f"{issuer.url}/x", issuer.ca_pem, begun + 0.5)
    assert 0.4 < time.monotonic() - begun < 15
    stop.set()
    assert fetching.SECONDS <= 10


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("path", [DISCOVERY, KEYS])
def test_AN_18_no_redirect_is_followed(issuer: Issuer, status: int, path: str) -> None:
    issuer.answers[path] = (status, {"Location": f"{issuer.url}/elsewhere"}, b"")
    assert Jobs(issuer).away() == f"it answered with status {status}"
    assert "/elsewhere" not in issuer.asked


@pytest.mark.parametrize("size", [256 * 1024 + 1, 10 * 1024 * 1024])
def test_AN_18_an_answer_has_its_size(issuer: Issuer, size: int) -> None:
    issuer.answers[KEYS] = (200, {}, b'{"keys":[]}' + b" " * size)
    assert Jobs(issuer).away() == "its answer is too long"


def test_AN_18_an_answer_of_just_that_size_is_read(issuer: Issuer) -> None:
    whole = json.dumps({"keys": [issuer.signers[0].jwk()]}).encode()
    issuer.answers[KEYS] = (200, {}, whole + b" " * (256 * 1024 - len(whole)))
    Jobs(issuer).login()


def test_an_answer_in_chunks_is_read(issuer: Issuer) -> None:
    def chunked(handler: BaseHTTPRequestHandler) -> None:
        body = json.dumps(issuer.body(KEYS)).encode()
        handler.protocol_version = "HTTP/1.1"
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for part in (body[:10], body[10:]):
            handler.wfile.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
        handler.wfile.write(b"0\r\n\r\n")

    issuer.answers[KEYS] = chunked
    Jobs(issuer).login()


@pytest.mark.parametrize("raw", [b"", b"\0" * 100, b"HTTP/1.1 200 OK\r\n", b"SSH-2.0-x\r\n", b"HTTP/1.1 OK\r\n\r\n{}"])
def test_what_is_no_http_is_no_key_set(issuer: Issuer, raw: bytes) -> None:
    issuer.answers[KEYS] = lambda handler: handler.wfile.write(raw)
    Jobs(issuer).away()


@pytest.mark.parametrize(
    "address",
    [
        "http://{host}/k", "file:///etc/passwd", "ftp://{host}/k", "data:application/json,{{}}", "//{host}/k", "/k", "",
        "https://x@{host}/k", "https://{host}/k?a", "https://{host}/k#a", "https://{host}\\@evil.example/k",
        "https://169.254.169.254/latest/meta-data", "https://[::1]/k", "https://[::ffff:169.254.169.254]/k",
        "https://localhost/k", "https://evil.example/k", "https://{host}.evil.example/k", "https://{host}1/k",
        "https://127.1/k", "https://2130706433/k", "https://{host}/k\r\nX: y", "gopher://{host}/k",
    ],
)  # fmt: skip
def test_AN_18_the_keys_are_at_the_issuers_own_host(issuer: Issuer, address: str) -> None:
    where = address.format(host=issuer.host)
    issuer.answers[DISCOVERY] = (200, {}, {"issuer": issuer.url, "jwks_uri": where})
    jobs = Jobs(issuer)
    assert "host" in jobs.away() or "plain https" in jobs.away()
    assert issuer.asked == [DISCOVERY]


def test_keys_may_be_at_a_host_that_the_configuration_names(issuer: Issuer, tmp_path: Path) -> None:
    with issuing(tmp_path / "keys", "keys.example") as other:
        issuer.answers[DISCOVERY] = (200, {}, {"issuer": issuer.url, "jwks_uri": f"{other.url}/k"})
        other.answers["/k"] = (200, {}, issuer.body(KEYS))
        both = issuer.ca_pem + other.ca_pem
        assert "another host" in Jobs(issuer, ca_pem=both).away()
        Jobs(issuer, frozenset({issuer.host, other.host}), ca_pem=both).login()
        assert other.asked == ["/k"]


@pytest.mark.parametrize("named", ["https://other.example", "", None, 7, ["{url}"], "{url}/", "{url} "])
def test_AN_11_the_discovery_document_names_its_issuer(issuer: Issuer, named: Any) -> None:
    said = named.format(url=issuer.url) if isinstance(named, str) else named
    issuer.answers[DISCOVERY] = (200, {}, {"issuer": said, "jwks_uri": f"{issuer.url}{KEYS}"})
    assert "another issuer" in Jobs(issuer).away()
    assert issuer.asked == [DISCOVERY]


def test_an_issuer_is_asked_again_once_there_is_a_thread_for_it(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    jobs = Jobs(issuer)
    with monkeypatch.context() as patch:
        # Patched: a limit of threads would be that of the whole machine's user.
        patch.setattr(threading.Thread, "start", none_left)
        assert jobs.why_not() == "ISSUER_UNAVAILABLE"
    jobs.ticks.now += FAILED_PAUSES[0]
    jobs.login()
    assert issuer.fetches == 1
