"""Both servers with the same ten secrets, and the same issuer of identity tokens trusted by both."""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from broker_api.v1 import (
    policies_pb2,
    policies_pb2_grpc,
    secrets_pb2,
    secrets_pb2_grpc,
    sessions_pb2,
    sessions_pb2_grpc,
    trust_pb2,
    trust_pb2_grpc,
)

from tests.bench.load import Request
from tests.bench.peers import Broker, grpc_message, process_id
from tests.servers.issuer import Issuer
from tests.servers.openbao import OpenBao

SECRETS = [f"bench/s{number}" for number in range(10)]
VALUE = "thirty-two characters, a secret."
GRANT = '\n@id("bench") permit (principal == Pipeline::"bench", action == Action::"FetchSecrets", resource);\n'
PATHS = {"secret/data/bench/*": ["read"], "auth/token/revoke-self": ["update"]}
WRITES = {"secret/data/written/*": ["create", "update"]}
GRPC = {"content-type": "application/grpc", "te": "trailers"}


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerSide:
    """The broker's pipelines, and the address of their port."""

    broker: Broker
    port: int
    fetch: Request  # one secret, with the token of a session


@dataclass(frozen=True, slots=True, kw_only=True)
class BaoSide:
    """OpenBao's jobs. ``reader`` and ``writer`` are tokens."""

    server: OpenBao
    pid: int
    reader: str
    writer: str
    fetch: Request


def bearer(token: str) -> dict[str, str]:
    """The headers of a pipeline's call."""
    return {**GRPC, "authorization": f"Bearer {token}"}


@contextmanager
def pipelines(broker: Broker) -> Iterator[grpc.Channel]:
    """A job's connection to the broker."""
    credentials = grpc.ssl_channel_credentials(broker.ca_file.read_bytes())
    with grpc.secure_channel(broker.pipelines, credentials) as channel:
        yield channel


def set_broker_up(broker: Broker, issuer: Issuer) -> BrokerSide:
    """A trust rule whose tokens are single-use, a permission, ten secrets and one session."""
    rule = trust_pb2.TrustRule(
        name="bench", preset=trust_pb2.PRESET_GENERIC, issuer=issuer.url, audience="broker", pipeline="bench",
        matchers=[trust_pb2.Matcher(claim="repository_id", exact="42")], single_use=True, ca_pem=issuer.ca_pem,
    )  # fmt: skip
    rule.max_session.seconds = 3600
    with broker.channel() as channel:
        trust_pb2_grpc.TrustServiceStub(channel).CreateTrustRule(
            trust_pb2.CreateTrustRuleRequest(rule=rule, request_id=str(uuid.uuid4()))
        )
        policies = policies_pb2_grpc.PolicyServiceStub(channel)
        text = policies.GetPolicy(policies_pb2.GetPolicyRequest()).policy.text
        policies.SetPolicy(policies_pb2.SetPolicyRequest(text=text + GRANT, expected_version=1))
        secrets = secrets_pb2_grpc.SecretServiceStub(channel)
        for name in SECRETS:
            secrets.PutSecret(secrets_pb2.PutSecretRequest(name=name, fields={"value": VALUE.encode()}))
    request = sessions_pb2.FetchSecretsRequest(references=SECRETS[:1])
    with pipelines(broker) as channel:
        sessions = sessions_pb2_grpc.SessionServiceStub(channel)
        login = sessions_pb2.LoginRequest()
        login.ttl.seconds = 3600
        token = sessions.Login(login, metadata=(("authorization", f"Bearer {issuer.token()}"),)).session_token
        answer = _once_permitted(sessions, request, token)
    fetch = Request(
        path="/broker_api.v1.SessionService/FetchSecrets",
        headers=bearer(token),
        body=grpc_message(request),
        answer_bytes=answer.ByteSize() - 20,  # a time without a fraction is shorter
    )
    return BrokerSide(broker=broker, port=int(broker.pipelines.rpartition(":")[2]), fetch=fetch)


def _once_permitted(
    sessions: sessions_pb2_grpc.SessionServiceStub, request: sessions_pb2.FetchSecretsRequest, token: str
) -> sessions_pb2.FetchSecretsResponse:
    """The answer, as soon as the policy counts in the worker that is asked, too."""
    last, pause = time.monotonic() + 5, threading.Event()
    while True:
        try:
            return sessions.FetchSecrets(request, metadata=(("authorization", f"Bearer {token}"),))
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.PERMISSION_DENIED or time.monotonic() > last:
                raise
        pause.wait(0.2)


def set_bao_up(bao: OpenBao, issuer: Issuer) -> BaoSide:
    """A kv engine of version 2 with the same secrets, and logins by JWT whose keys are fetched from the issuer."""
    bao.request("POST", "sys/mounts/secret", {"type": "kv", "options": {"version": "2"}})
    for name in SECRETS:
        bao.request("POST", f"secret/data/{name}", {"data": {"value": VALUE}})
    reader, writer = bao.token_for(acl(PATHS), "bench-job"), bao.token_for(acl(WRITES), "bench-writer")
    bao.request("POST", "sys/auth/jwt", {"type": "jwt"})
    keys = {"jwks_url": f"{issuer.url}/.well-known/jwks", "jwks_ca_pem": issuer.ca_pem, "bound_issuer": issuer.url}
    bao.request("POST", "auth/jwt/config", keys)
    role: dict[str, Any] = {
        "role_type": "jwt", "user_claim": "sub", "bound_audiences": ["broker"],
        "bound_claims": {"repository_id": "42"}, "token_policies": ["bench-job"], "token_no_default_policy": True,
        "token_ttl": "5m", "token_max_ttl": "1h",
    }  # fmt: skip
    bao.request("POST", "auth/jwt/role/bench", role)
    fetch = Request(path=f"/v1/secret/data/{SECRETS[0]}", headers={"x-vault-token": reader}, body=b"", answer_bytes=200)
    return BaoSide(server=bao, pid=process_id(bao.port), reader=reader, writer=writer, fetch=fetch)


def acl(paths: dict[str, list[str]]) -> str:
    """A policy of OpenBao."""
    return "".join(f"path {json.dumps(path)} {{ capabilities = {json.dumps(can)} }}\n" for path, can in paths.items())


def token_file(folder: Path, issuer: Issuer) -> Path:
    """A fresh identity token where a runner would put it."""
    file = folder / "identity-token"
    file.touch(mode=0o600)
    file.write_text(issuer.token(), encoding="ascii")
    return file
