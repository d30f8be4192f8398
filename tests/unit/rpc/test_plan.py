"""What a request must be besides decodable."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from broker_api.v1 import keys_pb2, operators_pb2, policies_pb2, secrets_pb2, targets_pb2
from google.protobuf import descriptor_pb2, descriptor_pool, struct_pb2
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import given
from hypothesis import strategies as st

from broker.core.errors import BrokerError, InvalidRequest
from broker.core.gate.method import Request
from broker.rpc import table
from broker.rpc.plan import Plan, Shape
from tests.fakes.cost import cost

REQUESTS = [GetMessageClass(each.input_type) for service in table.declared().values() for each in service.methods]
PLANS = {kind: Plan(kind) for kind in REQUESTS}


def fill(message: Any) -> Any:
    """Choose something in every oneof, all the way down, so that only what a test changes can be wrong."""
    for field in message.DESCRIPTOR.fields:
        inside = field.message_type
        if is_choice(field):
            if message.WhichOneof(field.containing_oneof.name) is None:
                choose(message, field)
        elif inside and not inside.GetOptions().map_entry:
            child = getattr(message, field.name)
            fill(child.add() if field.is_repeated else child)
            if not field.is_repeated:
                child.SetInParent()
    return message


def is_choice(field: Any) -> bool:
    """In a oneof that was written as one, and not for a field that is marked optional."""
    return bool(field.containing_oneof) and not field.containing_oneof.name.startswith("_")


def choose(message: Any, field: Any) -> None:
    if field.message_type:
        getattr(message, field.name).SetInParent()
        fill(getattr(message, field.name))
    elif field.type == FieldDescriptor.TYPE_BYTES:
        setattr(message, field.name, b"x")
    else:
        setattr(message, field.name, True if field.type == FieldDescriptor.TYPE_BOOL else "x")


def nested(message: Any, place: tuple[str, ...]) -> Any:
    for name in place:
        child = getattr(message, name)
        message = child if isinstance(child, Message) else child[0]
    return message


def places(descriptor: Any, above: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    """Every field of a request type and of what it contains, with the way to it."""
    found = []
    for field in descriptor.fields:
        found.append((above, field))
        if field.message_type and not field.message_type.GetOptions().map_entry:
            found += places(field.message_type, (*above, field.name))
    return found


ENUMS = [(kind, way, each) for kind in REQUESTS for way, each in places(kind.DESCRIPTOR) if each.enum_type]
CHOICES = [(kind, way, each) for kind in REQUESTS for way, each in places(kind.DESCRIPTOR) if is_choice(each)]


@pytest.mark.parametrize("kind", REQUESTS, ids=lambda kind: kind.DESCRIPTOR.name)
def test_a_sound_request_passes(kind: type[Message]) -> None:
    made = fill(kind())
    assert PLANS[kind].decode(made.SerializeToString()).message == made


@pytest.mark.parametrize(("kind", "way", "field"), ENUMS, ids=lambda each: getattr(each, "name", None))
def test_AN_36_every_enum_number_and_three_beyond(kind: type[Message], way: tuple[str, ...], field: Any) -> None:
    known = set(field.enum_type.values_by_number)
    for number in [*range(min(known) - 3, max(known) + 4), 2**31 - 1, -(2**31)]:
        made = fill(kind())
        setattr(nested(made, way), field.name, number)
        wire = made.SerializeToString()
        if number in known:
            assert getattr(nested(PLANS[kind].decode(wire).message, way), field.name) == number
        else:
            with pytest.raises(InvalidRequest) as refused:
                PLANS[kind].decode(wire)
            assert refused.value.reason == "ENUM_UNKNOWN"


def test_AN_36_the_table_covers_the_enums_of_the_api() -> None:
    assert {field.enum_type.name for _, _, field in ENUMS} == {
        "KeyType",
        "KeyUsage",
        "SignatureAlgorithm",
        "SignatureEncoding",
        "EncryptionAlgorithm",
        "Preset",
        "Settlement",
    }


@pytest.mark.parametrize(("kind", "way", "field"), CHOICES, ids=lambda each: getattr(each, "name", None))
def test_AN_36_an_unset_oneof_is_refused(kind: type[Message], way: tuple[str, ...], field: Any) -> None:
    made = fill(kind())
    nested(made, way).ClearField(nested(made, way).WhichOneof(field.containing_oneof.name))
    with pytest.raises(InvalidRequest) as refused:
        PLANS[kind].decode(made.SerializeToString())
    assert refused.value.reason == "FIELD_MISSING"


@pytest.mark.parametrize("kind", [keys_pb2.SignRequest, keys_pb2.VerifyRequest])
def test_AN_36_the_message_around_a_oneof_cannot_be_left_out(kind: Any) -> None:
    with pytest.raises(InvalidRequest) as refused:
        PLANS[kind].decode(kind(name="a").SerializeToString())
    assert (refused.value.reason, refused.value.metadata) == ("FIELD_MISSING", {"field": "input"})


@pytest.mark.parametrize("kind", REQUESTS, ids=lambda kind: kind.DESCRIPTOR.name)
def test_an_unknown_field_is_refused_at_every_depth(kind: type[Message]) -> None:
    sound = fill(kind())
    ways = {(), *(way for way, _ in places(kind.DESCRIPTOR))}
    for way in ways:
        made = kind.FromString(sound.SerializeToString())
        nested(made, way).MergeFromString(b"\xf8\x07\x01")  # field 127, a varint
        with pytest.raises(InvalidRequest) as refused:
            PLANS[kind].decode(made.SerializeToString())
        assert refused.value.reason == "FIELD_UNKNOWN"


def test_an_optional_field_may_be_unset_and_is_told_from_its_default() -> None:
    plan = PLANS[secrets_pb2.PutSecretRequest]
    for version in (None, 0, 7):
        made = secrets_pb2.PutSecretRequest(name="a", expected_version=version)
        assert plan.decode(made.SerializeToString()).message.HasField("expected_version") == (version is not None)


def test_the_names_in_a_map_of_bytes_are_checked_and_its_values_are_free() -> None:
    plan = PLANS[secrets_pb2.PutSecretRequest]
    made = secrets_pb2.PutSecretRequest(name="a", fields={"x": b"\0\xff"})
    assert plan.decode(made.SerializeToString()).message.fields["x"] == b"\0\xff"
    with pytest.raises(InvalidRequest) as refused:
        plan.decode(secrets_pb2.PutSecretRequest(name="a", fields={"x\0": b""}).SerializeToString())
    assert (refused.value.reason, refused.value.metadata) == ("TEXT_INVALID", {"field": "fields"})


def test_a_known_field_with_another_wire_type_is_refused() -> None:
    with pytest.raises(InvalidRequest):
        PLANS[keys_pb2.GetKeyRequest].decode(b"\x08\x01")  # field 1 (name) as a number


@pytest.mark.parametrize("depth", [1, 63, 64, 65, 100, 10_000, 200_000])
def test_NT_02_nested_groups_are_refused_at_any_depth(depth: int) -> None:
    def look() -> None:
        for wire in (b"\xfb\x07" * depth + b"\xfc\x07" * depth, b"\xfb\x07" * depth, b"\xfc\x07" * depth):
            with pytest.raises(InvalidRequest):
                PLANS[keys_pb2.GetKeyRequest].decode(wire)

    assert cost(look) < 5


def test_NT_02_nested_messages_are_refused_at_any_depth() -> None:
    wire = b""
    for _ in range(5000):
        size, length = len(wire), b""
        while size >= 0x80:
            length += bytes([size & 0x7F | 0x80])
            size >>= 7
        wire = (
            b"\x1a" + length + bytes([size]) + wire
        )  # field 3 of SignRequest is a message; inside, field 3 is unknown
    with pytest.raises(InvalidRequest):
        PLANS[keys_pb2.SignRequest].decode(wire)


def test_NT_02_a_type_that_contains_itself_stops_the_start() -> None:
    file = descriptor_pb2.FileDescriptorProto(name="itself.proto", package="itself", syntax="proto3")
    message = file.message_type.add(name="Itself")
    message.field.add(
        name="inner",
        number=1,
        type=descriptor_pb2.FieldDescriptorProto.TYPE_MESSAGE,
        label=descriptor_pb2.FieldDescriptorProto.LABEL_OPTIONAL,
        type_name=".itself.Itself",
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    descriptor = pool.FindMessageTypeByName("itself.Itself")
    with pytest.raises(TypeError, match="contains itself"):
        Plan(GetMessageClass(descriptor))
    with pytest.raises(TypeError, match="only maps of strings"):
        Plan(struct_pb2.Struct)


NUL: list[tuple[Any, bytes]] = [
    (keys_pb2.GetKeyRequest, keys_pb2.GetKeyRequest(name="a\0").SerializeToString()),
    (keys_pb2.CreateKeyRequest, keys_pb2.CreateKeyRequest(labels={"a": "\0"}).SerializeToString()),
    (keys_pb2.CreateKeyRequest, keys_pb2.CreateKeyRequest(labels={"\0": "a"}).SerializeToString()),
    (
        operators_pb2.SetOperatorGroupsRequest,
        operators_pb2.SetOperatorGroupsRequest(groups=["a", "\0"]).SerializeToString(),
    ),
    (policies_pb2.ExplainPolicyRequest, policies_pb2.ExplainPolicyRequest(key="\0").SerializeToString()),
    (
        targets_pb2.CreateTargetRequest,
        targets_pb2.CreateTargetRequest(vault=targets_pb2.VaultSettings(mount="\0")).SerializeToString(),
    ),
]


@pytest.mark.parametrize(("kind", "wire"), NUL)
def test_a_nul_in_a_text_is_refused(kind: Any, wire: bytes) -> None:
    with pytest.raises(InvalidRequest) as refused:
        PLANS[kind].decode(wire)
    assert refused.value.reason == "TEXT_INVALID"


@pytest.mark.parametrize("text", [b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"a\xe2\x82"])
def test_a_text_that_is_not_utf_8_is_refused(text: bytes) -> None:
    with pytest.raises(InvalidRequest) as refused:
        PLANS[keys_pb2.GetKeyRequest].decode(b"\x0a" + bytes([len(text)]) + text)
    assert refused.value.reason == "MESSAGE_INVALID"


@given(st.sampled_from(REQUESTS), st.binary(max_size=200))
def test_P13_no_bytes_break_a_request_parser(kind: type[Message], wire: bytes) -> None:
    made = Request(message=kind(), essence=bytes)
    with suppress(BrokerError):
        made = PLANS[kind].decode(wire)
    assert isinstance(made.message, kind)


def test_what_a_plan_says_of_a_type() -> None:
    assert PLANS[keys_pb2.CreateKeyRequest].has_request_id
    assert PLANS[keys_pb2.CreateKeyRequest].has_validate_only
    assert not PLANS[keys_pb2.SignRequest].has_request_id
    assert isinstance(PLANS[keys_pb2.SignRequest]._shape, Shape)  # noqa: SLF001 - nothing but its speed would show


def test_CL_03_what_is_digested_of_a_request_tells_nothing_of_its_values() -> None:
    plan = Plan(secrets_pb2.PutSecretRequest)
    requests = [secrets_pb2.PutSecretRequest(name="a", fields={"pin": pin}) for pin in (b"1234", b"canary-4321")]
    bare = [plan.without_values(request).SerializeToString(deterministic=True) for request in requests]
    assert bare[0] == bare[1]
    assert b"pin" in bare[0]
    assert b"canary-4321" in requests[1].SerializeToString()
    other = secrets_pb2.PutSecretRequest(name="a", fields={"password": b"1234"})
    assert plan.without_values(other).SerializeToString(deterministic=True) != bare[0]
