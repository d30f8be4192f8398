"""Where keys are fetched from, and under whose certificate: AN-07, AN-18 to AN-21, NT-17, P13."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.auth.oidc import fetch as fetching
from broker.auth.oidc.fetch import Fetcher, NotFetchedError, is_public, place
from broker.auth.oidc.issuer import VAIN_PAUSES
from broker.core.errors import Unauthenticated, Unavailable
from tests.servers.issuer import DISCOVERY, KEYS, Issuer, Signer, issuing
from tests.servers.jobs import Jobs


@pytest.fixture
def issuer(tmp_path: Path) -> Iterator[Issuer]:
    with issuing(tmp_path / "issuer") as made:
        yield made


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


@pytest.mark.parametrize("address", ["169.254.169.254", "127.0.0.1", "10.1.2.3", "::1", "::ffff:127.0.0.1"])
def test_AN_18_the_address_is_checked_when_it_is_connected_to(
    issuer: Issuer, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    asked: list[str] = []

    def resolve(host: str, port: int, **_: Any) -> list[Any]:
        asked.append(host)
        return [(family, socket.SOCK_STREAM, 6, "", (address, port))]

    def connect(*_: Any, **__: Any) -> None:
        raise AssertionError("nothing may be connected to")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(socket, "create_connection", connect)
    jobs = Jobs(issuer, url="https://ci.example")
    assert "not a public one" in jobs_away(jobs, issuer)
    assert asked == ["ci.example"]


def jobs_away(jobs: Jobs, issuer: Issuer) -> str:
    with pytest.raises((Unauthenticated, Unavailable)) as refused:
        jobs.login(issuer.token(iss="https://ci.example"))
    return str(refused.value.facts["claim_found"])


def test_AN_18_a_name_that_changes_its_mind_is_asked_once_a_connection(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was checked is what is connected to: between the two nobody is asked again."""
    connected: list[Any] = []
    answers = iter(["8.8.8.8", "127.0.0.1", "127.0.0.1"])
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda _host, port, **_: [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(answers), port))],
    )

    def connect(address: Any, **_: Any) -> None:
        connected.append(address)
        raise ConnectionRefusedError

    monkeypatch.setattr(socket, "create_connection", connect)
    jobs_away(Jobs(issuer, url="https://ci.example"), issuer)
    assert connected == [("8.8.8.8", 443)]


def test_AN_21_an_issuer_that_is_away_or_untrusted_refuses_and_nothing_opens(issuer: Issuer, tmp_path: Path) -> None:
    with issuing(tmp_path / "other") as other:
        assert Jobs(issuer, ca_pem=other.ca_pem).away() == "its certificate is not trusted"
        assert Jobs(issuer, ca_pem="").away() == "its certificate is not trusted"
        jobs = Jobs(other)
        token = other.token()
    assert jobs.refused(token) == "ISSUER_UNAVAILABLE"


def test_AN_21_the_environment_has_no_say(issuer: Issuer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ca.pem").write_text(issuer.ca_pem)
    for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.setenv(name, str(tmp_path / "ca.pem"))
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "keys.log"))
    assert Jobs(issuer, ca_pem="").away() == "its certificate is not trusted"
    Jobs(issuer).login()
    assert not (tmp_path / "keys.log").exists()


def test_a_server_of_another_name_is_refused(issuer: Issuer) -> None:
    where = issuer.url.replace("127.0.0.1", "localhost")
    jobs = Jobs(issuer, frozenset({where.removeprefix("https://")}), url=where)
    with pytest.raises(Unauthenticated) as refused:
        jobs.login(issuer.token(iss=where))
    assert refused.value.facts["claim_found"] == "its certificate is not trusted"


def test_AN_07_NT_17_nothing_that_a_token_names_is_ever_fetched(issuer: Issuer) -> None:
    jobs = Jobs(issuer)
    evil = Signer("one")
    for name in ("jku", "x5u"):
        jobs.refused(evil.token(issuer.claims(), **{name: f"{issuer.url}/evil"}))
    jobs.refused(evil.token(issuer.claims(), jwk=evil.jwk()))
    jobs.refused(evil.token(issuer.claims(iss=f"{issuer.url}/evil")))
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
        assert jobs.refused(issuer.signers[0].token(issuer.claims(), kid=kid)) == "ISSUER_UNAVAILABLE"
    assert issuer.asked == [DISCOVERY, KEYS]
    jobs.ticks.now += VAIN_PAUSES[0]
    for kid in ("../../etc/passwd", "' OR 1=1 --"):
        assert jobs.refused(issuer.signers[0].token(issuer.claims(), kid=kid)) == "TOKEN_KEY_UNKNOWN"
        jobs.ticks.now += VAIN_PAUSES[-1]


@pytest.mark.parametrize("url", ["https://h", "https://h:8443/a/b", "https://sub.h.example/.well-known/jwks"])
def test_plain_addresses_are_understood(url: str) -> None:
    host, port, path = place(url)
    assert url.startswith(f"https://{host}")
    assert port in {443, 8443}
    assert path.startswith("/")


HEADS = ("", "\r\n", "Content-Length: 5\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n")


@given(st.binary(max_size=400), st.sampled_from([b"", *(f"HTTP/1.1 200 OK\r\n{head}".encode() for head in HEADS)]))
def test_P13_no_answer_breaks_its_reader(rest: bytes, begin: bytes) -> None:
    try:
        body = fetching._body(begin + rest)
    except (NotFetchedError, ValueError, OSError):
        return
    assert len(body) <= len(rest)


def test_another_address_is_tried_when_one_does_not_answer(issuer: Issuer, monkeypatch: pytest.MonkeyPatch) -> None:
    real, tried = socket.create_connection, []
    here = [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, issuer.port)) for address in ("127.0.0.2", "127.0.0.1")
    ]

    def connect(address: Any, **options: Any) -> Any:
        tried.append(address[0])
        if address[0] == "127.0.0.2":
            raise ConnectionRefusedError
        return real(address, **options)

    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: here)
    monkeypatch.setattr(socket, "create_connection", connect)
    assert Fetcher(frozenset({issuer.host})).get(f"{issuer.url}{KEYS}", issuer.ca_pem, time.monotonic() + 5)
    assert tried == ["127.0.0.2", "127.0.0.1"]
