"""What hostile peers do below gRPC's client library, written frame by frame on a TLS socket."""

from __future__ import annotations

import gzip
import os
import socket
import ssl
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from broker_api.v1 import keys_pb2
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import ConnectionTerminated, DataReceived, ResponseReceived, StreamEnded, StreamReset, TrailersReceived
from h2.exceptions import ProtocolError

from broker.rpc.server import Limits
from tests.servers.edge import Edge, plain_services, running

GET = "/broker_api.v1.KeyService/GetKey"
HEALTH = "/grpc.health.v1.Health/Check"
OK = "0"
RESOURCE_EXHAUSTED, UNIMPLEMENTED, UNAUTHENTICATED = "8", "12", "16"


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
        raw = socket.create_connection(("localhost", port), timeout=10)
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


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    every = Limits(refusals_per_second=10_000, refusals_at_once=10_000)  # each refusal is looked for in the journal
    with running(tmp_path_factory.mktemp("edge"), limits=every) as started:
        yield started


@pytest.fixture(autouse=True)
def lives_on(edge: Edge) -> Iterator[None]:
    """After every attack another caller is served, and nothing but GetKey, which tests call, was carried out."""
    before = len(edge.journal.entries)
    yield
    assert {entry.rpc for entry in edge.journal.entries[before:] if entry.outcome == "ok"} <= {"KeyService/GetKey"}
    with peer(edge) as other:
        assert other.call(GET).status == OK


ODD = [
    "broker_api.v1.KeyService/CreateKey",
    "//broker_api.v1.KeyService/CreateKey",
    "/broker_api.v1.KeyService//CreateKey",
    "/broker_api.v1.KeyService/CreateKey/",
    "/broker_api.v1.KeyService/CreateKey?x=1",
    "/broker_api.v1.KeyService/CreateKey#x",
    "/broker_api.v1.KeyService/createkey",
    "/BROKER_API.V1.KEYSERVICE/CREATEKEY",
    "/broker_api.v1.KeyService/Create%4bey",
    "%2Fbroker_api.v1.KeyService%2FCreateKey",
    "/broker_api.v1.KeyService%2FCreateKey",
    "/./broker_api.v1.KeyService/CreateKey",
    "/x/../broker_api.v1.KeyService/CreateKey",
    "https://localhost/broker_api.v1.KeyService/CreateKey",
    "/broker_api.v1.KeyService\\CreateKey",
    "/broker_api.v1.KeyService/CreateKey ",
    " /broker_api.v1.KeyService/CreateKey",
    "/broker_api.v1.KeyService.CreateKey",
    "/KeyService/CreateKey",
    "/" + "a" * 8000,
    "/",
    "*",
    "",
    b"/broker_api.v1.KeyService/CreateKey\xff",
    b"/broker_api.v1.KeyService/CreateKey\x00",
    b"/broker_api.v1.KeyService/CreateKey\r\nx: y",
]


@pytest.mark.parametrize("path", ODD, ids=range(len(ODD)))
def test_AZ_02_only_the_exact_path_is_a_method(edge: Edge, path: str | bytes) -> None:
    before = len(edge.journal.entries)
    with peer(edge) as attacker:
        answer = attacker.call(path)
        # What gRPC itself finds malformed is reset or ends in an HTTP error; the rest is a method that does not exist.
        # An empty path grpc drops without a word to the gate, and the caller sees CANCELLED.
        expected = {"1"} if path == "" else {UNIMPLEMENTED, ""}
        assert answer.status in expected, answer
        assert answer.ended or attacker.gone
    assert {entry.rpc for entry in edge.journal.entries[before:]} <= {"_OTHER"}


def test_AZ_02_two_paths_are_one_method_to_router_and_record(tmp_path: Path) -> None:
    ran: list[str] = []

    def answer(response: type[Any]) -> Any:
        def run(call: Any, _request: Any) -> Any:
            ran.append(call.rpc)
            return response()

        return run

    answers = {
        "KeyService/GetKey": answer(keys_pb2.GetKeyResponse),
        "KeyService/DisableKey": answer(keys_pb2.DisableKeyResponse),
    }
    with running(tmp_path, plain_services(answers)) as both, peer(both) as attacker:
        attacker.call(GET, message(b""), (":path", "/broker_api.v1.KeyService/DisableKey"))
        assert [entry.rpc for entry in both.journal.entries] == ran
        assert len(ran) <= 1


@pytest.mark.parametrize(
    "path",
    [
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        "/grpc.channelz.v1.Channelz/GetServers",
        "/grpc.health.v1.Health/Watch",
        "/grpc.health.v1.Health/List",
        "/envoy.service.status.v3.ClientStatusDiscoveryService/FetchClientStatus",
    ],
)
def test_NT_18_reflection_and_debug_services_are_off(edge: Edge, path: str) -> None:
    with peer(edge) as attacker:
        assert attacker.call(path).status == UNIMPLEMENTED
    with peer(edge, pipelines=True) as stranger:
        assert stranger.call(path).status == UNAUTHENTICATED


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_NT_01_a_message_just_over_the_limit(edge: Edge) -> None:
    with peer(edge) as attacker:
        answer = attacker.call(GET, message(keys_pb2.GetKeyRequest(name="a" * (1 << 20)).SerializeToString()))
        assert (answer.status, "1 MiB" in answer.sentence) == (RESOURCE_EXHAUSTED, True)
    assert edge.journal.entries[-1].reason == "MESSAGE_TOO_LARGE"


@pytest.mark.parametrize("length", [2**21 + 1, 2**31 - 1, 2**31, 2**32 - 1])
def test_NT_01_a_huge_length_prefix_allocates_nothing(edge: Edge, length: int) -> None:
    before, recorded = resident(), len(edge.journal.entries)
    with peer(edge) as attacker:
        stream = attacker.headers(GET)
        attacker.h2.send_data(stream, struct.pack(">BI", 0, length) + b"x" * 100)
        attacker.flush()
        assert attacker.wait(stream).status == RESOURCE_EXHAUSTED
    assert resident() - before < 16 << 20
    assert edge.journal.wait_for(lambda entries: len(entries) > recorded)
    assert (edge.journal.entries[-1].outcome, edge.journal.entries[-1].principal) == ("CANCELLED", "operator/alice")


@pytest.fixture(scope="module")
def bomb() -> bytes:
    """200 MiB in 200 KiB."""
    return gzip.compress(bytes(200 << 20), 9)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "identity", "br", ""])
def test_NT_01_a_compressed_bomb_is_never_expanded(edge: Edge, bomb: bytes, encoding: str) -> None:
    assert len(bomb) < 1 << 20
    before = resident()
    headers = [("grpc-encoding", encoding)] if encoding else []
    with peer(edge) as attacker:
        assert attacker.call(GET, message(bomb, compressed=True), *headers).status != OK
    assert resident() - before < 32 << 20


def test_NT_02_nested_groups_over_the_wire(edge: Edge) -> None:
    for depth in (65, 10_000):
        with peer(edge) as attacker:
            assert attacker.call(GET, message(b"\xfb\x07" * depth + b"\xfc\x07" * depth)).status == "3"


@pytest.mark.parametrize("acknowledged", [False, True])
@pytest.mark.parametrize("count", [130, 200, 1000])
def test_NT_03_metadata_over_the_limit(edge: Edge, count: int, *, acknowledged: bool) -> None:
    """gRPC holds a peer to the limit only once it has acknowledged the settings; until then the gate does."""
    with peer(edge) as honest:
        with peer(edge) as attacker:
            if acknowledged:
                assert attacker.call(GET).status == OK
            flood = [(f"x-{number}", "v" * 100) for number in range(count)]
            assert attacker.call(GET, message(b""), *flood).status == RESOURCE_EXHAUSTED
        assert honest.call(GET).status == OK
    if not acknowledged:
        assert "METADATA_TOO_LARGE" in {entry.reason for entry in edge.journal.entries}


def test_NT_03_metadata_within_the_limit_passes(edge: Edge) -> None:
    with peer(edge) as honest:
        assert honest.call(GET, message(b""), ("x", "v" * 15_000)).status == OK


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


HEADERS, RESET, PING, GOAWAY, CONTINUATION, END_HEADERS, EOF = 1, 3, 6, 7, 9, 4, -1


def fed(attacker: Peer, frames: Iterator[bytes]) -> set[int]:
    """Send frames until the server hangs up or answers; the kinds of frames it answered with, EOF when it hung up."""
    kinds: set[int] = set()
    with suppress(OSError):
        for each in frames:
            attacker.socket.sendall(each)
    received = b""
    try:
        while not kinds & {HEADERS, RESET, GOAWAY}:
            received += (chunk := attacker.socket.recv(65536))
            while len(received) >= 9 and len(received) >= 9 + (size := int.from_bytes(received[:3], "big")):
                kinds.add(received[3])
                received = received[9 + size :]
            if not chunk:
                return kinds | {EOF}
    except (ConnectionError, ssl.SSLError):
        kinds.add(EOF)
    return kinds


def test_NT_03_a_continuation_flood_closes_the_connection(edge: Edge) -> None:
    before = resident()
    with peer(edge) as honest, peer(edge) as attacker:
        literal = b"\x00\x03x-a\x7f\x80\x07" + b"v" * 1023  # a new header of 1023 bytes, not indexed
        frames = (frame(HEADERS if not number else CONTINUATION, 0, 1, literal * 8) for number in range(4000))
        assert fed(attacker, frames) & {RESET, GOAWAY, EOF}
        assert honest.call(GET).status == OK
    assert resident() - before < 64 << 20


def test_NT_03_zero_padded_hpack_integers_harm_nobody(edge: Edge) -> None:
    with peer(edge) as honest, peer(edge) as attacker:
        padded = b"\xff" + b"\x80" * 8000 + b"\x00"
        assert fed(attacker, iter([frame(HEADERS, END_HEADERS, 1, padded)])) & {HEADERS, RESET, GOAWAY, EOF}
        assert honest.call(GET).status == OK


def test_NT_09_a_ping_flood_ends_in_goaway(edge: Edge) -> None:
    with peer(edge) as attacker:
        assert fed(attacker, (frame(PING, 0, 0, struct.pack(">Q", number)) for number in range(20_000))) & {GOAWAY, EOF}


def test_NT_04_opened_and_reset_streams_leave_nothing(edge: Edge) -> None:
    with peer(edge) as honest:
        for _ in range(10):
            with peer(edge) as attacker:
                for _ in range(90):
                    stream = attacker.headers(GET)
                    attacker.h2.send_data(stream, message(b""), end_stream=True)
                    attacker.h2.reset_stream(stream, 8)
                attacker.flush()
        assert honest.call(GET).status == OK
    assert edge.server._gate.idle(10)
    assert not edge.server._deadlines._reading
    assert not edge.server._deadlines._running


def test_NT_15_disconnects_while_the_answer_is_sent_degrade_nothing(edge: Edge) -> None:
    context = edge.tls(edge.alice)
    for _ in range(60):
        with peer(edge, context=context) as attacker:
            for _ in range(5):
                attacker.h2.send_data(attacker.headers(GET), message(b""), end_stream=True)
            attacker.flush()
            attacker.pump()
    assert edge.server._gate.idle(10)


def test_NT_06_connect_and_abort_recovers_by_itself(edge: Edge) -> None:
    descriptors = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 (no paths needed)
    for _ in range(300):
        attacker = socket.create_connection(("127.0.0.1", edge.server.operators_port))
        attacker.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        attacker.close()
    with peer(edge) as honest:
        assert honest.call(GET).status == OK
    assert len(os.listdir("/proc/self/fd")) < descriptors + 100  # noqa: PTH208 (as above)


def limited(edge: Edge, version: ssl.TLSVersion, *, certificate: bool = True) -> ssl.SSLContext:
    context = edge.tls(edge.alice if certificate else None)
    context.maximum_version = version
    return context


@pytest.mark.parametrize("pipelines", [False, True])
@pytest.mark.parametrize("path", [GET, HEALTH, "/a/B"])
def test_NT_13_tls_1_2_carries_no_call(edge: Edge, path: str, *, pipelines: bool) -> None:
    context = limited(edge, ssl.TLSVersion.TLSv1_2, certificate=not pipelines)
    with peer(edge, pipelines=pipelines, context=context) as attacker:
        assert attacker.socket.version() == "TLSv1.2"
        answer = attacker.call(path)
        assert (answer.status, "TLS 1.3" in answer.sentence) == (UNAUTHENTICATED, True)
    if path != HEALTH:
        assert edge.journal.entries[-1].reason == "TLS_TOO_OLD"


@pytest.mark.parametrize("suite", ["AES128-SHA", "AES256-SHA256", "ECDHE-ECDSA-AES128-SHA", "AES128-GCM-SHA256"])
def test_NT_13_weak_suites_do_not_shake_hands(edge: Edge, suite: str) -> None:
    context = limited(edge, ssl.TLSVersion.TLSv1_2)
    context.set_ciphers(suite)
    with pytest.raises((ssl.SSLError, ConnectionError)), peer(edge, context=context):
        pass


def test_NT_13_tls_1_3_is_what_is_spoken(edge: Edge) -> None:
    with peer(edge) as honest:
        assert honest.socket.version() == "TLSv1.3"
        assert honest.call(GET).status == OK


def test_NT_13_without_a_client_certificate_the_operators_port_answers_nothing(edge: Edge) -> None:
    recorded = len(edge.journal.entries)
    context = edge.tls()
    try:
        with peer(edge, context=context) as attacker:  # in TLS 1.3 the client learns of it with the first read
            answer = attacker.call(GET)
            assert (answer, attacker.gone) == (Answer(), True)
    except (ssl.SSLError, ConnectionError):
        pass
    assert len(edge.journal.entries) == recorded


@pytest.mark.parametrize("pipelines", [False, True])
def test_NT_13_plaintext_on_a_tls_port_is_closed(edge: Edge, *, pipelines: bool) -> None:
    port = edge.server.pipelines_port if pipelines else edge.server.operators_port
    plain = H2Connection(H2Configuration(client_side=True))
    plain.initiate_connection()
    for opening in (plain.data_to_send(), b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", port), timeout=10) as attacker:
            attacker.sendall(opening)
            received = b""
            with suppress(ConnectionError):
                while chunk := attacker.recv(4096):
                    received += chunk
            assert b"HTTP/1.1 2" not in received
            assert len(received) < 100  # at most a TLS alert or one HTTP/2 settings frame


def test_NT_05_a_stalled_handshake_is_cut_off(tmp_path: Path) -> None:
    with running(tmp_path, limits=Limits(handshake_seconds=0.3)) as short:
        stalled = [socket.create_connection(("127.0.0.1", short.server.operators_port), timeout=10) for _ in range(20)]
        with peer(short) as honest:
            assert honest.call(GET).status == OK
        for each in stalled:
            with suppress(ConnectionError):
                assert each.recv(1) == b""
            each.close()


def test_AN_35_slow_health_checks_of_one_stranger_leave_room_for_others(tmp_path: Path) -> None:
    with (
        running(tmp_path, limits=Limits(message_seconds=0.5)) as quick,
        peer(quick, pipelines=True) as attacker,
        peer(quick, pipelines=True) as honest,
    ):
        streams = [attacker.headers(HEALTH) for _ in range(50)]
        attacker.flush()
        assert honest.call(HEALTH).status == OK
        # All but the one that is being read are turned away at once, and that one a moment later.
        answers = [attacker.wait(stream).status for stream in streams]
        assert answers.count(RESOURCE_EXHAUSTED) >= 45
        assert OK not in answers
