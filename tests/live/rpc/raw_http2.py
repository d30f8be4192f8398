"""Raw HTTP/2 over TLS, for frames that no well-behaved client sends."""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import ConnectionTerminated, DataReceived, ResponseReceived, StreamEnded, StreamReset, TrailersReceived
from h2.exceptions import ProtocolError

from tests.servers.edge import Edge

GET = "/broker_api.v1.KeyService/GetKey"


RESOURCE_EXHAUSTED, UNIMPLEMENTED, UNAUTHENTICATED = "8", "12", "16"
OK = "0"


def message(wire: bytes, *, compressed: bool = False) -> bytes:
    return struct.pack(">BI", compressed, len(wire)) + wire


@dataclass
class Answer:
    """What came back on one stream: gRPC's status, or nothing but a reset or the end of the connection."""

    status: str = ""
    sentence: str = ""
    http: str = ""
    ended: bool = False
    headers: dict[str, str] = field(default_factory=dict)


class Peer:
    """One HTTP/2 connection that checks nothing of what it sends."""

    def __init__(self, edge: Edge, port: int, context: ssl.SSLContext) -> None:
        raw = socket.create_connection(("localhost", port), timeout=200)
        self.socket = context.wrap_socket(raw, server_hostname="localhost")
        lax = H2Configuration(client_side=True, validate_outbound_headers=False, normalize_outbound_headers=False)
        self.h2 = H2Connection(lax)
        self.h2.initiate_connection()
        self.gone = False
        self.goaway: int | None = None
        self.answers: dict[int, Answer] = {}
        self.edge = edge
        self.flush()

    def flush(self) -> None:
        with suppress(OSError):
            self.socket.sendall(self.h2.data_to_send())

    def headers(self, path: str | bytes, *extra: tuple[Any, Any], end: bool = False) -> int:
        stream = self.h2.get_next_available_stream_id()
        usual = [(":method", "POST"), (":scheme", "https"), (":path", path), (":authority", "localhost")]
        fixed = [("content-type", "application/grpc"), ("te", "trailers")]
        self.answers[stream] = Answer()
        self.h2.send_headers(stream, [*usual, *fixed, *extra], end_stream=end)
        return stream

    def send(self, stream: int, body: bytes) -> None:
        """As much of ``body`` as the server's flow control lets through before it answers."""
        while body and not self.gone and not self.answers[stream].ended:
            window = min(self.h2.local_flow_control_window(stream), self.h2.max_outbound_frame_size, len(body))
            if window <= 0:
                self.flush()
                self.pump()
                continue
            self.h2.send_data(stream, body[:window])
            body = body[window:]
            self.flush()
        if not self.answers[stream].ended and not self.gone:
            with suppress(ProtocolError):
                self.h2.end_stream(stream)
            self.flush()

    def call(self, path: str | bytes, body: bytes = message(b""), *extra: tuple[Any, Any]) -> Answer:
        stream = self.headers(path, *extra)
        self.flush()
        self.send(stream, body)
        return self.wait(stream)

    def wait(self, stream: int) -> Answer:
        while not self.answers[stream].ended and not self.gone:
            self.pump()
        return self.answers[stream]

    def pump(self) -> None:
        try:
            received = self.socket.recv(65536)
        except (ConnectionError, ssl.SSLError):
            received = b""
        if not received:
            self.gone = True
            return
        for event in self.h2.receive_data(received):
            self._take(event)
        self.flush()

    def _take(self, event: Any) -> None:
        if isinstance(event, ConnectionTerminated):
            self.gone, self.goaway = True, int(event.error_code or 0)
            return
        answer = self.answers.get(getattr(event, "stream_id", 0) or 0, Answer())
        if isinstance(event, ResponseReceived | TrailersReceived):
            found = {bytes(name).decode(): bytes(value).decode() for name, value in event.headers or ()}
            answer.headers.update(found)
            answer.http = found.get(":status", answer.http)
            answer.status = found.get("grpc-status", answer.status)
            answer.sentence = found.get("grpc-message", answer.sentence)
        elif isinstance(event, DataReceived):
            self.h2.acknowledge_received_data(event.flow_controlled_length or 0, event.stream_id or 0)
        elif isinstance(event, StreamEnded | StreamReset):
            answer.ended = True

    def close(self) -> None:
        self.socket.close()


@contextmanager
def peer(edge: Edge, *, pipelines: bool = False, context: ssl.SSLContext | None = None) -> Iterator[Peer]:
    port = edge.server.pipelines_port if pipelines else edge.server.operators_port
    made = Peer(edge, port, context or edge.tls(None if pipelines else edge.alice))
    try:
        yield made
    finally:
        made.close()
