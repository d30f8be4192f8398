"""The gate on real TLS connections: identity, refusals, one record a call, no secret in a failure."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import structlog
from broker_api.v1 import keys_pb2, keys_pb2_grpc

from broker.core.call import Call
from broker.core.errors import PermissionDenied, WrongState
from broker.rpc import table
from tests.live.rpc.gate_parts import METHODS, Silent, before, raw, sound
from tests.servers.edge import (
    Edge,
    plain_services,
    running,
)
from tests.servers.refusals import refused_on_the_wire

CANARY = "canary-7f3a9c"


UUID = "0b9d2c3e-1111-4222-8333-444455556666"


@pytest.fixture
def edge(tmp_path: Path) -> Iterator[Edge]:
    with running(tmp_path) as started:
        yield started


def test_a_call_is_answered_and_recorded_before(edge: Edge) -> None:
    with edge.channel() as channel:
        keys_pb2_grpc.KeyServiceStub(channel).GetKey(keys_pb2.GetKeyRequest(name="a"))
    [entry] = edge.journal.entries
    assert (entry.rpc, entry.principal, entry.authn, entry.outcome) == (
        "KeyService/GetKey",
        "operator/alice",
        "mtls",
        "ok",
    )
    assert entry.credential == f"{edge.alice.certificate.serial_number:x}"
    assert entry.peer.startswith("ipv4:127.0.0.1:")


def answers_of(outcome: str) -> Callable[[Any, Any], Any]:
    def answer(call: Call, _request: Any) -> Any:
        if outcome == "deny":
            call.decision = "deny"
            raise PermissionDenied("POLICY_DENIED", "No policy permits this.")
        if outcome == "error":
            raise WrongState("KEY_DISABLED", "The key is disabled.", key="a")
        raise RuntimeError(CANARY)

    return answer


def some() -> list[str]:
    """A third of the methods, another in each run."""
    return random.sample(METHODS, len(METHODS) // 3)


OUTCOMES = pytest.mark.parametrize(
    ("outcome", "code", "reason"),
    [
        ("allow", "ok", ""),
        ("deny", "PERMISSION_DENIED", "POLICY_DENIED"),
        ("error", "FAILED_PRECONDITION", "KEY_DISABLED"),
        ("bug", "INTERNAL", "INTERNAL"),
    ],
)


@OUTCOMES
def test_P1_every_method_and_every_outcome_leaves_one_record(
    tmp_path: Path, outcome: str, code: str, reason: str
) -> None:
    """Every method is allowed; a third of them has each other outcome, and every one in ``make soak``."""
    leaves_one_record(tmp_path, METHODS if outcome == "allow" else some(), outcome, code, reason)


@pytest.mark.soak
@OUTCOMES
def test_P1_all_methods_and_every_outcome_leave_one_record(
    tmp_path: Path, outcome: str, code: str, reason: str
) -> None:
    leaves_one_record(tmp_path, METHODS, outcome, code, reason)


def leaves_one_record(tmp_path: Path, methods: list[str], outcome: str, code: str, reason: str) -> None:
    answers = {} if outcome == "allow" else {path.split(".")[-1]: answers_of(outcome) for path in METHODS}
    with running(tmp_path, plain_services(answers)) as edge, edge.channel() as channel:
        for path in methods:
            recorded = len(edge.journal.entries)
            if outcome == "allow":
                raw(channel, path, sound(path))
            else:
                found = refused_on_the_wire(partial(raw, channel, path, sound(path)))
                assert (found.code, found.reason) == (code, reason)
                assert CANARY not in f"{found}"
            [entry] = edge.journal.entries[recorded:]
            assert (entry.rpc, entry.outcome, entry.reason) == (path.split(".")[-1], code, reason)


def test_P1_every_cancelled_method_leaves_one_record(edge: Edge) -> None:
    """Headers arrive, the message never does, and the caller hangs up."""
    with edge.channel() as channel:
        for number, path in enumerate(METHODS):
            asked, silent = before(edge.journal, "get"), Silent()
            waiting = channel.stream_unary(path).future(silent)
            assert asked.wait(60)
            waiting.cancel()
            silent.end.set()
            assert edge.journal.wait_for(partial(longer_than, number))
            [entry] = edge.journal.entries[number:]
            assert (entry.rpc, entry.outcome, entry.reason) == (path.split(".")[-1], "CANCELLED", "CALL_ENDED")


def test_P1_an_operation_that_recorded_its_outcome_is_not_recorded_again(tmp_path: Path) -> None:
    def settle(call: Call, _request: Any) -> Any:
        call.closed = True
        return keys_pb2.GetKeyResponse()

    with running(tmp_path, plain_services({"KeyService/GetKey": settle})) as edge, edge.channel() as channel:
        raw(channel, "/broker_api.v1.KeyService/GetKey")
        assert edge.journal.entries == []


def test_P1_no_record_no_answer(edge: Edge) -> None:
    """Of a third of the methods; of every one in ``make soak``."""
    not_answered(edge, some())


@pytest.mark.soak
def test_P1_no_record_no_answer_of_any_method(edge: Edge) -> None:
    not_answered(edge, METHODS)


def not_answered(edge: Edge, methods: list[str]) -> None:
    with edge.channel() as channel:
        for path in methods:
            edge.journal.broken = True
            found = refused_on_the_wire(partial(raw, channel, path, sound(path), timeout=200))
            assert (found.code, found.reason) == ("UNAVAILABLE", "AUDIT_UNAVAILABLE")
        edge.journal.broken = False
        raw(channel, METHODS[0], sound(METHODS[0]))
        assert edge.journal.entries[-1].outcome == "ok"


def test_P1_a_refusal_that_cannot_be_recorded_is_no_answer_either(tmp_path: Path) -> None:
    answers = {"KeyService/GetKey": answers_of("deny")}
    with running(tmp_path, plain_services(answers)) as edge, edge.channel() as channel:
        edge.journal.broken = True
        assert (
            refused_on_the_wire(lambda: raw(channel, "/broker_api.v1.KeyService/GetKey")).reason == "AUDIT_UNAVAILABLE"
        )
    edge.journal.broken = False


def test_CL_03_a_bug_tells_its_place_to_the_log_and_nothing_to_the_caller(tmp_path: Path) -> None:
    class Talkative(Exception):
        def __str__(self) -> str:
            return CANARY

        __repr__ = __str__

    def fail(_call: Call, request: Any) -> Any:
        secret = f"{CANARY}-local"
        assert secret != request.name
        try:
            raise Talkative(secret)  # noqa: TRY301 (the chain of causes is the point)
        except Talkative as error:
            raise ValueError(CANARY, request) from error

    services = plain_services({"KeyService/GetKey": fail})
    with structlog.testing.capture_logs() as logs, running(tmp_path, services) as edge, edge.channel() as channel:
        name = keys_pb2.GetKeyRequest(name=f"{CANARY}-message").SerializeToString()
        found = refused_on_the_wire(lambda: raw(channel, "/broker_api.v1.KeyService/GetKey", name))
        assert found.code == "INTERNAL"
        assert CANARY not in f"{found}"
        assert found.metadata["call_id"] in found.sentence
    [line] = [each for each in logs if each["event"] == "call failed"]
    assert line["call_id"] == found.metadata["call_id"]
    assert line["error"][0].startswith("builtins.ValueError at ")
    assert "Talkative" in line["error"][1]
    assert "test_gate.py" in line["error"][0]
    assert CANARY not in json.dumps(logs)
    assert CANARY not in repr(edge.journal.entries)


def test_a_method_that_answers_with_another_type_is_a_bug(tmp_path: Path) -> None:
    services = plain_services({"KeyService/GetKey": lambda _call, _request: keys_pb2.DecryptResponse(plaintext=b"x")})
    with running(tmp_path, services) as edge, edge.channel() as channel:
        found = refused_on_the_wire(lambda: raw(channel, "/broker_api.v1.KeyService/GetKey"))
        assert found.code == "INTERNAL"


@pytest.mark.parametrize(
    ("path", "wire", "code", "reason"),
    [
        ("KeyService/CreateKey", b"\xff\xff", "INVALID_ARGUMENT", "MESSAGE_INVALID"),
        ("KeyService/CreateKey", b"\x10\x63", "INVALID_ARGUMENT", "ENUM_UNKNOWN"),
        ("KeyService/Sign", b"", "INVALID_ARGUMENT", "FIELD_MISSING"),
        ("KeyService/GetKey", b"\x0a\x01\x00", "INVALID_ARGUMENT", "TEXT_INVALID"),
        ("KeyService/GetKey", b"\xf8\x07\x01", "INVALID_ARGUMENT", "FIELD_UNKNOWN"),
        ("KeyService/CreateKey", b"\x3a\x01x", "INVALID_ARGUMENT", "REQUEST_ID_INVALID"),
        ("PolicyService/SetPolicy", bytes((1 << 20) + 1), "RESOURCE_EXHAUSTED", "MESSAGE_TOO_LARGE"),
    ],
)
def test_bad_requests_are_refused_by_name_and_recorded(
    edge: Edge, path: str, wire: bytes, code: str, reason: str
) -> None:
    with edge.channel() as channel:
        found = refused_on_the_wire(lambda: raw(channel, f"/broker_api.v1.{path}", wire))
    assert (found.code, found.reason) == (code, reason)
    [entry] = edge.journal.entries
    assert (entry.rpc, entry.outcome, entry.reason, entry.call_id) == (path, code, reason, found.metadata["call_id"])
    assert entry.principal == "operator/alice"


def seen_calls(tmp_path: Path, requests: list[tuple[str, Any]]) -> list[Call]:
    seen: list[Call] = []
    paths = {path for path, _ in requests}

    def keep(response: Any) -> Callable[[Call, Any], Any]:
        def answer(call: Call, _request: Any) -> Any:
            seen.append(call)
            return response()

        return answer

    methods = table.methods(plain_services())
    answers = {path: keep(methods[f"/broker_api.v1.{path}"].response) for path in paths}
    with running(tmp_path, plain_services(answers)) as edge, edge.channel() as channel:
        for path, request in requests:
            wire = request if isinstance(request, bytes) else request.SerializeToString()
            raw(channel, f"/broker_api.v1.{path}", wire)
    return seen


def test_the_core_gets_the_request_id_its_digest_and_the_dry_run(tmp_path: Path) -> None:
    def create(**changes: Any) -> keys_pb2.CreateKeyRequest:
        return keys_pb2.CreateKeyRequest(name="a", request_id=UUID, **changes)

    same, again, dry, other, none = seen_calls(
        tmp_path,
        [
            ("KeyService/CreateKey", create()),
            ("KeyService/CreateKey", create()),
            ("KeyService/CreateKey", create(validate_only=True)),
            ("KeyService/CreateKey", create(owner="b")),
            ("KeyService/GetKey", keys_pb2.GetKeyRequest(name="a")),
        ],
    )
    assert same.request_id == UUID
    assert len(same.digest) == 64
    assert same.digest == again.digest
    assert len({same.digest, dry.digest, other.digest}) == 3
    assert (same.validate_only, dry.validate_only) == (False, True)
    assert (same.facts, dry.facts) == ({}, {"validate_only": 1}), "a record of a check says that it was one"
    assert (none.request_id, none.digest) == ("", "")
    assert len({each.id for each in (same, again, dry, other, none)}) == 5


def test_AZ_05_the_digest_tells_methods_with_the_same_request_apart(tmp_path: Path) -> None:
    enable, disable = seen_calls(
        tmp_path,
        [
            ("KeyService/EnableKey", keys_pb2.EnableKeyRequest(name="a", request_id=UUID)),
            ("KeyService/DisableKey", keys_pb2.DisableKeyRequest(name="a", request_id=UUID)),
        ],
    )
    assert enable.digest != disable.digest


def test_the_digest_does_not_depend_on_the_order_of_a_map(tmp_path: Path) -> None:
    first = keys_pb2.CreateKeyRequest(request_id=UUID, labels={"a": "1"}).SerializeToString()
    second = keys_pb2.CreateKeyRequest(labels={"b": "2"}).SerializeToString()
    one, other = seen_calls(
        tmp_path, [("KeyService/CreateKey", first + second), ("KeyService/CreateKey", second + first)]
    )
    assert len(one.digest) == 64
    assert one.digest == other.digest


def longer_than(count: int, entries: list[Any]) -> bool:
    return len(entries) > count
