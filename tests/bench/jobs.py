"""Whole jobs and writes, which no load tool can drive: each needs a token of its own, or a name of its own.

Both servers are driven by the same small client (``http2``): a few connections that are kept, a thread for each, no
hop, requests encoded beforehand. OpenBao's ten reads of a job are sent at once, which is kinder to it than a job is.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

from broker_api.v1 import secrets_pb2, sessions_pb2

from tests.bench.http2 import Client, encoded, good
from tests.bench.load import Figures
from tests.bench.peers import grpc_message
from tests.bench.stage import GRPC, SECRETS, VALUE, BaoSide, BrokerSide, bearer
from tests.bench.tables import Side
from tests.servers.issuer import Issuer

CONNECTIONS = 16

Connect = Callable[[], Client]
Work = Callable[[Client], None]
SESSIONS = "/broker_api.v1.SessionService"


def round_of(connect: Connect, work: Sequence[Work]) -> Figures:
    """Do every piece of work, over a few connections; each must succeed."""
    shares = [work[number::CONNECTIONS] for number in range(CONNECTIONS)]
    with ExitStack() as stack:
        clients = [stack.enter_context(connect()) for _ in shares]
        pool = stack.enter_context(ThreadPoolExecutor(CONNECTIONS))
        start = time.perf_counter()
        took = [each for found in pool.map(_share, clients, shares) for each in found]
        rate = len(work) / (time.perf_counter() - start)
    percentile = statistics.quantiles(took, n=100)
    return Figures(rate=rate, p50=percentile[49], p99=percentile[98])


def _share(client: Client, share: Sequence[Work]) -> list[float]:
    took = []
    for work in share:
        start = time.perf_counter()
        work(client)
        took.append((time.perf_counter() - start) * 1000)
    return took


def broker_jobs(side: BrokerSide, issuer: Issuer) -> Side:
    """FetchSecrets with a fresh identity token (login and ten secrets in one call), then EndSession."""
    request = grpc_message(sessions_pb2.FetchSecretsRequest(references=SECRETS))
    nothing = grpc_message(sessions_pb2.EndSessionRequest())

    def job(token: str) -> Work:
        fetch = encoded("POST", f"{SESSIONS}/FetchSecrets", bearer(token), request)

        def run(client: Client) -> None:
            (raw,) = client.ask(fetch)
            answer = sessions_pb2.FetchSecretsResponse.FromString(raw[5:])
            good([each.fields["value"] for each in answer.secrets], VALUE.encode())
            assert len(answer.secrets) == len(SECRETS)
            good(client.ask(encoded("POST", f"{SESSIONS}/EndSession", bearer(answer.session_token), nothing)), nothing)

        return run

    broker = side.broker
    return _side("broker", broker.pid, lambda: Client(side.port, broker.ca_file), lambda _: job(issuer.token()))


def bao_jobs(side: BaoSide, issuer: Issuer) -> Side:
    """Login at auth/jwt with a fresh identity token, ten reads of kv, revoke-self."""

    def job(token: str) -> Work:
        body = json.dumps({"role": "bench", "jwt": token}).encode()
        login = encoded("POST", "/v1/auth/jwt/login", {"content-type": "application/json"}, body)

        def run(client: Client) -> None:
            (raw,) = client.ask(login)
            mine = {"x-vault-token": json.loads(raw)["auth"]["client_token"]}
            reads = [encoded("GET", f"/v1/secret/data/{name}", mine, b"") for name in SECRETS]
            good(client.ask(*reads), VALUE.encode())
            assert client.ask(encoded("POST", "/v1/auth/token/revoke-self", mine, b"")) == [b""]

        return run

    server = side.server
    return _side("OpenBao", side.pid, lambda: Client(server.port, server.ca_file), lambda _: job(issuer.token()))


def broker_writes(side: BrokerSide) -> Side:
    """PutSecret, the next version of one of a few hundred secrets, as an operator with a certificate."""

    def write(name: str) -> Work:
        message = secrets_pb2.PutSecretRequest(name=name, fields={"value": VALUE.encode()})
        sent = encoded("POST", "/broker_api.v1.SecretService/PutSecret", GRPC, grpc_message(message))
        return lambda client: good(client.ask(sent), name.encode())

    broker, port = side.broker, int(side.broker.address.rpartition(":")[2])
    return _side(
        "broker", broker.pid, lambda: Client(port, broker.ca_file, broker.identity), lambda number: write(_name(number))
    )


def bao_writes(side: BaoSide) -> Side:
    """The next version of one of as many secrets."""
    body = json.dumps({"data": {"value": VALUE}}).encode()
    headers = {"x-vault-token": side.writer, "content-type": "application/json"}

    def write(name: str) -> Work:
        sent = encoded("POST", f"/v1/secret/data/{name}", headers, body)
        return lambda client: good(client.ask(sent), b'"version"')

    server = side.server
    return _side("OpenBao", side.pid, lambda: Client(server.port, server.ca_file), lambda number: write(_name(number)))


def _side(name: str, pid: int, connect: Connect, make: Callable[[int], Work]) -> Side:
    return Side(name=name, pid=pid, go=lambda count: round_of(connect, [make(number) for number in range(count)]))


def _name(number: int) -> str:
    """The secret that a write is of; no two writes at the same time are of the same."""
    return f"written/c{number % CONNECTIONS}/s{number // CONNECTIONS % 20}"
