"""Connections that unauthenticated callers hold open, of one address or many, take no other caller's: NT-05, NT-06."""

from __future__ import annotations

import resource
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog
from grpc_health.v1 import health_pb2

from broker.rpc.health import CHECK
from broker.rpc.server import ROOM, ServerLimits, shares
from broker.rpc.sockets import Sockets
from tests.live.rpc.gate_parts import raw
from tests.live.rpc.raw_http2 import GET, OK, peer
from tests.servers.edge import Edge, issue, running
from tests.servers.live import within
from tests.servers.siege import addresses, siege

DEADLINE = 60
"""Seconds in which a call has to be answered whatever unauthenticated callers do; most take milliseconds."""


UNAUTHENTICATED = ServerLimits().strangers


def most(wanted: int) -> int:
    """As many connections as the system's limit of descriptors lets a program hold."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return wanted if hard == resource.RLIM_INFINITY else min(wanted, hard - 200)


@pytest.fixture
def edge(tmp_path: Path) -> Iterator[Edge]:
    with running(tmp_path, threads=8) as started:
        yield started


def alone(edge: Edge, *, pipelines: bool = False) -> Any:
    """A channel that shares no connection with others."""
    trust = edge.server_ca.pem
    identity = () if pipelines else (edge.alice.key_pem, edge.alice.pem)
    port = edge.server.pipelines_port if pipelines else edge.server.operators_port
    options = [("grpc.use_local_subchannel_pool", 1)]
    return grpc.secure_channel(f"localhost:{port}", grpc.ssl_channel_credentials(trust, *identity), options)


def served(edge: Edge) -> None:
    """Operators and pipelines get an answer on a new connection; unauthenticated callers hear of the health of the
    broker.

    A client tries again, as any does, what did not get through while thousands dialled at the same moment.
    """
    check = health_pb2.HealthCheckRequest().SerializeToString()
    for pipelines, path, wire in ((False, GET, b""), (True, CHECK, check)):
        until = time.monotonic() + DEADLINE
        while True:
            try:
                with alone(edge, pipelines=pipelines) as channel:
                    raw(channel, path, wire, timeout=DEADLINE)
                break
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE or time.monotonic() > until:
                    raise


MANY = pytest.mark.sampled(1, each="kind")
SIEGES = [
    ("silent", 1000, addresses(1)),
    pytest.param("silent", 1000, addresses(20), marks=MANY),
    pytest.param("silent", 1000, addresses(50, sites=True), marks=MANY),
    pytest.param("half", 200, addresses(1), marks=MANY),
    pytest.param("half", 200, addresses(8), marks=MANY),
    ("drip", 200, addresses(8)),
]


IDS = ["silent-of-1", "silent-of-20", "silent-of-50", "half-of-1", "half-of-8", "drip-of-8"]


@pytest.mark.parametrize(("kind", "count", "sources"), SIEGES, ids=IDS)
def test_NT_05_doors_cannot_be_held_shut(edge: Edge, kind: str, count: int, sources: list[str]) -> None:
    """On either port; on the operators' an unauthenticated caller gets to the question for a certificate at most."""
    besieged(edge, kind, count, sources)


def besieged(edge: Edge, kind: str, count: int, sources: list[str]) -> None:
    ports = [edge.server.pipelines_port] + ([edge.server.operators_port] if kind != "drip" else [])
    with alone(edge) as kept:
        raw(kept, GET, timeout=DEADLINE)
        for port in ports:
            with structlog.testing.capture_logs() as logs, siege(port, kind, most(count), sources):
                for _ in range(3):
                    served(edge)
                raw(kept, GET, timeout=DEADLINE)  # a known caller's connection stays
            told = ended(logs)
            assert told or count < UNAUTHENTICATED
            assert len(told) <= 2  # a line a minute and listener, however many were ended


def ended(logs: list[Any]) -> list[Any]:
    """What the log says of connections that had to go."""
    return [each for each in logs if each["event"] == "connections ended"]


def left(ours: list[socket.socket]) -> int:
    """How many of these connections the other end has not closed."""
    return sum(not _hung_up(each) for each in ours)


def _hung_up(ours: socket.socket) -> bool:
    ours.setblocking(False)
    try:
        return ours.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def dialled(stack: ExitStack, port: int, source: str, count: int) -> list[socket.socket]:
    """Connections on which nothing is said."""
    there, mine = ("127.0.0.1", port), (source, 0)
    return [stack.enter_context(socket.create_connection(there, DEADLINE, mine)) for _ in range(count)]


def test_NT_05_the_log_says_which_limit_bit_and_from_where(tmp_path: Path) -> None:
    limits = ServerLimits(strangers_per_network=5, strangers=50)
    with (
        structlog.testing.capture_logs() as logs,
        running(tmp_path, limits=limits) as edge,
        ExitStack() as stack,
    ):
        ours = dialled(stack, edge.server.pipelines_port, "127.9.8.7", 30)
        within(DEADLINE, lambda: left(ours) <= 5)
        served(edge)
    told = ended(logs)
    assert {each["listener"] for each in told} == {"pipelines"}
    assert {each["most_from"] for each in told} == {"127.9.8.7/32"}
    assert all(set(each["limits"]) == {"strangers_per_network"} for each in told)
    assert told[-1]["since_start"] == sum(each["limits"]["strangers_per_network"] for each in told) >= 20


def closed(raw_socket: socket.socket) -> bool:
    """Whether the other end hangs up before the deadline."""
    raw_socket.settimeout(DEADLINE)
    with suppress(ConnectionError):
        while raw_socket.recv(65536):
            pass
    return True


def test_NT_05_what_has_carried_no_call_is_closed_in_time_and_what_has_stays(tmp_path: Path) -> None:
    limits = ServerLimits(handshake_seconds=3, message_seconds=3)
    with running(tmp_path, limits=limits) as edge, alone(edge, pipelines=True) as watcher:
        raw(watcher, CHECK, health_pb2.HealthCheckRequest().SerializeToString(), timeout=DEADLINE)
        with peer(edge) as used, peer(edge, pipelines=True) as idle:
            used.call(GET)
            assert closed(idle.socket)  # it shook hands and said its preface, and asked for nothing
            assert used.call(GET).status == OK
        raw(watcher, CHECK, health_pb2.HealthCheckRequest().SerializeToString(), timeout=DEADLINE)


class Asked:
    """A clock that can be put ahead, and counts how often the thread that looks at connections asks for the time."""

    def __init__(self) -> None:
        self.ahead, self.looks = 0.0, 0

    def __call__(self) -> float:
        self.looks += threading.current_thread().name == "rpc-doors"
        return time.monotonic() + self.ahead


def test_NT_05_after_a_long_silence_the_first_connection_is_a_new_one(tmp_path: Path) -> None:
    """Nothing is looked at while nobody connects, so that the last look may be hours ago."""
    clock = Asked()
    with structlog.testing.capture_logs() as logs, running(tmp_path, clock=clock, threads=8) as edge:
        clock.ahead = 3600
        with peer(edge) as one:
            within(DEADLINE, lambda: clock.looks > 1)  # once more than it looked: it has seen one without a call
            assert one.call(GET).status == OK
    assert ended(logs) == []


def answered(edge: Edge, stack: ExitStack) -> Any:
    """A connection that has carried a call: one that has not yet is the first to go, and its client tries again."""
    tries = (stack.enter_context(peer(edge)) for _ in range(5))
    return next(each for each in tries if each.call(GET).status == OK)


def test_NT_06_a_known_callers_many_connections_are_limited_too_and_the_idle_go_first(tmp_path: Path) -> None:
    limits = ServerLimits(connections_per_network=10)
    with (
        structlog.testing.capture_logs() as logs,
        running(tmp_path, limits=limits) as edge,
        ExitStack() as stack,
    ):
        made = [stack.enter_context(peer(edge)) for _ in range(10)]
        for each in made:
            assert each.call(GET).status == OK
        assert made[0].call(GET).status == OK
        late = [answered(edge, stack) for _ in range(2)]
        assert closed(made[1].socket)
        assert closed(made[2].socket)
        for each in (made[0], *made[3:], *late):
            assert each.call(GET).status == OK
    assert [each["since_start"] >= 2 for each in ended(logs) if each["listener"] == "operators"][-1]


def test_where_there_are_few_descriptors_the_shares_are_in_proportion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = shares(ServerLimits(), ROOM * 100)
    assert (found.connections, found.strangers, found.per_network, found.strangers_per_network) == (100, 40, 40, 16)
    # That of the whole process could not be lowered for one test.
    monkeypatch.setattr("broker.rpc.descriptors.connections", lambda wanted, _listeners: wanted // 10)
    with structlog.testing.capture_logs() as logs, running(tmp_path) as edge, ExitStack() as stack:
        ours = dialled(stack, edge.server.pipelines_port, "127.9.8.7", 17)
        within(DEADLINE, lambda: left(ours) == 16)
    [told] = ended(logs)
    assert (told["listener"], told["limits"], told["since_start"]) == ("pipelines", {"strangers_per_network": 1}, 1)


def test_where_there_are_few_descriptors_it_is_told_that_grpc_turns_others_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = ServerLimits(connections=4)
    # As above.
    monkeypatch.setattr("broker.rpc.descriptors.connections", lambda wanted, _listeners: wanted // 4)
    with structlog.testing.capture_logs() as logs, running(tmp_path, limits=limits) as edge, ExitStack() as stack:
        dialled(stack, edge.server.pipelines_port, "127.9.8.7", 12)
        within(DEADLINE, lambda: any("full" in each["limits"] for each in ended(logs)))


def test_a_connection_that_is_somebody_elses_by_now_is_not_touched() -> None:
    found = Sockets()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        first, _ = listener.accept()
        seen = dict(found.connected(0))
        number, name = first.fileno(), seen[first.fileno()]
        first.close()
        with socket.create_connection(listener.getsockname()) as other, listener.accept()[0] as second:
            assert {other.fileno(), second.fileno()} & {number}
            assert not found.shut(number, name)
            second.sendall(b"x")
            assert other.recv(1) == b"x"
        ours.close()
        assert not found.shut(number, name)


def test_AN_26_a_certificate_of_another_ca_makes_nobody_known(edge: Edge) -> None:
    outsider = issue("outsider")
    with edge.channel(outsider) as channel, pytest.raises(grpc.RpcError):
        raw(channel, GET, timeout=DEADLINE)
    assert not edge.server._doors._known  # noqa: SLF001 - of a connection that is gone by then nothing would show
