"""What hostile peers do below gRPC's client library, written frame by frame on a TLS socket."""

from __future__ import annotations

import gzip
import os
import socket
import ssl
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from broker_api.v1 import keys_pb2

from broker.rpc.server import ServerLimits
from tests.live.rpc.raw_http2 import GET, OK, RESOURCE_EXHAUSTED, UNAUTHENTICATED, UNIMPLEMENTED, Peer, message, peer
from tests.servers.edge import Edge, plain_services, running


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    # Each refusal is looked for in the journal.
    every = ServerLimits(refusals_per_second=10_000, refusals_at_once=10_000)
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
    with peer(edge, pipelines=True) as anonymous:
        assert anonymous.call(path).status == UNAUTHENTICATED


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
    assert edge.server.idle(60)
    watched = edge.server._deadlines  # noqa: SLF001 - calls that pile up in memory would not show
    assert (watched._reading, watched._running) == ({}, {})  # noqa: SLF001 - as above


def test_NT_15_disconnects_while_the_answer_is_sent_degrade_nothing(edge: Edge) -> None:
    context = edge.tls(edge.alice)
    for _ in range(60):
        with peer(edge, context=context) as attacker:
            for _ in range(5):
                attacker.h2.send_data(attacker.headers(GET), message(b""), end_stream=True)
            attacker.flush()
            attacker.pump()
    assert edge.server.idle(60)


def test_NT_06_connect_and_abort_recovers_by_itself(edge: Edge) -> None:
    descriptors = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 (no paths needed)
    for _ in range(300):
        attacker = socket.create_connection(("127.0.0.1", edge.server.operators_port))
        attacker.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        attacker.close()
    with peer(edge) as honest:
        assert honest.call(GET).status == OK
    assert len(os.listdir("/proc/self/fd")) < descriptors + 100  # noqa: PTH208 (as above)
