"""A Kubernetes token is asked about at its cluster, by a stand-in that is as strict as an API server."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from broker.auth.oidc import Oidc, OidcConfig
from broker.auth.oidc.resolve import Found
from broker.auth.oidc.review import AT_ONCE, PATH, SECONDS, TokenReview, TokenReviewConfig
from broker.core.errors import BrokerError, Unauthenticated, Unavailable
from broker.core.identity import Credentials
from broker.core.kinds import Preset
from broker.core.model import Principal
from tests.fakes.calls import Clock, call, operator, traits_of
from tests.fakes.memory_store import MemoryStore
from tests.fakes.refusals import refused
from tests.servers.issuer import Issuer, issuing
from tests.servers.patience import busy
from tests.servers.rules import EXAMPLES

OWN = "own-token-of-the-broker"
RULE, CLAIMS = EXAMPLES[Preset.KUBERNETES]


@dataclass
class Cluster:
    """The issuer of a cluster and its API server, which is the same. ``gone``: subjects that it does not know now."""

    issuer: Issuer
    folder: Path
    gone: bool = False
    asked: list[dict[str, Any]] = field(default_factory=list)
    changes: dict[str, Any] = field(default_factory=dict)
    hang: threading.Event | None = None
    waiting: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def review(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers["Content-Length"]))
        if self.hang:
            self.waiting.release()
            self.hang.wait(20)
        if request.headers["Authorization"] != f"Bearer {OWN}":
            self.answer(request, 401, {"kind": "Status", "status": "Failure"})
            return
        asked = json.loads(body)
        assert request.headers["Content-Type"] == "application/json"
        assert (asked["apiVersion"], asked["kind"]) == ("authentication.k8s.io/v1", "TokenReview")
        assert asked.keys() == {"apiVersion", "kind", "spec"}
        self.asked.append(asked["spec"])
        status: dict[str, Any] = {"authenticated": False, "error": "[invalid bearer token]", "user": {}}
        if not self.gone:
            user = {"username": CLAIMS["sub"], "uid": "x", "groups": ["system:serviceaccounts"]}
            status = {"authenticated": True, "user": user, "audiences": asked["spec"]["audiences"]}
        self.answer(request, 201, {**asked, "metadata": {}, "status": status | self.changes})

    def answer(self, request: BaseHTTPRequestHandler, status: int, body: Any) -> None:
        raw = json.dumps(body).encode()
        request.send_response(status)
        request.send_header("Content-Length", str(len(raw)))
        request.end_headers()
        request.wfile.write(raw)

    def config(self, **changes: Any) -> OidcConfig:
        (self.folder / "ca.pem").write_text(self.issuer.ca_pem)
        (self.folder / "token").write_text(OWN + "\n")
        (self.folder / "token").chmod(0o600)
        parts = {
            "issuer": self.issuer.url, "host": self.issuer.host, "ca_file": self.folder / "ca.pem",
            "token_file": self.folder / "token", **changes,
        }  # fmt: skip
        review = TokenReviewConfig(**parts)
        return OidcConfig(allowed_hosts=frozenset({self.issuer.host}), token_review=(review,))

    def broker(self, preset: Preset = Preset.KUBERNETES, **changes: Any) -> Oidc:
        store = MemoryStore()
        rule = replace(RULE, preset=preset, issuer=self.issuer.url, ca_pem=self.issuer.ca_pem)
        with store.write(call("-", operator(), Clock()).outcome()) as write:
            write.add(rule)
        return Oidc(self.config(**changes), store, lambda: datetime.now(UTC))

    def token(self, **changes: Any) -> str:
        return self.issuer.token(**{"aud": RULE.audience, "repository_id": None, **CLAIMS, **changes})


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with issuing(tmp_path / "issuer") as issuer:
        made = Cluster(issuer, tmp_path)
        issuer.answers[PATH] = made.review
        yield made
        if made.hang:
            made.hang.set()


def login(broker: Oidc, token: str) -> Principal:
    metadata = {"authorization": f"Bearer {token}"}
    found = broker.authenticate(
        Credentials(
            certificate=None,
            chain_verified=False,
            metadata=metadata,
            peer="",
            rpc="SessionService/Login",
            traits=traits_of("SessionService/Login"),
        )
    )
    assert found is not None
    return found


def denied(broker: Oidc, token: str) -> BrokerError:
    error = refused(lambda: login(broker, token))
    assert token not in str(error.facts) + error.message
    assert OWN not in str(error.facts) + error.message
    return error


def test_a_token_that_the_cluster_vouches_for_logs_in_and_is_asked_about_each_time(cluster: Cluster) -> None:
    broker = cluster.broker()
    tokens = [cluster.token(), cluster.token()]
    assert [str(login(broker, token)) for token in tokens] == ["pipeline/deploy"] * 2
    assert cluster.asked == [{"token": token, "audiences": [RULE.audience]} for token in tokens]


def test_P_43_a_job_whose_pod_is_gone_is_refused_though_its_signature_holds(cluster: Cluster) -> None:
    broker = cluster.broker()
    cluster.gone = True
    error = denied(broker, cluster.token())
    assert (type(error), error.reason) == (Unauthenticated, "TOKEN_REVIEW_FAILED")
    assert error.facts["claim"] == "token review authenticated"


def test_only_a_token_that_passed_everything_else_is_sent_to_the_cluster(cluster: Cluster) -> None:
    broker = cluster.broker()
    for bad in (cluster.token(aud="other"), cluster.token(exp=1, iat=0), cluster.token(sub=None), cluster.token()[:-8]):
        denied(broker, bad)
    assert denied(broker, cluster.token(**{"kubernetes.io": {}})).reason == "TRUST_CLAIM_MISMATCH"
    assert cluster.asked == []


@pytest.mark.parametrize("preset", Preset)
def test_P_43_a_cluster_that_is_to_be_asked_is_asked_whatever_the_preset_of_the_rule(
    cluster: Cluster, preset: Preset
) -> None:
    broker = cluster.broker(preset=preset)
    cluster.gone = True
    assert denied(broker, cluster.token()).reason == "TOKEN_REVIEW_FAILED"
    cluster.gone = False
    token = cluster.token()
    assert (str(login(broker, token)), cluster.asked[-1]["token"]) == ("pipeline/deploy", token)


@pytest.mark.parametrize(
    ("changes", "claim"),
    [
        ({"authenticated": "true"}, "authenticated"),
        ({"authenticated": 1}, "authenticated"),
        ({"audiences": []}, "audiences"),
        ({"audiences": ["https://kubernetes.default.svc"]}, "audiences"),
        ({"audiences": None}, "audiences"),  # an API server that knows no audiences must not be believed
        ({"audiences": RULE.audience}, "audiences"),
        ({"user": {"username": "system:serviceaccount:ci:other"}}, "user"),
        ({"user": None}, "user"),
    ],
)
def test_every_part_of_the_answer_counts(cluster: Cluster, changes: dict[str, Any], claim: str) -> None:
    cluster.changes = changes
    error = denied(cluster.broker(), cluster.token())
    assert (error.reason, error.facts["claim"]) == ("TOKEN_REVIEW_FAILED", f"token review {claim}")


def test_a_cluster_that_cannot_be_asked_lets_nobody_in(cluster: Cluster) -> None:
    broker = cluster.broker()
    (cluster.folder / "token").write_text("another")
    assert denied(broker, cluster.token()).reason == "TOKEN_REVIEW_MISCONFIGURED"
    (cluster.folder / "token").write_text(OWN)
    login(broker, cluster.token())  # the token is read each time
    for text, mode in ((OWN, 0o644), ("two tokens", 0o600), ("", 0o600)):
        (cluster.folder / "token").write_text(text)
        (cluster.folder / "token").chmod(mode)
        assert denied(broker, cluster.token()).reason == "TOKEN_REVIEW_UNAVAILABLE"
    (cluster.folder / "token").unlink()
    (cluster.folder / "token").symlink_to(cluster.folder / "ca.pem")
    assert denied(broker, cluster.token()).reason == "TOKEN_REVIEW_UNAVAILABLE"
    (cluster.folder / "token").unlink()
    broker = cluster.broker()
    answers: list[tuple[int, dict[str, str], Any]] = [
        (500, {}, {}), (200, {}, b"[]"), (201, {}, {"status": 1}), (201, {}, b'{"status": {}, "status": {}}'),
        (302, {"Location": "https://127.0.0.1:1/"}, {}), (201, {}, b"{" * 300_000),
    ]  # fmt: skip
    for answer in answers:
        cluster.issuer.answers[PATH] = partial(posted, *answer)
        told = "TOKEN_REVIEW_MISCONFIGURED" if answer[0] == 302 else "TOKEN_REVIEW_UNAVAILABLE"
        assert denied(broker, cluster.token()).reason == told


def posted(status: int, headers: dict[str, str], body: Any, request: BaseHTTPRequestHandler) -> None:
    request.rfile.read(int(request.headers["Content-Length"]))
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    request.send_response(status)
    for name, value in {"Content-Length": str(len(raw)), **headers}.items():
        request.send_header(name, value)
    request.end_headers()
    request.wfile.write(raw)


def test_another_server_with_that_name_is_not_told_the_brokers_token(cluster: Cluster, tmp_path: Path) -> None:
    with issuing(tmp_path / "other") as other:
        broker = cluster.broker()
        (cluster.folder / "ca.pem").write_text(other.ca_pem)
        assert denied(broker, cluster.token()).reason == "TOKEN_REVIEW_MISCONFIGURED"
        assert cluster.asked == []


def test_a_cluster_that_hangs_holds_up_a_few_logins_and_no_more(cluster: Cluster) -> None:
    broker = cluster.broker()
    login(broker, cluster.token())
    cluster.hang = threading.Event()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        held = [pool.submit(login, broker, cluster.token()) for _ in range(AT_ONCE)]
        for _ in held:
            assert cluster.waiting.acquire(timeout=200)
        error = denied(broker, cluster.token())
        assert (error.reason, error.facts["claim_found"]) == (
            "TOKEN_REVIEW_UNAVAILABLE", "too many logins wait for it already",
        )  # fmt: skip
        cluster.hang.set()
        assert [str(one.result(200)) for one in held] == ["pipeline/deploy"] * AT_ONCE


def test_AN_17_a_resolver_that_hangs_costs_a_review_its_deadline_and_keeps_no_place(cluster: Cluster) -> None:
    go = threading.Event()

    def ask(_host: str, port: int) -> Found:
        assert go.wait(60)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    (config,) = cluster.config().token_review
    review, token = TokenReview(config, ask), cluster.token()

    def unanswered() -> str:
        with pytest.raises(Unavailable) as refused:
            review.check(token, RULE.audience, CLAIMS["sub"])
        return str(refused.value.facts["claim_found"])

    begun = time.monotonic()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        told = {one.result(200) for one in [pool.submit(unanswered) for _ in range(AT_ONCE)]}
    assert told == {"its name was not resolved in time"}
    assert time.monotonic() - begun < busy(SECONDS)
    begun = time.monotonic()
    assert [unanswered() for _ in range(2 * AT_ONCE)] == ["its name was not resolved in time"] * 2 * AT_ONCE
    assert time.monotonic() - begun < 10
    go.set()
    give_up = time.monotonic() + 60
    while not cluster.asked:  # until the look-up that hung has gone
        assert time.monotonic() < give_up
        with suppress(Unavailable):
            review.check(token, RULE.audience, CLAIMS["sub"])
    assert [one["token"] for one in cluster.asked] == [token]


FAULTS = ({"host": "10.0.0.1"}, {"host": "https://x:1"}, {"token_file": "token"}, {"ca_file": "x"}, {"issuer": "k8s"})


@pytest.mark.parametrize("changes", FAULTS)
def test_a_configuration_that_is_none_is_refused(cluster: Cluster, changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="TokenReviewConfig"):
        cluster.config(**changes)
