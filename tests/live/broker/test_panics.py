"""NT-14: whatever ends a call, a bug of the broker or a panic of a library, the caller is told and nothing is held."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import structlog
from grpc_health.v1 import health_pb2

from broker.hsm.sessions import Worker
from broker.rpc.health import CHECK
from broker.rpc.server import ServerLimits
from tests.fakes.panics import ENDS, SECRET, PanicException
from tests.live.rpc.gate_parts import raw
from tests.servers.edge import Journal, operator, plain_services, running
from tests.servers.live import within
from tests.servers.refusals import refused_on_the_wire
from tests.servers.softhsm import KeysHsm

SERVICE = "/broker_api.v1."
GET = f"{SERVICE}KeyService/GetKey"
KINDS = ("KeyService/EnableKey", "KeyService/RotateKey", "TargetService/CheckTarget")
"""One method of each kind: on the common threads, on those of key generation, and in a slot for targets."""


def raising(kind: type[BaseException]) -> Callable[[Any, Any], Any]:
    def fail(_call: Any, _request: Any) -> Any:
        raise kind(SECRET)

    return fail


@pytest.mark.parametrize("kind", ENDS)
def test_NT_14_every_end_is_told_recorded_and_logged_and_holds_nothing(
    tmp_path: Path, kind: type[BaseException]
) -> None:
    services = plain_services(dict.fromkeys(KINDS, raising(kind)))
    lost: list[str] = []
    with (
        structlog.testing.capture_logs() as logs,
        running(tmp_path, services, limits=ServerLimits(calls=4), threads=2) as edge,
        edge.channel() as channel,
    ):
        for method in KINDS:
            for _ in range(6):  # more than there are calls, threads or slots
                found = refused_on_the_wire(lambda method=method: raw(channel, SERVICE + method, timeout=200))  # type: ignore[misc]
                assert (found.code, found.reason) == ("INTERNAL", "INTERNAL")
                assert found.sentence == f"The broker failed; its log tells more of call {found.metadata['call_id']}."
                lost.append(found.metadata["call_id"])
        assert raw(channel, GET, timeout=200) == b""
        assert edge.server.idle(60)
    recorded = {entry.call_id: entry.outcome for entry in edge.journal.entries}
    assert [recorded[call] for call in lost] == ["INTERNAL"] * len(lost)
    told = [each for each in logs if each["event"] == "call failed"]
    assert [each["call_id"] for each in told] == lost
    assert all(each["error"][0].startswith(f"{kind.__module__}.{kind.__qualname__} at ") for each in told)
    assert SECRET not in json.dumps(logs)


class Panicking(Journal):
    """A store from which one kind of question gets a panic."""

    on = ""

    def get(self, *asked: Any) -> Any:
        if self.on == "get":
            raise PanicException(SECRET)
        return super().get(*asked)

    def record(self, entry: Any) -> None:
        if self.on == "record":
            raise PanicException(SECRET)
        super().record(entry)


def test_NT_14_a_panic_where_the_caller_is_made_out_or_the_record_is_written(tmp_path: Path) -> None:
    journal = Panicking(operator())
    with running(tmp_path, journal=journal, limits=ServerLimits(calls=2)) as edge, edge.channel() as channel:
        raw(channel, GET, timeout=200)
        journal.on = "get"
        assert [refused_on_the_wire(lambda: raw(channel, GET, timeout=200)).reason for _ in range(5)] == [
            "INTERNAL"
        ] * 5
        assert [each.outcome for each in journal.entries] == ["ok", *["INTERNAL"] * 5]
        journal.on = "record"
        assert [refused_on_the_wire(lambda: raw(channel, GET, timeout=200)).reason for _ in range(5)] == [
            "AUDIT_UNAVAILABLE"
        ] * 5
        journal.on = ""
        assert raw(channel, GET, timeout=200) == b""
        assert edge.server.idle(60)


class Faulty:
    """A clock from which the threads of this name get a panic, so many times, before it tells them the time."""

    def __init__(self, threads: str, times: int) -> None:
        self.threads, self.faults, self.told = threads, times, 0

    def __call__(self) -> float:
        if threading.current_thread().name.startswith(self.threads):
            if self.faults:
                self.faults -= 1
                raise PanicException(SECRET)
            self.told += 1
        return time.monotonic()


def test_NT_14_a_panic_in_a_health_check_is_an_end_without_its_text(tmp_path: Path) -> None:
    clock = Faulty("rpc-health", times=20)
    check = health_pb2.HealthCheckRequest().SerializeToString()
    with running(tmp_path, clock=clock) as edge, edge.channel() as channel:
        for _ in range(20):
            found = refused_on_the_wire(lambda: raw(channel, CHECK, check, timeout=200))
            assert (found.code, found.reason) == ("INTERNAL", "INTERNAL")
            assert SECRET not in found.sentence
        assert clock.faults == 0
        assert raw(channel, CHECK, check, timeout=200) == b"\x08\x01"


def test_NT_14_the_thread_that_ends_late_calls_outlives_a_panic(tmp_path: Path) -> None:
    clock = Faulty("rpc-deadlines", times=1)
    with running(tmp_path, clock=clock):
        within(20, lambda: clock.told > 0)
        assert clock.faults == 0


def test_NT_14_a_panic_beside_the_hsm_gives_its_session_back(hsm: KeysHsm) -> None:
    used: list[Any] = []

    def fail(worker: Worker) -> None:
        used.append(worker.session)
        raise PanicException(SECRET)

    idle = hsm.idle()
    for _ in range(idle + 1):
        with pytest.raises(PanicException):
            hsm.sessions.run(fail)
    assert hsm.idle() == idle
    assert len({id(session) for session in used}) == len(
        used
    )  # each was replaced: an operation may be half begun in it
    hsm.check()
