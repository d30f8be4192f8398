"""Where keys are fetched from, and under whose certificate: AN-07, AN-18 to AN-21, NT-17, P13."""

from __future__ import annotations

import errno
import os
import socket
import sys
import time
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.auth.oidc.fetch import Fetcher, NotFetchedError, is_public, place
from broker.auth.oidc.issuer import VAIN_PAUSES
from broker.auth.oidc.resolve import Ask, Found
from broker.core.errors import Unauthenticated, Unavailable
from tests.servers.issuer import DISCOVERY, KEYS, Issuer, Signer, issuing
from tests.servers.jobs import Jobs


@pytest.fixture
def issuer(tmp_path: Path) -> Iterator[Issuer]:
    with issuing(tmp_path / "issuer") as made:
        yield made


UNKNOWN_CA = "its certificate is not trusted (unable to get local issuer certificate)"
PRIVATE = [
    "127.0.0.1", "127.255.0.1", "0.0.0.1", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "169.254.169.254",
    "100.64.0.1", "192.0.2.1", "198.18.0.1", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255",
    "::", "::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:8.8.8.8", "::7f00:1", "fe80::1", "fe80::1%eth0",
    "fc00::1", "fd00:ec2::254", "ff02::1", "2001:db8::1", "2002:7f00:1::", "64:ff9b::7f00:1", "64:ff9b:1::a00:1",
    "2001:0:7f00:1::", "fec0::1", "::ffff:0:127.0.0.1", "localhost", "",
]  # fmt: skip


@pytest.mark.parametrize("address", PRIVATE)
def test_AN_18_an_address_that_is_not_everybodys_is_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "140.82.112.3", "2606:4700::1111", "2a00:1450:4001::8a"])
def test_an_address_that_is_everybodys_is_public(address: str) -> None:
    assert is_public(address)


class Outward:
    """What this process connects to and looks up, as Python tells (sys.audit); ``vetoed``: what it does not reach."""

    def __init__(self) -> None:
        self.connected: list[str] = []
        self.looked_up: list[str] = []
        self.vetoed: frozenset[str] = frozenset()
        self.over = False
        sys.addaudithook(self._hear)  # there is no way to take one away

    def _hear(self, event: str, args: tuple[Any, ...]) -> None:
        if self.over:
            return
        if event == "socket.getaddrinfo":
            self.looked_up.append(args[0])
        if event == "socket.connect" and isinstance(args[1], tuple):
            self.connected.append(args[1][0])
            if args[1][0] in self.vetoed:
                raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))


@pytest.fixture
def outward() -> Iterator[Outward]:
    made = Outward()
    yield made
    made.over = True


def at(*addresses: str) -> Ask:
    """A resolver that gives all of these for any name."""

    def ask(_host: str, port: int) -> Found:
        family = socket.AF_INET6 if ":" in addresses[0] else socket.AF_INET
        return [(family, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    return ask


@pytest.mark.parametrize("address", ["169.254.169.254", "127.0.0.1", "10.1.2.3", "::1", "::ffff:127.0.0.1"])
def test_AN_18_the_address_is_checked_when_it_is_connected_to(issuer: Issuer, address: str, outward: Outward) -> None:
    jobs = Jobs(issuer, url="https://ci.example", ask=at(address))
    assert "not a public one" in jobs_away(jobs, issuer)
    assert outward.connected == []


def jobs_away(jobs: Jobs, issuer: Issuer) -> str:
    with pytest.raises((Unauthenticated, Unavailable)) as refused:
        jobs.login(issuer.token(iss="https://ci.example"))
    return str(refused.value.facts["claim_found"])


def test_AN_18_a_name_that_changes_its_mind_is_asked_once_a_connection(issuer: Issuer, outward: Outward) -> None:
    """What was checked is what is connected to: between the two nobody is asked again."""
    answers = iter(["8.8.8.8", "127.0.0.1", "127.0.0.1"])
    outward.vetoed = frozenset({"8.8.8.8"})

    def ask(host: str, port: int) -> Found:
        return at(next(answers))(host, port)

    jobs = Jobs(issuer, url="https://ci.example", ask=ask)
    assert jobs_away(jobs, issuer) == "it cannot be reached (Connection refused)"
    assert outward.connected == ["8.8.8.8"]
    assert set(outward.looked_up) <= {"8.8.8.8"}


def test_the_servers_name_is_the_urls_and_not_the_address(tmp_path: Path) -> None:
    with issuing(tmp_path / "issuer", "ci.example") as issuer:
        heard: list[str] = []

        def told(handler: BaseHTTPRequestHandler) -> None:
            heard.append(handler.headers["Host"])
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

        issuer.answers["/x"] = told
        where = f"ci.example:{issuer.port}"
        fetcher = Fetcher(frozenset({where, f"other.example:{issuer.port}"}), at("127.0.0.1"))
        until = time.monotonic() + 60
        assert fetcher.get(f"https://{where}/x", issuer.ca_pem, until) == b"{}"
        assert heard == [where]
        with pytest.raises(NotFetchedError, match=r"its certificate is not trusted \(Hostname mismatch"):
            fetcher.get(f"https://other.example:{issuer.port}/x", issuer.ca_pem, until)
        assert heard == [where]


def test_AN_21_an_issuer_that_is_away_or_untrusted_refuses_and_nothing_opens(issuer: Issuer, tmp_path: Path) -> None:
    with issuing(tmp_path / "other") as other:
        assert Jobs(issuer, ca_pem=other.ca_pem).away().startswith("its certificate is not trusted (")
        assert Jobs(issuer, ca_pem="").away() == UNKNOWN_CA
        jobs = Jobs(other)
        token = other.token()
    assert jobs.why_not(token) == "ISSUER_UNAVAILABLE"


def test_AN_21_the_environment_has_no_say(issuer: Issuer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ca.pem").write_text(issuer.ca_pem)
    for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.setenv(name, str(tmp_path / "ca.pem"))
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "keys.log"))
    assert Jobs(issuer, ca_pem="").away() == UNKNOWN_CA
    Jobs(issuer).login()
    assert not (tmp_path / "keys.log").exists()


def test_a_server_of_another_name_is_refused(issuer: Issuer) -> None:
    where = issuer.url.replace("127.0.0.1", "localhost")
    jobs = Jobs(issuer, frozenset({where.removeprefix("https://")}), url=where)
    with pytest.raises(Unauthenticated) as refused:
        jobs.login(issuer.token(iss=where))
    assert "Hostname mismatch, certificate is not valid for 'localhost'" in str(refused.value.facts["claim_found"])


def test_AN_07_NT_17_nothing_that_a_token_names_is_ever_fetched(issuer: Issuer) -> None:
    jobs = Jobs(issuer)
    evil = Signer("one")
    for name in ("jku", "x5u"):
        jobs.why_not(evil.token(issuer.claims(), **{name: f"{issuer.url}/evil"}))
    jobs.why_not(evil.token(issuer.claims(), jwk=evil.jwk()))
    jobs.why_not(evil.token(issuer.claims(iss=f"{issuer.url}/evil")))
    assert issuer.asked == []
    jobs.login()
    assert issuer.asked == [DISCOVERY, KEYS]


def test_AN_19_a_hostile_key_set_still_serves_its_good_keys(issuer: Issuer) -> None:
    good = issuer.signers[0].jwk()
    junk: list[Any] = [{"kty": "oct", "k": "", "kid": "one"}, None, {**good, "kid": "x", "y": good["x"]}, 7]
    issuer.answers[KEYS] = (200, {}, {"keys": [*junk, good, *junk]})
    Jobs(issuer).login()


def test_AN_20_a_strange_kid_is_only_looked_up(issuer: Issuer) -> None:
    jobs = Jobs(issuer)
    jobs.login()
    for kid in ("../../etc/passwd", "' OR 1=1 --", "a\0b", "one\n", "\u202eone", "a" * 256):
        assert jobs.why_not(issuer.signers[0].token(issuer.claims(), kid=kid)) == "ISSUER_UNAVAILABLE"
    assert issuer.asked == [DISCOVERY, KEYS]
    jobs.ticks.now += VAIN_PAUSES[0]
    for kid in ("../../etc/passwd", "' OR 1=1 --"):
        assert jobs.why_not(issuer.signers[0].token(issuer.claims(), kid=kid)) == "TOKEN_KEY_UNKNOWN"
        jobs.ticks.now += VAIN_PAUSES[-1]


@pytest.mark.parametrize("url", ["https://h", "https://h:8443/a/b", "https://sub.h.example/.well-known/jwks"])
def test_plain_addresses_are_understood(url: str) -> None:
    host, port, path = place(url)
    assert url.startswith(f"https://{host}")
    assert port in {443, 8443}
    assert path.startswith("/")


HEADS = ("", "\r\n", "Content-Length: 5\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n")


def test_P13_no_answer_breaks_its_reader(issuer: Issuer) -> None:
    fetcher = Fetcher(frozenset({issuer.host}))

    @given(st.binary(max_size=400), st.sampled_from([b"", *(f"HTTP/1.1 200 OK\r\n{head}".encode() for head in HEADS)]))
    def reads(rest: bytes, begin: bytes) -> None:
        issuer.answers["/x"] = lambda handler: handler.wfile.write(begin + rest)
        try:
            body = fetcher.get(f"{issuer.url}/x", issuer.ca_pem, time.monotonic() + 60)
        except NotFetchedError:
            return
        assert len(body) <= len(rest)

    reads()


def test_another_address_is_tried_when_one_does_not_answer(issuer: Issuer, outward: Outward) -> None:
    outward.vetoed = frozenset({"127.0.0.2"})
    fetcher = Fetcher(frozenset({issuer.host}), at("127.0.0.2", "127.0.0.1"))
    assert fetcher.get(f"{issuer.url}{KEYS}", issuer.ca_pem, time.monotonic() + 60)
    assert outward.connected == ["127.0.0.2", "127.0.0.1"]


def test_a_head_has_its_size_too(issuer: Issuer) -> None:
    long = b"HTTP/1.1 200 OK\r\n" + b"".join(b"X-%d: %s\r\n" % (n, b"y" * 60_000) for n in range(10)) + b"\r\n{}"
    issuer.answers["/x"] = lambda handler: handler.wfile.write(long)
    with pytest.raises(NotFetchedError, match="its answer is too long"):
        Fetcher(frozenset({issuer.host})).get(f"{issuer.url}/x", issuer.ca_pem, time.monotonic() + 60)


def test_an_answer_that_ends_early_is_no_document(issuer: Issuer) -> None:
    for raw in (b"Content-Length: 90\r\n\r\n{}", b"Transfer-Encoding: chunked\r\n\r\n9\r\n{}"):
        issuer.answers["/x"] = partial(_says, b"HTTP/1.1 200 OK\r\n" + raw)
        with pytest.raises(NotFetchedError, match="its answer broke off"):
            Fetcher(frozenset({issuer.host})).get(f"{issuer.url}/x", issuer.ca_pem, time.monotonic() + 60)


def _says(raw: bytes, handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(raw)
