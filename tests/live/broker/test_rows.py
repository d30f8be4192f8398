"""Rows of the attack list that concern the whole broker, against the running one."""

from __future__ import annotations

import base64
import hashlib
import secrets
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message_factory import GetMessageClass

from tests.servers.live import METHODS, Client, Live
from tests.servers.refusals import Refused

CANARY = "canary-6f1d2b"
EC_P256, AES_256, RSA_2048 = 4, 10, 1
SIGN, ENCRYPT = 1, 2
KINDS = [(EC_P256, SIGN), (RSA_2048, SIGN), (RSA_2048, ENCRYPT), (AES_256, ENCRYPT)]


@pytest.fixture(scope="module")
def admin(live: Live) -> Client:
    return live.client()


def fresh(prefix: str = "row") -> str:
    return f"{prefix}-{secrets.token_hex(5)}"


def uses(name: str) -> list[tuple[str, dict[str, Any]]]:
    """Every way of using or changing a key that is there."""
    message = {"message": b"x"}
    return [
        ("GetKey", {"name": name}),
        ("GetPublicKey", {"name": name}),
        ("Sign", {"name": name, "input": message}),
        ("BatchSign", {"name": name, "inputs": [message]}),
        ("Verify", {"name": name, "input": message, "signature": b"x"}),
        ("Encrypt", {"name": name, "plaintext": b"x"}),
        ("Decrypt", {"name": name, "ciphertext": bytes(64)}),
        ("RotateKey", {"name": name}),
        ("DisableKey", {"name": name}),
        ("ScheduleKeyDestruction", {"name": name}),
        ("SealKey", {"name": name}),
        ("ImportKey", {"name": name, "target": "bao"}),
    ]


@pytest.mark.parametrize(("key_type", "usage"), KINDS)
def test_HS_18_no_kind_of_key_passes_by_the_policy(live: Live, admin: Client, key_type: int, usage: int) -> None:
    name = fresh()
    admin.ask("CreateKey", name=name, type=key_type, usage=usage)
    nobody = live.operator(admin, fresh("op"))
    before = admin.ask("GetKey", name=name)
    reasons = {rpc: nobody.refusal(rpc, **fields).reason for rpc, fields in uses(name)}
    assert reasons == dict.fromkeys(reasons, "POLICY_DENIED")
    assert admin.ask("GetKey", name=name) == before


def test_AZ_06_somebody_elses_key_and_no_key_are_refused_alike(live: Live, admin: Client) -> None:
    theirs, absent = fresh(), fresh()
    admin.ask("CreateKey", name=theirs, type=EC_P256, usage=SIGN)
    nobody = live.operator(admin, fresh("op"))
    for (rpc, one), (_, other) in zip(uses(theirs), uses(absent), strict=True):
        first, second = nobody.refusal(rpc, **one), nobody.refusal(rpc, **other)
        assert (first.code, first.reason, first.sentence) == (second.code, second.reason, second.sentence), rpc


def filled(message: Any, depth: int = 0) -> Any:
    """A request whose every text and every byte string is the canary."""
    for field in message.DESCRIPTOR.fields:
        if field.message_type and field.message_type.GetOptions().map_entry:
            continue
        repeated = field.is_repeated
        if field.type in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES):
            value: Any = CANARY if field.type == FieldDescriptor.TYPE_STRING else CANARY.encode()
            if repeated:
                getattr(message, field.name).append(value)
            elif field.name not in {"request_id", "page_token"}:
                setattr(message, field.name, value)
        elif field.message_type and depth < 4 and not field.message_type.full_name.startswith("google."):
            part = getattr(message, field.name)
            filled(part.add() if repeated else part, depth + 1)
            if not repeated:
                part.SetInParent()
    return message


def sentence_of(client: Client, rpc: str, request: bytes) -> str:
    """The sentence of a refusal; "" when the call is answered."""
    try:
        client.send(rpc, request)
    except Refused as refusal:
        return refusal.sentence
    return ""


def test_AU_07_what_a_caller_sends_is_in_no_record(live: Live, admin: Client) -> None:
    """The canary is a valid key name, so that it gets as far as it can; the resource's own name is what may be told."""
    before = len(live.records())
    asked = 0
    for rpc, method in METHODS.items():
        request = filled(GetMessageClass(method.input_type)())
        asked += 1
        said = sentence_of(admin, rpc, request.SerializeToString())
        assert CANARY not in said.replace(f"named {CANARY}", "").replace(f"key {CANARY}", ""), rpc
    told = live.records()[before:]
    assert len(told) >= asked - 1  # the policy that could be set by this is none
    places = {name for record in told for name, value in record.items() if CANARY in str(value)}
    assert places <= {"resource", "facts"}
    facts = {name for record in told for name, value in record.get("facts", {}).items() if CANARY in str(value)}
    assert facts <= {"target", "remote_name", "operator", "groups", "trust_rule"}
    coded = [base64.b64encode(CANARY.encode()).decode(), CANARY.encode().hex()]
    assert not any(one in str(record) for record in told for one in coded)


def test_AU_08_no_record_holds_a_hash_that_a_guess_could_be_held_against(live: Live, admin: Client) -> None:
    signing, sealing = fresh(), fresh()
    admin.ask("CreateKey", name=signing, type=EC_P256, usage=SIGN)
    admin.ask("CreateKey", name=sealing, type=AES_256, usage=ENCRYPT)
    before = len(live.records())
    admin.ask("Sign", name=signing, input={"message": b"yes"})
    admin.ask("Encrypt", name=sealing, plaintext=b"yes")
    told = str(live.records()[before:])
    for name in ("sha1", "sha256", "sha384", "sha512", "md5"):
        assert hashlib.new(name, b"yes", usedforsecurity=False).hexdigest() not in told


def test_AU_11_no_call_says_where_the_audit_goes() -> None:
    places = {
        f"{method.full_name}.{field.name}"
        for method in METHODS.values()
        for field in method.input_type.fields
        if any(word in field.name for word in ("path", "file", "journal", "folder", "url", "sink", "syslog"))
    }
    assert places == set()


def test_AU_14_a_record_tells_how_the_caller_was_known_and_why_it_was_let(live: Live, admin: Client) -> None:
    name = fresh()
    admin.ask("CreateKey", name=name, type=EC_P256, usage=SIGN)
    who = admin.ask("WhoAmI")
    before = len(live.records())
    admin.ask("Sign", name=name, input={"message": b"x"})
    (record,) = live.since(before)
    told = {
        part: record[part] for part in ("principal", "authn", "credential", "decision", "resource", "rpc", "outcome")
    }
    assert told == {
        "principal": "operator/admin",
        "authn": "mtls",
        "credential": who.credential,
        "decision": "allow",
        "resource": f"key/{name}",
        "rpc": "KeyService/Sign",
        "outcome": "ok",
    }
    assert record["policies"]
    assert record["policy_version"] == admin.ask("GetPolicy").policy.version
    assert record["facts"]["version"] == 1
    assert record["peer"].startswith("ipv4:127.0.0.1:")


def test_CL_04_CL_07_no_level_of_chatter_and_no_url_of_the_environment_is_written_out(tmp_path: Path) -> None:
    chatter = {
        "PYTHONDEVMODE": "1",
        "PYTHONASYNCIODEBUG": "1",
        "PYTHONWARNINGS": "default",
        "GRPC_VERBOSITY": "DEBUG",
        "HTTPS_PROXY": f"http://user:{CANARY}@127.0.0.1:1",
        "DATABASE_URL": f"postgresql://user:{CANARY}@127.0.0.1/x",
    }
    broker = Live(tmp_path / "broker")
    try:
        broker.start(extra=chatter)
        _seal_and_open(broker)
    finally:
        broker.close()


def _seal_and_open(broker: Live) -> None:
    admin = broker.client()
    admin.ask("CreateKey", name="sealing", type=AES_256, usage=ENCRYPT)
    sealed = admin.ask("Encrypt", name="sealing", plaintext=CANARY.encode()).ciphertext
    assert admin.ask("Decrypt", name="sealing", ciphertext=sealed).plaintext == CANARY.encode()
    admin.refusal("Decrypt", name="sealing", ciphertext=sealed[:-1] + b"x", aad=CANARY.encode())
    assert broker.holding(CANARY.encode(), base64.b64encode(CANARY.encode()), broker.pin.encode()) == []
