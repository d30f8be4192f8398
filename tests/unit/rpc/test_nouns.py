"""One file a noun: what reaches the core, and what the core's answer looks like on the wire."""

from __future__ import annotations

import json
from datetime import UTC, timedelta
from typing import Any

import pytest
from broker_api.v1 import keys_pb2
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from google.protobuf.duration_pb2 import Duration

from broker.core import kinds
from broker.core.errors import InvalidRequest
from broker.core.inventory.lifecycle import Filter
from broker.core.keys.use import Encrypted, Signed
from broker.core.page import Page
from broker.rpc.codec import der_from_jose
from tests.fakes.calls import call
from tests.unit.rpc.parts import ENTRY, KEY, PRIVATE, THEN, VERSION, keys


def test_create_key() -> None:
    noun, rpc = keys(create=KEY)
    request = keys_pb2.CreateKeyRequest(
        name="payments", type=keys_pb2.KEY_TYPE_EC_P256, usage=keys_pb2.KEY_USAGE_SIGN, exportable=True,
        labels={"team": "pay"}, owner="operator/alice",
    )  # fmt: skip
    made = rpc.create_key(call("KeyService/CreateKey"), request).key
    options = {"exportable": True, "labels": {"team": "pay"}, "owner": "operator/alice"}
    assert noun.asked == [("create", ("payments", kinds.KeyType.EC_P256, kinds.KeyUsage.SIGN), options)]
    assert (made.name, made.type, made.usage) == ("payments", keys_pb2.KEY_TYPE_EC_P256, keys_pb2.KEY_USAGE_SIGN)
    assert (made.state, made.primary_version, made.revision) == (keys_pb2.KEY_STATE_DESTROY_SCHEDULED, 2, 4)
    assert (dict(made.labels), made.owner, made.exportable) == ({"team": "pay"}, "operator/alice", True)
    assert made.create_time.ToDatetime(UTC) == THEN
    assert made.destroy_time.ToDatetime(UTC) == THEN + timedelta(days=7)


@pytest.mark.parametrize("field", ["type", "usage"])
def test_AN_36_a_key_needs_its_type_and_usage(field: str) -> None:
    noun, rpc = keys(create=KEY)
    request = keys_pb2.CreateKeyRequest(name="a", type=keys_pb2.KEY_TYPE_AES_128, usage=keys_pb2.KEY_USAGE_SIGN)
    request.ClearField(field)  # type: ignore[arg-type]  # one of two known names
    with pytest.raises(InvalidRequest) as refused:
        rpc.create_key(call("KeyService/CreateKey"), request)
    assert refused.value.metadata == {"field": field}
    assert noun.asked == []


def test_lists_continue_where_they_stopped() -> None:
    noun, rpc = keys(page=Page(items=[ENTRY], next=("payments",)))
    first = rpc.list_keys(call("KeyService/ListKeys"), keys_pb2.ListKeysRequest())
    assert [key.name for key in first.keys] == ["payments"]
    rpc.list_keys(call("KeyService/ListKeys"), keys_pb2.ListKeysRequest(page_size=7, page_token=first.next_page_token))
    assert noun.asked == [("page", (Filter(), (), 100), {}), ("page", (Filter(), ("payments",), 7), {})]


def test_AZ_04_a_token_of_one_keys_versions_does_not_serve_another() -> None:
    _, rpc = keys(versions=(KEY, Page(items=[VERSION], next=("payments", 2))))
    this = call("KeyService/ListKeyVersions")
    page = rpc.list_key_versions(this, keys_pb2.ListKeyVersionsRequest(name="payments"))
    assert page.versions[0].state == keys_pb2.KEY_VERSION_STATE_ENABLED
    assert page.versions[0].sealed
    assert len(page.versions[0].public_key_sha256) == 64
    other = keys_pb2.ListKeyVersionsRequest(name="payroll", page_token=page.next_page_token)
    with pytest.raises(InvalidRequest):
        rpc.list_key_versions(this, other)


def test_get_public_key() -> None:
    _, rpc = keys(public_key=(KEY, VERSION))
    found = rpc.get_public_key(call("KeyService/GetPublicKey"), keys_pb2.GetPublicKeyRequest(name="payments"))
    assert found.version == 2
    assert found.pem.startswith("-----BEGIN PUBLIC KEY-----")
    assert json.loads(found.jwk)["alg"] == "ES256"


@pytest.mark.parametrize("prehashed", [False, True])
def test_sign_and_verify_in_the_jose_form(*, prehashed: bool) -> None:
    der = PRIVATE.sign(b"m", ec.ECDSA(hashes.SHA256()))
    signed = Signed(signatures=[der], version=2, algorithm=kinds.SignatureAlgorithm.ES256)
    noun, rpc = keys(sign=signed, verify=(True, 2, ""))
    given = keys_pb2.SignInput(digest=b"m") if prehashed else keys_pb2.SignInput(message=b"m")
    jose = keys_pb2.SIGNATURE_ENCODING_JOSE
    made = rpc.sign(call("KeyService/Sign"), keys_pb2.SignRequest(name="p", input=given, encoding=jose))
    assert len(made.signature) == 64
    assert der_from_jose(made.signature, kinds.SignatureAlgorithm.ES256) == der
    assert made.algorithm == keys_pb2.SIGNATURE_ALGORITHM_ES256
    asked = keys_pb2.VerifyRequest(name="p", input=given, signature=made.signature, encoding=jose)
    assert rpc.verify(call("KeyService/Verify"), asked).valid
    assert noun.asked == [
        ("sign", ("p", None, [b"m"]), {"prehashed": prehashed}),
        ("verify", ("p", 0, None, b"m", der), {"prehashed": prehashed}),
    ]


def test_batch_sign_keeps_the_order() -> None:
    signed = Signed(signatures=[b"1", b"2"], version=1, algorithm=kinds.SignatureAlgorithm.PS256)
    noun, rpc = keys(sign=signed)
    inputs = [keys_pb2.SignInput(message=b"a"), keys_pb2.SignInput(message=b"b")]
    made = rpc.batch_sign(call("KeyService/BatchSign"), keys_pb2.BatchSignRequest(name="p", inputs=inputs))
    assert list(made.signatures) == [b"1", b"2"]
    assert noun.asked[0][1] == ("p", None, [b"a", b"b"])


MESSAGE = keys_pb2.SignInput(message=b"a")


@pytest.mark.parametrize(
    "inputs",
    [
        [],
        [MESSAGE] * 101,
        [MESSAGE, keys_pb2.SignInput(digest=b"a")],
        [keys_pb2.SignInput(message=bytes(64 * 1024 + 1))],
        [keys_pb2.SignInput(digest=bytes(65))],
    ],
)
def test_AZ_08_a_batch_has_limits(inputs: list[keys_pb2.SignInput]) -> None:
    noun, rpc = keys()
    with pytest.raises(InvalidRequest):
        rpc.batch_sign(call("KeyService/BatchSign"), keys_pb2.BatchSignRequest(name="p", inputs=inputs))
    assert noun.asked == []


def test_the_largest_message_is_taken() -> None:
    signed = Signed(signatures=[b"1"], version=1, algorithm=kinds.SignatureAlgorithm.PS256)
    noun, rpc = keys(sign=signed)
    biggest = keys_pb2.SignInput(message=bytes(64 * 1024))
    rpc.sign(call("KeyService/Sign"), keys_pb2.SignRequest(name="p", input=biggest))
    assert len(noun.asked) == 1


def test_encrypt_and_decrypt() -> None:
    done = Encrypted(ciphertext=b"c", version=3, algorithm=kinds.EncryptionAlgorithm.AES_GCM)
    noun, rpc = keys(encrypt=done, decrypt=(b"p", 3))
    made = rpc.encrypt(call("KeyService/Encrypt"), keys_pb2.EncryptRequest(name="k", plaintext=b"p", aad=b"a"))
    assert (made.ciphertext, made.version, made.algorithm) == (b"c", 3, keys_pb2.ENCRYPTION_ALGORITHM_AES_GCM)
    request = keys_pb2.DecryptRequest(name="k", ciphertext=b"c", aad=b"a", version=3)
    assert rpc.decrypt(call("KeyService/Decrypt"), request).plaintext == b"p"
    assert noun.asked == [("encrypt", ("k", None, b"p", b"a"), {}), ("decrypt", ("k", 3, None, b"c", b"a"), {})]


TOO_MUCH = bytes(64 * 1024 + 1)


@pytest.mark.parametrize(
    ("method", "request_"),
    [
        ("encrypt", keys_pb2.EncryptRequest(plaintext=TOO_MUCH)),
        ("encrypt", keys_pb2.EncryptRequest(aad=TOO_MUCH)),
        ("decrypt", keys_pb2.DecryptRequest(ciphertext=bytes(64 * 1024 + 65))),
        ("decrypt", keys_pb2.DecryptRequest(aad=TOO_MUCH)),
        ("decrypt", keys_pb2.DecryptRequest(version=-1)),
        ("verify", keys_pb2.VerifyRequest(input=MESSAGE, signature=bytes(1025))),
        ("verify", keys_pb2.VerifyRequest(input=MESSAGE, version=-1)),
        ("get_public_key", keys_pb2.GetPublicKeyRequest(version=-1)),
    ],
)
def test_what_is_over_a_limit_never_reaches_the_core(method: str, request_: Any) -> None:
    noun, rpc = keys()
    with pytest.raises(InvalidRequest):
        getattr(rpc, method)(call("KeyService/X"), request_)
    assert noun.asked == []


@pytest.mark.parametrize(
    ("method", "core", "kind"),
    [
        ("rotate_key", "rotate", keys_pb2.RotateKeyRequest),
        ("enable_key", "enable", keys_pb2.EnableKeyRequest),
        ("disable_key", "disable", keys_pb2.DisableKeyRequest),
        ("cancel_key_destruction", "cancel_destruction", keys_pb2.CancelKeyDestructionRequest),
        ("seal_key", "seal", keys_pb2.SealKeyRequest),
    ],
)
def test_AZ_05_each_method_calls_its_own(method: str, core: str, kind: Any) -> None:
    noun, rpc = keys(**{core: KEY})
    assert getattr(rpc, method)(call("KeyService/X"), kind(name="payments")).key.name == "payments"
    assert noun.asked == [(core, ("payments",), {})]


@pytest.mark.parametrize(
    ("settlement", "keep"), [(keys_pb2.SETTLEMENT_KEEP, True), (keys_pb2.SETTLEMENT_DISCARD, False)]
)
def test_settle_key_version(settlement: keys_pb2.Settlement.ValueType, *, keep: bool) -> None:
    noun, rpc = keys(settle=KEY)
    asked = keys_pb2.SettleKeyVersionRequest(name="payments", version=2, settlement=settlement)
    assert rpc.settle_key_version(call("X/Y"), asked).key.name == "payments"
    assert noun.asked == [("settle", ("payments", 2), {"keep": keep})]


def test_what_is_to_become_of_a_held_version_must_be_said() -> None:
    noun, rpc = keys(settle=KEY)
    with pytest.raises(InvalidRequest) as refused:
        rpc.settle_key_version(call("X/Y"), keys_pb2.SettleKeyVersionRequest(name="payments", version=2))
    assert (refused.value.reason, noun.asked) == ("FIELD_MISSING", [])


def test_held_versions_are_told_by_get_and_list() -> None:
    _, rpc = keys(get=ENTRY, page=Page(items=[ENTRY], next=()))
    assert list(rpc.get_key(call("X/Y"), keys_pb2.GetKeyRequest(name="payments")).key.held_versions) == [2]
    (listed,) = rpc.list_keys(call("X/Y"), keys_pb2.ListKeysRequest()).keys
    assert list(listed.held_versions) == [2]


@pytest.mark.parametrize(("delay", "expected"), [(None, None), (Duration(seconds=86400), timedelta(days=1))])
def test_schedule_destruction(delay: Duration | None, expected: timedelta | None) -> None:
    noun, rpc = keys(schedule_destruction=KEY)
    rpc.schedule_key_destruction(call("X/Y"), keys_pb2.ScheduleKeyDestructionRequest(name="payments", delay=delay))
    assert noun.asked == [("schedule_destruction", ("payments", expected), {})]


def test_get_key() -> None:
    noun, rpc = keys(get=ENTRY)
    assert rpc.get_key(call("KeyService/GetKey"), keys_pb2.GetKeyRequest(name="payments")).key.name == "payments"
    assert noun.asked == [("get", ("payments",), {})]


def test_who_forgets_the_period_of_a_schedule_does_not_end_it() -> None:
    noun, rpc = keys(set=(KEY, None))
    for part in ("jitter", "warn", "grace", "blackouts"):
        value: Any = ["22:00-06:00"] if part == "blackouts" else Duration()
        asked = keys_pb2.SetKeyScheduleRequest(name="payments", **{part: value})
        with pytest.raises(InvalidRequest) as refused:
            rpc.set_key_schedule(call("X/Y"), asked)
        assert (refused.value.reason, refused.value.metadata) == ("FIELD_MISSING", {"field": "every"})
    assert noun.asked == []
    rpc.set_key_schedule(call("X/Y"), keys_pb2.SetKeyScheduleRequest(name="payments"))
    assert noun.asked == [("set", ("payments", None), {})]
