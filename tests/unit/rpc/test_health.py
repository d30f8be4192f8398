"""What health answers, without a server."""

from __future__ import annotations

import time
from typing import Any

from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from broker.rpc.deadlines import Deadlines
from broker.rpc.health import Health


class Caller:
    """The context of a call, as far as it is looked at."""

    def peer(self) -> str:
        return "ipv4:127.0.0.1:1"

    def auth_context(self) -> dict[str, list[bytes]]:
        return {"ssl_tls_version": [b"TLSv1.3"]}


def test_P25_once_draining_it_is_not_serving_whatever_it_is_told() -> None:
    health = Health([], Deadlines(5, 5, time.monotonic, 1, 1), lambda _peer: None)
    caller: Any = Caller()

    def state() -> Any:
        answer = health.check(iter([HealthCheckRequest().SerializeToString()]), caller)
        assert isinstance(answer, bytes)
        return HealthCheckResponse.FromString(answer).status

    health.set_serving(True)
    assert state() == HealthCheckResponse.SERVING
    health.drain()
    health.set_serving(True)
    assert state() == HealthCheckResponse.NOT_SERVING
