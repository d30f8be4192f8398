"""The TLS listeners: what does not shake hands, and what a handshake alone gives."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection

from broker.rpc.server import ServerLimits
from tests.live.rpc.raw_http2 import GET, OK, RESOURCE_EXHAUSTED, UNAUTHENTICATED, Answer, peer
from tests.servers.edge import Edge, running

HEALTH = "/grpc.health.v1.Health/Check"


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    # Each refusal is looked for in the journal.
    every = ServerLimits(refusals_per_second=10_000, refusals_at_once=10_000)
    with running(tmp_path_factory.mktemp("edge"), limits=every) as started:
        yield started


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
        with socket.create_connection(("127.0.0.1", port), timeout=200) as attacker:
            attacker.sendall(opening)
            received = b""
            with suppress(ConnectionError):
                while chunk := attacker.recv(4096):
                    received += chunk
            assert b"HTTP/1.1 2" not in received
            assert len(received) < 100  # at most a TLS alert or one HTTP/2 settings frame


def test_NT_05_a_stalled_handshake_is_cut_off(tmp_path: Path) -> None:
    with running(tmp_path, limits=ServerLimits(handshake_seconds=2)) as short:
        stalled = [socket.create_connection(("127.0.0.1", short.server.operators_port), timeout=200) for _ in range(20)]
        with peer(short) as honest:
            assert honest.call(GET).status == OK
        for each in stalled:
            with suppress(ConnectionError):
                assert each.recv(1) == b""
            each.close()


def test_AN_35_slow_health_checks_of_one_unauthenticated_caller_leave_room_for_others(tmp_path: Path) -> None:
    with (
        running(tmp_path, limits=ServerLimits(message_seconds=2)) as quick,
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
