"""The gate: who calls, how much of it, and how a server begins and ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from broker_api.v1 import keys_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from broker.core.call import Call
from broker.core.errors import NotFound, WrongState
from broker.core.gate.flood import Flood
from broker.core.gate.gate import Gate
from broker.core.identity import Credentials
from broker.core.kinds import OperatorState
from broker.core.model import Principal
from broker.rpc import table
from broker.rpc.gate import Door
from broker.rpc.networks import network
from broker.rpc.server import Server, ServerLimits
from tests.fakes.calls import asking
from tests.live.rpc.gate_parts import METHODS, Silent, raw, sound
from tests.servers.edge import (
    Edge,
    Journal,
    authority,
    configure,
    issue,
    operator,
    operator_certificate,
    plain_services,
    running,
    server_certificate,
)
from tests.servers.live import within
from tests.servers.refusals import refused_on_the_wire


@pytest.fixture
def edge(tmp_path: Path) -> Iterator[Edge]:
    with running(tmp_path) as started:
        yield started


def test_AN_35_on_the_pipelines_port_only_liveness_answers(edge: Edge) -> None:
    with edge.channel(port=edge.server.pipelines_port) as channel:
        for path in [*METHODS, "/grpc.health.v1.Health/Watch", "/grpc.health.v1.Health/List", "/a.B/C"]:
            found = refused_on_the_wire(partial(raw, channel, path))
            assert (found.code, found.reason) == ("UNAUTHENTICATED", "CREDENTIALS_MISSING")
        stub = health_pb2_grpc.HealthStub(channel)
        answer = stub.Check(health_pb2.HealthCheckRequest())
        assert answer.SerializeToString() == b"\x08\x01"  # the state, and not a byte more
    assert all(entry.principal == "" for entry in edge.journal.entries)


def test_AN_35_health_says_what_it_is_told(edge: Edge) -> None:
    names = ["", *(service.full_name for service in table.declared().values())]
    for port in (edge.server.operators_port, edge.server.pipelines_port):
        client = edge.alice if port == edge.server.operators_port else None
        with edge.channel(client, port=port) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            for serving, expected in ((True, health_pb2.HealthCheckResponse.SERVING), (False, 2), (True, 1)):
                edge.server.set_serving(serving)
                for name in names:
                    assert stub.Check(health_pb2.HealthCheckRequest(service=name)).status == expected
            unknown = health_pb2.HealthCheckRequest(service="no.Such")
            assert refused_on_the_wire(partial(stub.Check, unknown)).code == "NOT_FOUND"
            for wire in (b"\xff", bytes(2_000)):
                found = refused_on_the_wire(partial(raw, channel, "/grpc.health.v1.Health/Check", wire))
                assert found.code in {"INVALID_ARGUMENT", "NOT_FOUND"}
    assert edge.journal.entries == []


def test_AN_28_an_open_connection_ends_with_its_certificate(tmp_path: Path) -> None:
    times = [datetime.now(UTC)]
    with running(tmp_path, now=lambda: times[0]) as edge, edge.channel() as channel:
        raw(channel, METHODS[0], sound(METHODS[0]))
        times[0] += timedelta(days=31)
        found = refused_on_the_wire(lambda: raw(channel, METHODS[0], sound(METHODS[0])))
        assert (found.code, found.reason) == ("UNAUTHENTICATED", "CERTIFICATE_EXPIRED")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"state": OperatorState.REMOVED}, "OPERATOR_UNKNOWN"),
        ({"not_before": datetime.now(UTC)}, "CERTIFICATE_REVOKED"),
    ],
)
def test_AN_28_a_revoked_certificate_ends_on_the_open_connection(edge: Edge, change: Any, reason: str) -> None:
    with edge.channel() as channel:
        raw(channel, METHODS[0], sound(METHODS[0]))
        edge.journal.operators["alice"] = replace(edge.journal.operators["alice"], **change)
        found = refused_on_the_wire(lambda: raw(channel, METHODS[0], sound(METHODS[0])))
    assert (found.code, found.reason) == ("UNAUTHENTICATED", reason)
    entry = edge.journal.entries[-1]
    assert (entry.principal, entry.outcome, entry.reason) == ("", "UNAUTHENTICATED", reason)
    assert entry.facts["operator"] == "alice"
    assert entry.facts["certificate_serial"] == f"{edge.alice.certificate.serial_number:x}"


FORGED = [
    ("x-forwarded-client-cert", "URI=spiffe://broker/operator/root"),
    ("x-forwarded-for", "10.0.0.1"),
    ("x-user-id", "root"),
    ("x-ssl-client-cert", "x"),
    ("principal", "operator/root"),
    ("principal-bin", b"operator/root"),
    ("authorization-bin", b"Bearer x"),
    ("grpc-internal-encoding-request", "gzip"),
]


def test_AN_31_forged_headers_change_nothing(edge: Edge) -> None:
    with edge.channel() as channel:
        raw(channel, METHODS[0], sound(METHODS[0]), metadata=FORGED[:-1])
    [entry] = edge.journal.entries
    assert entry.principal == "operator/alice"
    assert entry.peer.startswith("ipv4:127.0.0.1:")
    with edge.channel(port=edge.server.pipelines_port) as channel:
        found = refused_on_the_wire(lambda: raw(channel, METHODS[0], metadata=FORGED[:-1]))
    assert found.reason == "CREDENTIALS_MISSING"


def test_AN_31_two_authorizations_are_none(edge: Edge) -> None:
    twice = [("authorization", "Bearer a"), ("authorization", "Bearer b")]
    with edge.channel() as channel:
        found = refused_on_the_wire(lambda: raw(channel, METHODS[0], sound(METHODS[0]), metadata=twice))
    assert (found.code, found.reason) == ("UNAUTHENTICATED", "CREDENTIALS_AMBIGUOUS")


class Bearer:
    """An authenticator that takes any bearer value, and keeps what it was shown."""

    def __init__(self) -> None:
        self.shown: list[Credentials] = []

    def authenticate(self, credentials: Credentials) -> Principal | None:
        self.shown.append(credentials)
        value = credentials.metadata.get("authorization")
        return Principal(kind="pipeline", name="alice", method="bearer") if value else None


def test_AN_30_a_call_has_one_identity_or_none(tmp_path: Path) -> None:
    bearer = Bearer()
    token = [("authorization", "Bearer x"), *FORGED[:-1]]
    with running(tmp_path, also=[bearer]) as edge:
        with edge.channel(port=edge.server.pipelines_port) as channel:
            raw(channel, METHODS[0], sound(METHODS[0]), metadata=token)
        assert edge.journal.entries[-1].principal == "pipeline/alice"
        assert bearer.shown[0].metadata == {"authorization": "Bearer x"}
        assert (bearer.shown[0].certificate, bearer.shown[0].chain_verified) == (None, False)
        with edge.channel() as channel:
            found = refused_on_the_wire(lambda: raw(channel, METHODS[0], sound(METHODS[0]), metadata=token))
    assert found.reason == "CREDENTIALS_AMBIGUOUS"


def test_AU_15_a_flood_of_unauthenticated_callers_is_counted_and_operators_are_not_held_up(tmp_path: Path) -> None:
    limits = ServerLimits(refusals_per_second=0.001, refusals_at_once=5)
    with running(tmp_path, limits=limits) as edge:
        with edge.channel(port=edge.server.pipelines_port) as anonymous, edge.channel() as channel:
            for _ in range(40):
                found = refused_on_the_wire(lambda: raw(anonymous, METHODS[0]))
                assert found.reason == "CREDENTIALS_MISSING"
            assert len(edge.journal.entries) == 5
            raw(channel, METHODS[0], sound(METHODS[0]))
            assert len(edge.journal.entries) == 6
        edge.server.drain(1)
        assert edge.journal.entries[-1].reason == "REFUSALS_COUNTED"
        assert edge.journal.entries[-1].facts == {"count": 35}


def test_AU_15_a_count_that_cannot_be_written_is_kept() -> None:
    flood, journal = Flood(1, 1, time.monotonic, network), Journal()
    store: Any = journal
    gate = Gate([], store, lambda: datetime.now(UTC), flood, asking(store))
    flood.count()
    flood.count()
    journal.broken = True
    gate.tally()
    journal.broken = False
    gate.tally()
    gate.tally()
    assert [entry.facts for entry in journal.entries] == [{"count": 2}]


class Held:
    """Answers that wait until they are let go."""

    def __init__(self, expected: int, answer: Callable[[], Any] = keys_pb2.GetKeyResponse) -> None:
        self.inside = threading.Semaphore(0)
        self.release = threading.Event()
        self._expected = expected
        self._answer = answer

    def __call__(self, _call: Call, _request: Any) -> Any:
        self.inside.release()
        assert self.release.wait(60)
        return self._answer()

    def wait(self) -> None:
        for _ in range(self._expected):
            assert self.inside.acquire(timeout=200)


GET = "/broker_api.v1.KeyService/GetKey"


def test_P14_calls_over_the_limit_are_refused_and_health_still_answers(tmp_path: Path) -> None:
    held = Held(2)
    services = plain_services({"KeyService/GetKey": held})
    with running(tmp_path, services, limits=ServerLimits(calls=2), threads=2) as edge, edge.channel() as channel:
        waiting = [channel.unary_unary(GET).future(b"") for _ in range(2)]
        held.wait()
        found = refused_on_the_wire(lambda: raw(channel, METHODS[0], timeout=200))
        assert (found.code, found.reason) == ("RESOURCE_EXHAUSTED", "TOO_MANY_CALLS")
        stub = health_pb2_grpc.HealthStub(channel)
        assert stub.Check(health_pb2.HealthCheckRequest(), timeout=200).status == 1
        held.release.set()
        assert [each.result(200) for each in waiting] == [b"", b""]
        raw(channel, METHODS[0], sound(METHODS[0]))


def let_in(edge: Edge) -> bool:
    """Whether a connection is taken that is made now."""
    trust, options = grpc.ssl_channel_credentials(edge.server_ca.pem), [("grpc.use_local_subchannel_pool", 1)]
    with grpc.secure_channel(f"localhost:{edge.server.pipelines_port}", trust, options) as channel:
        try:
            health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=20)
        except grpc.RpcError as error:
            return error.code() is not grpc.StatusCode.UNAVAILABLE
        return True


def test_P25_drain_lets_calls_end_and_takes_no_more(tmp_path: Path) -> None:
    held = Held(1)
    with running(tmp_path, plain_services({"KeyService/GetKey": held})) as edge, edge.channel() as channel:
        waiting = channel.unary_unary(GET).future(b"")
        held.wait()
        drained: list[bool] = []
        ending = threading.Thread(target=lambda: drained.append(edge.server.drain(60)))
        ending.start()
        within(20, lambda: not let_in(edge))
        with edge.channel() as late:
            assert refused_on_the_wire(lambda: raw(late, METHODS[0], timeout=200)).code == "UNAVAILABLE"
        held.release.set()
        assert waiting.result(200) == b""
        ending.join(60)
        assert drained == [True]
        assert [entry.outcome for entry in edge.journal.entries] == ["ok"]


def test_P25_drain_cuts_off_what_does_not_end(tmp_path: Path) -> None:
    held = Held(1)
    with running(tmp_path, plain_services({"KeyService/GetKey": held})) as edge, edge.channel() as channel:
        waiting = channel.unary_unary(GET).future(b"")
        held.wait()
        assert edge.server.drain(0.2) is False
        assert isinstance(waiting.exception(60), grpc.RpcError)
        held.release.set()
        assert edge.journal.wait_for(lambda entries: [entry.outcome for entry in entries] == ["ok"])


def test_P14_no_call_lasts_longer_than_the_server_allows(tmp_path: Path) -> None:
    held = Held(1)
    services = plain_services({"KeyService/GetKey": held})
    with running(tmp_path, services, limits=ServerLimits(call_seconds=0.3)) as edge, edge.channel() as channel:
        assert refused_on_the_wire(lambda: raw(channel, GET, timeout=200)).code == "CANCELLED"
        held.release.set()
        assert edge.journal.wait_for(lambda entries: len(entries) == 1)


def test_NT_05_slow_writers_hold_no_threads(tmp_path: Path) -> None:
    with running(tmp_path, limits=ServerLimits(message_seconds=2), threads=2) as edge, edge.channel() as channel:
        raw(channel, METHODS[0], sound(METHODS[0]))
        silent = Silent()
        slow = [channel.stream_unary(GET).future(silent) for _ in range(6)]
        raw(channel, METHODS[0], sound(METHODS[0]), timeout=200)
        for each in slow:
            assert isinstance(each.exception(60), grpc.RpcError)
        silent.end.set()
        assert edge.journal.wait_for(lambda entries: sum(e.reason == "MESSAGE_LATE" for e in entries) == 6)
        assert {entry.outcome for entry in edge.journal.entries} == {"ok", "DEADLINE_EXCEEDED"}


def test_AN_26_certificates_of_other_signers_do_not_get_a_connection(edge: Edge) -> None:
    leaf = operator_certificate(edge.operator_ca)
    not_a_ca = issue("plain", edge.operator_ca)
    intermediate = issue("intermediate", edge.operator_ca, ca=True, path_length=0)
    expired = operator_certificate(
        edge.operator_ca, start=datetime(2026, 1, 1, tzinfo=UTC), end=datetime(2026, 1, 2, tzinfo=UTC)
    )
    candidates = [
        operator_certificate(authority("other")),
        replace(operator_certificate(leaf), chain=(leaf.certificate,)),
        replace(operator_certificate(not_a_ca), chain=(not_a_ca.certificate,)),
        # The CA's path length is 0: no intermediate may stand below it.
        replace(operator_certificate(intermediate), chain=(intermediate.certificate,)),
        expired,
    ]
    for candidate in candidates:
        with edge.channel(candidate) as channel:
            found = refused_on_the_wire(partial(raw, channel, METHODS[0], timeout=200))
            assert found.code in {"UNAVAILABLE", "UNAUTHENTICATED"}
    assert all(entry.outcome != "ok" for entry in edge.journal.entries)


@pytest.mark.parametrize("changes", [{"usages": None}, {"alternatives": []}])
def test_AN_25_a_connection_is_not_an_identity(edge: Edge, changes: Any) -> None:
    with edge.channel(operator_certificate(edge.operator_ca, **changes)) as channel:
        found = refused_on_the_wire(lambda: raw(channel, METHODS[0], timeout=200))
    assert (found.code, found.reason[:11]) == ("UNAUTHENTICATED", "CERTIFICATE")
    assert [entry.outcome for entry in edge.journal.entries] == ["UNAUTHENTICATED"]


def test_the_server_certificate_is_renewed_without_a_restart(edge: Edge) -> None:
    with edge.channel() as channel:
        raw(channel, METHODS[0], sound(METHODS[0]))
    renewed_ca = issue("new servers", ca=True)
    renewed = server_certificate(renewed_ca)
    (edge.folder / "server.pem").write_bytes(renewed.pem)
    with edge.channel() as channel:  # certificate and key do not belong together: the old pair stays
        raw(channel, METHODS[0], sound(METHODS[0]))
    (edge.folder / "server.key").write_bytes(renewed.key_pem)
    edge.server_ca = renewed_ca
    with edge.channel() as channel:
        raw(channel, METHODS[0], sound(METHODS[0]))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: (folder / "server.key").chmod(0o640), "KEY_FILE_EXPOSED"),
        (lambda folder: (folder / "server.key").unlink(), "TLS_FILE_MISSING"),
        (lambda folder: (folder / "server.pem").write_bytes(b"x"), "TLS_FILE_INVALID"),
        (lambda folder: (folder / "operators.pem").write_bytes(b"x"), "TLS_FILE_INVALID"),
        (lambda folder: (folder / "server.pem").write_bytes(authority().pem), "TLS_FILES_DIFFER"),
    ],
)
def test_files_that_will_not_do_stop_the_start(tmp_path: Path, damage: Callable[[Path], Any], reason: str) -> None:
    config = configure(tmp_path, server_certificate(authority("servers")), authority())
    damage(tmp_path)
    store: Any = Journal(operator())
    with pytest.raises(WrongState) as stopped:
        Server(config, plain_services(), [], store, lambda: datetime.now(UTC), asking=asking(store))
    assert stopped.value.reason == reason


def test_an_address_in_use_stops_the_start(edge: Edge, tmp_path: Path) -> None:
    taken = f"127.0.0.1:{edge.server.operators_port}"
    config = configure(tmp_path, server_certificate(edge.server_ca), edge.operator_ca, operators_address=taken)
    store: Any = edge.journal
    with pytest.raises(
        Exception, match=r"cannot listen .* \(Address already in use\): end what listens there"
    ) as stopped:
        Server(config, plain_services(), [], store, lambda: datetime.now(UTC), asking=asking(store))
    assert stopped.value.reason == "ADDRESS_IN_USE"  # type: ignore[attr-defined]  # a BrokerError


def test_a_method_left_out_or_added_stops_the_start() -> None:
    services = plain_services()
    without = {name: each for name, each in services.items() if name != "HsmService"}
    with pytest.raises(TypeError, match="HsmService"):
        table.methods(without)
    with pytest.raises(TypeError, match="Backdoor"):
        table.methods({**services, "Backdoor": object()})
    with pytest.raises(TypeError, match="get_hsm"):
        table.methods({**services, "HsmService": object()})
    more = type("More", (type(services["HsmService"]),), {"dump_keys": lambda *_: None})()
    with pytest.raises(TypeError, match="dump_keys"):
        table.methods({**services, "HsmService": more})


def test_the_whole_api_is_behind_the_one_gate(edge: Edge) -> None:
    state = edge.server._server._state  # type: ignore[attr-defined]  # noqa: SLF001 - what else grpc would answer
    [door] = state.generic_handlers
    assert isinstance(door, Door)
    assert state.registered_method_handlers == {}
    assert sorted(door._methods) == METHODS  # noqa: SLF001 - as above


def test_CL_11_a_refusal_of_the_core_arrives_whole(tmp_path: Path) -> None:
    def missing(_call: Call, _request: Any) -> Any:
        raise NotFound("KEY_UNKNOWN", "There is no such key; broker key list shows those you may see.", key="a")

    with running(tmp_path, plain_services({"KeyService/GetKey": missing})) as edge, edge.channel() as channel:
        found = refused_on_the_wire(lambda: raw(channel, GET))
    assert (found.code, found.reason) == ("NOT_FOUND", "KEY_UNKNOWN")
    assert found.sentence.startswith("There is no such key")
    assert found.metadata["key"] == "a"
