"""The gate without gRPC: a door that is a function call gets identity, decision, record and counting by it."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import structlog
from broker_api.v1 import keys_pb2
from google.protobuf.json_format import MessageToJson, Parse, ParseError

from broker.auth.mtls import Mtls, MtlsConfig
from broker.core.call import Call
from broker.core.errors import InvalidRequest, NotFound, Outcome
from broker.core.gate.asking import Asking
from broker.core.gate.flood import Flood
from broker.core.gate.gate import OTHER, Gate
from broker.core.gate.method import MAX_BYTES, End, Request
from broker.core.identity import Credentials
from broker.core.model import Key, Principal
from broker.core.traits import Effect, Traits
from broker.rpc import table
from broker.rpc.keys import KeyMethods
from broker.rpc.pages import PageTokens
from tests.fakes.calls import call
from tests.servers.edge import Issued, issue, operator, operator_certificate, plain_services
from tests.worlds.world import World

BURST = 3
YEARS: Any = {"start": datetime(2026, 2, 1, tzinfo=UTC), "end": datetime(2028, 1, 1, tzinfo=UTC)}
CREATE = {"name": "payments", "type": "KEY_TYPE_EC_P256", "usage": "KEY_USAGE_SIGN"}


@dataclass
class Spoken:
    """A method whose messages are JSON."""

    inner: table.Method

    @property
    def rpc(self) -> str:
        return self.inner.rpc

    @property
    def traits(self) -> Traits:
        return self.inner.traits

    def decode(self, message: bytes) -> Request:
        try:
            return self.inner.plan.sound(Parse(message, self.inner.plan.kind()))
        except ParseError as error:
            raise InvalidRequest("MESSAGE_INVALID", "That is no JSON of this method; see its description.") from error

    def answer(self, call: Call, request: Request) -> bytes:
        return MessageToJson(self.inner.respond(call, request)).encode()


@dataclass
class Passing:
    """One call that is a function call."""

    text: bytes
    certificate: bytes | None
    peer: str = "here"
    seen: list[Principal] = field(default_factory=list)
    shown: list[tuple[str, Traits]] = field(default_factory=list)

    def credentials(self, rpc: str, traits: Traits) -> Credentials:
        self.shown.append((rpc, traits))
        return Credentials(
            certificate=self.certificate, chain_verified=True, metadata={}, peer=self.peer, rpc=rpc, traits=traits
        )

    def known(self, principal: Principal) -> None:
        self.seen.append(principal)

    def message(self) -> bytes:
        assert self.seen, "nothing is read from an unauthenticated caller"
        return self.text


class House(World):
    """A world with keys behind the gate, and the door to it."""

    def __init__(self, folder: Path, answers: dict[str, Callable[[Any, Any], Any]] | None = None) -> None:
        super().__init__()
        self.ca = issue("operators", ca=True, path_length=0, **YEARS)
        (folder / "ca.pem").write_bytes(self.ca.pem)
        self.alice = self.certificate("alice")
        services = plain_services(answers)
        if answers is None:
            services["KeyService"] = KeyMethods(
                self.keys,
                self.use,
                self.settling,
                self.rotations,
                self.schedules,
                self.inventory,
                self.oversight,
                PageTokens(bytes(32)),
            )
        self.methods = {method.rpc: Spoken(method) for method in table.methods(services).values()}
        mtls = Mtls(MtlsConfig(operator_ca_file=folder / "ca.pem"), self.store, self.clock)
        flood = Flood(1, BURST, lambda: 0.0, lambda peer: peer.encode())
        self.gate = Gate([mtls], self.store, self.clock, flood, Asking(self.store, self.guard))
        with self.store.write(call("-", Principal(kind="broker", name="test"), self.clock).outcome()) as write:
            write.add(operator("alice"), operator("bob", groups=("nothing",)))
        self.store.entries.clear()

    def certificate(self, name: str) -> Issued:
        return operator_certificate(self.ca, f"spiffe://broker/operator/{name}", **YEARS)

    def ask(self, rpc: str, asked: dict[str, Any] | bytes, who: Issued | None = None) -> End:
        wire = asked if isinstance(asked, bytes) else json.dumps(asked).encode()
        return self.gate.serve(self.methods.get(rpc), Passing(wire, who.pem if who else None))


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def test_another_door_gets_identity_decision_and_record(house: House) -> None:
    end = house.ask("KeyService/CreateKey", CREATE, house.alice)
    assert (end.outcome, json.loads(end.answer)["key"]["owner"]) == (Outcome.OK, "operator/alice")
    intent, outcome = house.store.entries
    assert (intent.phase, outcome.phase, outcome.outcome) == ("intent", "outcome", "ok")
    assert (outcome.principal, outcome.authn, outcome.peer) == ("operator/alice", "mtls", "here")
    assert (outcome.rpc, outcome.resource, outcome.decision) == ("KeyService/CreateKey", "key/payments", "allow")
    assert outcome.call_id == end.call_id


def test_another_door_gets_refusals_with_their_sentence_and_record(house: House) -> None:
    bob = house.certificate("bob")
    found = [
        house.ask("KeyService/CreateKey", CREATE, bob),
        house.ask("KeyService/GetKey", {"name": "none"}, house.alice),
        house.ask("KeyService/GetKey", {"name": "\0"}, house.alice),
        house.ask("KeyService/GetKey", b"{", house.alice),
        house.ask("KeyService/GetKey", b" " * (MAX_BYTES + 1), house.alice),
        house.ask("KeyService/CreateKey", CREATE | {"request_id": "1"}, house.alice),
        house.ask("KeyService/Nothing", {}, house.alice),
    ]
    reasons = [
        "POLICY_DENIED",
        "KEY_NOT_FOUND",
        "TEXT_INVALID",
        "MESSAGE_INVALID",
        "MESSAGE_TOO_LARGE",
        "REQUEST_ID_INVALID",
        "METHOD_UNKNOWN",
    ]
    assert [end.reason for end in found] == reasons
    assert all(end.sentence.endswith((".", "?")) and not end.answer for end in found)
    told = [(entry.call_id, entry.outcome, entry.reason) for entry in house.store.entries]
    assert told == [(end.call_id, end.outcome, end.reason) for end in found]
    assert house.store.entries[-1].rpc == OTHER
    assert house.store.get(Key, "payments") is None


def test_another_door_gets_idempotency_and_dry_runs(house: House) -> None:
    number = str(uuid.uuid4())
    dry = house.ask("KeyService/CreateKey", CREATE | {"validate_only": True}, house.alice)
    assert (dry.outcome, house.store.get(Key, "payments")) == (Outcome.OK, None)
    assert house.store.entries[-1].facts["validate_only"] == 1
    first, again = (house.ask("KeyService/CreateKey", CREATE | {"request_id": number}, house.alice) for _ in range(2))
    assert first.answer == again.answer
    other = house.ask("KeyService/CreateKey", CREATE | {"name": "other", "request_id": number}, house.alice)
    assert (other.outcome, other.reason) == (Outcome.ALREADY_EXISTS, "REQUEST_ID_REUSED")


def test_unauthenticated_callers_at_another_door_are_recorded_so_many_times_and_then_counted(house: House) -> None:
    ends = [house.ask("KeyService/CreateKey", CREATE) for _ in range(BURST + 4)]
    assert {(end.outcome, end.reason) for end in ends} == {(Outcome.UNAUTHENTICATED, "CREDENTIALS_MISSING")}
    assert len(house.store.entries) == BURST
    assert house.gate.turn_away().reason == "TOO_MANY_CALLS"
    house.gate.tally()
    assert house.store.entries[-1].facts == {"count": 5}


def test_without_a_record_another_door_has_no_answer_either(house: House) -> None:
    house.store.journal_full = True
    end = house.ask("KeyService/ListKeys", {}, house.alice)
    assert (end.outcome, end.reason, end.answer) == (Outcome.UNAVAILABLE, "AUDIT_UNAVAILABLE", b"")


def test_AZ_07_what_nobody_decided_on_is_not_answered(tmp_path: Path) -> None:
    def undecided(asked: Call, _request: Any) -> Any:
        asked.decision = ""
        return keys_pb2.GetKeyResponse()

    house = House(tmp_path, {"KeyService/GetKey": undecided})
    with structlog.testing.capture_logs() as logs:
        end = house.ask("KeyService/GetKey", {"name": "a"}, house.alice)
    assert (end.outcome, end.answer) == (Outcome.INTERNAL, b"")
    assert [(line["event"], line["rpc"]) for line in logs] == [("call failed", "KeyService/GetKey")]
    assert house.store.entries[-1].outcome == "INTERNAL"


def test_a_bug_is_told_to_nobody_but_the_log(tmp_path: Path) -> None:
    def fail(_asked: Call, _request: Any) -> Any:
        raise RuntimeError("canary")

    house = House(tmp_path, {"KeyService/GetKey": fail})
    with structlog.testing.capture_logs() as logs:
        end = house.ask("KeyService/GetKey", {"name": "a"}, house.alice)
    assert (end.reason, end.sentence) == ("INTERNAL", f"The broker failed; its log tells more of call {end.call_id}.")
    assert "canary" not in json.dumps(logs)


def test_the_door_is_told_what_the_method_is(house: House) -> None:
    visit = Passing(b"{}", None)
    house.gate.serve(house.methods["KeyService/RotateKey"], visit)
    house.gate.serve(None, visit)
    assert visit.shown == [
        ("KeyService/RotateKey", Traits(effect=Effect.CHANGES, makes_key=True)),
        (OTHER, Traits()),
    ]


def test_the_items_that_are_refused_go_out_with_the_refusal(tmp_path: Path) -> None:
    error = NotFound("KEY_NOT_FOUND", "There is no such key; look at the list.", key="a")

    def missing(_asked: Call, _request: Any) -> Any:
        raise error

    end = House(tmp_path, {"KeyService/GetKey": missing}).ask("KeyService/GetKey", {"name": "a"})
    assert end.reason == "CREDENTIALS_MISSING"
    house = House(tmp_path, {"KeyService/GetKey": missing})
    end = house.ask("KeyService/GetKey", {"name": "a"}, house.alice)
    assert (end.metadata, end.refused) == ({"key": "a"}, ())
