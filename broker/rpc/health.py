"""grpc.health.v1: the one thing that answers without an identity, and the one that leaves no audit record.

It says SERVING or NOT_SERVING for the broker as a whole ("") and for each service name, and nothing else (AN-35).
It has threads of its own, so that it answers while all others wait for the HSM.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import unquote

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from broker.core.errors import Gone, InvalidRequest, Late
from broker.rpc import tls
from broker.rpc.deadlines import Deadlines
from broker.rpc.status import Plain

CHECK = "/grpc.health.v1.Health/Check"
MAX_WIRE = 1024


class Health:
    """The state of the broker as load balancers see it. Starts as not serving."""

    def __init__(self, services: Iterable[str], deadlines: Deadlines, greeted: Callable[[str], None]) -> None:
        """``greeted`` is told the peer of each check that was read."""
        self._services = frozenset({"", *services})
        self._deadlines = deadlines
        self._greeted = greeted
        self._serving = False
        self._draining = False
        self._reading: set[str] = set()

    def set_serving(self, serving: bool) -> None:  # noqa: FBT001 (it is the whole state)
        """What to answer from now on."""
        self._serving = serving

    def drain(self) -> None:
        """Not serving, whatever is set afterwards."""
        self._draining = True

    def check(self, requests: Any, context: grpc.ServicerContext) -> bytes | grpc.Status:
        """Answer one Check."""
        code, sentence = grpc.StatusCode.CANCELLED, "The request did not arrive."
        if not tls.current(context.auth_context()):
            return Plain(grpc.StatusCode.UNAUTHENTICATED, tls.TOO_OLD)
        peer = context.peer()
        # One unfinished request a connection: an unauthenticated caller must not hold the threads by sending headers
        # only.
        if peer in self._reading:
            return Plain(grpc.StatusCode.RESOURCE_EXHAUSTED, "Another check of this connection is not finished.")
        self._reading.add(peer)
        try:
            host = peer.rpartition(":")[0]
            name = HealthCheckRequest.FromString(self._deadlines.message(requests, context, host)[:MAX_WIRE]).service
            self._greeted(unquote(peer))
            if name in self._services:
                return self._answer()
            code, sentence = grpc.StatusCode.NOT_FOUND, "There is no such service."
        except DecodeError:
            code, sentence = grpc.StatusCode.INVALID_ARGUMENT, "The request is not a HealthCheckRequest."
        except (Gone, Late, InvalidRequest):
            pass  # what the caller sees is already decided; the defaults above are for the log of a proxy
        finally:
            self._reading.discard(peer)
        return Plain(code, sentence)

    def _answer(self) -> bytes:
        state = HealthCheckResponse.SERVING if self._serving and not self._draining else HealthCheckResponse.NOT_SERVING
        return bytes(HealthCheckResponse(status=state).SerializeToString())
