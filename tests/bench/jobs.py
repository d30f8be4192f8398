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
from dataclasses import dataclass

from broker_api.v1 import kv_pb2, sessions_pb2

from tests.bench.http2 import Client, encoded, good
from tests.bench.load import Figures
from tests.bench.peers import grpc_message
from tests.bench.process import cpu_seconds
from tests.bench.stage import GRPC, SECRETS, VALUE, BaoSide, BrokerSide, bearer
from tests.servers.issuer import Issuer

CONNECTIONS = 8
AT_ONCE = 4
"""Writes in flight on one connection."""

Open = Callable[[], Client]
Work = Callable[[Client], None]
SESSIONS = "/broker_api.v1.SessionService"


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One server: how to connect, and how to make so many pieces of work (which is not measured)."""

    name: str
    pid: int
    open: Open
    make: Callable[[int], Sequence[Work]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """What one round gave; ``cpu``: the server's CPU milliseconds for each piece."""

    figures: Figures
    cpu: float


def round_of(side: Side, count: int) -> Spent:
    """Do ``count`` pieces of work over a few connections; every one must succeed."""
    work = side.make(count)
    shares = [work[number::CONNECTIONS] for number in range(CONNECTIONS)]
    clients = [side.open() for _ in shares]
    try:
        before, start = cpu_seconds(side.pid), time.perf_counter()
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            took = [each for found in pool.map(_share, clients, shares) for each in found]
        rate, cpu = count / (time.perf_counter() - start), (cpu_seconds(side.pid) - before) / count * 1000
    finally:
        for client in clients:
            client.__exit__()
    percentile = statistics.quantiles(took, n=100)
    return Spent(figures=Figures(rate=rate, p50=percentile[49], p99=percentile[98]), cpu=cpu)


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
    return Side(
        name="broker",
        pid=broker.pid,
        open=lambda: Client(side.port, broker.ca_file),
        make=lambda count: [job(issuer.token()) for _ in range(count)],
    )


def bao_jobs(side: BaoSide, issuer: Issuer) -> Side:
    """Login at auth/jwt with a fresh identity token, ten reads of kv, revoke-self."""

    def job(token: str) -> Work:
        body = json.dumps({"role": "bench", "jwt": token}).encode()
        login = encoded("POST", "/v1/auth/jwt/login", {"content-type": "application/json"}, body)

        def run(client: Client) -> None:
            (raw,) = client.ask(login)
            mine = {"x-vault-token": json.loads(raw)["auth"]["client_token"]}
            good(
                client.ask(*(encoded("GET", f"/v1/secret/data/{name}", mine, b"") for name in SECRETS)), VALUE.encode()
            )
            assert client.ask(encoded("POST", "/v1/auth/token/revoke-self", mine, b"")) == [b""]

        return run

    return Side(
        name="OpenBao",
        pid=side.pid,
        open=lambda: Client(side.server.port, side.server.ca_file),
        make=lambda count: [job(issuer.token()) for _ in range(count)],
    )


def broker_writes(side: BrokerSide) -> Side:
    """PutSecret, the next version of one of a few hundred secrets, as an operator with a certificate."""

    def write(names: Sequence[str]) -> Work:
        path = "/broker_api.v1.SecretService/PutSecret"
        requests = [kv_pb2.PutSecretRequest(name=name, fields={"value": VALUE.encode()}) for name in names]
        sent = [encoded("POST", path, GRPC, grpc_message(each)) for each in requests]
        return lambda client: good(client.ask(*sent), names[0][:8].encode())

    broker, port = side.broker, int(side.broker.address.rpartition(":")[2])
    return Side(
        name="broker",
        pid=broker.pid,
        open=lambda: Client(port, broker.ca_file, broker.identity),
        make=lambda count: [write(each) for each in names(count)],
    )


def bao_writes(side: BaoSide) -> Side:
    """The next version of one of as many secrets."""
    body = json.dumps({"data": {"value": VALUE}}).encode()
    headers = {"x-vault-token": side.writer, "content-type": "application/json"}

    def write(names: Sequence[str]) -> Work:
        sent = [encoded("POST", f"/v1/secret/data/{name}", headers, body) for name in names]
        return lambda client: good(client.ask(*sent), b'"version"')

    return Side(
        name="OpenBao",
        pid=side.pid,
        open=lambda: Client(side.server.port, side.server.ca_file),
        make=lambda count: [write(each) for each in names(count)],
    )


def names(count: int) -> list[list[str]]:
    """For each piece of work the names it writes; no two that are written at the same time are the same."""
    return [
        [f"written/c{number % CONNECTIONS}/s{(number // CONNECTIONS + one * 64) % 256}" for one in range(AT_ONCE)]
        for number in range(count)
    ]
